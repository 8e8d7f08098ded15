//! Answers: how they are shown, and how they end.

use portable_pty::PtySize;

use super::{INTERRUPT, ROWS, THINKING, Terminal, chat, last_answer, some};

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
