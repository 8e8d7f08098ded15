//! The chat at a terminal: keys in, a screen out.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// Ctrl-C, Ctrl-D, and other keys as a terminal sends them.
const INTERRUPT: &str = "\x03";
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
        let size = PtySize {
            rows: ROWS,
            cols: columns,
            ..PtySize::default()
        };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_rpaged-cli"));
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
fn a_message_is_typed_edited_and_answered() {
    let mut terminal = chat("-n 30");
    terminal.wait_for("/help shows the commands");
    let text = terminal.send("Once upon a time");
    let answer = last_answer(&text);
    assert!(answer.len() > 10, "{text}");
    assert!(text.contains(" of 512 · memory "), "{text}");

    // What is typed wrong is put right with the arrows: the same message, the same answer.
    terminal.send("/clear");
    terminal.press("Once pon a time");
    terminal.wait_for_prompt("Once pon a time");
    terminal.press(&LEFT.repeat(10));
    terminal.press("u");
    terminal.wait_for_prompt("Once upon a time");
    terminal.press("\r");
    let text = terminal.wait("both answers", |text| text.matches("tokens/s").count() == 2);
    assert_eq!(last_answer(&text), answer, "{text}");

    // The history has both; a message before them is not sent again by looking at it.
    terminal.wait_for_prompt("");
    terminal.press(UP);
    terminal.wait_for_prompt("Once upon a time");
    terminal.press(UP);
    terminal.wait_for_prompt("/clear");
    terminal.press(INTERRUPT);
    terminal.leave();
}

/// Lines after the one that holds `what`; none when there is no such line.
fn lines_after(text: &str, what: &str) -> usize {
    let after = text.split_once(what);
    after.map_or(0, |(_, after)| after.lines().count())
}

#[test]
fn ctrl_c_stops_an_answer_and_keeps_the_session() {
    let mut terminal = chat("--ignore-eos -c 8192");
    terminal.wait_for_prompt("");
    terminal.press("Once upon a time\r");
    terminal.wait("an answer", |text| {
        lines_after(text, "Once upon a time") > 3
    });
    terminal.press(INTERRUPT);
    terminal.wait_for("interrupted");
    let text = terminal.wait_for_prompt("");
    assert!(
        text.contains("tokens/s") && !text.contains("failed"),
        "{text}"
    );
    let text = terminal.send("/stats");
    assert!(text.contains("conversation: 2 messages"), "{text}");
    terminal.wait_for_prompt("");
    terminal.press("And then?\r");
    terminal.wait("an answer", |text| lines_after(text, "And then?") > 3);
    terminal.press(INTERRUPT);
    terminal.wait("both interruptions", |text| {
        text.rsplit("And then?")
            .next()
            .unwrap_or_default()
            .contains("interrupted")
    });
    terminal.leave();
}

#[test]
fn at_the_prompt_ctrl_c_drops_the_line() {
    let mut terminal = chat("");
    terminal.wait_for_prompt("");
    terminal.press("never mind");
    terminal.wait_for_prompt("never mind");
    terminal.press(INTERRUPT);
    let text = terminal.send("/stats");
    assert!(text.contains("conversation: 0 messages"), "{text}");
    terminal.leave();
}

#[test]
fn the_budget_changes_while_the_chat_goes_on() {
    let paged = "--dynamic-layers --paged-kv --vram-budget 90% -n 30";
    let mut terminal = chat(paged);
    let text = terminal.send("Once upon a time");
    let answer = last_answer(&text);
    let text = terminal.send("/vram 60%");
    assert!(
        text.contains("the budget changes from 2.28 MiB to 1.52 MiB"),
        "{text}"
    );
    let text = terminal.send("/regen");
    assert_eq!(last_answer(&text), answer, "{text}");
    assert!(text.contains(" of 1.52 MiB"), "{text}");
    let text = terminal.send("/vram 1K");
    assert!(
        text.contains("error: the budget stays at 1.52 MiB"),
        "{text}"
    );
    let text = terminal.send("/vram much");
    assert!(text.contains("error: /vram got 'much'"), "{text}");
    let text = terminal.send("/stats");
    assert!(text.contains("travel for each token"), "{text}");
    terminal.leave();
}

