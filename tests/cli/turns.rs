//! Who takes turns never waits for one that does not come: input that ends, signals, and
//! readers that leave, at each stage and in each mode.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{MODEL, complete, hears_hangups, stdout};

/// After this a program hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How turns are taken: the flags, and whether the user types first.
const INTERACTIVE: [&str; 3] = [
    "-no-cnv -i -p Once",
    "-no-cnv -if -p Once",
    "--chat-template chatml",
];

/// A run with pipes at both ends.
struct Talk {
    child: Child,
}

impl Talk {
    fn start(line: &str, stdin: Stdio) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("rpaged-cli"));
        command.args(["-m", MODEL, "-t", "1", "-s", "7", "-c", "512"]);
        command
            .args(line.split_whitespace())
            .env("HOME", "/nonexistent");
        super::unix::leave_terminal(&mut command);
        let child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    fn say(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    /// Reads standard output until it contains `part`.
    fn read_to(&mut self, part: &str) -> String {
        let out = self.child.stdout.as_mut().unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&text).contains(part) {
            let read = out.read(&mut byte).unwrap();
            let so_far = String::from_utf8_lossy(&text);
            assert!(read > 0, "no '{part}' in: {so_far}");
            text.push(byte[0]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn send(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.unwrap().success());
    }

    /// The exit code, once it has ended by itself, and what it still wrote.
    fn end(mut self) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        let (done, watched) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if watched.recv_timeout(PATIENCE).is_err() {
                drop(Command::new("kill").args(["-KILL", &id]).status());
            }
        });
        let mut text = Vec::new();
        if let Some(mut out) = self.child.stdout.take() {
            out.read_to_end(&mut text).unwrap();
        }
        let code = self.child.wait().unwrap().code();
        let _ = done.send(());
        watch.join().unwrap();
        (code, String::from_utf8_lossy(&text).into_owned())
    }
}

#[test]
fn input_that_ends_ends_the_text() {
    for mode in INTERACTIVE {
        for simple in ["", "--simple-io"] {
            let line = format!("{mode} {simple} -n 4");
            let (code, text) = Talk::start(&line, Stdio::null()).end();
            assert_eq!(code, Some(0), "{line}");
            assert!(text.ends_with("EOF by user\n\n\n"), "{line}: {text}");

            let mut cut = Talk::start(&line, Stdio::piped());
            cut.say("the fox\nthe ow");
            drop(cut.child.stdin.take());
            let (code, text) = cut.end();
            assert_eq!(code, Some(0), "{line}");
            assert!(text.ends_with("EOF by user\n\n\n"), "{line}: {text}");
        }
    }
}

#[test]
fn an_empty_line_before_anything_else_asks_again() {
    // Without a first token of its own the model has read nothing yet.
    let line = "--chat-template chatml --no-warmup -n 4 --simple-io --override-kv \
                tokenizer.ggml.add_bos_token=bool:false";
    let mut talk = Talk::start(line, Stdio::piped());
    talk.say("\n\nHello\n");
    drop(talk.child.stdin.take());
    let (code, text) = talk.end();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("\n> \n> \n> "), "{text}");
    assert!(text.ends_with("EOF by user\n\n\n"), "{text}");
}

#[test]
fn an_input_that_was_never_there_is_at_its_end() {
    let binary = assert_cmd::cargo::cargo_bin("rpaged-cli");
    for mode in INTERACTIVE {
        let script = format!(
            "exec '{}' -m '{MODEL}' -t 1 -n 4 {mode} <&-",
            binary.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env("HOME", "/nonexistent");
        super::unix::leave_terminal(&mut command);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (code, text) = Talk { child }.end();
        assert_eq!(code, Some(0), "{mode}");
        assert!(text.ends_with("EOF by user\n\n\n"), "{mode}: {text}");
    }
}

#[test]
fn a_signal_while_a_line_is_awaited_ends_the_run() {
    for mode in INTERACTIVE {
        for simple in ["", "--simple-io"] {
            for (signal, expected) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
                if signal == "-HUP" && !hears_hangups() {
                    continue;
                }
                let line = format!("{mode} {simple} -n 4 --in-prefix [you]");
                let mut talk = Talk::start(&line, Stdio::piped());
                let sign = if mode.contains("-no-cnv") {
                    "[you]"
                } else {
                    "> "
                };
                talk.read_to(sign);
                talk.send(signal);
                let (code, text) = talk.end();
                assert_eq!(code, Some(expected), "{line} {signal}");
                assert!(text.ends_with("\nInterrupted by user\n"), "{line}: {text}");
            }
        }
    }
}

#[test]
fn an_interrupt_while_the_model_writes_gives_the_user_control() {
    let line = "-no-cnv -i -p Once -n -1 --ignore-eos --context-shift --simple-io";
    let mut talk = Talk::start(&format!("{line} --in-prefix [you]"), Stdio::piped());
    talk.read_to("Once upon");
    talk.send("-INT");
    talk.read_to("[you]");
    talk.say("and the fox\n");
    talk.read_to(".");
    // Again, and the one after that ends the run: nothing is typed.
    talk.send("-INT");
    talk.read_to("[you]");
    talk.send("-INT");
    let (code, text) = talk.end();
    assert_eq!(code, Some(130));
    assert!(text.ends_with("\nInterrupted by user\n"), "{text}");
}

