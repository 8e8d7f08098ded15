//! The chat at a terminal: keys in, a screen out.

mod answers;
mod commands;
mod typing;

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// Ctrl-C, Ctrl-Z, Ctrl-D, and other keys as a terminal sends them.
const INTERRUPT: &str = "\x03";
const STOP: &str = "\x1a";
const LEAVE: &str = "\x04";
const UP: &str = "\x1b[A";
const LEFT: &str = "\x1b[D";
const ALT_ENTER: &str = "\x1b\r";

/// The bound on time of every step; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows of every terminal here.
const ROWS: u16 = 40;

/// A template that has an answer begin with thoughts.
const THINKING: &str = "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}\
    <think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|assistant|><think>{% endif %}";

/// The program with a terminal on both ends.
struct Terminal {
    screen: Arc<Mutex<vt100::Parser>>,
    /// All bytes that it wrote.
    raw: Arc<Mutex<Vec<u8>>>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
}

fn some(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap()
}

/// A chat with the demo model that always says the same.
fn chat(line: &str) -> Terminal {
    Terminal::start(80, &format!("--chat-template chatml {line}"), &[])
}

impl Terminal {
    fn start(columns: u16, line: &str, env: &[(&str, &str)]) -> Self {
        Self::start_below(&[], columns, line, env)
    }

    /// Started by `parent`, the words of a program that takes others behind them.
    fn start_below(parent: &[&str], columns: u16, line: &str, env: &[(&str, &str)]) -> Self {
        let size = PtySize {
            rows: ROWS,
            cols: columns,
            ..PtySize::default()
        };
        let pair = native_pty_system().openpty(size).unwrap();
        let words = [parent, &[env!("CARGO_BIN_EXE_rpaged-cli")]].concat();
        let mut command = CommandBuilder::new(words[0]);
        command.args(&words[1..]);
        let size = if line.contains("-c ") { "" } else { "-c 512" };
        let fixed = format!("--demo -cnv --temp 0 -t 1 -ub 16 {size}");
        command.args(fixed.split_whitespace().chain(line.split_whitespace()));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("LLAMA_") || text.starts_with("XDG_") || text == "NO_COLOR" {
                command.env_remove(name);
            }
        }
        // Otherwise it would start at home.
        command.cwd(env!("CARGO_MANIFEST_DIR"));
        command.env("HOME", "/dev/null/home");
        command.env("TERM", "xterm-256color");
        for (name, value) in env {
            command.env(name, value);
        }
        let child = pair.slave.spawn_command(command).unwrap();
        let mut reader = pair.master.try_clone_reader().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(some(ROWS), some(columns), 0)));
        let raw = Arc::new(Mutex::new(Vec::new()));
        let (shared, bytes) = (screen.clone(), raw.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                bytes.lock().unwrap().extend_from_slice(&buffer[..count]);
                shared.lock().unwrap().process(&buffer[..count]);
            }
        });
        Self {
            screen,
            raw,
            keys: pair.master.take_writer().unwrap(),
            child,
            master: pair.master,
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// What is on the screen, without blanks at the ends of lines.
    fn text(&self) -> String {
        let rows = self
            .screen
            .lock()
            .unwrap()
            .screen()
            .rows(0, u16::MAX)
            .collect::<Vec<_>>();
        let rows = rows.iter().map(|row| row.trim_end());
        rows.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    /// Waits until the screen shows something.
    fn wait(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let text = self.text();
            if is_there(&text) {
                return text;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "no {what} on the screen:\n{text}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for(&self, what: &str) -> String {
        self.wait(what, |text| text.contains(what))
    }

    /// Waits for the prompt, with `typed` behind it.
    fn wait_for_prompt(&self, typed: &str) -> String {
        let line = format!("> {typed}");
        let prompt = line.trim_end();
        self.wait(prompt, |text| text.lines().last() == Some(prompt))
    }

    /// Sends a line and waits for the prompt after what it brings.
    fn send(&mut self, line: &str) -> String {
        let before = self.wait_for_prompt("");
        let echo = format!("> {line}");
        let count = |text: &str| text.lines().filter(|line| line.starts_with(&echo)).count();
        self.press(line);
        self.press("\r");
        self.wait("the prompt after it", |text| {
            text.lines().last() == Some(">") && count(text) > count(&before)
        })
    }

    /// Waits for the end; the exit code.
    fn end(&mut self) -> u32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.exit_code();
            }
            assert!(
                started.elapsed() < PATIENCE,
                "it does not end:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn leave(&mut self) {
        self.wait_for_prompt("");
        self.press(LEAVE);
        assert_eq!(self.end(), 0, "{}", self.text());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The lines between the last message and the line about speed after it.
fn last_answer(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let end = lines.iter().rposition(|line| line.contains(" tokens/s · "));
    let end = end.unwrap_or_else(|| panic!("no answer in\n{text}"));
    let start = lines[..end].iter().rposition(|line| line.starts_with("> "));
    lines[start.unwrap() + 1..end].join("\n")
}

#[test]
fn a_template_that_fails_ends_the_chat_before_it_begins() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let template = "{% if messages[0].content == 'Hello' %}{{ raise_exception('no') }}{% endif %}\
                    {{ messages[0].content }}";
    std::fs::write(file.path(), template).unwrap();
    let line = format!("--chat-template-file {}", file.path().display());
    let mut terminal = Terminal::start(80, &line, &[]);
    assert_eq!(terminal.end(), 1, "{}", terminal.text());
    terminal.wait_for("the chat template failed: no");
}

#[test]
fn a_template_that_is_no_known_name_is_refused() {
    let mut terminal = Terminal::start(80, "--chat-template chatmll", &[]);
    assert_eq!(terminal.end(), 2, "{}", terminal.text());
    terminal.wait_for("--chat-template");
}

#[test]
fn without_a_terminal_there_is_none_of_this() {
    let line = "--demo -cnv --chat-template chatml --temp 0 -t 1 -ub 16 -n 5 -p Once";
    let output = super::program()
        .args(line.split_whitespace())
        .write_stdin("/help\n")
        .output()
        .unwrap();
    let text = super::stdout(&output);
    assert!(
        !text.contains('\x1b') && !text.contains("/help shows"),
        "{text:?}"
    );
    assert!(!text.contains("tokens/s"), "{text:?}");
}
