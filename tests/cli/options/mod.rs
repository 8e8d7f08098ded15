//! Every option of llama.cpp's, as its parser lists them: exercised by a row of [`rows`], or
//! refused with a sentence. None is accepted and ignored.
//!
//! What becomes of an option is in the table `cli::support`; an option that works without a
//! row fails here, and so does a row for an option that is refused.

mod rows;

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rows::{Effect, ROWS, Row};
use rpaged::cli::support::{self, Support, WhenPaged};
use rpaged::cli::values::{Value, value_of};
use rpaged::llama::{self, OptionInfo};

use super::{MODEL, program, stdout};

/// Rows are run by so many threads.
const RUNNERS: usize = 4;

fn options() -> Vec<OptionInfo> {
    llama::log::start();
    llama::options().unwrap()
}

/// Files that the rows name in braces.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            fs::write(folder.path().join(name), bytes).unwrap();
        };
        write("prompt", b"The dog");
        write("grammar", b"root ::= \" yes\"");
        write("schema", b"{\"type\": \"integer\"}");
        write(
            "template",
            b"<|im_start|>{{ messages[0].content }}<|im_end|>",
        );
        let mut damaged = fs::read(MODEL).unwrap();
        write("draft", &damaged);
        // The last tensor ends with numbers that are none.
        let start = damaged.len() - 136;
        damaged[start..].fill(0xff);
        write("damaged", &damaged);
        Self(folder)
    }

    /// `text` with paths in place of names in braces.
    fn fill(&self, text: &str) -> String {
        let mut text = text.replace("{model}", MODEL);
        for name in [
            "prompt", "grammar", "schema", "template", "damaged", "draft", "log",
        ] {
            let path = self.0.path().join(name);
            text = text.replace(&format!("{{{name}}}"), path.to_str().unwrap());
        }
        text
    }
}

/// Runs the words of `line`; those of a complete run come before, unless it begins with `!`.
fn run(line: &str, files: &Files) -> Output {
    let mut command = program();
    // What a download makes goes with the other files.
    command.env("LLAMA_CACHE", files.0.path());
    let words = match line.strip_prefix('!') {
        Some(alone) => alone,
        None => {
            command.args(["-m", MODEL, "-t", "1", "-no-cnv", "-ub", "16"]);
            command.args(["-n", "8", "-s", "7", "-p", "Once upon a time"]);
            line
        }
    };
    command.args(words.split_whitespace()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Says of `what` that it is, or is not, when that should be otherwise.
fn differs(is_there: bool, should: bool, what: &str) -> Option<String> {
    (is_there != should).then(|| format!("{what}: {is_there}, should be {should}"))
}

/// Says how the run ended, when that was not well.
fn failure(output: &Output) -> Option<String> {
    let code = output.status.code();
    (code != Some(0)).then(|| format!("ended with {code:?}: {}", stderr(output)))
}

/// Of two runs: whether `text` is in what `said` takes from the one with the option, and not
/// in the other's; or the other way round when it is silenced.
fn flaw_of_text(
    [with, without]: [&Output; 2],
    text: &str,
    said: fn(&Output) -> String,
    silenced: bool,
) -> Option<String> {
    failure(with)
        .or_else(|| differs(said(with).contains(text), !silenced, text))
        .or_else(|| differs(said(without).contains(text), silenced, "without it"))
}

/// What is wrong with `row`; nothing when it holds.
fn flaw(row: &Row, files: &Files) -> Option<String> {
    let base = files.fill(row.base);
    let with = run(&files.fill(&format!("{} {}", row.base, row.line)), files);
    let without = || run(&base, files);
    match row.effect {
        Effect::Ends(code, parts) => {
            let said = stderr(&with);
            let sentence = said.lines().last().unwrap_or_default();
            let fits = with.status.code() == Some(code)
                && sentence.starts_with("error: ")
                && parts.iter().all(|part| sentence.contains(part));
            (!fits).then(|| format!("ended with {:?}: {sentence}", with.status.code()))
        }
        Effect::Text => {
            let same = stdout(&with) == stdout(&without());
            failure(&with).or_else(|| differs(same, false, "the same text"))
        }
        Effect::Prints(text) => flaw_of_text([&with, &without()], text, stdout, false),
        Effect::Says(text) => flaw_of_text([&with, &without()], text, stderr, false),
        Effect::Silences(text) => flaw_of_text([&with, &without()], text, stderr, true),
        Effect::Writes(file, text) => {
            let written = fs::read_to_string(files.fill(file)).unwrap_or_default();
            failure(&with).or_else(|| differs(written.contains(text), true, text))
        }
        Effect::Quiet(wrong) => {
            let same = stdout(&with) == stdout(&without());
            let refused = || {
                let line = files.fill(&format!("{} {wrong}", row.base));
                wrong.is_empty() || run(&line, files).status.code() == Some(2)
            };
            failure(&with)
                .or_else(|| differs(same, true, "the same text"))
                .or_else(|| differs(refused(), true, wrong))
        }
        Effect::Elsewhere(file) => {
            let path = format!("{}/tests/cli/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = fs::read_to_string(path).unwrap_or_default();
            differs(text.contains(row.line), true, file)
        }
    }
}

#[test]
fn every_row_has_its_effect() {
    let files = Files::new();
    let next = AtomicUsize::new(0);
    let flaws = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..RUNNERS {
            scope.spawn(|| {
                while let Some(row) = ROWS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(flaw) = flaw(row, &files) {
                        let row = format!("{} ({} {})", row.name, row.base, row.line);
                        flaws.lock().unwrap().push(format!("{row}: {flaw}"));
                    }
                }
            });
        }
    });
    let flaws = flaws.into_inner().unwrap();
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
}

