//! Long contexts: a KV cache larger than its budget, and a context that is allowed but not
//! used.
//!
//! The model has as many KV heads as heads, so that its cache is larger than itself. In the
//! first part the budget holds a quarter of the cache: how fast is decoding, and does each
//! token move what the plan says? In the second, 32k tokens are allowed and 1k used: how much
//! memory does the cache take? Weights stay in llama.cpp's own mapping throughout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggml_sys as ggml;

use super::cache;
use super::metrics::{Metrics, Plan};
use super::options::Options;
use super::rig::measure::{Speeds, Workload, write_prompt};
use super::rig::model::{Model, Shape};
use super::runs::{Run, Runs, Spec, same_text, speeds_of, variant};
use super::table::Spread;

/// Paged is the KV cache alone; its pages are rows of tokens only with flash attention.
const PAGED: [&str; 3] = ["--paged-kv", "-fa", "on"];
const STOCK: [&str; 2] = ["-fa", "on"];

/// The scratch of the computation, where no metrics tell it.
const SCRATCH_BYTES: u64 = 64 << 20;

/// What a token may move beyond the plan's bytes, as a share of them.
const MOVED_EXCESS_MAX: f64 = 0.01;

/// What a process may take for an allowed context, beyond what it takes for the used one.
const ALLOWED_EXCESS_BYTES_MAX: u64 = 64 << 20;

const MEBIBYTE: f64 = (1 << 20) as f64;

/// Measures both parts and prints them.
pub fn bench(options: &Options, folder: &Path) -> Result<()> {
    let model = model(options);
    let path = model.file(folder)?;
    if options.make_only {
        return cache::empty(&path);
    }
    let bench = Bench {
        options,
        row_bytes: row_bytes(&model.shape),
        path,
        folder,
    };
    bench.quarter()?;
    bench.allowed()
}

fn model(options: &Options) -> Model {
    // Heads of 64 elements, all of them with keys and values of their own.
    let (heads, vocabulary) = if options.smoke { (4, 1024) } else { (16, 4096) };
    Model {
        name: format!(
            "larger-kv{}-{}",
            if options.smoke { "-smoke" } else { "" },
            options.layers
        ),
        kind: ggml::GGML_TYPE_Q8_0,
        file_type: ggml::LLAMA_FTYPE_MOSTLY_Q8_0,
        shape: Shape {
            layers: options.layers,
            embedding: heads * 64,
            feed_forward: heads * 64 * 11 / 4 / 32 * 32,
            heads,
            heads_kv: heads,
            head: 64,
            vocabulary,
            context: 32 << 10,
        },
    }
}

/// Bytes of one token in the KV cache: keys and values in F16, all layers.
fn row_bytes(shape: &Shape) -> u64 {
    2 * 2 * u64::from(shape.heads_kv * shape.head) * u64::from(shape.layers)
}

struct Bench<'a> {
    options: &'a Options,
    row_bytes: u64,
    path: PathBuf,
    folder: &'a Path,
}

/// Speeds of one round, there and back: stock, resident, quarter.
type Round = [Speeds; 3];

const NAMES: [&str; 3] = ["stock", "resident", "quarter"];

