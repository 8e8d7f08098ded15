//! The program from outside: what it prints, and how it ends.
//!
//! The demo model is the model here: a few milliseconds a run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/completion.rs"]
mod completion;
#[path = "cli/device.rs"]
mod device;
#[path = "cli/download.rs"]
mod download;
#[cfg(unix)]
#[path = "cli/drafting.rs"]
mod drafting;
#[path = "cli/flags.rs"]
mod flags;
#[allow(dead_code, reason = "shared with the tests that write models")]
#[path = "models/gguf.rs"]
mod gguf;
#[cfg(unix)]
#[path = "cli/metrics.rs"]
mod metrics;
#[path = "cli/options/mod.rs"]
mod options;
#[path = "models/plain.rs"]
mod plain;
#[path = "cli/plan.rs"]
mod plan;
#[path = "cli/printed.rs"]
mod printed;
#[cfg(unix)]
#[path = "cli/prompt_cache.rs"]
mod prompt_cache;
#[cfg(unix)]
#[path = "cli/recorded.rs"]
mod recorded;
#[path = "cli/rpc.rs"]
mod rpc;
#[cfg(unix)]
#[path = "cli/schema.rs"]
mod schema;
#[cfg(unix)]
#[path = "cli/terminal/mod.rs"]
mod terminal;
#[path = "cli/together.rs"]
mod together;
#[cfg(unix)]
#[path = "cli/turns.rs"]
mod turns;
#[cfg(unix)]
#[path = "cli/unix.rs"]
mod unix;
#[cfg(unix)]
#[path = "cli/while_running.rs"]
mod while_running;

use std::process::{Output, Stdio};

use assert_cmd::Command;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/stories-q8_0.gguf");

/// The program, without the environment's own settings for it.
fn program() -> Command {
    let mut command = Command::cargo_bin("rpaged-cli").unwrap();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLAMA_") {
            command.env_remove(name);
        }
    }
    // A configuration file of the user's is none of the tests' business.
    command
        .env("HOME", "/dev/null/home")
        .env_remove("XDG_CONFIG_HOME");
    command.timeout(std::time::Duration::from_secs(120));
    command
}

/// Runs it with the words of `line`.
fn run(line: &str) -> Output {
    program().args(line.split_whitespace()).output().unwrap()
}

/// Runs a completion by the demo model, with one thread: the fastest for so small a model,
/// and not disturbed by other tests. With small batches, what llama.cpp computes with fits
/// a small budget.
fn complete(line: &str) -> Output {
    let words = line.split_whitespace();
    let prompt = [
        "-m",
        MODEL,
        "-t",
        "1",
        "-no-cnv",
        "-ub",
        "16",
        "-p",
        "Once upon a time",
    ];
    program().args(prompt).args(words).output().unwrap()
}

/// A completion by the demo model that ends only when something makes it end; what it prints
/// goes to pipes.
fn endless(line: &str) -> std::process::Command {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("rpaged-cli"));
    let fixed = "-no-cnv -p Once -n -1 --ignore-eos --context-shift -t 1";
    command.args(["-m", MODEL]).args(fixed.split_whitespace());
    command.args(line.split_whitespace());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Whether a hangup ends what is started here: under nohup nothing hears one.
#[cfg(unix)]
fn hears_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_none_or(|mask| mask & 1 == 0)
}

/// A named pipe at `path`.
#[cfg(unix)]
fn make_pipe(path: &std::path::Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The last line of standard error.
fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().last().unwrap_or_default().to_owned()
}

/// Asserts that `output` ended with `code` and one sentence that contains all `parts`.
#[track_caller]
fn assert_refused(output: &Output, code: i32, parts: &[&str]) {
    let sentence = last_line(output);
    assert_eq!(output.status.code(), Some(code), "{sentence}");
    assert!(sentence.starts_with("error: "), "{sentence}");
    assert!(!sentence.ends_with('.'), "{sentence}");
    for part in parts {
        assert!(sentence.contains(part), "'{part}' is not in: {sentence}");
    }
}
