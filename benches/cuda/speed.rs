//! Speeds beside stock llama.cpp of the same build, in alternation, with the same memory of
//! the GPU.
//!
//! - **Prefill** of a short and a long prompt, **decode** at a short and a long context, for
//!   each budget; of stock the placement that is fastest and takes no more of the GPU's
//!   memory than the paged run took: whole layers (`-ngl`) or feed-forward blocks kept with
//!   the processor (`-ot`), each with small and large ubatches, its memory pinned (`-lm none`).
//! - **Bars**: see [`bar`].

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::checks::smallest;
use super::model::{Made, make};
use super::options::Options;
use super::rig::measure::median_and_mad;
use super::run::Runner;

/// Rounds of a budget: ours, stock, ours, stock.
const ROUNDS: usize = 2;

/// What is measured, in tokens.
struct Work {
    prompts: [u64; 2],
    depths: [u64; 2],
    generated: u64,
    /// A prompt and a generation to choose a placement by.
    trial: (u64, u64),
    ubatches: [u64; 2],
}

const FULL: Work = Work {
    prompts: [2048, 8192],
    depths: [512, 32_768],
    generated: 32,
    trial: (2048, 8),
    ubatches: [512, 2048],
};

const SMOKE: Work = Work {
    prompts: [64, 128],
    depths: [32, 256],
    generated: 4,
    trial: (64, 2),
    ubatches: [32, 64],
};

/// What runs: the program, the model, and what there is to do.
struct Rig<'a> {
    options: &'a Options,
    runner: &'a Runner,
    model: Made,
    work: &'static Work,
}

/// One test of a run.
#[derive(Clone, Debug)]
struct Row {
    prompt: u64,
    depth: u64,
    tokens_per_second: f64,
    json: Value,
}

/// A run of several tests.
struct Measured {
    rows: Vec<Row>,
    vram_bytes: Option<u64>,
    seconds: f64,
}

/// Flags of a placement, and how fast it was tried to be.
#[derive(Clone)]
struct Placement {
    flags: Vec<String>,
    prefill: f64,
    decode: f64,
    vram_bytes: Option<u64>,
}

/// Measures all budgets; what is done is handed to `save` after each.
pub fn speed(options: &Options, runner: &Runner, save: &mut dyn FnMut(&Value)) -> Result<Value> {
    let started = std::time::Instant::now();
    let model = make(&options.folder, options.smoke)?;
    let rig = Rig {
        options,
        runner,
        work: if options.smoke { &SMOKE } else { &FULL },
        model,
    };
    let mut result = json!({
        "model": rig.model.path.file_name().map(|name| name.to_string_lossy()),
        "model_bytes": rig.model.bytes, "made_seconds": started.elapsed().as_secs_f64(),
        "budgets": [], "errors": [],
    });
    // What is computed when nothing travels: the other bound of the bars.
    let compute = rig.resident(&mut result);
    let mut ok = true;
    for (number, percent) in options.budgets.iter().enumerate() {
        let rest = u32::try_from(options.budgets.len() - number + 1)?;
        let seconds = runner.seconds_left() / f64::from(rest);
        let end = std::time::Instant::now() + std::time::Duration::from_secs_f64(seconds);
        let within = Rig {
            runner: &runner.until(end),
            model: rig.model.clone(),
            ..rig
        };
        match within.budget(*percent, compute.as_ref()) {
            Ok(value) => {
                ok &= value["ok"] == true;
                push(&mut result, "budgets", value);
            }
            Err(error) => {
                ok = false;
                note(&mut result, &format!("budget of {percent} %"), &error);
            }
        }
        save(&result);
    }
    match rig.long_context() {
        Ok(value) => {
            ok &= value["ok"] == true;
            result["kv_beyond_budget"] = value;
        }
        Err(error) => {
            ok = false;
            note(&mut result, "KV cache beyond the budget", &error);
        }
    }
    result["ok"] = json!(ok);
    Ok(result)
}

fn push(result: &mut Value, list: &str, value: Value) {
    if let Some(values) = result[list].as_array_mut() {
        values.push(value);
    }
}

fn note(result: &mut Value, what: &str, error: &anyhow::Error) {
    push(result, "errors", json!(format!("{what}: {error:#}")));
}

