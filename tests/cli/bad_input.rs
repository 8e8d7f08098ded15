//! Files that are no models: one sentence that names the file, exit code 1.

use std::path::Path;

use super::{MODEL, assert_refused, program};

fn try_file(path: &Path) -> std::process::Output {
    program()
        .args(["-no-cnv", "-n", "1", "-p", "x", "-m"])
        .arg(path)
        .output()
        .unwrap()
}

#[test]
fn files_that_are_no_models() {
    let folder = tempfile::tempdir().unwrap();
    let model = std::fs::read(MODEL).unwrap();
    let cut = model.len() - 1000;
    let cases: [(&str, &[u8], &str); 6] = [
        ("empty.gguf", b"", "is empty"),
        ("short.gguf", b"GG", "is not a GGUF file"),
        ("text.gguf", b"once upon a time", "is not a GGUF file"),
        ("header.gguf", &model[..1000], "cut off GGUF header"),
        ("magic.gguf", b"GGUF", "cut off GGUF header"),
        ("cut.gguf", &model[..cut], "is cut off"),
    ];
    for (name, bytes, what) in cases {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_refused(&try_file(&path), 1, &[name, what]);
    }
    assert_refused(
        &try_file(&folder.path().join("none.gguf")),
        1,
        &["none.gguf", "not exist"],
    );
    assert_refused(&try_file(folder.path()), 1, &["is a folder"]);
}

#[test]
fn random_damage_is_a_sentence_or_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let model = std::fs::read(MODEL).unwrap();
    // A small generator of our own: the same damage on every machine.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    for _ in 0..40 {
        let mut damaged = model.clone();
        for _ in 0..8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = usize::try_from(state % 30_000).unwrap();
            damaged[at] = state.to_le_bytes()[7];
        }
        std::fs::write(&path, &damaged).unwrap();
        let code = try_file(&path).status.code();
        assert!(
            matches!(code, Some(0..=4 | 70)),
            "{code:?} with state {state:#x}"
        );
    }
}

#[test]
fn an_unknown_architecture_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("strange.gguf");
    let mut model = std::fs::read(MODEL).unwrap();
    let key = b"general.architecture";
    let at = model
        .windows(key.len())
        .position(|window| window == key)
        .unwrap();
    // Behind the key: the kind of value, its length, its letters.
    let value = at + key.len() + 4 + 8;
    model[value] = b'x';
    std::fs::write(&path, &model).unwrap();
    assert_refused(
        &try_file(&path),
        1,
        &["strange.gguf", "unknown model architecture"],
    );
}

#[test]
fn adapters_and_grammars_that_are_wrong_are_sentences() {
    let with = |flags: &[&str]| {
        let mut command = program();
        command
            .args(["-m", MODEL, "-no-cnv", "-n", "1", "-p", "x"])
            .args(flags);
        command.output().unwrap()
    };
    assert_refused(
        &with(&["--lora", "/nonexistent"]),
        1,
        &["adapter '/nonexistent'", "--lora"],
    );
    assert_refused(
        &with(&["--control-vector", "/nonexistent"]),
        1,
        &["control vector"],
    );
    for (flag, text, reason) in [
        ("--grammar", "roo ::=", "no rule 'root'"),
        ("--grammar", "root ::= x\n\ny ::= z", "no rule 'x'"),
        ("--grammar", "root ::= \"a", "unexpected end"),
        ("--grammar", "root ::= root \"a\"", "left recursion"),
        ("--grammar", "%llguidance {}", "llguidance"),
        ("-j", "[]", "must be an object"),
        ("-j", "{\"type\":\"strin\"}", "strin"),
    ] {
        assert_refused(&with(&[flag, text]), 2, &[&format!("'{flag} "), reason]);
    }
    // Tokens are found with the model.
    let tokens = ["--grammar", "root ::= <|nothing|> x\nx ::= \"a\""];
    assert_refused(&with(&tokens), 1, &["grammar", "--grammar"]);
    // Only the last one counts.
    let (good, wrong) = ("root ::= \"a\"", "roo ::=");
    let twice = with(&["--grammar", wrong, "--grammar", good]);
    assert!(twice.status.success(), "{twice:?}");
    let twice = with(&["-j", "{}", "--grammar", good, "--grammar", wrong]);
    assert_refused(&twice, 2, &["'--grammar roo ::=", "no rule 'root'"]);
    for grammar in ["# one\n\n root ::= [a-z]+ | x\nx ::=", ""] {
        assert!(with(&["--grammar", grammar]).status.success(), "{grammar}");
    }
    for number in ["llama.block_count=int:1000", "llama.expert_count=int:4"] {
        assert_refused(&with(&["--override-kv", number]), 1, &["--override-kv"]);
    }
    let template = with(&["--chat-template", "nonsense {{"]);
    assert_refused(&template, 2, &["chat template"]);
}