#[test]
fn an_interrupt_without_further_input_ends_the_text() {
    let line = "-no-cnv -i -p Once -n -1 --ignore-eos --context-shift";
    let mut talk = Talk::start(line, Stdio::null());
    talk.read_to("Once upon");
    talk.send("-INT");
    let (code, text) = talk.end();
    assert_eq!(code, Some(0));
    assert!(text.ends_with("EOF by user\n\n\n"), "{text}");
}

#[test]
fn a_termination_ends_every_mode_while_the_model_writes() {
    for mode in [
        "-no-cnv -p Once",
        "-no-cnv -i -p Once",
        "-p Hi --chat-template chatml",
    ] {
        let line = format!("{mode} -n -1 --ignore-eos --context-shift");
        let mut talk = Talk::start(&line, Stdio::piped());
        talk.read_to(" the ");
        talk.send("-TERM");
        assert_eq!(talk.end().0, Some(143), "{line}");
    }
}

#[test]
fn a_signal_while_the_prompt_is_decoded_ends_every_mode() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt");
    std::fs::write(&file, "owl kite ".repeat(1500)).unwrap();
    let prompt = format!("-f {} -c 16384 -b 1 -n 4", file.display());
    for (mode, signal, expected) in [
        ("-no-cnv", "-INT", 130),
        ("-no-cnv", "-TERM", 143),
        ("-no-cnv -i", "-TERM", 143),
        ("--chat-template chatml", "-TERM", 143),
        ("-no-cnv --dynamic-layers --paged-kv", "-INT", 130),
    ] {
        let mut talk = Talk::start(&format!("{prompt} {mode}"), Stdio::piped());
        talk.read_to("owl kite owl");
        talk.send(signal);
        let (code, text) = talk.end();
        assert_eq!(code, Some(expected), "{mode} {signal}");
        assert!(text.ends_with("\nInterrupted by user\n"), "{mode}");
    }
}

#[test]
fn a_signal_before_there_is_a_model_ends_the_process_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("prompt");
    super::make_pipe(&pipe);
    for mode in ["-no-cnv", "-no-cnv -i", "--chat-template chatml"] {
        for (signal, expected) in [("-INT", 130), ("-TERM", 143)] {
            let line = format!("-f {} -n 4 {mode}", pipe.display());
            let talk = Talk::start(&line, Stdio::piped());
            // Opens when the program does, which then waits for what is never written.
            let writer = std::fs::File::options().write(true).open(&pipe).unwrap();
            talk.send(signal);
            assert_eq!(talk.end().0, Some(expected), "{mode} {signal}");
            drop(writer);
        }
    }
}

#[test]
fn a_reader_who_leaves_ends_every_mode() {
    for mode in [
        "-no-cnv -p Once",
        "-no-cnv -i -p Once",
        "-p Hi --chat-template chatml",
    ] {
        let line = format!("{mode} -n -1 --ignore-eos --context-shift");
        let mut talk = Talk::start(&line, Stdio::piped());
        talk.read_to(" the ");
        drop(talk.child.stdout.take());
        assert_eq!(talk.end().0, Some(141), "{line}");
    }
    // While a line is awaited: nobody sees what it would bring.
    let mut talk = Talk::start("-no-cnv -i -p Once -n 4 --in-prefix [you]", Stdio::piped());
    talk.read_to("[you]");
    drop(talk.child.stdout.take());
    talk.say("and\n");
    assert_eq!(talk.end().0, Some(141));
}

#[test]
fn turns_are_taken_under_paging_as_well() {
    let paging = "--dynamic-layers --paged-kv --vram-budget 60% -ub 16";
    let talk = |flags: &str| {
        let line = format!("-no-cnv -i -p Once -n 8 --simple-io --no-repack -ub 16 {flags}");
        let mut talk = Talk::start(&line, Stdio::piped());
        talk.say("and the fox\nand the owl\n");
        drop(talk.child.stdin.take());
        let (code, text) = talk.end();
        assert_eq!(code, Some(0), "{line}");
        text
    };
    assert_eq!(talk(paging), talk(""));
}

#[test]
fn a_metrics_record_is_written_for_each_token_of_every_turn() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("metrics");
    let line = format!(
        "-no-cnv -i -p Once -n 8 --simple-io --metrics-file {}",
        file.display()
    );
    let mut talk = Talk::start(&line, Stdio::piped());
    talk.say("and the fox\n");
    drop(talk.child.stdin.take());
    assert_eq!(talk.end().0, Some(0));
    let text = std::fs::read_to_string(&file).unwrap();
    let tokens = text.matches("\"type\":\"token\"").count();
    assert!(tokens > 8, "{tokens}");
    assert!(
        text.contains(&format!("\"generated_tokens\":{tokens}")),
        "{text}"
    );
}

#[test]
fn an_empty_conversation_shows_only_the_sign() {
    let (code, text) = Talk::start("--chat-template chatml", Stdio::null()).end();
    assert_eq!((code, text.as_str()), (Some(0), "\n> EOF by user\n\n\n"));
    // Without turns standard input is not read.
    assert!(stdout(&complete("-n 3")).ends_with("\n\n"));
}
