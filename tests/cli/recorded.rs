//! The recorded command lines: what stands on standard output, and how the program ends, is
//! what llama-completion's was, byte for byte, without paging and with it.
//!
//! `tests/recorded/README.md` says how the list is read, and how it is recorded anew.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::{MODEL, plain};

const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded/lines.txt");

/// What stands in front of every command line: one thread, and F32 where it can be had, so
/// that what is recorded depends as little as possible on the processor.
const BASE: [&str; 12] = [
    "-t", "1", "-c", "512", "-ub", "32", "-ctk", "f32", "-ctv", "f32", "-s", "7",
];
/// Less than the model, more than the smallest budget of every command line.
const PAGING: [&str; 4] = ["--dynamic-layers", "--paged-kv", "--vram-budget", "70%"];

/// How long the recorder leaves a program alone before it types the next line: upstream
/// writes the log and what is typed from two threads, without an order.
const BETWEEN_LINES: Duration = Duration::from_millis(500);

/// One command line with what belongs to it.
#[derive(Clone, Debug, Default)]
struct Line {
    words: Vec<String>,
    stdin: Vec<Vec<u8>>,
    stdout: Vec<u8>,
    code: i32,
    /// Why the answer is not upstream's.
    differs: Option<String>,
    /// Why it cannot be paged.
    unpaged: Option<String>,
}

/// What happens in one folder, in this order.
#[derive(Clone, Debug)]
enum Step {
    File(String, Vec<u8>),
    Run(Line),
}

#[derive(Clone, Debug, Default)]
struct Block {
    title: String,
    steps: Vec<Step>,
}

/// The words of a command line; what stands in single quotes is one word, or a part of one.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "a quote is open in: {line}");
    words.extend(word);
    words
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => panic!("'\\{other:?}' is no escape, in: {text}"),
        });
    }
    bytes
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, &byte) in bytes.iter().enumerate() {
        let is_last = index + 1 == bytes.len();
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            b' ' if is_last => text.push_str("\\x20"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => write!(text, "\\x{byte:02x}").unwrap(),
        }
    }
    text
}

fn parse(list: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut notes = Line::default();
    for line in list.lines() {
        let Some((sign, rest)) = line.split_once(' ').filter(|(sign, _)| *sign != "#") else {
            continue;
        };
        if sign == "##" {
            blocks.push(Block {
                title: rest.to_owned(),
                ..Block::default()
            });
            continue;
        }
        let steps = &mut blocks.last_mut().unwrap().steps;
        match sign {
            "@" => {
                let (name, content) = rest.split_once(' ').unwrap();
                steps.push(Step::File(name.to_owned(), unescape(content)));
            }
            "?" => notes.differs = Some(rest.to_owned()),
            "%" => notes.unpaged = Some(rest.to_owned()),
            "$" => steps.push(Step::Run(Line {
                words: words(rest),
                ..std::mem::take(&mut notes)
            })),
            _ => {
                let Some(Step::Run(last)) = steps.last_mut() else {
                    panic!("no command line above: {line}");
                };
                match sign {
                    "<" => last.stdin.push(unescape(rest)),
                    ">" => last.stdout.extend(unescape(rest)),
                    "=" => last.code = rest.parse().unwrap(),
                    _ => panic!("what is this? {line}"),
                }
            }
        }
    }
    blocks
}

/// What a program gave.
#[derive(Debug, PartialEq)]
struct Answer {
    stdout: Vec<u8>,
    code: Option<i32>,
}

/// Runs a command line in `folder`; `pause`: between the lines that are typed.
fn answer(program: &Path, line: &Line, folder: &Path, paged: bool, pause: Duration) -> Answer {
    let mut command = Command::new(program);
    command.arg("-m").arg(model()).args(BASE).args(&line.words);
    if paged {
        command.args(PAGING);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LLAMA_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8");
    command.env_remove("XDG_CONFIG_HOME").current_dir(folder);
    // What is typed is echoed to the terminal of the session, if it has one.
    super::unix::leave_terminal(&mut command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = line.stdin.clone();
    let typist = std::thread::spawn(move || {
        for line in lines {
            std::thread::sleep(pause);
            // Whoever does not read is not asked to.
            drop(stdin.write_all(&line));
        }
        std::thread::sleep(pause);
    });
    let mut stdout = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut stdout)
        .unwrap();
    let code = child.wait().unwrap().code();
    typist.join().unwrap();
    Answer { stdout, code }
}

/// The demo model in F32.
fn model() -> &'static Path {
    static WRITTEN: OnceLock<PathBuf> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = folder.join("stories-f32.gguf");
        let beside = folder.join(format!("stories-f32.{}.tmp", std::process::id()));
        plain::write_in_f32(Path::new(MODEL), &beside);
        std::fs::rename(&beside, &path).unwrap();
        path
    })
}

