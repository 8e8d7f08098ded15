//! How far predictions are from what runs take: `rpaged-cli plan` against runs of
//! `rpaged-cli`, over a sweep of budgets, prefill and decode.
//!
//! `cargo bench --bench prediction` takes the two models that
//! `cargo bench --bench fits -- --make-only` makes; others with `-- --model PATH`. The machine
//! is measured once for each model, then every budget is predicted and run. `--rounds N`
//! runs each budget N times and takes the medians; `--each` measures the machine before
//! each budget, for a disk that is not steady; `--cached` reads through the page cache.
//!
//! It ends with the median and the worst error, and fails when the median is above 15 % or
//! the worst above 40 %. Each run is a line of `target/bench-models/prediction.jsonl`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its table is what it is for"
)]

#[allow(dead_code, reason = "shared with the other benches")]
#[path = "../rig/measure.rs"]
mod measure;
#[allow(dead_code, reason = "shared with the other benches")]
#[path = "../rig/quiet.rs"]
mod quiet;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use measure::{Variant, Workload, median_and_mad};

const USAGE: &str = "options: --model PATH (twice or more), --budgets LIST \
     (25%,35%,45%,55%,65%,75%,85%,95%,150%), --decode N (32), --prompt N (512), --threads N (2), \
     --rounds N (1), --each, --cached, --no-bars";

/// The errors that predictions may have.
const MEDIAN_MAX: f64 = 0.15;
const WORST_MAX: f64 = 0.40;

struct Options {
    models: Vec<PathBuf>,
    budgets: Vec<String>,
    decode_tokens: u32,
    prompt_tokens: u32,
    threads: u32,
    rounds: usize,
    each: bool,
    cached: bool,
    bars: bool,
}

/// One prediction beside what it was about.
struct Row {
    model: String,
    budget: String,
    step: &'static str,
    predicted: f64,
    actual: f64,
    /// The share of the machine that others took meanwhile.
    others: f64,
}

impl Row {
    /// By how much the larger of both exceeds the smaller: the same for twice too fast and
    /// twice too slow.
    fn error(&self) -> f64 {
        let (low, high) = match self.predicted < self.actual {
            true => (self.predicted, self.actual),
            false => (self.actual, self.predicted),
        };
        high / low.max(1e-9) - 1.0
    }
}

/// A refusal is a sentence, not a backtrace.
fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    measure::check_arithmetic();
    quiet::check_arithmetic();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-models");
    fs::create_dir_all(&folder)?;
    let options = options(std::env::args().skip(1), &folder)?;
    let mut rows = Vec::new();
    println!(
        "{:<12} {:>7} {:<8} {:>10} {:>10} {:>7} {:>7}",
        "model", "budget", "step", "predicted", "actual", "error", "others"
    );
    for model in &options.models {
        ensure!(
            model.is_file(),
            "there is no '{}'; make the models with cargo bench --bench fits -- --make-only",
            model.display()
        );
        sweep(model, &options, &folder, &mut rows)?;
    }
    report(&rows, &options)
}

fn options(mut words: impl Iterator<Item = String>, folder: &Path) -> Result<Options> {
    let mut options = Options {
        models: Vec::new(),
        budgets: "25%,35%,45%,55%,65%,75%,85%,95%,150%"
            .split(',')
            .map(str::to_owned)
            .collect(),
        decode_tokens: 32,
        prompt_tokens: 512,
        threads: 2,
        rounds: 1,
        each: false,
        cached: false,
        bars: true,
    };
    while let Some(flag) = words.next() {
        match flag.as_str() {
            // Cargo adds this one.
            "--bench" => continue,
            "--each" => options.each = true,
            "--cached" => options.cached = true,
            "--no-bars" => options.bars = false,
            _ => {
                let value = words
                    .next()
                    .with_context(|| format!("'{flag}' is unknown or misses its value; {USAGE}"))?;
                match flag.as_str() {
                    "--model" => options.models.push(PathBuf::from(value)),
                    "--budgets" => {
                        options.budgets = value.split(',').map(str::to_owned).collect();
                    }
                    "--decode" => options.decode_tokens = value.parse()?,
                    "--prompt" => options.prompt_tokens = value.parse()?,
                    "--threads" => options.threads = value.parse()?,
                    "--rounds" => options.rounds = value.parse()?,
                    _ => bail!("unknown option '{flag}'; {USAGE}"),
                }
            }
        }
    }
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    if options.models.is_empty() {
        let names = ["fits-q8_0.gguf", "fits-q4_k.gguf"];
        options.models = names.map(|name| folder.join(name)).into();
    }
    Ok(options)
}

