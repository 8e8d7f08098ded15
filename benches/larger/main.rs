//! Models larger than the memory they get, and long contexts: `rpaged-cli` against stock
//! llama.cpp (itself without our flags), in alternation.
//!
//! `cargo bench --bench larger` makes a model of about 1.7 GB and gives each run 60 %, then
//! 85 % of that as a memory control group without swap, which bounds the page cache too. It
//! wants root, for the groups, and Linux. A round runs
//!
//! - `stock`: the model mapped, llama.cpp's default and the only way to load it that
//!   survives there (once per bench another one shows that);
//! - `ours`: paged, with a budget of the group's memory less 64 MiB (and `--mem-pressure 1`,
//!   as the group is meant to be full);
//! - an independent reader of the same file: the storage's rate Bs;
//! - `resident`: paged in no group, with a budget above the model: the computation's
//!   seconds per token C,
//!
//! then the first three again in reverse. Before each run the page cache is emptied. No token
//! can take less than max((M - R) / Bs, C), where M - R are the bytes that the run says it
//! streams: the law in the table.
//!
//! `cargo bench --bench larger -- --kv` measures long contexts, see [`context`].
//!
//! `cargo bench --bench larger -- --smoke` runs all of it on a tiny model, in seconds and
//! without root: whether it runs, not how fast.
//!
//! Runs wait for a quiet machine and a quiet disk, and are repeated when something else ran
//! meanwhile. Each is a line of `target/bench-models/larger.jsonl` as soon as it has ended.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its table is what it is for"
)]

#[cfg(target_os = "linux")]
mod cache;
#[cfg(target_os = "linux")]
mod context;
#[cfg(target_os = "linux")]
mod foreign;
#[cfg(target_os = "linux")]
mod group;
#[cfg(target_os = "linux")]
mod interrupt;
#[cfg(target_os = "linux")]
mod metrics;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod reader;
#[cfg(target_os = "linux")]
#[path = "../rig/mod.rs"]
mod rig;
#[cfg(target_os = "linux")]
mod runs;
#[cfg(target_os = "linux")]
mod table;
#[cfg(target_os = "linux")]
mod weights;

use std::process::ExitCode;

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

#[cfg(not(target_os = "linux"))]
fn bench() -> anyhow::Result<()> {
    anyhow::bail!("memory control groups are Linux's: this bench runs nowhere else")
}

#[cfg(target_os = "linux")]
fn bench() -> anyhow::Result<()> {
    use std::fs;
    use std::path::PathBuf;

    rig::measure::check_arithmetic();
    rig::quiet::check_arithmetic();
    foreign::check_reading();
    reader::check_arithmetic();
    table::check_arithmetic();
    metrics::check_reading()?;
    group::check_texts();

    let options = options::Options::read(std::env::args().skip(1))?;
    interrupt::install();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-models");
    fs::create_dir_all(&folder)?;
    if options.kv {
        context::bench(&options, &folder)
    } else {
        weights::bench(&options, &folder)
    }
}
