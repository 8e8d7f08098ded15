//! What a program can check about the repository itself, this checks.
//!
//! `rules` says what holds for each file, `readme` what the README promises. Function
//! length and undocumented items are clippy's and rustdoc's business.

mod code;
mod readme;
mod rules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rules::Finding;

type Rule = fn(&str, &str) -> Vec<Finding>;

const RULES_FOR_RUST: [Rule; 6] = [
    rules::unsafe_is_where_it_belongs,
    rules::unsafe_says_why,
    rules::doors_are_kept,
    rules::file_is_short,
    rules::line_is_short,
    rules::prints_at_the_edges,
];

const RULES_FOR_TEXT: [Rule; 3] = [
    rules::nothing_is_left_undone,
    rules::name_says_something,
    rules::speaks_of_the_project_alone,
];

/// The folder that holds the repository.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The repository's own files, tracked or about to be, relative to the top.
fn own_files() -> Vec<String> {
    let listing = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(top())
        .output();
    // Without git, or in an unpacked archive, everything that is not built.
    let listed = match listing {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    let files = if listed.is_empty() {
        walk(top())
    } else {
        listed
    };
    files
        .into_iter()
        .filter(|path| top().join(path).is_file())
        .collect()
}

fn walk(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if name != "target" && name != ".git" {
                files.extend(walk(&path));
            }
        } else if let Some(path) = path.strip_prefix(top()).ok().and_then(Path::to_str) {
            files.push(path.replace('\\', "/"));
        }
    }
    files
}

/// `path:line: sentence` for each thing that `rules` find in the files that `concerns`.
fn report(rules: &[Rule], concerns: fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for path in own_files().into_iter().filter(|path| concerns(path)) {
        // What is not text (the demo's model) is nobody's business here.
        let Ok(text) = fs::read_to_string(top().join(&path)) else {
            continue;
        };
        for rule in rules {
            let found = rule(&path, &text);
            findings.extend(
                found
                    .iter()
                    .map(|f| format!("{path}:{}: {}", f.line, f.sentence)),
            );
        }
    }
    findings
}

fn assert_none(findings: &[String]) {
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

#[test]
fn rust_is_tidy() {
    assert_none(&report(&RULES_FOR_RUST, |path| path.ends_with(".rs")));
}

#[test]
fn text_is_tidy() {
    // The lock file names its registry by nature.
    assert_none(&report(&RULES_FOR_TEXT, |path| path != "Cargo.lock"));
}

#[test]
fn the_files_are_found() {
    let files = own_files();
    for path in [
        "Cargo.toml",
        "src/lib.rs",
        "tests/tidy/main.rs",
        "vendor/ggml-sys/src/lib.rs",
    ] {
        assert!(
            files.iter().any(|file| file == path),
            "'{path}' is not among the files"
        );
    }
    let walked = walk(top());
    assert!(
        walked.iter().any(|file| file == "src/error.rs"),
        "walking finds them too"
    );
    let built = PathBuf::from("target");
    assert!(
        !walked
            .iter()
            .any(|file| Path::new(file).starts_with(&built))
    );
}