impl Rig<'_> {
    /// A run of `rpaged-cli bench` with these tests.
    fn bench(&self, tests: &[String], flags: &[String]) -> Result<Measured> {
        let path = self.model.path.to_string_lossy().into_owned();
        let fixed = ["bench", "-m", &path, "-r", "1", "-o", "jsonl"].map(str::to_owned);
        let device = ["-dev", &self.options.device, "-fa", "on"].map(str::to_owned);
        let threads: Vec<String> = match self.options.smoke {
            true => ["-t", "1"].map(str::to_owned).into(),
            false => Vec::new(),
        };
        let words = [&fixed[..], &device, &threads, tests, flags].concat();
        let output = self.runner.run(&self.options.program, &words)?;
        let (vram_bytes, seconds) = (output.vram_bytes, output.seconds);
        let rows: Vec<Row> = output.stdout.lines().filter_map(row).collect();
        if rows.is_empty() {
            // Tests that have no room fail alone; what is left counts.
            output.printed().context(words.join(" "))?;
        }
        ensure!(!rows.is_empty(), "no speeds from {}", words.join(" "));
        Ok(Measured {
            rows,
            vram_bytes,
            seconds,
        })
    }

    fn prefill_tests(&self) -> Vec<String> {
        let lengths = self.work.prompts.map(|length| length.to_string());
        [
            "-p".to_owned(),
            lengths.join(","),
            "-n".to_owned(),
            "0".to_owned(),
        ]
        .into()
    }

    fn decode_tests(&self, depths: &[u64]) -> Vec<String> {
        let depths: Vec<String> = depths.iter().map(u64::to_string).collect();
        let words = [
            "-p",
            "0",
            "-n",
            &self.work.generated.to_string(),
            "-d",
            &depths.join(","),
        ];
        words.map(str::to_owned).into()
    }

    fn trial_tests(&self) -> Vec<String> {
        let (prompt, generated) = self.work.trial;
        ["-p", &prompt.to_string(), "-n", &generated.to_string()]
            .map(str::to_owned)
            .into()
    }

    /// Paged, with room for everything.
    fn resident(&self, result: &mut Value) -> Option<Measured> {
        let most = self.work.ubatches[1].to_string();
        let flags = ["--vram-budgets", "400%", "-ub", &most].map(str::to_owned);
        let measured = self.bench(&self.prefill_tests(), &flags);
        match measured {
            Ok(measured) => Some(measured),
            Err(error) => {
                note(result, "everything resident", &error);
                None
            }
        }
    }

    /// The fastest of several placements, by prefill and by decode, that takes no more of the
    /// GPU's memory than `limit_bytes`.
    fn choose(&self, all: Vec<Vec<String>>, limit_bytes: Option<u64>) -> Result<[Placement; 2]> {
        let mut tried = Vec::new();
        let mut failure = None;
        for flags in all {
            match self.bench(&self.trial_tests(), &flags) {
                Ok(found) => {
                    let speed = |prompt: bool| {
                        let row = found.rows.iter().find(|row| (row.prompt > 0) == prompt);
                        row.map_or(0.0, |row| row.tokens_per_second)
                    };
                    tried.push(Placement {
                        flags,
                        prefill: speed(true),
                        decode: speed(false),
                        vram_bytes: found.vram_bytes,
                    });
                }
                Err(error) => failure = Some(error),
            }
        }
        // Sizes are sampled: a hundredth more is the same.
        let fits = |placement: &&Placement| match (placement.vram_bytes, limit_bytes) {
            (Some(bytes), Some(limit)) => bytes <= limit + limit / 100,
            _ => true,
        };
        let best = |by: fn(&Placement) -> f64| {
            let fitting = tried.iter().filter(fits);
            fitting.max_by(|a, b| by(a).total_cmp(&by(b))).cloned()
        };
        match (best(|found| found.prefill), best(|found| found.decode)) {
            (Some(prefill), Some(decode)) => Ok([prefill, decode]),
            _ => Err(failure.unwrap_or_else(|| anyhow::anyhow!("no placement takes so little"))),
        }
    }

    /// Placements of stock that take about so much of the model into the GPU's memory.
    fn stock_placements(&self, percent: u64) -> Vec<Vec<String>> {
        let layers = u64::from(self.model.layers);
        let resident = (layers * percent / 100).min(layers + 1);
        // Of a layer's bytes, feed-forward blocks are about four fifths.
        let cold = (layers * (100 - percent.min(100)) * 5)
            .div_ceil(400)
            .min(layers);
        let numbers: Vec<String> = (0..cold).map(|layer| layer.to_string()).collect();
        let blocks = format!("blk\\.({})\\.ffn_.*=CPU", numbers.join("|"));
        let whole = match percent >= 100 {
            true => vec!["-ngl".to_owned(), "99".to_owned()],
            false => vec!["-ngl".to_owned(), resident.to_string()],
        };
        let mut all = vec![whole];
        if cold > 0 {
            all.push(["-ngl", "99", "-ot", &blocks].map(str::to_owned).into());
        }
        let with = |flags: &Vec<String>| {
            self.work.ubatches.map(|ubatch| {
                let more = ["-lm", "none", "-ub", &ubatch.to_string()].map(str::to_owned);
                [&flags[..], &more].concat()
            })
        };
        all.iter().flat_map(with).collect()
    }

    /// The smallest budget for these many tokens with the smallest ubatch, in bytes.
    fn smallest(&self, tokens: u64) -> Result<u64> {
        let path = self.model.path.to_string_lossy();
        let (tokens, ubatch) = (tokens.to_string(), self.work.ubatches[0].to_string());
        let flags = [
            "-m",
            &*path,
            "-c",
            &tokens,
            "-ub",
            &ubatch,
            "-fa",
            "on",
            "--paged-kv",
        ];
        smallest(self.options, self.runner, &flags)
    }

    fn budget(&self, percent: u64, compute: Option<&Measured>) -> Result<Value> {
        let longest = self.work.depths[1] + self.work.generated + self.work.prompts[1];
        // What the budget has to cover beside the weights may be more than the share.
        let bytes = (self.model.bytes * percent / 100).max(self.smallest(longest)?);
        // Room for what is computed with, when all of the model is to stay.
        let budget = if percent >= 100 {
            "400%".to_owned()
        } else {
            format!("{bytes}b")
        };
        let ours = self.work.ubatches.map(|ubatch| {
            let ubatch = ubatch.to_string();
            ["--vram-budgets", &budget, "-ub", &ubatch]
                .map(str::to_owned)
                .to_vec()
        });
        let ours = self.choose(ours.into(), None)?;
        let limit = ours.iter().filter_map(|found| found.vram_bytes).max();
        let stock = self.choose(self.stock_placements(percent), limit)?;
        let mut tests = Vec::new();
        for (index, words) in [self.prefill_tests(), self.decode_tests(&self.work.depths)]
            .into_iter()
            .enumerate()
        {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                a.push(self.bench(&words, &ours[index].flags)?);
                b.push(self.bench(&words, &stock[index].flags)?);
            }
            tests.extend(compare(percent, &a, &b, compute));
        }
        let ok = tests.iter().all(|test| test["ok"] != false);
        Ok(json!({
            "percent": percent, "budget_bytes": bytes, "ok": ok, "tests": tests,
            "ours": describe(&ours), "stock": describe(&stock), "vram_limit_bytes": limit,
        }))
    }

    /// Decode when the KV cache is larger than what the budget leaves it: beside stock with
    /// the cache in the machine's memory.
    fn long_context(&self) -> Result<Value> {
        let depth = self.work.depths[1];
        let words = self.decode_tests(&[depth]);
        let bytes = self
            .model
            .bytes
            .max(self.smallest(depth + self.work.generated)?);
        let (budget, ubatch) = (format!("{bytes}b"), self.work.ubatches[0].to_string());
        let ours = ["--vram-budgets", &budget, "-ub", &ubatch].map(str::to_owned);
        let stock = ["-ngl", "99", "-nkvo", "1", "-lm", "none", "-ub", &ubatch].map(str::to_owned);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            a.push(self.bench(&words, &ours)?);
            b.push(self.bench(&words, &stock)?);
        }
        let mut tests = compare(0, &a, &b, None);
        let mut test = tests.pop().context("no speeds")?;
        test["bar"] = json!("5x of -nkvo");
        test["ok"] = json!(test["ratio"].as_f64().is_some_and(|ratio| ratio >= 5.0));
        Ok(test)
    }
}

