//! What only a machine with an NVIDIA GPU can show, in minutes, as one JSON file.
//!
//! `cargo bench --features cuda --bench cuda` runs these parts, one after the other:
//!
//! - `identity`: logits of the tests in `tests/gpu`, and texts of `rpaged-cli`, are those of
//!   stock llama.cpp on the same GPU;
//! - `sanitizer`: a short run under compute-sanitizer, where it is installed;
//! - `graphs`: by what ggml-cuda logs, CUDA graphs stay valid from token to token;
//! - `speed`: a model of 8B shape beside stock, see [`speed`].
//!
//! Each part has its share of `--minutes`; what fails is written down and stops nothing else.
//! The file is written anew after each step, so that a run that is ended leaves what it has.
//! It says what it was measured on, and each command line with its time and its memory.
//! `.ci/cuda` builds the programs on a machine with a compiler and runs them on another one.
//! With `--smoke --device none` all of it runs on the processor, on a tiny model, and with
//! `--smoke --trial` on the device of the tests.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its result is what it is for"
)]

mod bars;
mod checks;
mod compare;
mod machine;
mod model;
mod options;
mod placement;
#[path = "../rig/mod.rs"]
#[allow(dead_code, reason = "what several benches share, each in part")]
mod rig;
mod run;
mod speed;
mod stock;
mod trial;
mod work;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::options::Options;
use self::run::Runner;

/// The parts, in their order.
const PARTS: [&str; 4] = ["identity", "sanitizer", "graphs", "speed"];
/// How much of the time a part may take, in percent; what it leaves is the next ones'.
const SHARES: [f64; 4] = [25.0, 10.0, 5.0, 60.0];

/// A refusal is a sentence, not a backtrace.
fn main() -> ExitCode {
    if trial::is_asked() {
        return trial::run();
    }
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the parts; whether all went well.
fn bench() -> Result<bool> {
    rig::measure::check_arithmetic();
    bars::check_arithmetic();
    compare::check_arithmetic();
    placement::check_arithmetic();
    run::check_arithmetic();
    speed::check_arithmetic();
    stock::check_arithmetic();
    let options = Options::read(std::env::args().skip(1))?;
    fs::create_dir_all(&options.folder)
        .with_context(|| format!("could not make '{}'", options.folder.display()))?;
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(options.minutes * 60.0);
    let mut runner = Runner::new(&options.folder, end, &options.device);
    if options.trial {
        runner.set(trial::VARIABLE, "1");
    }
    let mut report = json!({
        "machine": machine::facts(runner.smi(), runner.gpu()), "device": options.device,
        "smoke": options.smoke, "minutes": options.minutes,
        "command": std::env::args().collect::<Vec<_>>(), "parts": {},
    });
    report["version"] = match runner.run(&options.program, &["--version"]) {
        Ok(output) => json!(output.stdout.lines().collect::<Vec<_>>()),
        Err(error) => json!(format!("{error:#}")),
    };
    let mut shares_left: f64 = parts(&options).map(|(_, share)| share).sum();
    let mut all = true;
    for (name, share) in parts(&options) {
        let seconds = runner.seconds_left() * share / shares_left;
        shares_left -= share;
        eprintln!("{name}: at most {seconds:.0} s");
        let began = Instant::now();
        let within = runner.until(began + Duration::from_secs_f64(seconds));
        let result = part(name, &options, &within, &mut |so_far| {
            report["parts"][name] = so_far.clone();
            report["runs"] = json!(runner.runs());
            // The last one says why it cannot be written.
            let _ = write(&options, &report);
        });
        let mut result = result.unwrap_or_else(|error| {
            let so_far = report["parts"][name].take();
            json!({"ok": false, "error": format!("{error:#}"), "so_far": so_far})
        });
        result["part_seconds"] = json!(began.elapsed().as_secs_f64());
        all &= result["ok"] != false;
        eprintln!("{name}: {}", result["ok"]);
        report["parts"][name] = result;
        report["runs"] = json!(runner.runs());
        write(&options, &report)?;
    }
    report["ok"] = json!(all);
    report["seconds"] = json!(started.elapsed().as_secs_f64());
    write(&options, &report)?;
    println!("{}", options.out.display());
    Ok(all)
}

/// The parts that were asked for, each with its share of the time.
fn parts(options: &Options) -> impl Iterator<Item = (&'static str, f64)> {
    let all = PARTS.into_iter().zip(SHARES);
    all.filter(|(name, _)| options.only.iter().any(|only| only == name))
}

fn part(
    name: &str,
    options: &Options,
    runner: &Runner,
    save: &mut dyn FnMut(&Value),
) -> Result<Value> {
    match name {
        "identity" => checks::identity(options, runner),
        "sanitizer" => checks::sanitizer(options, runner),
        "graphs" => checks::graphs(options, runner),
        _ => speed::speed(options, runner, save),
    }
}

/// Writes the result under another name first: a file under its own is whole.
fn write(options: &Options, report: &Value) -> Result<()> {
    let part = options.out.with_extension("part");
    let text = serde_json::to_string_pretty(report)?;
    fs::write(&part, text + "\n")
        .and_then(|()| fs::rename(&part, &options.out))
        .with_context(|| format!("could not write '{}'; see --out", options.out.display()))
}
