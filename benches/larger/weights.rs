//! Weights that do not fit: the model larger than memory.

use std::fs;
use std::path::Path;

use anyhow::Result;
use ggml_sys as ggml;
use serde_json::json;

use super::group::{self, Controller};
use super::options::Options;
use super::reader::{Reader, read_ahead_kib};
use super::rig::measure::{Speeds, Workload, write_prompt};
use super::rig::model::{Model, Shape};
use super::runs::{Run, Runs, Spec, speeds_of, variant};
use super::table::{Round, Size};
use super::{cache, interrupt, table};

/// Both are paged, whatever fits.
const PAGED: [&str; 2] = ["--dynamic-layers", "--paged-kv"];

/// What a tiny model's process needs beside it, so that its group does not kill it.
const SMOKE_ALLOWANCE_BYTES: u64 = 256 << 20;

/// Measures all sizes of memory and prints the table.
pub fn bench(options: &Options, folder: &Path) -> Result<()> {
    let model = model(options);
    if options.make_only {
        return cache::empty(&model.file(folder)?);
    }
    // A refusal comes before minutes of work.
    let controller = controller(options)?;
    let path = model.file(folder)?;
    let prompt = folder.join("prompt-larger.txt");
    write_prompt(&prompt, options.prompt_tokens)?;
    let tokens = options.prompt_tokens + options.decode_tokens;
    let runs = Runs {
        options,
        workload: Workload {
            model: &path,
            prompt: &prompt,
            context_tokens: tokens.next_multiple_of(512),
            decode_tokens: options.decode_tokens,
            threads: options.threads,
        },
        controller: controller.as_ref(),
        folder,
    };
    let bench = Bench {
        bytes: fs::metadata(&path)?.len(),
        unread_bytes: embedding_bytes(&model.shape),
        reader: Reader::choose(&path, options.depth)?,
        runs,
    };
    let mut sizes = Vec::new();
    for &share in &options.shares {
        sizes.push(bench.size(share)?);
    }
    let loaded = bench.loaded_whole(options.shares[0])?;
    table::print(options, bench.bytes, &sizes, &loaded);
    if let Some(kibibytes) = read_ahead_kib(&path) {
        println!("the kernel reads {kibibytes} KiB ahead for stock's mapping");
    }
    println!("\nrecords: {}", bench.runs.records().display());
    Ok(())
}

/// Where groups are made; None in a smoke run without the rights to.
fn controller(options: &Options) -> Result<Option<Controller>> {
    if !options.smoke {
        group::check_root()?;
        return Controller::find().map(Some);
    }
    if !group::is_root() {
        println!("not root: the runs get no memory control groups");
        return Ok(None);
    }
    let found = Controller::find();
    if let Err(error) = &found {
        println!("the runs get no memory control groups: {error:#}");
    }
    Ok(found.ok())
}

fn model(options: &Options) -> Model {
    let shape = if options.smoke {
        Shape {
            layers: options.layers,
            embedding: 256,
            feed_forward: 512,
            heads: 4,
            heads_kv: 2,
            head: 64,
            vocabulary: 1024,
            context: 4096,
        }
    } else {
        Shape {
            layers: options.layers,
            embedding: 2048,
            feed_forward: 5632,
            heads: 32,
            heads_kv: 4,
            head: 64,
            vocabulary: 32_000,
            context: 4096,
        }
    };
    let kind = if options.smoke { "smoke" } else { "q8_0" };
    Model {
        name: format!("larger-{kind}-{}", options.layers),
        kind: ggml::GGML_TYPE_Q8_0,
        file_type: ggml::LLAMA_FTYPE_MOSTLY_Q8_0,
        shape,
    }
}

/// Bytes of the token embedding: Q8_0 stores 32 elements in 34 bytes.
fn embedding_bytes(shape: &Shape) -> u64 {
    u64::from(shape.embedding) * u64::from(shape.vocabulary) / 32 * 34
}

struct Bench<'a> {
    runs: Runs<'a>,
    /// Size of the model's file.
    bytes: u64,
    /// Bytes of it of which a pass reads a few rows only: the embedding.
    unread_bytes: u64,
    reader: Reader,
}

