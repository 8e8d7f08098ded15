//! What paging costs when the model fits: `rpaged-cli` against itself without our flags,
//! in alternation, on synthetic models of about 1 GB.
//!
//! `cargo bench --bench fits` compares three ways of running a model:
//!
//! - `default`: no flags of ours; llama.cpp repacks some quantisations for the CPU;
//! - `no-repack`: the same without repacking;
//! - `paged`: our flags with a budget above the model, without repacking.
//!
//! `cargo bench --bench fits -- --budget 50%` compares `no-repack` with paging in less
//! memory than the model needs, with and without prefetching.
//!
//! A round runs all variants, then all again in reverse. The first, which only warms up,
//! does not count. A run waits for a quiet machine, and is repeated when something else ran
//! meanwhile. Ratios are taken round by round, so that a machine that grows slower does not
//! tilt them. Each run is a line of `target/bench-models/fits.jsonl` as soon as it has ended.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its table is what it is for"
)]

#[path = "../rig/mod.rs"]
mod rig;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use ggml_sys as ggml;

use rig::measure::{self, Speeds, Variant, Workload, median_and_mad};
use rig::model::{Model, Shape};
use rig::quiet;

/// Tokens of the prompt.
const PREFILL_TOKENS: u32 = 512;

/// The least share of stock's speed, without repacking, that paging may leave when the
/// model fits.
const RATIO_MIN: f64 = 0.97;

/// The spread of a ratio (MAD) above which nothing can be said.
const RATIO_MAD_MAX: f64 = 0.02;

/// How often a run is tried until nothing disturbs it.
const ATTEMPTS_MAX: usize = 20;

/// How long a run waits for a quiet machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the command line asks for.
struct Options {
    rounds: usize,
    models: Vec<Model>,
    budget: Option<String>,
    decode_tokens: u32,
    threads: u32,
    make_only: bool,
}

const USAGE: &str = "options: --rounds N (5), --model q8_0|q4_k (both), --budget SIZE|SHARE% \
                     (above the model), --decode N (48), --threads N (2), --make-only";

fn main() -> Result<()> {
    measure::check_arithmetic();
    quiet::check_arithmetic();
    let options = options(std::env::args().skip(1))?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-models");
    fs::create_dir_all(&folder)?;
    let prompt = folder.join("prompt.txt");
    measure::write_prompt(&prompt, PREFILL_TOKENS)?;
    for model in &options.models {
        let path = model.file(&folder)?;
        if !options.make_only {
            compare(model, &path, &prompt, &options, &folder)?;
        }
    }
    Ok(())
}

/// About 1.1 GB and 1.0 GB.
fn models() -> [Model; 2] {
    let model = |name: &str, kind, file_type, layers| Model {
        name: name.to_owned(),
        kind,
        file_type,
        shape: Shape {
            layers,
            embedding: 2048,
            feed_forward: 5632,
            heads: 32,
            heads_kv: 4,
            head: 64,
            vocabulary: 32_000,
            context: 4096,
        },
    };
    let (q8_0, q4_k) = (ggml::GGML_TYPE_Q8_0, ggml::GGML_TYPE_Q4_K);
    [
        model("fits-q8_0", q8_0, ggml::LLAMA_FTYPE_MOSTLY_Q8_0, 20),
        model("fits-q4_k", q4_k, ggml::LLAMA_FTYPE_MOSTLY_Q4_K_S, 36),
    ]
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        rounds: 5,
        models: Vec::new(),
        budget: None,
        decode_tokens: 48,
        threads: 2,
        make_only: false,
    };
    while let Some(flag) = arguments.next() {
        // Cargo adds this one.
        if flag == "--bench" {
            continue;
        }
        if flag == "--make-only" {
            options.make_only = true;
            continue;
        }
        let value = arguments
            .next()
            .with_context(|| format!("'{flag}' misses its value"))?;
        match flag.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--budget" => options.budget = Some(value),
            "--decode" => options.decode_tokens = value.parse()?,
            "--threads" => options.threads = value.parse()?,
            "--model" => options.models.push(
                models()
                    .into_iter()
                    .find(|model| model.name == format!("fits-{value}"))
                    .with_context(|| format!("no model '{value}'; {USAGE}"))?,
            ),
            _ => bail!("unknown option '{flag}'; {USAGE}"),
        }
    }
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    if options.models.is_empty() {
        options.models = models().into();
    }
    Ok(options)
}

/// The variants in the order of their runs; the first is what the others are compared with.
fn variants(options: &Options, model_bytes: u64) -> Vec<Variant> {
    let variant = |name, arguments: &[&str]| Variant {
        name,
        arguments: arguments.iter().map(ToString::to_string).collect(),
    };
    let paged = |name, budget: &str, more: &[&str]| {
        let flags = [
            "--no-repack",
            "--dynamic-layers",
            "--paged-kv",
            "--vram-budget",
            budget,
        ];
        variant(name, &[&flags, more].concat())
    };
    let stock = variant("no-repack", &["--no-repack"]);
    match &options.budget {
        Some(budget) => vec![
            stock,
            paged("streamed", budget, &[]),
            paged("no-prefetch", budget, &["--no-async-prefetch"]),
        ],
        None => {
            // Half as much again holds the model, its KV cache and the ring's slots.
            let budget = (model_bytes * 3 / 2 / (1 << 20)).to_string();
            vec![stock, variant("default", &[]), paged("paged", &budget, &[])]
        }
    }
}