#[test]
fn without_paging_there_is_no_budget_to_change() {
    let mut terminal = chat("");
    let text = terminal.send("/vram 1G");
    assert!(text.contains("error: nothing is paged"), "{text}");
    terminal.leave();
}

#[test]
fn a_conversation_is_saved_loaded_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a talk.json");
    let mut terminal = Terminal::start(200, "--chat-template chatml -n 30 -sys Stories", &[]);
    let text = terminal.send("Once upon a time");
    let answer = last_answer(&text);
    terminal.send(&format!("/save {}", path.display()));
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(saved["messages"][0]["content"], "Stories");
    assert_eq!(saved["messages"][1]["content"], "Once upon a time");
    assert_eq!(saved["messages"].as_array().unwrap().len(), 3);

    let next = last_answer(&terminal.send("Who was there?"));
    terminal.send("/clear");
    let text = terminal.send(&format!("/load {}", path.display()));
    assert!(text.contains("2 messages loaded from"), "{text}");
    terminal.send("/regen");
    assert_eq!(last_answer(&terminal.text()), answer);
    assert_eq!(last_answer(&terminal.send("Who was there?")), next);

    // A file that is none changes nothing.
    std::fs::write(folder.path().join("bad"), "{").unwrap();
    for (name, reason) in [("bad", "holds no conversation"), ("none", "No such file")] {
        let file = folder.path().join(name);
        let text = terminal.send(&format!("/load {}", file.display()));
        assert!(text.contains(reason), "{text}");
    }
    let text = terminal.send("/stats");
    assert!(text.contains("conversation: 4 messages"), "{text}");
    terminal.leave();
}

#[test]
fn a_file_goes_with_the_next_message() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tale.txt"), "Once upon a time").unwrap();
    let talk = folder.path().join("talk.json");
    let mut terminal = Terminal::start(200, "--chat-template chatml -n 5", &[]);
    // Tab completes the command and the file.
    terminal.wait_for_prompt("");
    terminal.press("/rea\t");
    terminal.wait_for("> /read");
    terminal.press(&format!("{}/ta\t", folder.path().display()));
    terminal.wait_for("tale.txt");
    terminal.press("\r");
    terminal.wait_for("goes with your next message");
    terminal.send("What is it?");
    terminal.send(&format!("/save {}", talk.display()));
    let saved = std::fs::read_to_string(talk).unwrap();
    assert!(
        saved.contains("tale.txt':\\n\\nOnce upon a time\\n\\nWhat is it?"),
        "{saved}"
    );
    terminal.leave();
}

#[test]
fn several_lines_make_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let talk = folder.path().join("talk.json");
    let mut terminal = Terminal::start(200, "--chat-template chatml -n 3", &[]);
    terminal.wait_for_prompt("");
    for (index, keys) in [
        "one\\\rtwo\r".to_owned(),
        format!("three{ALT_ENTER}four\r"),
        "\"\"\"  five\r\r  six\\\r\"\"\"\r".to_owned(),
        "\"\"\"/exit\"\"\"\r".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        terminal.press(keys);
        terminal.wait("the answer", |text| {
            text.matches("tokens/s").count() == index + 1
        });
        terminal.wait_for_prompt("");
    }
    terminal.send(&format!("/save {}", talk.display()));
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(talk).unwrap()).unwrap();
    let said = |index: usize| {
        saved["messages"][index]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(said(0), "one\ntwo");
    assert_eq!(said(2), "three\nfour");
    assert_eq!(said(4), "  five\n\n  six\\");
    assert_eq!(said(6), "/exit");
    terminal.leave();
}

#[test]
fn with_multiline_input_a_backslash_sends() {
    let mut terminal = chat("-n 3 --multiline-input");
    terminal.wait_for_prompt("");
    terminal.press("one\rtwo\\\r");
    terminal.wait_for("tokens/s");
    let text = terminal.send("/help");
    assert!(text.contains("--multiline-input"), "{text}");
    terminal.leave();
}

/// The template that has the model think, in a file.
fn thinking_template() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), THINKING).unwrap();
    file
}