impl Bench<'_> {
    fn options(&self) -> &Options {
        self.runs.options
    }

    /// What a group of `share` percent of the model may take, and our budget in it.
    fn limit_and_budget(&self, share: u64) -> Result<(u64, u64)> {
        let limit = (self.bytes * share / 100) >> 20 << 20;
        let headroom = self.options().headroom_bytes;
        anyhow::ensure!(
            limit > headroom,
            "{} MiB of memory leave nothing for a budget; lower --headroom",
            limit >> 20
        );
        let allowance = if self.options().smoke {
            SMOKE_ALLOWANCE_BYTES
        } else {
            0
        };
        Ok((limit + allowance, limit - headroom))
    }

    /// All rounds in a memory of `share` percent of the model.
    fn size(&self, share: u64) -> Result<Size> {
        let (limit_bytes, budget_bytes) = self.limit_and_budget(share)?;
        eprintln!(
            "{share} %: groups of {} MiB, budget {} MiB",
            limit_bytes >> 20,
            budget_bytes >> 20
        );
        let options = self.options();
        let stock = Spec {
            variant: variant("stock", &[], &options.stock),
            limit_bytes: Some(limit_bytes),
            budget_bytes: None,
        };
        let ours = Spec {
            variant: variant("ours", &PAGED, &options.ours),
            limit_bytes: Some(limit_bytes),
            budget_bytes: Some(budget_bytes),
        };
        let resident = Spec {
            variant: variant("resident", &PAGED, &options.ours),
            limit_bytes: None,
            // Half as much again holds the model, its KV cache and the scratch.
            budget_bytes: Some(self.bytes * 3 / 2 + SMOKE_ALLOWANCE_BYTES),
        };
        let mut rounds = Vec::new();
        for round in 1..=options.rounds {
            let (stock_there, stock_speeds) = self.survivor(&stock, round)?;
            let (ours_there, ours_speeds) = self.survivor(&ours, round)?;
            let rate_there = self.rate(round)?;
            let (all_resident, resident_speeds) = self.survivor(&resident, round)?;
            let rate_back = self.rate(round)?;
            // And back again, so that no variant always follows the same other one.
            let (ours_back, ours_speeds_back) = self.survivor(&ours, round)?;
            let (stock_back, stock_speeds_back) = self.survivor(&stock, round)?;
            rounds.push(Round {
                stock: stock_speeds.mean(stock_speeds_back),
                ours: ours_speeds.mean(ours_speeds_back),
                storage_rate: f64::midpoint(rate_there, rate_back),
                compute_seconds: 1.0 / resident_speeds.decode,
                streamed_bytes: self.streamed_bytes(&ours_back, budget_bytes),
                runs_of_ours: [ours_there, ours_back],
                runs_of_stock: [stock_there, stock_back],
                resident: all_resident,
            });
        }
        Ok(Size {
            share,
            limit_bytes,
            budget_bytes,
            beyond_bytes: self.beyond_bytes(budget_bytes),
            rounds,
        })
    }

    /// A run that must not be killed, and its speeds.
    fn survivor(&self, spec: &Spec, round: usize) -> Result<(Run, Speeds)> {
        let run = self.runs.run(spec, round)?;
        let speeds = speeds_of(&run, spec.variant.name)?;
        Ok((run, speeds))
    }

    /// One measurement of the storage, which becomes a record.
    fn rate(&self, round: usize) -> Result<f64> {
        interrupt::check()?;
        let (path, depth) = (self.runs.workload.model, self.options().depth);
        let rate = self.reader.rate(path, depth)?;
        self.runs.record(&json!({
            "variant": "reader",
            "reader": self.reader.name(),
            "depth": depth,
            "read_ahead_kib": read_ahead_kib(path),
            "round": round,
            "bytes_per_s": rate,
        }))?;
        eprintln!("round {round} reader      {:.2} GB/s", rate / 1e9);
        Ok(rate)
    }

    /// Weight bytes that a pass reads and the budget cannot hold.
    fn beyond_bytes(&self, budget_bytes: u64) -> u64 {
        (self.bytes - self.unread_bytes).saturating_sub(budget_bytes)
    }

    /// Weight bytes that travelled in each pass of `run`, as it says itself; without
    /// metrics, what the budget cannot hold.
    fn streamed_bytes(&self, run: &Run, budget_bytes: u64) -> u64 {
        let metrics = run.metrics.as_ref();
        metrics.map_or_else(
            || self.beyond_bytes(budget_bytes),
            |metrics| metrics.plan.streamed_bytes,
        )
    }

    /// One run of stock that reads the model into memory of its own.
    fn loaded_whole(&self, share: u64) -> Result<Run> {
        let flags = ["--load-mode", "none"];
        let spec = Spec {
            variant: variant("stock, none", &flags, &self.options().stock),
            limit_bytes: Some(self.limit_and_budget(share)?.0),
            budget_bytes: None,
        };
        self.runs.run(&spec, 1)
    }
}
