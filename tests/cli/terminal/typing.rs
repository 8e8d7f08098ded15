//! What is typed: keys, lines, the history.

use super::{ALT_ENTER, INTERRUPT, LEFT, STOP, Terminal, UP, chat, last_answer};

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

/// Where each of `lines` is first shown as typed.
fn places(text: &str, lines: &[&str]) -> Vec<usize> {
    let place = |line: &&str| {
        let found = text.find(&format!("> {line}"));
        found.unwrap_or_else(|| panic!("no '{line}' in\n{text}"))
    };
    lines.iter().map(place).collect()
}

#[test]
fn lines_that_come_in_one_piece_are_all_turns() {
    let mut terminal = chat("-n 2 -c 4096");
    terminal.wait_for_prompt("");
    terminal.press("One\rTwo\\\rmore\rThree\r/stats\r");
    let text = terminal.wait_for("conversation: 6 messages");
    let places = places(&text, &["One", "Two", "Three", "/stats"]);
    assert!(places.is_sorted(), "{text}");
    // More than an editor reads at once.
    terminal.wait_for_prompt("");
    terminal.press("/clear\r");
    terminal.wait_for("is forgotten");
    terminal.press(&format!("{}\rand more\r/stats\r", "owl ".repeat(500)));
    terminal.wait_for("conversation: 4 messages");
    terminal.leave();
}

#[test]
fn what_is_typed_while_an_answer_is_written_is_read_after_it() {
    let mut terminal = chat("-n 40 --ignore-eos");
    terminal.wait_for_prompt("");
    terminal.press("One\r");
    terminal.press("Two\r/stats\r");
    terminal.wait_for("conversation: 4 messages");
    terminal.leave();
}

#[test]
fn pasted_lines_are_one_message() {
    let mut terminal = chat("-n 2");
    terminal.wait_for_prompt("");
    terminal.press("\x1b[200~One\rTwo\x1b[201~\rThree\r/stats\r");
    let text = terminal.wait_for("conversation: 4 messages");
    assert!(places(&text, &["One", "Three"]).is_sorted(), "{text}");
    terminal.leave();
}

#[test]
fn a_chat_that_was_stopped_goes_on_where_it_was() {
    // A shell that continues what was stopped.
    let shell = ["sh", "-c", "set -m; \"$@\"; fg", "sh"];
    let line = "--chat-template chatml -n 2";
    let mut terminal = Terminal::start_below(&shell, 200, line, &[]);
    terminal.wait_for_prompt("");
    terminal.press("One");
    terminal.wait_for_prompt("One");
    let edited = terminal.master.get_termios().unwrap();
    let job = terminal.master.process_group_leader().unwrap().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-TSTP", &job])
        .status();
    assert!(sent.unwrap().success());
    terminal.wait("the line once more", |text| {
        text.matches("> One").count() == 2 && text.lines().last() == Some("> One")
    });
    assert_eq!(terminal.master.get_termios().unwrap(), edited);
    terminal.press("ce\r/stats\r");
    terminal.wait_for("conversation: 2 messages");
    terminal.leave();
}

#[test]
fn the_key_that_stops_the_process_loses_no_line_and_no_later_key() {
    // A shell that continues what was stopped, as often as it was.
    let shell = ["sh", "-c", "set -m; \"$@\"; until fg; do :; done", "sh"];
    let line = "--chat-template chatml -n 2";
    let mut terminal = Terminal::start_below(&shell, 200, line, &[]);
    let stopped = |terminal: &mut Terminal, line: &str| {
        let shown = format!("> {line}");
        let count = |text: &str| text.lines().filter(|line| *line == shown).count();
        let before = count(&terminal.wait_for_prompt(line));
        terminal.press(STOP);
        terminal.wait("the line once more", |text| {
            count(text) > before && text.lines().last() == Some(&shown)
        });
    };
    // Ctrl-C drops what was continued, and the cursor stays where it is.
    terminal.wait_for_prompt("");
    let edited = terminal.master.get_termios().unwrap();
    terminal.press(&format!("abd{LEFT}"));
    stopped(&mut terminal, "abd");
    assert_eq!(terminal.master.get_termios().unwrap(), edited);
    terminal.press("c");
    terminal.wait_for_prompt("abcd");
    terminal.press(INTERRUPT);
    terminal.wait_for_prompt("");
    // A window of another size afterwards costs no line.
    terminal.send("/stats");
    terminal.press("ghi");
    terminal.wait_for_prompt("ghi");
    let size = portable_pty::PtySize {
        rows: super::ROWS,
        cols: 100,
        ..portable_pty::PtySize::default()
    };
    terminal.master.resize(size).unwrap();
    terminal.press("j");
    terminal.wait_for_prompt("ghij");
    // Nor does an answer that comes between.
    stopped(&mut terminal, "ghij");
    terminal.press("\r");
    terminal.wait_for("tokens/s");
    terminal.wait_for_prompt("");
    terminal.press("xyz");
    terminal.wait_for_prompt("xyz");
    terminal.press(INTERRUPT);
    terminal.wait_for_prompt("");
    terminal.leave();
}

#[test]
fn what_is_typed_behind_a_key_that_ends_a_line_is_not_lost() {
    let shell = ["sh", "-c", "set -m; \"$@\"; until fg; do :; done", "sh"];
    let line = "--chat-template chatml -n 2 -c 4096";
    let mut terminal = Terminal::start_below(&shell, 200, line, &[]);
    terminal.wait_for_prompt("");
    terminal.press(&format!("abc{INTERRUPT}/clear\r/stats\r"));
    terminal.wait_for("is forgotten");
    let text = terminal.wait_for("conversation: 0 messages");
    assert!(
        places(&text, &["abc", "/clear", "/stats"]).is_sorted(),
        "{text}"
    );
    terminal.press(&format!("One{STOP} more\r/stats\r"));
    let text = terminal.wait_for("conversation: 2 messages");
    assert!(text.contains("> One more"), "{text}");
    terminal.leave();
}

#[test]
fn the_history_is_kept_where_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    let file = folder.path().join("typed");
    let line = |path: &str| format!("--chat-template chatml -n 2 --chat-history {path}");
    let env = [("HOME", home)];
    let mut terminal = Terminal::start(80, &line("none"), &env);
    terminal.send("One");
    terminal.leave();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let mut terminal = Terminal::start(250, &line(file.to_str().unwrap()), &env);
    terminal.send("/stats");
    // What is too long was hardly typed.
    terminal.press(&format!("/{}\r", "x".repeat(4100)));
    terminal.wait_for("error: ");
    terminal.leave();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "#V2\n/stats\n");
    let mut terminal = Terminal::start(80, &line(home), &env);
    assert_eq!(terminal.end(), 1);
    terminal.wait_for("it is no regular file");
}