impl Bench<'_> {
    /// Runs with a prompt of `prompt_tokens` in a context of `context_tokens`.
    fn runs<'a>(&'a self, prompt: &'a Path, context_tokens: u32) -> Runs<'a> {
        Runs {
            options: self.options,
            workload: Workload {
                model: &self.path,
                prompt,
                context_tokens,
                decode_tokens: self.options.decode_tokens,
                threads: self.options.threads,
            },
            controller: None,
            folder: self.folder,
        }
    }

    fn prompt(&self, name: &str, tokens: u32) -> Result<PathBuf> {
        let path = self.folder.join(name);
        write_prompt(&path, tokens)?;
        Ok(path)
    }

    fn spec(&self, name: &'static str, budget_bytes: Option<u64>) -> Spec {
        let variant = match budget_bytes {
            Some(_) => variant(name, &PAGED, &self.options.ours),
            None => variant(name, &STOCK, &self.options.stock),
        };
        Spec {
            variant,
            limit_bytes: None,
            budget_bytes,
        }
    }

    /// A budget that holds a quarter of the cache.
    fn quarter(&self) -> Result<()> {
        let prompt = self.prompt("prompt-long.txt", self.options.prompt_tokens)?;
        let tokens = self.options.prompt_tokens + self.options.decode_tokens;
        let context_tokens = tokens.next_multiple_of(256);
        let runs = self.runs(&prompt, context_tokens);
        let cache_bytes = u64::from(context_tokens) * self.row_bytes;
        let whole = self.spec(NAMES[1], Some(cache_bytes + 4 * SCRATCH_BYTES));
        // Also tells the scratch, which counts as part of the budget.
        let first = runs.run(&whole, 0)?;
        let scratch_bytes = plan_of(&first).map_or(SCRATCH_BYTES, |plan| plan.scratch_bytes);
        let budget_bytes = cache_bytes / 4 + scratch_bytes;
        let specs = [
            self.spec(NAMES[0], None),
            whole,
            self.spec(NAMES[2], Some(budget_bytes)),
        ];
        let mut rounds: Vec<Round> = Vec::new();
        let mut all = vec![first];
        for round in 1..=self.options.rounds {
            let run = |spec: &Spec| runs.run(spec, round);
            let there = specs.iter().map(run).collect::<Result<Vec<_>>>()?;
            let back = specs.iter().rev().map(run).collect::<Result<Vec<_>>>()?;
            let mut speeds = [Speeds {
                prefill: 0.0,
                decode: 0.0,
            }; 3];
            for (index, name) in NAMES.iter().enumerate() {
                let both = [&there[index], &back[2 - index]];
                speeds[index] = speeds_of(both[0], name)?.mean(speeds_of(both[1], name)?);
            }
            rounds.push(speeds);
            // The quarter comes last there: it is the last but two of all.
            all.extend(back.into_iter().rev().chain(there));
        }
        println!(
            "\ncontext of {context_tokens} tokens, KV cache of {} MiB, budget for a quarter of \
             it: {} MiB with {} MiB of scratch; {} rounds; tokens/s as median ± MAD\n",
            cache_bytes >> 20,
            budget_bytes >> 20,
            scratch_bytes >> 20,
            rounds.len(),
        );
        print_speeds(&rounds);
        let quarter = all.last().context("there is no run")?;
        self.print_moved(quarter);
        println!(
            "the text of all runs is {}",
            if same_text(&all) {
                "the same"
            } else {
                "NOT the same"
            }
        );
        Ok(())
    }

    /// What a token moved, against the plan.
    fn print_moved(&self, run: &Run) {
        let Some(Metrics { plan, tokens }) = &run.metrics else {
            println!("bytes per token: unknown without metrics");
            return;
        };
        let middle = |bytes: fn(&super::metrics::Moved) -> u64| {
            let values: Vec<f64> = tokens.iter().map(|token| bytes(token) as f64).collect();
            Spread::of(&values).median
        };
        let (moved, back) = (middle(|t| t.bytes_in), middle(|t| t.bytes_back));
        let planned = (plan.streamed_bytes + plan.kv_streamed_bytes) as f64;
        let excess = (moved - planned).abs() / planned.max(1.0);
        println!(
            "KV cache: {:.1} MiB resident, {:.1} MiB streamed",
            plan.kv_resident_bytes as f64 / MEBIBYTE,
            plan.kv_streamed_bytes as f64 / MEBIBYTE,
        );
        println!(
            "bytes per token: {:.2} MiB in, the plan's {:.2} MiB (bar: within {MOVED_EXCESS_MAX} \
             of it): {}",
            moved / MEBIBYTE,
            planned / MEBIBYTE,
            met(excess <= MOVED_EXCESS_MAX),
        );
        println!(
            "written back: {back} bytes per token; the rows of one token are {} bytes in all \
             layers (bar: no more than those): {}",
            self.row_bytes,
            met(back <= self.row_bytes as f64),
        );
    }

    /// A large context that is allowed, and a small one that is used.
    fn allowed(&self) -> Result<()> {
        let (allowed, used) = if self.options.smoke {
            (4 << 10, 200)
        } else {
            (32 << 10, 1000)
        };
        let prompt = self.prompt("prompt-short.txt", used)?;
        let small = (used + self.options.decode_tokens).next_multiple_of(256);
        let budget_bytes = u64::from(allowed) * self.row_bytes + 8 * SCRATCH_BYTES;
        let rows = [
            ("stock", None, allowed),
            ("ours", Some(budget_bytes), allowed),
            ("ours", Some(budget_bytes), small),
        ];
        let mut lines = Vec::new();
        let mut ours = Vec::new();
        for (name, budget_bytes, context_tokens) in rows {
            let runs = self.runs(&prompt, context_tokens);
            let run = runs.run(&self.spec(name, budget_bytes), 1)?;
            let taken = plan_of(&run).map_or_else(
                || "unknown".to_owned(),
                |plan| format!("{:.1} MiB", kv_bytes(&plan) as f64 / MEBIBYTE),
            );
            lines.push(format!(
                "| {name} | {context_tokens} | {} MiB | {taken} |",
                run.peak_bytes >> 20
            ));
            if budget_bytes.is_some() {
                ours.push(run);
            }
        }
        println!("\nprompt of {used} tokens:\n");
        println!("| | context | peak of the process | taken for the KV cache |");
        println!("|---|---|---|---|");
        println!("{}\n", lines.join("\n"));
        print_allowed(&ours[0], &ours[1]);
        println!(
            "\nrecords: {}",
            self.runs(&prompt, allowed).records().display()
        );
        Ok(())
    }
}

