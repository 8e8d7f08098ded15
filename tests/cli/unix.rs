//! Signals, closed pipes, full disks.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use super::{MODEL, hears_hangups, program};

/// Has `command` run without the terminal that the tests were started at.
#[allow(unsafe_code, reason = "runs a call between fork and exec")]
pub fn leave_terminal(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let leave = || {
        // SAFETY:
        // - takes nothing, and may be called between fork and exec.
        unsafe { libc::setsid() };
        Ok(())
    };
    // SAFETY:
    // - `leave` only makes a system call.
    unsafe { command.pre_exec(leave) };
}

/// The program while it generates without an end.
fn endless(stdout: Stdio) -> Child {
    let binary = assert_cmd::cargo::cargo_bin("rpaged-cli");
    let mut command = Command::new(binary);
    command.args([
        "-m", MODEL, "-t", "1", "-no-cnv", "-p", "Once", "-n", "-1", "-c", "128",
    ]);
    command.args(["--ignore-eos", "--context-shift"]);
    command.env("HOME", "/nonexistent").stdin(Stdio::null());
    command
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn send(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &id])
            .status()
            .unwrap()
            .success()
    );
}

fn stop_with(signal: &str) -> (Option<i32>, String, String) {
    let mut child = endless(Stdio::piped());
    let mut out = child.stdout.take().unwrap();
    let mut start = [0; 200];
    out.read_exact(&mut start).unwrap();
    send(&child, signal);
    let (mut text, mut log) = (Vec::new(), Vec::new());
    out.read_to_end(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut log).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), None);
    let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), show(&text), show(&log))
}

#[test]
fn an_interrupt_ends_the_text_and_prints_the_timings() {
    let (code, text, log) = stop_with("-INT");
    assert_eq!(code, Some(130));
    assert!(text.ends_with("\nInterrupted by user\n"), "{text}");
    assert!(log.contains("eval time ="), "{log}");
    assert!(!log.contains("error:"), "{log}");
}

#[test]
fn a_termination_has_its_own_code() {
    assert_eq!(stop_with("-TERM").0, Some(143));
    if !hears_hangups() {
        return;
    }
    let (code, _, log) = stop_with("-HUP");
    assert_eq!(code, Some(129));
    assert!(log.contains("eval time ="), "{log}");
}

#[test]
fn a_closed_output_ends_quietly() {
    let mut child = endless(Stdio::piped());
    let mut out = child.stdout.take().unwrap();
    let mut start = [0; 20];
    out.read_exact(&mut start).unwrap();
    drop(out);
    let mut log = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert!(
        !log.contains("error:") && !log.contains("panicked"),
        "{log}"
    );
}

#[test]
fn a_closed_standard_error_is_no_panic() {
    let binary = assert_cmd::cargo::cargo_bin("rpaged-cli");
    let mut child = Command::new(binary)
        .args(["-m", "/nonexistent", "-p", "x"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_sentence() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let child = endless(Stdio::from(full));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("error: could not write to standard output"),
        "{log}"
    );
}

#[test]
fn a_prompt_can_come_through_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("prompt");
    super::make_pipe(&pipe);
    let path = pipe.clone();
    let writer = std::thread::spawn(move || std::fs::write(path, "Once upon a time\n"));
    let mut command = program();
    command
        .args([
            "-m", MODEL, "-t", "1", "-no-cnv", "-n", "3", "-s", "1", "-f",
        ])
        .arg(&pipe);
    let output = command.output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Once upon a time"));
}