fn describe(placements: &[Placement; 2]) -> Value {
    let one = |Placement {
                   flags, vram_bytes, ..
               }: &Placement| {
        let flags = flags.join(" ");
        json!({"flags": flags, "vram_bytes": vram_bytes})
    };
    json!({"prefill": one(&placements[0]), "decode": one(&placements[1])})
}

/// A line of the bench; None when the test did not run.
fn row(line: &str) -> Option<Row> {
    let json: Value = serde_json::from_str(line).ok()?;
    Some(Row {
        prompt: json["n_prompt"].as_u64()?,
        depth: json["n_depth"].as_u64()?,
        tokens_per_second: json["median_ts"].as_f64()?,
        json,
    })
}

/// Each test of ours beside stock's: speeds, ratio, and whether it is above its bar.
fn compare(
    percent: u64,
    ours: &[Measured],
    stock: &[Measured],
    compute: Option<&Measured>,
) -> Vec<Value> {
    let of = |runs: &[Measured], like: &Row| -> Vec<f64> {
        let rows = runs.iter().flat_map(|run| &run.rows);
        let rows = rows.filter(|row| (row.prompt, row.depth) == (like.prompt, like.depth));
        rows.map(|row| row.tokens_per_second).collect()
    };
    let vram = |runs: &[Measured]| runs.iter().filter_map(|run| run.vram_bytes).max();
    let mut tests = Vec::new();
    for row in ours.first().map_or(&[][..], |run| &run.rows[..]) {
        let (a, b) = (of(ours, row), of(stock, row));
        let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
        let (ratio, spread) = median_and_mad(&ratios);
        let resident = compute.map(|run| median_and_mad(&of(std::slice::from_ref(run), row)).0);
        let bound = bound(row, resident.filter(|speed| speed.is_finite()));
        let share = bound.map(|bound| median_and_mad(&a).0 / bound);
        let (bar, ok) = bar(percent, row.prompt > 0, ratio, share);
        let field = |name: &str| row.json[name].clone();
        tests.push(json!({
            "n_prompt": row.prompt, "n_depth": row.depth, "ours_ts": a, "stock_ts": b,
            "ratio": number(ratio), "ratio_mad": number(spread),
            "bound_ts": bound, "share_of_bound": share, "bar": bar, "ok": ok,
            "ours_vram_bytes": vram(ours), "stock_vram_bytes": vram(stock),
            "streamed_bytes": field("streamed_bytes"), "resident_bytes": field("resident_bytes"),
            "copy_bytes_per_sec": field("copy_bytes_per_sec"), "stall_ms": field("stall_ms"),
            "compute_ms": field("compute_ms"),
            "seconds": ours.iter().chain(stock).map(|run| run.seconds).sum::<f64>(),
        }));
    }
    tests
}