#[test]
fn every_option_that_works_has_a_row_and_no_other() {
    let rows: BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
    let mut without = Vec::new();
    let mut refused = Vec::new();
    let options = options();
    for option in &options {
        let works = matches!(
            support::support(option.name()),
            Some(Support::Works | Support::Prints)
        );
        match (works, rows.contains(option.name())) {
            (true, false) => without.push(option.name()),
            (false, true) => refused.push(option.name()),
            _ => {}
        }
    }
    assert!(without.is_empty(), "work, but have no row: {without:?}");
    assert!(
        refused.is_empty(),
        "have a row, but do not work: {refused:?}"
    );
    for name in rows {
        let is_one = options.iter().any(|option| option.name() == name);
        assert!(is_one, "the row '{name}' is about no option");
    }
    for row in ROWS
        .iter()
        .filter(|row| !matches!(row.effect, Effect::Elsewhere(_)))
    {
        let option = options
            .iter()
            .find(|option| option.name() == row.name)
            .unwrap();
        let mut words = row.line.split([' ', '=']);
        assert!(
            words.any(|word| option.is_spelled(word)),
            "'{}' lacks it",
            row.line
        );
    }
}

/// A value that `option` takes, for each that it needs.
fn values(option: &OptionInfo, files: &Files) -> Vec<String> {
    let one = match (option.name(), value_of(option)) {
        ("--chat-template-file", _) => files.fill("{template}"),
        ("--chat-template-kwargs", _) => "{}".to_owned(),
        (_, Value::Words(words)) => words[0].clone(),
        (_, Value::File | Value::Folder) => files.fill("{prompt}"),
        _ => "1".to_owned(),
    };
    vec![one; option.arity.count()]
}

fn with_option(words: &[&str], spelling: &str, values: &[String]) -> Output {
    let mut command = program();
    command.args(["-m", MODEL, "-t", "1", "-ub", "16", "-n", "8", "-s", "7"]);
    command.args(["-p", "Once upon a time"]).args(words);
    command.arg(spelling).args(values).output().unwrap()
}

/// Asserts that it was refused, with a sentence that contains `parts`.
#[track_caller]
fn assert_refused(output: &Output, code: i32, parts: &[&str]) {
    super::assert_refused(output, code, parts);
    assert_eq!(stdout(output), "", "nothing is generated");
}

#[test]
fn every_option_that_is_refused_says_why() {
    let files = Files::new();
    for option in options() {
        let Some(Support::Refused(what)) = support::support(option.name()) else {
            continue;
        };
        for spelling in option.args.iter().chain(&option.args_neg) {
            let output = with_option(&["-no-cnv"], spelling, &values(&option, &files));
            assert_refused(&output, 3, &[spelling, "is refused", what]);
        }
    }
}

#[test]
fn an_option_of_the_chat_does_nothing_elsewhere_and_that_is_said() {
    let files = Files::new();
    let text = stdout(&with_option(&[], "-no-cnv", &[]));
    for option in options() {
        let support = support::support(option.name());
        for spelling in option.args.iter().chain(&option.args_neg) {
            let values = || values(&option, &files);
            match support {
                Some(Support::Chat) => {
                    let output = with_option(&[], spelling, &values());
                    assert_eq!(stdout(&output), text, "{spelling}: {output:?}");
                    let said = format!("'{spelling}' has no effect but in a chat at a terminal");
                    assert!(stderr(&output).contains(&said), "{spelling}: {output:?}");
                }
                Some(Support::Terminal) => {
                    let output = with_option(&[], spelling, &values());
                    assert_refused(&output, 2, &[spelling, "terminal"]);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_option_that_does_not_go_with_paging_is_refused() {
    let files = Files::new();
    let options = options();
    for (name, what) in support::PAGED {
        let option = options
            .iter()
            .find(|option| option.name() == *name)
            .unwrap();
        let values = values(option, &files);
        let words = ["-no-cnv", "--dynamic-layers", "--paged-kv"];
        let output = || with_option(&words, name, &values);
        match what {
            WhenPaged::Contradicts(why) => assert_refused(&output(), 2, &[name, "paging", why]),
            WhenPaged::NotBuilt(what) => assert_refused(&output(), 3, &[name, "paging", what]),
            WhenPaged::Means(_) => {
                let is_paged = |row: &&Row| row.base.contains("--paged-kv");
                let mut rows = ROWS.iter().filter(is_paged);
                assert!(
                    rows.any(|row| row.name == *name),
                    "'{name}' has no row with paging"
                );
            }
        }
    }
}
