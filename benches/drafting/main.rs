//! What drafting gains when weights stream: the demo model behind a slow link, with
//! drafting and without at the same budget, in alternation.
//!
//! `cargo bench --bench drafting` gives the model a prompt whose text repeats itself, half
//! the memory it needs, and copies that a link of 64 MiB a second would do (a knob of the
//! copy engine that tests have). The variants:
//!
//! - `plain`: no drafting;
//! - `ngram-map-k`, `ngram-simple`, ...: drafts from what was written, without a model.
//!
//! A round runs all variants, then all again in reverse; the first, which only warms up,
//! does not count. Ratios to `plain` are taken round by round, and every variant has to
//! write the same text. It fails when the best of them is not 1.5 times as fast.
//!
//! Each run is this program again, so that it is a process of its own.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its table is what it is for"
)]

// Other benches use more of it.
#[allow(dead_code, reason = "other benches use more of it")]
#[path = "../rig/mod.rs"]
mod rig;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use rpaged::cli;
use rpaged::llama;
use rpaged::session;
use rpaged::telemetry::{self, metrics};

use rig::measure::median_and_mad;

/// How many times as fast drafting has to be.
const RATIO_MIN: f64 = 1.5;

/// A run of this program as the model's: the variable holds the link's bytes per second.
const CHILD: &str = "RPAGED_BENCH_LINK";

/// A story by the demo model.
const STORY: &str = "Once upon a time, there was a clever boy named Tomas. Tomas lived in a \
                     little village. One day, Tomas went for a walk. The wind was singing. \
                     Behind the mill, Tomas found a golden leaf, but it was too heavy to carry. \
                     \"What should I do with this golden leaf?\" asked Tomas. Then a clever boy \
                     named Nina came along. \"Hello, Tomas,\" said Nina. \"Let us try \
                     together.\" Together they carried it all the way home. Tomas was proud and \
                     stood tall. Tomas learned that it is fine to ask for help. The end. ";

/// What is compared: a name, and the flags that make it.
const VARIANTS: &[(&str, &str)] = &[
    ("plain", ""),
    (
        "ngram-simple",
        "--spec-type ngram-simple --spec-ngram-simple-size-n 3 --spec-ngram-simple-size-m 12",
    ),
    (
        "ngram-map-k",
        "--spec-type ngram-map-k --spec-ngram-map-k-size-n 3 --spec-ngram-map-k-size-m 12",
    ),
    (
        "ngram-mod",
        "--spec-type ngram-mod --spec-ngram-mod-n-match 4 --spec-ngram-mod-n-min 4",
    ),
    ("ngram-cache", "--spec-type ngram-cache"),
];

/// What the command line asks for.
struct Options {
    rounds: usize,
    budget: String,
    link_mib: u64,
    tokens: u32,
}

const USAGE: &str = "options: --rounds N (5), --budget SIZE|SHARE% (50%), --link MIB (64, per \
                     second), --tokens N (160)";

fn main() -> Result<()> {
    if let Ok(rate) = std::env::var(CHILD) {
        return child(rate.parse()?);
    }
    let options = options(std::env::args().skip(1))?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-drafting");
    fs::create_dir_all(&folder)?;
    let prompt = folder.join("prompt.txt");
    fs::write(&prompt, format!("{STORY}{STORY}Once upon a time"))?;

    let mut speeds: Vec<Vec<f64>> = vec![Vec::new(); VARIANTS.len()];
    let mut last = vec![None; VARIANTS.len()];
    let mut text = None;
    for round in 0..=options.rounds {
        let forth = 0..VARIANTS.len();
        let order: Vec<usize> = forth.clone().chain(forth.rev()).collect();
        let mut sums = vec![0.0; VARIANTS.len()];
        for index in order {
            let run = run(VARIANTS[index], &options, &prompt, &folder)?;
            sums[index] += run.tokens_per_second / 2.0;
            let expected = text.get_or_insert_with(|| run.text.clone());
            ensure!(
                *expected == run.text,
                "'{}' wrote another text",
                VARIANTS[index].0
            );
            last[index] = Some(run);
        }
        if round > 0 {
            for (all, speed) in speeds.iter_mut().zip(sums) {
                all.push(speed);
            }
        }
        eprintln!("round {round} of {} is done", options.rounds);
    }
    report(&speeds, &last, &options)
}