/// JSON has no infinities.
fn number(value: f64) -> Value {
    value.is_finite().then_some(value).into()
}

/// Tokens per second of a prefill when either the link or the computation is busy all the
/// time: the law that ours is held to.
fn bound(row: &Row, resident: Option<f64>) -> Option<f64> {
    let streamed = row.json["streamed_bytes"].as_f64()?;
    let rate = row.json["copy_bytes_per_sec"].as_f64()?;
    let ubatch = row.json["n_ubatch"].as_u64()?;
    if row.prompt == 0 || rate <= 0.0 {
        return None;
    }
    let passes = u32::try_from(row.prompt.div_ceil(ubatch)).ok()?;
    let tokens = u32::try_from(row.prompt).ok()?;
    let link = f64::from(passes) * streamed / rate;
    let compute = f64::from(tokens) / resident?;
    Some(f64::from(tokens) / link.max(compute))
}

/// The bar of a test, in words, and whether it is cleared; null when nothing can be said.
fn bar(percent: u64, is_prefill: bool, ratio: f64, share: Option<f64>) -> (&'static str, Value) {
    if !ratio.is_finite() {
        return ("none: a run has no speed", Value::Null);
    }
    let (bar, least) = match (percent, is_prefill) {
        (100.., _) => ("98 % of stock", 0.98),
        (..=50, true) => ("1.5x of stock, and 95 % of the bound", 1.5),
        (_, true) => ("95 % of the bound", 0.0),
        // Whether processor and link share is for the reader of the rates to say.
        (_, false) => (
            "never below stock; 1.2x where processor and link share",
            1.0,
        ),
    };
    let near = !(is_prefill && percent < 100) || share.is_none_or(|share| share >= 0.95);
    (bar, json!(ratio >= least && near))
}

/// The arithmetic of this file on known values: a bench has no test harness of its own.
pub fn check_arithmetic() {
    let line = json!({
        "n_prompt": 2048, "n_depth": 0, "median_ts": 100.0, "streamed_bytes": 1000,
        "copy_bytes_per_sec": 500, "n_ubatch": 512,
    });
    let row = row(&line.to_string()).expect("all fields are there");
    // Four passes of two seconds each, against one second of computing.
    assert_eq!(bound(&row, Some(2048.0)), Some(256.0));
    assert_eq!(bound(&row, Some(64.0)), Some(64.0));
    assert_eq!(bound(&row, None), None);
    assert_eq!(bar(100, false, 0.97, None).1, json!(false));
    assert_eq!(bar(100, true, 0.985, Some(0.1)).1, json!(true));
    assert_eq!(bar(50, true, 1.6, Some(0.96)).1, json!(true));
    assert_eq!(bar(50, true, 1.6, Some(0.94)).1, json!(false));
    assert_eq!(bar(50, true, 1.4, Some(0.99)).1, json!(false));
    assert_eq!(bar(75, true, 1.1, Some(0.99)).1, json!(true));
    assert_eq!(bar(25, false, 0.99, None).1, json!(false));
    assert_eq!(bar(25, false, f64::NAN, None).1, Value::Null);
}