/// Runs all variants in alternation and prints their speeds and ratios.
fn compare(
    model: &Model,
    path: &Path,
    prompt: &Path,
    options: &Options,
    folder: &Path,
) -> Result<()> {
    let bytes = fs::metadata(path)?.len();
    let variants = variants(options, bytes);
    let (decode_tokens, threads) = (options.decode_tokens, options.threads);
    let workload = Workload {
        model: path,
        prompt,
        context_tokens: 1024,
        decode_tokens,
        threads,
    };
    let mut rounds = Vec::new();
    for round in 0..=options.rounds {
        let run = |variant| run_quietly(variant, &workload, round, folder);
        let there = variants.iter().map(run).collect::<Result<Vec<_>>>()?;
        if round == 0 {
            continue;
        }
        // And back again, so that no variant always follows the same other one.
        let back = variants.iter().rev().map(run).collect::<Result<Vec<_>>>()?;
        let both = there.iter().zip(back.iter().rev());
        rounds.push(both.map(|(there, back)| there.mean(*back)).collect());
    }
    print_table(model, bytes, options, &variants, &rounds);
    Ok(())
}

/// Runs one variant, again when something else ran meanwhile.
fn run_quietly(
    variant: &Variant,
    workload: &Workload<'_>,
    round: usize,
    folder: &Path,
) -> Result<Speeds> {
    for _ in 0..ATTEMPTS_MAX {
        ensure!(
            quiet::wait(PATIENCE),
            "something else keeps this machine busy"
        );
        let before = quiet::Ticks::now();
        let command = measure::command(variant, workload);
        let ended = measure::finish(command, folder, &mut |_| Ok(()))?;
        let speeds = ended.speeds(variant.name)?;
        let foreign_share = quiet::foreign_share_since(before);
        record(folder, workload, variant, round, speeds, foreign_share)?;
        let disturbed = foreign_share > quiet::FOREIGN_SHARE_MAX;
        eprintln!(
            "round {round} {:<11} prefill {:7.2}, decode {:6.2} tokens/s{}",
            variant.name,
            speeds.prefill,
            speeds.decode,
            if disturbed {
                ": disturbed, once more"
            } else {
                ""
            },
        );
        if !disturbed {
            return Ok(speeds);
        }
    }
    bail!("'{}' was disturbed {ATTEMPTS_MAX} times", variant.name)
}

/// Appends one run to `fits.jsonl`.
fn record(
    folder: &Path,
    workload: &Workload<'_>,
    variant: &Variant,
    round: usize,
    speeds: Speeds,
    foreign_share: f64,
) -> Result<()> {
    let line = serde_json::json!({
        "time_unix_s": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        "model": workload.model.file_stem().and_then(|name| name.to_str()),
        "variant": variant.name,
        "arguments": variant.arguments,
        "threads": workload.threads,
        "round": round,
        "foreign_share": foreign_share,
        "prefill_tokens": PREFILL_TOKENS,
        "prefill_tokens_per_s": speeds.prefill,
        "decode_tokens": workload.decode_tokens,
        "decode_tokens_per_s": speeds.decode,
    });
    let path = folder.join("fits.jsonl");
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{line}")?)
}

/// A table in Markdown: medians with MAD, and ratios to the first two variants.
fn print_table(
    model: &Model,
    bytes: u64,
    options: &Options,
    variants: &[Variant],
    rounds: &[Vec<Speeds>],
) {
    let budget = options.budget.as_deref().unwrap_or("above the model");
    println!(
        "\n{}, {} MiB, budget {budget}, {} threads, {} rounds; tokens/s as median ± MAD",
        model.name,
        bytes >> 20,
        options.threads,
        rounds.len()
    );
    println!("| | prefill | ratio to no-repack | decode | ratio to no-repack |");
    println!("|---|---|---|---|---|");
    let prefill = |speeds: &Speeds| speeds.prefill;
    let decode = |speeds: &Speeds| speeds.decode;
    for (index, variant) in variants.iter().enumerate() {
        println!(
            "| {} | {} | {} | {} | {} |",
            variant.name,
            spread(rounds, |round| prefill(&round[index]), 2),
            spread(
                rounds,
                |round| prefill(&round[index]) / prefill(&round[0]),
                3
            ),
            spread(rounds, |round| decode(&round[index]), 2),
            spread(rounds, |round| decode(&round[index]) / decode(&round[0]), 3),
        );
    }
    if options.budget.is_some() {
        return;
    }
    let ratio = |speed: fn(&Speeds) -> f64, to: usize| {
        let ratios: Vec<f64> = rounds
            .iter()
            .map(|r| speed(&r[2]) / speed(&r[to]))
            .collect();
        median_and_mad(&ratios)
    };
    let (stock, repacked) = (0, 1);
    for (phase, speed) in [
        ("prefill", prefill as fn(&Speeds) -> f64),
        ("decode", decode),
    ] {
        let (to_stock, mad) = ratio(speed, stock);
        let verdict = match to_stock >= RATIO_MIN {
            _ if mad > RATIO_MAD_MAX => "too noisy to say",
            true => "met",
            false => "missed",
        };
        println!(
            "{phase}: paged / no-repack {to_stock:.3} (bar {RATIO_MIN}: {verdict}), \
             paged / default {:.3}",
            ratio(speed, repacked).0
        );
    }
}

/// Median and MAD of `value` over the rounds, with `digits` behind the point.
fn spread(rounds: &[Vec<Speeds>], value: impl Fn(&[Speeds]) -> f64, digits: usize) -> String {
    let values: Vec<f64> = rounds.iter().map(|round| value(round)).collect();
    let (median, mad) = median_and_mad(&values);
    format!("{median:.digits$} ± {mad:.digits$}")
}