/// Plays a block in a folder of its own; says what is not as recorded.
fn play(block: &Block, paged: bool) -> Vec<String> {
    let program = assert_cmd::cargo::cargo_bin("rpaged-cli");
    let folder = tempfile::tempdir().unwrap();
    let mut complaints = Vec::new();
    for step in &block.steps {
        match step {
            Step::File(name, content) => std::fs::write(folder.path().join(name), content).unwrap(),
            Step::Run(line) => {
                let paged = paged && line.unpaged.is_none();
                let given = answer(&program, line, folder.path(), paged, Duration::ZERO);
                if given.stdout != line.stdout || given.code != Some(line.code) {
                    complaints.push(format!(
                        "{} (paged: {paged}): {}\n  recorded {} {}\n  is       {:?} {}\n",
                        block.title,
                        line.words.join(" "),
                        line.code,
                        escape(&line.stdout),
                        given.code,
                        escape(&given.stdout),
                    ));
                }
            }
        }
    }
    complaints
}

/// Plays all blocks, on two threads.
fn play_all(paged: bool) {
    let blocks = parse(&std::fs::read_to_string(LIST).unwrap());
    let (canary, blocks) = blocks.split_first().unwrap();
    assert!(
        play(canary, false).is_empty(),
        "even the plainest text differs: this processor rounds differently from the one that \
         recorded; record anew here, as tests/recorded/README.md says, to compare"
    );
    let (evens, odds): (Vec<_>, Vec<_>) = (0..blocks.len()).partition(|index| index % 2 == 0);
    let halves = [evens, odds];
    let complaints: Vec<String> = std::thread::scope(|scope| {
        let players = halves.each_ref().map(|half| {
            let play_half = || {
                half.iter()
                    .flat_map(|&index| play(&blocks[index], paged))
                    .collect()
            };
            scope.spawn(play_half)
        });
        let played = players.map(|player| player.join().unwrap());
        played
            .into_iter()
            .flat_map(|half: Vec<String>| half)
            .collect()
    });
    assert!(
        complaints.is_empty(),
        "{} answers differ:\n{}",
        complaints.len(),
        complaints.join("")
    );
}

#[test]
fn recorded_command_lines_are_answered_as_upstream_answers_them() {
    play_all(false);
}

#[test]
fn paging_changes_no_recorded_answer() {
    play_all(true);
}

#[test]
fn the_list_is_long_and_says_why_answers_differ() {
    let blocks = parse(&std::fs::read_to_string(LIST).unwrap());
    let steps = blocks.iter().flat_map(|block| &block.steps);
    let lines: Vec<_> = steps
        .filter_map(|step| match step {
            Step::Run(line) => Some(line),
            Step::File(..) => None,
        })
        .collect();
    assert!(lines.len() >= 60, "{} lines", lines.len());
    let apart = lines.iter().filter(|line| line.differs.is_some()).count();
    assert!(
        apart * 10 < lines.len(),
        "{apart} of {} differ",
        lines.len()
    );
}

#[test]
fn escapes_of_the_list_are_read_as_they_are_written() {
    let bytes: Vec<u8> = (0..=255).chain(*b"end ").collect();
    assert_eq!(unescape(&escape(&bytes)), bytes);
    assert_eq!(words("a 'b c' '' d'e f'"), ["a", "b c", "", "de f"]);
}

/// Records the list anew: every answer that is upstream's, from the program that
/// `RPAGED_REFERENCE` names.
#[test]
#[ignore = "needs llama-completion, named by RPAGED_REFERENCE"]
fn record() {
    let program = std::env::var_os("RPAGED_REFERENCE").unwrap();
    let program = Path::new(&program).canonicalize().unwrap();
    let list = std::fs::read_to_string(LIST).unwrap();
    let mut answers = Vec::new();
    for block in parse(&list) {
        let folder = tempfile::tempdir().unwrap();
        for step in &block.steps {
            match step {
                Step::File(name, content) => {
                    std::fs::write(folder.path().join(name), content).unwrap();
                }
                Step::Run(line) if line.differs.is_some() => answers.push(None),
                Step::Run(line) => {
                    let typed = !line.words.iter().any(|word| word == "--simple-io");
                    let pause = if typed { BETWEEN_LINES } else { Duration::ZERO };
                    let given = answer(&program, line, folder.path(), false, pause);
                    answers.push(Some(given));
                }
            }
        }
    }
    std::fs::write(LIST, with_answers(&list, answers)).unwrap();
}

/// The list with other answers; None: the old one stays.
fn with_answers(list: &str, answers: Vec<Option<Answer>>) -> String {
    let mut text = String::new();
    let mut answers = answers.into_iter();
    // What belongs to the last command line, to be written behind its input.
    let mut pending: Option<Answer> = None;
    let mut keeps_old = false;
    for line in list.lines() {
        if line.starts_with("> ") || line.starts_with("= ") {
            if keeps_old {
                text.push_str(&format!("{line}\n"));
            }
            continue;
        }
        if !line.starts_with("< ") {
            write_answer(&mut text, pending.take());
        }
        text.push_str(&format!("{line}\n"));
        if line.starts_with("$ ") {
            pending = answers.next().unwrap();
            keeps_old = pending.is_none();
        }
    }
    write_answer(&mut text, pending);
    text
}

fn write_answer(text: &mut String, answer: Option<Answer>) {
    let Some(answer) = answer else { return };
    for part in answer.stdout.split_inclusive(|&byte| byte == b'\n') {
        text.push_str(&format!("> {}\n", escape(part)));
    }
    let code = answer
        .code
        .map_or("killed".to_owned(), |code| code.to_string());
    text.push_str(&format!("= {code}\n"));
}