fn print_speeds(rounds: &[Round]) {
    println!("| | prefill | ratio to resident | decode | ratio to resident |");
    println!("|---|---|---|---|---|");
    let spread = |value: &dyn Fn(&Round) -> f64| {
        let values: Vec<f64> = rounds.iter().map(value).collect();
        Spread::of(&values)
    };
    for (index, name) in NAMES.iter().enumerate() {
        println!(
            "| {name} | {} | {} | {} | {} |",
            spread(&|round| round[index].prefill).show(2),
            spread(&|round| round[index].prefill / round[1].prefill).show(3),
            spread(&|round| round[index].decode).show(2),
            spread(&|round| round[index].decode / round[1].decode).show(3),
        );
    }
    println!();
}

/// The bars about the allowed context: it takes what the used one takes.
fn print_allowed(allowed: &Run, used: &Run) {
    let plans = plan_of(allowed).zip(plan_of(used));
    if let Some((allowed, used)) = plans {
        println!(
            "KV cache of the allowed context / of the used one (bar: the same): {}",
            // A plan that counts no cache proves nothing.
            met(kv_bytes(&allowed) <= kv_bytes(&used) && kv_bytes(&used) > 0),
        );
    }
    // More context is more mask: scratch, which is no part of the cache.
    let scratch = plans.map_or(0, |(allowed, used)| {
        allowed.scratch_bytes.saturating_sub(used.scratch_bytes)
    });
    let more = allowed.peak_bytes.saturating_sub(used.peak_bytes);
    println!(
        "peak of the process: {} MiB more, {} MiB of them scratch (bar: at most {} MiB beside \
         it): {}",
        more >> 20,
        scratch >> 20,
        ALLOWED_EXCESS_BYTES_MAX >> 20,
        met(more <= scratch + ALLOWED_EXCESS_BYTES_MAX),
    );
}

fn plan_of(run: &Run) -> Option<Plan> {
    run.metrics.as_ref().map(|metrics| metrics.plan)
}

fn kv_bytes(plan: &Plan) -> u64 {
    plan.kv_resident_bytes + plan.kv_streamed_bytes
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}
