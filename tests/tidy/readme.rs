//! The README keeps its promises: its commands exist, its tables agree with the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use rpaged::cli::flags::OwnFlags;
use rpaged::error::Error;
use rpaged::telemetry::metrics;

use crate::top;

/// Commands of cargo that the README may name.
const CARGO_COMMANDS: [&str; 7] = ["bench", "build", "clippy", "doc", "fmt", "run", "test"];

fn readme() -> String {
    fs::read_to_string(top().join("README.md")).expect("README.md can be read")
}

/// The text between the heading `## name` and the next one of its rank.
fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = text.split_once(&format!("\n## {name}\n"))?;
    Some(after.split("\n## ").next().unwrap_or(after))
}

/// The lines in fenced blocks marked `sh`, without comments.
fn commands(text: &str) -> Vec<&str> {
    let mut commands = Vec::new();
    let mut fence = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), fence) {
            (Some(language), None) => fence = Some(language),
            (Some(_), Some(_)) => fence = None,
            (None, Some("sh")) => commands.extend(line.split(" #").next().map(str::trim)),
            _ => {}
        }
    }
    commands.retain(|command| !command.is_empty() && !command.starts_with('#'));
    commands
}

/// Why `command` cannot be run as the README says; nothing when it can, or when it is
/// not one of ours.
fn flaw(command: &str) -> Option<String> {
    let mut words = command
        .split_whitespace()
        .skip_while(|word| word.contains('='));
    let program = words.next()?;
    let exists = |path: &str| top().join(path).exists();
    let is_target = |folder, name| {
        [
            format!("{folder}/{name}.rs"),
            format!("{folder}/{name}/main.rs"),
        ]
        .iter()
        .any(|p| exists(p))
    };
    if program.contains('/') {
        let built = program.starts_with("target/release/");
        let known = if built {
            program.ends_with("/rpaged-cli")
        } else {
            exists(program)
        };
        return (!known).then(|| format!("there is no '{program}'"));
    }
    if program != "cargo" {
        return None;
    }
    let command = words.next().unwrap_or_default();
    if !CARGO_COMMANDS.contains(&command) {
        return Some(format!(
            "'cargo {command}' is not a command the README should need"
        ));
    }
    let rest: Vec<&str> = words.take_while(|word| *word != "--").collect();
    for pair in rest.windows(2) {
        let missing = match *pair {
            ["--bench", name] => !is_target("benches", name),
            ["--test", name] => !is_target("tests", name),
            _ => false,
        };
        if missing {
            return Some(format!("there is no '{}' for {}", pair[1], pair[0]));
        }
    }
    None
}

/// The flags in `text`: words that begin with one or two hyphens and a letter.
fn flags(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| {
            word.trim_start_matches('-')
                .starts_with(|c: char| c.is_alphabetic())
        })
        .filter(|word| word.starts_with('-') && !word.starts_with("---"))
        .collect()
}

/// What `command` gives to `rpaged-cli`; nothing when it runs something else.
fn own_arguments(command: &str) -> Option<&str> {
    let run = command
        .strip_prefix("cargo run ")
        .and_then(|rest| rest.split_once(" -- "));
    let own = command.strip_prefix("target/release/rpaged-cli ");
    run.map(|(_, arguments)| arguments).or(own)
}

/// Exit code → first word of its row in a table of `| code | kind | ... |`.
fn exit_code_rows(text: &str) -> BTreeMap<u8, String> {
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let code = cells.next()?.parse().ok()?;
        Some((code, cells.next()?.to_owned()))
    });
    rows.collect()
}

/// The word that the README's table has for an error.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Failed(_) => "failed",
        Error::Usage(_) => "usage",
        Error::NotBuilt(_) => "not built",
        Error::Memory(_) => "memory",
        Error::Bug(_) => "bug",
        Error::Interrupted { .. } => "interrupted",
        Error::OutputClosed => "output closed",
    }
}

/// The table as it must be: success, each kind of error, and the two usual signals.
fn expected_exit_codes() -> BTreeMap<u8, String> {
    let text = String::new;
    let errors = [
        Error::Failed(text()),
        Error::Usage(text()),
        Error::NotBuilt(text()),
        Error::Memory(text()),
        Error::Bug(text()),
        Error::Interrupted { signal: 1 },
        Error::Interrupted { signal: 2 },
        Error::Interrupted { signal: 15 },
        Error::OutputClosed,
    ];
    let rows = errors
        .iter()
        .map(|error| (error.exit_code(), kind(error).to_owned()));
    rows.chain([(0, "success".to_owned())]).collect()
}