/// Predicts and runs every budget of one model.
fn sweep(model: &Path, options: &Options, folder: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let prompt = folder.join("prompt-prediction.txt");
    measure::write_prompt(&prompt, options.prompt_tokens)?;
    let workload = Workload {
        model,
        prompt: &prompt,
        context_tokens: options.prompt_tokens + options.decode_tokens + 8,
        decode_tokens: options.decode_tokens,
        threads: options.threads,
    };
    let name = model.file_stem().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    for (index, budget) in options.budgets.iter().enumerate() {
        let plan = plan(&workload, budget, options, folder, index == 0)?;
        let predicted = |step: &str| plan[step]["tokens_per_second"].as_f64();
        let (mut prefill, mut decode, mut others) = (Vec::new(), Vec::new(), 0.0f64);
        for _ in 0..options.rounds {
            let before = quiet::Ticks::now();
            let variant = Variant {
                name: "paged",
                arguments: flags(budget, options),
            };
            let ended =
                measure::finish(measure::command(&variant, &workload), folder, &mut |_| {
                    Ok(())
                })?;
            let speeds = ended.speeds(&format!("{name} at {budget}"))?;
            prefill.push(speeds.prefill);
            decode.push(speeds.decode);
            others = others.max(quiet::foreign_share_since(before));
        }
        for (step, actual) in [("prefill", prefill), ("decode", decode)] {
            let row = Row {
                model: name.clone(),
                budget: budget.clone(),
                step,
                predicted: predicted(step).context("the plan predicts no speed")?,
                actual: median_and_mad(&actual).0,
                others,
            };
            keep(&row, folder)?;
            show(&row);
            rows.push(row);
        }
    }
    Ok(())
}

/// The flags of a run beside model and prompt.
fn flags(budget: &str, options: &Options) -> Vec<String> {
    let load_mode = if options.cached { "none" } else { "dio" };
    // One batch, as the plan predicts it.
    let batch = options.prompt_tokens.min(512).to_string();
    [
        "-ub",
        &batch,
        "--no-repack",
        "--dynamic-layers",
        "--paged-kv",
        "--load-mode",
        load_mode,
        "--vram-budget",
        budget,
    ]
    .map(str::to_owned)
    .into()
}

/// What `rpaged-cli plan` says of a run.
fn plan(
    workload: &Workload<'_>,
    budget: &str,
    options: &Options,
    folder: &Path,
    first: bool,
) -> Result<Value> {
    let depth = options.prompt_tokens + options.decode_tokens / 2;
    let mut command = Command::new(env!("CARGO_BIN_EXE_rpaged-cli"));
    command
        .arg("plan")
        .arg("-m")
        .arg(workload.model)
        .args(["-c", &workload.context_tokens.to_string()])
        .args(["-t", &workload.threads.to_string()])
        .args(flags(budget, options))
        .args(["--json", "--depth", &depth.to_string()])
        .arg("--calibration")
        .arg(folder.join("calibration.json"));
    if first || options.each {
        command.arg("--recalibrate");
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLAMA_ARG_") {
            command.env_remove(name);
        }
    }
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "plan ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn show(row: &Row) {
    println!(
        "{:<12} {:>7} {:<8} {:>10.3} {:>10.3} {:>6.1}% {:>6.1}%",
        row.model,
        row.budget,
        row.step,
        row.predicted,
        row.actual,
        row.error() * 100.0,
        row.others * 100.0
    );
}

fn keep(row: &Row, folder: &Path) -> Result<()> {
    let line = json!({
        "model": row.model,
        "budget": row.budget,
        "step": row.step,
        "predicted_tokens_per_second": row.predicted,
        "actual_tokens_per_second": row.actual,
        "error": row.error(),
        "foreign_share": row.others,
    });
    let path = folder.join("prediction.jsonl");
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    writeln!(file, "{line}")?;
    Ok(())
}

/// Median and worst error, and whether they are within the bars.
fn report(rows: &[Row], options: &Options) -> Result<()> {
    let errors = |step: Option<&str>| -> Vec<f64> {
        let rows = rows.iter();
        let rows = rows.filter(|row| step.is_none_or(|step| row.step == step));
        rows.map(Row::error).collect()
    };
    println!();
    let mut all = (0.0, 0.0);
    for (name, step) in [
        ("prefill", Some("prefill")),
        ("decode", Some("decode")),
        ("all", None),
    ] {
        let errors = errors(step);
        let worst = errors.iter().copied().fold(0.0, f64::max);
        all = (median_and_mad(&errors).0, worst);
        println!(
            "{name:<8} median error {:.1} %, worst {:.1} %, of {}",
            all.0 * 100.0,
            all.1 * 100.0,
            errors.len()
        );
    }
    ensure!(
        !options.bars || (all.0 <= MEDIAN_MAX && all.1 <= WORST_MAX),
        "the bars are a median of {:.0} % and a worst of {:.0} %",
        MEDIAN_MAX * 100.0,
        WORST_MAX * 100.0
    );
    Ok(())
}
