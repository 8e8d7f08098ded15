//! Commands: the budget, conversations, files.

use super::{Terminal, chat, last_answer};

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