#[test]
fn the_commands_exist() {
    let readme = readme();
    let commands = commands(&readme);
    assert!(!commands.is_empty(), "the README has no commands");
    let flaws: Vec<String> = commands
        .iter()
        .filter_map(|command| Some(format!("'{command}': {}", flaw(command)?)))
        .collect();
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
}

#[test]
fn the_two_commands_are_where_they_are_looked_for() {
    let readme = readme();
    let first = |name| {
        section(&readme, name)
            .map(commands)
            .and_then(|all| all.first().copied())
    };
    assert_eq!(first("Run it"), Some("cargo run --release -- --demo"));
    assert_eq!(
        first("Run the tests"),
        Some("cargo test --release --workspace")
    );
}

#[test]
fn the_flags_exist() {
    let help = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_rpaged-cli"))
            .args(words)
            .output()
            .expect("rpaged-cli starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let texts: String = [
        ["--help-all"].as_slice(),
        &["bench", "--help"],
        &["plan", "--help"],
        &["inspect", "--help"],
    ]
    .map(help)
    .concat();
    let known = flags(&texts);
    let readme = readme();
    let table = section(&readme, "Flags").expect("the README has a section on flags");
    let mut named = flags(table);
    named.extend(
        commands(&readme)
            .into_iter()
            .filter_map(own_arguments)
            .flat_map(flags),
    );
    let unknown: Vec<_> = named
        .difference(&known)
        .filter(|flag| **flag != "--help")
        .collect();
    assert!(unknown.is_empty(), "--help does not know {unknown:?}");
    assert!(named.contains("--demo") && named.contains("--vram-budget"));
}

#[test]
fn every_flag_of_ours_is_in_the_table() {
    let readme = readme();
    let table = section(&readme, "Flags").expect("the README has a section on flags");
    let (table, _) = table
        .split_once("What llama.cpp's flags mean")
        .expect("ours come first");
    let mut rows = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `--")) {
        let (names, _) = row[2..].split_once(" | ").expect("a row has two cells");
        rows.extend(flags(names));
    }
    let spellings = OwnFlags::spellings();
    let ours: BTreeSet<_> = spellings.iter().map(String::as_str).collect();
    assert_eq!(rows, ours);
}

#[test]
fn the_metrics_are_those_of_the_format() {
    let readme = readme().replace("\r\n", "\n");
    let section = section(&readme, "Metrics").expect("the README has a section on metrics");
    let format = metrics::FORMAT.replace("\r\n", "\n");
    assert!(
        section.contains(format.trim()),
        "README.md, 'Metrics', lacks this text:\n{format}"
    );
}

#[test]
fn flags_are_found_in_text() {
    let text = "| `--no-mmap`, -ngl | a-b -- --- 3 -4 --x=`1` |";
    assert_eq!(flags(text), BTreeSet::from(["--no-mmap", "-ngl", "--x"]));
    assert_eq!(
        own_arguments("cargo run --release -- --demo"),
        Some("--demo")
    );
    assert_eq!(
        own_arguments("target/release/rpaged-cli -m a"),
        Some("-m a")
    );
    assert_eq!(own_arguments("cargo test --release"), None);
}

#[test]
fn the_exit_codes_are_those_of_the_code() {
    let readme = readme();
    let table = section(&readme, "Exit codes").map(exit_code_rows);
    assert_eq!(table, Some(expected_exit_codes()));
}

#[test]
fn commands_are_found_in_their_blocks() {
    let text = "a\n```sh\n# no\ncargo test  # yes\n```\n```text\ncargo no\n```\ncargo no\n";
    assert_eq!(commands(text), ["cargo test"]);
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    for command in [
        "cargo frobnicate",
        "cargo bench --bench nothing",
        "RUSTFLAGS=\"-x\" cargo test --test nothing",
        ".ci/walk",
        "target/release/llama-cli -p x",
    ] {
        assert!(flaw(command).is_some(), "{command}");
    }
    for command in [
        "cargo test --test tidy",
        ".ci/run",
        "apt install cmake",
        "A=b cargo fmt",
    ] {
        assert_eq!(flaw(command), None);
    }
}

#[test]
fn a_section_ends_at_the_next() {
    let text = "# a\n\n## b\nc\n### d\ne\n## f\ng\n";
    assert_eq!(section(text, "b"), Some("c\n### d\ne"));
    assert_eq!(section(text, "f"), Some("g\n"));
    assert_eq!(section(text, "d"), None);
}

#[test]
fn an_exit_code_is_read_from_its_row() {
    let rows = exit_code_rows("| code | kind |\n|---|---|\n| 70 | bug | a |\n| x | y |\n");
    assert_eq!(rows, BTreeMap::from([(70, "bug".to_owned())]));
}
