//! What comes from outside while a run goes on: another budget, signals, a reader who
//! leaves, a disk that is full. The text is the same, the records are whole.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::Value;

use super::schema::{of, records};
use super::{MODEL, complete, stdout};

const LONG: &str = "-n 400 -s 7 -c 128 --ignore-eos --context-shift";

/// A run whose metrics are read line by line. While they are not read it cannot go on for
/// long: the pipe is full after some tokens. So it cannot end before its time.
struct Running {
    child: Child,
    lines: BufReader<ChildStderr>,
    text: String,
}

impl Running {
    fn start(line: &str, stdout: Stdio) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("rpaged-cli"));
        command.args(["-m", MODEL, "-t", "1", "-no-cnv", "-ub", "16"]);
        command.args(["-p", "Once upon a time"]);
        command.args(line.split_whitespace()).arg("--metrics");
        command.env("HOME", "/nonexistent").stdin(Stdio::null());
        let mut child = command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            lines,
            text: String::new(),
        }
    }

    /// Reads on to the first record that `wanted` accepts.
    fn read_to(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            assert!(!line.is_empty(), "ended before: {}", self.text);
            self.text.push_str(&line);
            let record = records(&line).remove(0);
            if wanted(&record) {
                return record;
            }
        }
    }

    fn read_tokens(&mut self, count: u64) {
        self.read_to(|record| record["generated_tokens"].as_u64() >= Some(count));
    }

    fn send(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// The exit code, all records, and what stood on standard output.
    fn end(mut self) -> (Option<i32>, Vec<Value>, String) {
        let mut out = self.child.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(out) = &mut out {
                out.read_to_string(&mut text).unwrap();
            }
            text
        });
        self.lines.read_to_string(&mut self.text).unwrap();
        let code = self.child.wait().unwrap().code();
        (code, records(&self.text), reader.join().unwrap())
    }
}

fn is_log(record: &Value, part: &str) -> bool {
    record["type"] == "log" && record["text"].as_str().unwrap_or_default().contains(part)
}

#[test]
fn another_budget_while_running_changes_the_plan_and_not_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("budget");
    let set = |text: &str| std::fs::write(&file, text).unwrap();
    let paging = "--dynamic-layers --paged-kv --vram-budget";
    let plain = complete(&format!("{LONG} {paging} 100%"));

    set(" 100%\n");
    let mut run = Running::start(
        &format!("{LONG} {paging}-file {}", file.display()),
        Stdio::piped(),
    );
    let start = run.read_to(|record| record["type"] == "plan" && record["reason"] == "start");
    run.read_tokens(3);
    set("50%");
    run.send("-USR1");
    let is_budget = |record: &Value| record["type"] == "plan" && record["reason"] == "budget";
    let smaller = run.read_to(is_budget);
    assert!(smaller["budget_bytes"].as_u64() < start["budget_bytes"].as_u64());

    // Nonsense, and a budget too small, are warnings; the old one stays.
    for (text, part) in [("much", "'much'"), ("1K", "minimum")] {
        set(text);
        run.send("-USR1");
        let warning = run.read_to(|record| is_log(record, "the budget stays at"));
        assert!(is_log(&warning, part), "{warning}");
        assert_eq!(warning["level"], "warn");
    }
    std::fs::remove_file(&file).unwrap();
    run.send("-USR1");
    run.read_to(|record| is_log(record, "could not read the budget"));

    set("100%");
    run.send("-USR1");
    let larger = run.read_to(is_budget);
    assert_eq!(larger["budget_bytes"], start["budget_bytes"]);

    let (code, all, text) = run.end();
    assert_eq!(code, Some(0));
    assert_eq!(text, stdout(&plain));
    assert_eq!(of(&all, "token").len(), 400);
    assert_eq!(of(&all, "error").len(), 0);
}

#[test]
fn without_a_file_the_signal_is_answered_by_a_sentence() {
    let line = format!("{LONG} --dynamic-layers --vram-budget 60%");
    let mut run = Running::start(&line, Stdio::null());
    run.read_tokens(2);
    run.send("-USR1");
    run.read_to(|record| is_log(record, "--vram-budget-file"));
    let (code, ..) = run.end();
    assert_eq!(code, Some(0));
}

#[test]
fn without_paging_the_signal_means_what_it_always_means() {
    use std::os::unix::process::ExitStatusExt;
    let mut run = Running::start(LONG, Stdio::null());
    run.read_tokens(2);
    run.send("-USR1");
    assert!(run.child.wait().unwrap().signal().is_some());
}

#[test]
fn an_interrupt_ends_with_the_summary() {
    let mut run = Running::start(&format!("{LONG} --dynamic-layers"), Stdio::piped());
    run.read_tokens(5);
    run.send("-INT");
    let (code, all, text) = run.end();
    assert_eq!(code, Some(130));
    assert!(text.ends_with("\nInterrupted by user\n"), "{text}");
    let summary = all.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["exit_reason"], "interrupted");
    assert_eq!(summary["exit_code"], 130);
    assert_eq!(of(&all, "error").len(), 0);
    let generated = summary["generated_tokens"].as_u64().unwrap();
    assert_eq!(of(&all, "token").len() as u64, generated);
}

#[test]
fn a_signal_before_there_is_a_model_ends_with_the_summary_too() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("budget");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let line = format!("{LONG} --paged-kv --vram-budget-file {}", pipe.display());
    let run = Running::start(&line, Stdio::null());
    // Opens when the program does, which then waits for what is never written.
    let writer = File::options().write(true).open(&pipe).unwrap();
    run.send("-TERM");
    let (code, all, _) = run.end();
    drop(writer);
    assert_eq!(code, Some(143));
    assert_eq!(all.last().unwrap()["exit_reason"], "interrupted");
}

#[test]
fn signals_that_do_not_wait_leave_whole_lines() {
    // Nobody reads standard output: the run, and its log, stand still.
    let line = format!("{LONG} -n -1");
    let mut run = Running::start(&line, Stdio::piped());
    run.read_tokens(2);
    for _ in 0..3 {
        run.send("-INT");
        // The handler has to see them one by one.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let (code, ..) = run.end();
    assert_eq!(code, Some(130));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_metrics_and_not_the_run() {
    let flags = "-n 20 -s 7 --ignore-eos";
    let plain = complete(flags);
    let full = complete(&format!("{flags} --metrics-file /dev/full"));
    assert_eq!(full.status.code(), Some(0));
    assert_eq!(stdout(&full), stdout(&plain));
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    let warnings = said
        .matches("could not write metrics to '/dev/full'")
        .count();
    assert_eq!(warnings, 1, "{said}");
}

#[test]
fn a_reader_of_the_metrics_who_leaves_does_not_end_the_run() {
    let mut run = Running::start(&format!("{LONG} --dynamic-layers"), Stdio::piped());
    run.read_tokens(2);
    let Running {
        mut child, lines, ..
    } = run;
    drop(lines);
    let mut text = String::new();
    let mut out = child.stdout.take().unwrap();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(text, stdout(&complete(&format!("{LONG} --dynamic-layers"))));
}

#[test]
fn a_file_that_is_a_pipe_without_reader_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("metrics");
    super::make_pipe(&pipe);
    let leaves = |pipe: &Path| {
        let pipe = pipe.to_owned();
        std::thread::spawn(move || drop(File::open(pipe)))
    };
    let reader = leaves(&pipe);
    let output = complete(&format!("-n 20 --metrics-file {}", pipe.display()));
    reader.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
}