#[test]
fn thoughts_are_dim_and_end_with_their_budget() {
    let template = thinking_template();
    let line = format!(
        "--chat-template-file {} --reasoning-budget 8 -n 40 --ignore-eos",
        template.path().display()
    );
    let mut terminal = Terminal::start(80, &line, &[]);
    let text = terminal.send("Once upon a time");
    assert!(!text.contains("think>"), "{text}");
    let lines: Vec<_> = text.lines().collect();
    let asked = lines
        .iter()
        .position(|line| line.starts_with("> Once"))
        .unwrap();
    let gap = (asked..).find(|&row| lines[row].is_empty()).unwrap();
    let parser = terminal.screen.lock().unwrap();
    let is_dim = |row: usize| {
        let cell = parser.screen().cell(u16::try_from(row).unwrap(), 0);
        cell.unwrap().dim()
    };
    assert!(is_dim(asked + 1), "{text}");
    assert!(!is_dim(gap + 1), "{text}");
    drop(parser);
    terminal.leave();
}

#[test]
fn without_colours_words_mark_thoughts() {
    let template = thinking_template();
    let line = format!(
        "--chat-template-file {} --reasoning-budget 8 -n 40 --ignore-eos",
        template.path().display()
    );
    for (more, env) in [("", &[("NO_COLOR", "1")][..]), (" --color off", &[])] {
        let mut terminal = Terminal::start(80, &format!("{line}{more}"), env);
        let text = terminal.send("Once upon a time");
        assert!(text.contains("[thinking]\n"), "{text}");
        assert!(text.contains("\n[end of thinking]\n"), "{text}");
        terminal.leave();
        let raw = terminal.raw.lock().unwrap().clone();
        let raw = String::from_utf8_lossy(&raw).into_owned();
        let styles = raw.split("\x1b[").skip(1).filter(|rest| {
            rest.split(|c: char| c.is_ascii_alphabetic())
                .next()
                .is_some_and(|digits| {
                    let end = rest.as_bytes().get(digits.len());
                    end == Some(&b'm') && digits != "0" && !digits.is_empty()
                })
        });
        // What llama.cpp logs while it loads has colours of its own switch.
        let ours = styles.filter(|rest| !rest.starts_with("34m") && !rest.starts_with("35m"));
        assert_eq!(ours.count(), 0, "{raw:?}");
    }
}

#[test]
fn a_narrow_terminal_gets_short_lines() {
    let mut terminal = Terminal::start(30, "--chat-template chatml -n 20", &[]);
    let text = terminal.send("Once");
    let status = text.lines().find(|line| line.contains("tokens/s")).unwrap();
    assert!(
        status.ends_with('…') && status.chars().count() == 30,
        "{text}"
    );
    let size = PtySize {
        rows: ROWS,
        cols: 100,
        ..PtySize::default()
    };
    terminal.master.resize(size).unwrap();
    terminal
        .screen
        .lock()
        .unwrap()
        .screen_mut()
        .set_size(some(ROWS), some(100));
    let text = terminal.send("Twice");
    let status = text
        .lines()
        .rfind(|line| line.contains("tokens/s"))
        .unwrap();
    assert!(
        status.contains("memory") && !status.ends_with('…'),
        "{text}"
    );
    terminal.leave();
}

#[test]
fn a_long_prompt_shows_progress_that_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("long.txt");
    std::fs::write(&file, "Once upon a time. ".repeat(60)).unwrap();
    let mut terminal = chat("-n 3 -c 1024");
    terminal.send(&format!("/read {}", file.display()));
    let text = terminal.send("Who?");
    assert!(!text.contains("reading:"), "{text}");
    let raw = terminal.raw.lock().unwrap().clone();
    assert!(String::from_utf8_lossy(&raw).contains("reading: 0 of "));
    terminal.leave();
}

#[test]
fn a_full_context_is_a_sentence_or_the_oldest_turns_go() {
    let mut terminal = chat("--ignore-eos -c 256 -n -1");
    let text = terminal.send("Once");
    assert!(text.contains("the context is full"), "{text}");
    let text = terminal.send("Again");
    assert!(text.contains("error: the conversation has "), "{text}");
    assert!(text.contains("--context-shift"), "{text}");
    terminal.send("/clear");
    let text = terminal.send("/stats");
    assert!(text.contains("conversation: 0 messages"), "{text}");
    terminal.leave();

    let mut terminal = chat("--ignore-eos -c 256 -n 70 --context-shift");
    for message in ["Once", "Twice", "Thrice", "Again"] {
        let text = terminal.send(message);
        assert!(!text.contains("error"), "{text}");
    }
    let text = terminal.send("/stats");
    assert!(text.contains("conversation: 8 messages"), "{text}");
    terminal.leave();
}