/// Prints the table; an error when no variant is fast enough.
fn report(speeds: &[Vec<f64>], last: &[Option<Run>], options: &Options) -> Result<()> {
    println!(
        "the demo model in {} of its size, copies at {} MiB a second, {} tokens\n",
        options.budget, options.link_mib, options.tokens
    );
    println!("| variant | tokens/s | against plain (MAD) | accepted of drafted |");
    println!("|---|---|---|---|");
    let mut best = 0.0_f64;
    for (index, (name, _)) in VARIANTS.iter().enumerate() {
        let ratios: Vec<f64> = speeds[index]
            .iter()
            .zip(&speeds[0])
            .map(|(speed, plain)| speed / plain)
            .collect();
        let (ratio, spread) = median_and_mad(&ratios);
        let (speed, _) = median_and_mad(&speeds[index]);
        let run = last[index].as_ref().context("every variant has run")?;
        println!(
            "| {name} | {speed:.1} | {ratio:.2} ({spread:.2}) | {} of {} |",
            run.accepted, run.drafted
        );
        best = best.max(ratio);
    }
    ensure!(
        best >= RATIO_MIN,
        "the best is {best:.2} times as fast as no drafting; it should be {RATIO_MIN}"
    );
    Ok(())
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        rounds: 5,
        budget: "50%".to_owned(),
        link_mib: 64,
        tokens: 160,
    };
    while let Some(flag) = arguments.next() {
        // Cargo adds this one.
        if flag == "--bench" {
            continue;
        }
        let value = arguments
            .next()
            .with_context(|| format!("'{flag}' misses its value; {USAGE}"))?;
        match flag.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--budget" => options.budget = value,
            "--link" => options.link_mib = value.parse()?,
            "--tokens" => options.tokens = value.parse()?,
            _ => bail!("unknown option '{flag}'; {USAGE}"),
        }
    }
    ensure!(
        options.rounds > 0 && options.link_mib > 0,
        "--rounds and --link must be at least 1"
    );
    Ok(options)
}

/// What a run did.
#[derive(Clone)]
struct Run {
    tokens_per_second: f64,
    drafted: u64,
    accepted: u64,
    text: Vec<u8>,
}

fn run(
    (name, flags): (&str, &str),
    options: &Options,
    prompt: &Path,
    folder: &Path,
) -> Result<Run> {
    let records = folder.join("last-metrics.jsonl");
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLAMA_") {
            command.env_remove(name);
        }
    }
    let output = command
        .env(CHILD, (options.link_mib << 20).to_string())
        .args(["--demo", "-no-cnv", "--temp", "0", "-t", "1", "-c", "768"])
        .args(["-ub", "16", "-lv", "1", "--dynamic-layers", "--paged-kv"])
        .args(["--vram-budget", &options.budget, "--ignore-eos"])
        .args(["-n", &options.tokens.to_string(), "-f"])
        .arg(prompt)
        .arg("--metrics-file")
        .arg(&records)
        .args(flags.split_whitespace())
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "'{name}' ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = fs::read_to_string(&records)?;
    let summary: Value = serde_json::from_str(text.lines().last().context("no records")?)?;
    let number = |field: &str| {
        let value = &summary[field];
        value.as_u64().with_context(|| format!("no '{field}'"))
    };
    Ok(Run {
        tokens_per_second: summary["avg_tokens_per_sec"].as_f64().context("no speed")?,
        drafted: number("drafted_tokens")?,
        accepted: number("accepted_tokens")?,
        text: output.stdout,
    })
}

/// A run of the model as the program does it, behind a link of so many bytes a second.
fn child(bytes_per_second: u64) -> Result<()> {
    llama::log::start();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let cli::Command::Run(request) = cli::parse(words, llama::options()?)? else {
        bail!("nothing to run");
    };
    if let Some(path) = &request.own.metrics_file {
        let file = fs::File::create(path)?;
        metrics::RUN.add_file(Box::new(file), path.display().to_string());
    }
    let mut config = request.resolve(&metrics::RUN)?;
    if let Some(paging) = &mut config.paging {
        paging.faults.bytes_per_second = Some(bytes_per_second);
    }
    let outcome = session::run(config);
    telemetry::finish(outcome.as_ref().err());
    Ok(outcome?)
}