#[test]
fn a_single_turn_ends_after_one_answer() {
    let mut terminal = chat("-st -n 5 -p Once");
    assert_eq!(terminal.end(), 0);
    let text = terminal.wait_for("tokens/s");
    assert!(text.contains("> Once"), "{text}");
    let mut terminal = chat("-st -n 5");
    terminal.wait_for_prompt("");
    terminal.press("Once\r");
    assert_eq!(terminal.end(), 0);
    terminal.wait_for("tokens/s");
}

#[test]
fn a_reverse_prompt_ends_an_answer_and_is_not_shown() {
    let mut plain = chat("-n 40");
    let answer = last_answer(&plain.send("Once upon a time"));
    plain.leave();
    let words: Vec<_> = answer.split_whitespace().collect();
    let stop = words[4];
    let mut terminal = chat(&format!("-n 40 -r {stop}"));
    let text = terminal.send("Once upon a time");
    let cut = last_answer(&text);
    assert!(answer.starts_with(&cut), "{text}");
    assert!(!cut.contains(stop) && !cut.is_empty(), "{text}");
    terminal.leave();
}

#[test]
fn a_signal_at_the_prompt_ends_the_chat_and_sets_the_terminal_right() {
    let mut terminal = chat("");
    let before = terminal.master.get_termios().unwrap();
    terminal.wait_for_prompt("");
    assert_ne!(terminal.master.get_termios().unwrap(), before);
    let id = terminal.child.process_id().unwrap().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-TERM", &id])
        .status();
    assert!(sent.unwrap().success());
    assert_eq!(terminal.end(), 143);
    assert_eq!(terminal.master.get_termios().unwrap(), before);
}

#[test]
fn metrics_of_a_chat_hold_all_its_tokens() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut terminal = chat(&format!("-n 4 --metrics-file {}", file.path().display()));
    terminal.send("Once");
    terminal.send("Twice");
    terminal.leave();
    let text = std::fs::read_to_string(file.path()).unwrap();
    let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let records: Vec<serde_json::Value> = records.collect();
    let tokens = records.iter().filter(|record| record["type"] == "token");
    assert_eq!(tokens.count(), 8);
    let summary = records.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["generated_tokens"], 8);
}

#[test]
fn the_history_outlives_the_chat() {
    let home = tempfile::tempdir().unwrap();
    let env = [("HOME", home.path().to_str().unwrap())];
    let mut terminal = Terminal::start(80, "--chat-template chatml -n 3", &env);
    terminal.send("/stats");
    terminal.leave();
    let mut terminal = Terminal::start(80, "--chat-template chatml -n 3", &env);
    terminal.wait_for_prompt("");
    terminal.press(UP);
    terminal.wait_for_prompt("/stats");
    terminal.press(INTERRUPT);
    terminal.leave();
    assert!(
        home.path()
            .join(".local/share/rpaged/chat-history")
            .is_file()
    );
}

#[test]
fn what_cannot_be_done_is_a_sentence_and_the_chat_goes_on() {
    let mut terminal = chat("");
    for (line, sentence) in [
        ("/lod x", "did you mean /load?"),
        ("/save", "/save needs something: /save FILE"),
        ("/regen", "there is no message to answer again"),
        ("/read /", "it is no regular file"),
    ] {
        let text = terminal.send(line);
        assert!(text.contains(sentence), "{line}: {text}");
    }
    terminal.leave();
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
fn a_line_that_is_no_utf_8_is_dropped_and_the_chat_goes_on() {
    let mut terminal = chat("");
    terminal.wait_for_prompt("");
    terminal.keys.write_all(b"caf\xe9\r").unwrap();
    terminal.wait_for("is no UTF-8");
    let text = terminal.send("/stats");
    assert!(text.contains("context"), "{text}");
    terminal.leave();
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
