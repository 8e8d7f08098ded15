//! The rules of the house, each a function from a file's text to what it finds there.

use crate::code::{code_only, has_word, is_word, product_lines};

/// What a rule found: the line, counted from 1, and a sentence about it.
#[derive(Debug, PartialEq)]
pub struct Finding {
    pub line: usize,
    pub sentence: String,
}

/// Lines of product code that a file may have.
const FILE_LINES_MAX: usize = 600;

/// Columns that a line may have; rustfmt breaks what it can break there.
const LINE_COLUMNS_MAX: usize = 100;

/// Where `unsafe` may stand.
const UNSAFE_ALLOWED: [&str; 16] = [
    // The foreign border.
    "vendor/async-device/",
    "vendor/fake-cuda/",
    "src/cuda/",
    "vendor/ggml-sys/",
    "src/ggml/",
    "src/llama/",
    "src/device/",
    // The arena, and who copies in it.
    "src/pager/access.rs",
    "src/pager/block.rs",
    "src/pager/engine_",
    "src/pager/memory.rs",
    "src/pager/replan.rs",
    // The operating system: signals, a closed pipe, a file in memory.
    "src/session/signal.rs",
    "src/session/output.rs",
    "src/session/demo.rs",
    "benches/",
];

/// The crates behind one door each, and the files that are that door.
const DOORS: [(&str, &[&str]); 3] = [
    ("clap", &["src/cli/"]),
    ("cudarc", &["src/cuda/"]),
    ("ggml_sys", &["src/ggml/", "src/llama/", "src/device/"]),
];

/// Where printing is allowed: the edges.
const PRINTS_ALLOWED: [&str; 7] = [
    "src/cli/",
    "src/session/",
    "src/main.rs",
    // Says why llama.cpp aborts, and ends the process.
    "src/llama/log.rs",
    // Says at the end of a test what it did wrong.
    "vendor/fake-cuda/src/report.rs",
    "tests/",
    "benches/",
];

fn finding(index: usize, sentence: impl Into<String>) -> Finding {
    Finding {
        line: index + 1,
        sentence: sentence.into(),
    }
}

fn is_allowed(path: &str, allowed: &[&str]) -> bool {
    allowed.iter().any(|prefix| path.starts_with(prefix))
}

/// Whether the whole file is test code.
fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// `unsafe` only at the foreign border.
pub fn unsafe_is_where_it_belongs(path: &str, text: &str) -> Vec<Finding> {
    if is_test_file(path) || is_allowed(path, &UNSAFE_ALLOWED) {
        return Vec::new();
    }
    let sentence = "'unsafe' outside the modules that may hold it (see UNSAFE_ALLOWED)";
    let code = code_only(text);
    let lines = code
        .lines()
        .enumerate()
        .filter(|(_, line)| has_word(line, "unsafe"));
    lines.map(|(index, _)| finding(index, sentence)).collect()
}

/// Every unsafe block and implementation has its SAFETY comment.
pub fn unsafe_says_why(_path: &str, text: &str) -> Vec<Finding> {
    let code = code_only(text);
    let code: Vec<&str> = code.lines().collect();
    let raw: Vec<&str> = text.lines().collect();
    let sentence = "this 'unsafe' has no '// SAFETY:' comment above it";
    let opens = |index: &usize| {
        let Some((_, after)) = code[*index].split_once("unsafe") else {
            return false;
        };
        let next = code.get(index + 1).unwrap_or(&"");
        let after = if after.trim().is_empty() {
            next.trim()
        } else {
            after.trim()
        };
        has_word(code[*index], "unsafe") && (after.starts_with('{') || after.starts_with("impl"))
    };
    let undocumented = (0..code.len())
        .filter(opens)
        .filter(|&at| !says_why(&code, &raw, at));
    undocumented.map(|index| finding(index, sentence)).collect()
}

/// Whether a SAFETY comment stands on line `at`, or above the statement it belongs to.
fn says_why(code: &[&str], raw: &[&str], at: usize) -> bool {
    if raw[at].contains("SAFETY:") {
        return true;
    }
    for index in (0..at).rev() {
        if raw[index].contains("// SAFETY:") {
            return true;
        }
        // Another statement, or a block, ends or begins here: its comment is not ours.
        let line = code[index].trim_end();
        if raw[index].trim().is_empty() || line.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

/// A foreign crate is used behind its door only; its constants may be named anywhere.
pub fn doors_are_kept(path: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    if !path.starts_with("src/") {
        return found;
    }
    for (index, line) in code_only(text).lines().enumerate() {
        for (name, doors) in DOORS {
            if has_word(line, name) && !names_a_constant(line, name) && !is_allowed(path, doors) {
                found.push(finding(
                    index,
                    format!("'{name}' away from {}", doors.join(", ")),
                ));
            }
        }
    }
    found
}

/// Whether all that `line` says of the crate `name` is constants of it.
fn names_a_constant(line: &str, name: &str) -> bool {
    let is_constant = |word: &str| word.chars().all(|c| !c.is_lowercase());
    line.split(name).skip(1).all(|after| {
        let path = after
            .split(|c: char| !is_word(c) && c != ':')
            .next()
            .unwrap_or_default();
        path.strip_prefix("::")
            .is_some_and(|word| !word.is_empty() && is_constant(word))
    })
}

/// Files that can be read in one go.
pub fn file_is_short(path: &str, text: &str) -> Vec<Finding> {
    let lines = product_lines(text);
    if is_test_file(path) || lines < FILE_LINES_MAX {
        return Vec::new();
    }
    let sentence = format!("{lines} lines without its tests; the limit is {FILE_LINES_MAX}");
    vec![finding(FILE_LINES_MAX - 1, sentence)]
}

/// Lines that fit two windows side by side; a link may be longer.
pub fn line_is_short(_path: &str, text: &str) -> Vec<Finding> {
    let columns = text.lines().map(|line| line.chars().count()).enumerate();
    let is_link = |index: usize| {
        text.lines()
            .nth(index)
            .is_some_and(|line| line.contains("://"))
    };
    columns
        .filter(|&(index, columns)| columns > LINE_COLUMNS_MAX && !is_link(index))
        .map(|(index, columns)| {
            finding(
                index,
                format!("{columns} columns; the limit is {LINE_COLUMNS_MAX}"),
            )
        })
        .collect()
}

/// Prints at the edges only: everything else logs, or returns what is to be said.
pub fn prints_at_the_edges(path: &str, text: &str) -> Vec<Finding> {
    let is_build_script = path == "build.rs" || path.ends_with("/build.rs");
    if is_build_script || is_test_file(path) || is_allowed(path, &PRINTS_ALLOWED) {
        return Vec::new();
    }
    let code = code_only(text);
    let mut found = Vec::new();
    for (index, line) in code.lines().take(product_lines(text)).enumerate() {
        for name in ["print", "println", "eprint", "eprintln", "dbg"] {
            if has_word(line, name) && line.contains(&format!("{name}!")) {
                found.push(finding(index, format!("'{name}!' away from the edges")));
            }
        }
    }
    found
}

/// What is begun is finished: no notes to oneself, no stand-ins.
pub fn nothing_is_left_undone(_path: &str, text: &str) -> Vec<Finding> {
    // Put together here, so that this file does not find itself.
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    let macros = [["to", "do!"].concat(), ["unimple", "mented!"].concat()];
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let word = words.iter().find(|word| has_word(line, word));
        if let Some(word) = word.or_else(|| macros.iter().find(|name| line.contains(*name))) {
            found.push(finding(index, format!("'{word}' left in")));
        }
    }
    found
}

/// A file is named after what it is about.
pub fn name_says_something(path: &str, _text: &str) -> Vec<Finding> {
    let empty_names = [
        "utils", "util", "common", "helpers", "helper", "types", "misc",
    ];
    path.split('/')
        .map(|part| part.strip_suffix(".rs").unwrap_or(part))
        .filter(|part| empty_names.contains(part))
        .map(|part| finding(0, format!("'{part}' says nothing about what is in it")))
        .collect()
}

/// The repository speaks of the project alone, not of the machine it was written on.
pub fn speaks_of_the_project_alone(_path: &str, text: &str) -> Vec<Finding> {
    // Put together here, so that this file does not find itself.
    let folders = ["work", "root", "home", "Users"].map(|name| format!("/{name}/"));
    let hosts = [
        ["index.", "crates.io"],
        ["static.", "crates.io"],
        ["artifact", "ory"],
    ];
    let hosts = hosts.map(|parts| parts.concat());
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(folder) = folders.iter().find(|folder| has_absolute(line, folder)) {
            found.push(finding(index, format!("a path of one machine, '{folder}'")));
        }
        if let Some(host) = hosts.iter().find(|host| line.contains(*host)) {
            found.push(finding(
                index,
                format!("the host of a package registry, '{host}'"),
            ));
        }
        if names_an_issue(line) {
            found.push(finding(
                index,
                "the number of an issue; say what it is about",
            ));
        }
    }
    found
}

/// Whether `line` has a path that begins with `folder`, not one that goes through it.
fn has_absolute(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_-.~/}*".contains(c))
    })
}

fn names_an_issue(line: &str) -> bool {
    let lower = line.to_lowercase();
    lower.match_indices("issue ").any(|(at, word)| {
        let number = lower[at + word.len()..].trim_start_matches('#');
        number.starts_with(|c: char| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No line; a bare `[]` could be an array of anything that compares with a number.
    const NONE: [usize; 0] = [];

    /// The lines that `rule` finds in `text`.
    fn lines(rule: fn(&str, &str) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
        rule(path, text)
            .iter()
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn unsafe_in_the_middle_is_found() {
        let text = "// unsafe\nlet a = \"unsafe\";\nunsafe { a() }\n";
        assert_eq!(
            lines(unsafe_is_where_it_belongs, "src/planner/mod.rs", text),
            [3]
        );
        assert_eq!(
            lines(unsafe_is_where_it_belongs, "src/pager/ring.rs", text),
            [3]
        );
        assert_eq!(
            lines(unsafe_is_where_it_belongs, "src/pager/engine_host.rs", text),
            NONE
        );
        assert_eq!(
            lines(unsafe_is_where_it_belongs, "src/device/mod.rs", text),
            NONE
        );
    }

    #[test]
    fn a_crate_away_from_its_door_is_found() {
        let text = "// ggml_sys\nuse ggml_sys as sys;\nlet a = ggml_sys::GGML_VERSION;\n\
                    unsafe { ggml_sys::llama_free(a, ggml_sys::GGML_VERSION) };\n";
        assert_eq!(lines(doors_are_kept, "src/planner/mod.rs", text), [2, 4]);
        assert_eq!(lines(doors_are_kept, "src/ggml/mod.rs", text), NONE);
        assert_eq!(lines(doors_are_kept, "tests/main.rs", text), NONE);
        assert_eq!(
            lines(doors_are_kept, "src/session/mod.rs", "use clap::Parser;"),
            [1]
        );
        assert_eq!(
            lines(doors_are_kept, "src/cli/flags.rs", "use clap::Parser;"),
            NONE
        );
    }

    #[test]
    fn unsafe_without_reason_is_found() {
        let bad = [
            "let a = unsafe { b() };\n",
            "// SAFETY: of another.\nlet a = 1;\nlet b = unsafe { c() };\n",
            "// SAFETY: far away.\n\nunsafe impl Send for A {}\n",
            "let a = unsafe\n{ b() };\n",
        ];
        for text in bad {
            assert_eq!(
                lines(unsafe_says_why, "src/ggml/mod.rs", text).len(),
                1,
                "{text}"
            );
        }
        let good = [
            "// SAFETY:\n// - because\nlet a = unsafe { b() };\n",
            "// SAFETY: so.\nlet long_name =\n    unsafe { b() };\n",
            "let a = unsafe { b() }; // SAFETY: so.\n",
            "// SAFETY: so.\nunsafe impl Send for A {}\n",
            "unsafe extern \"C\" fn thunk(a: *mut A) {}\n",
            "type F = unsafe extern \"C\" fn();\n",
        ];
        for text in good {
            assert_eq!(
                lines(unsafe_says_why, "src/ggml/mod.rs", text),
                NONE,
                "{text}"
            );
        }
    }

    #[test]
    fn a_long_file_is_found() {
        let short = "a\n".repeat(FILE_LINES_MAX - 1);
        let tested = format!("{short}#[cfg(test)]\n{short}");
        let long = "a\n".repeat(FILE_LINES_MAX);
        assert_eq!(lines(file_is_short, "src/a.rs", &short), NONE);
        assert_eq!(lines(file_is_short, "src/a.rs", &tested), NONE);
        assert_eq!(lines(file_is_short, "src/a.rs", &long), [FILE_LINES_MAX]);
        assert_eq!(lines(file_is_short, "tests/a.rs", &long), NONE);
    }

    #[test]
    fn a_long_line_is_found() {
        let text = format!("{}\n{}\n", "é".repeat(LINE_COLUMNS_MAX), "a".repeat(101));
        assert_eq!(lines(line_is_short, "src/a.rs", &text), [2]);
        let link = format!("// https://{}\n", "a".repeat(100));
        assert_eq!(lines(line_is_short, "src/a.rs", &link), NONE);
    }

    #[test]
    fn a_stray_print_is_found() {
        let text = "// println!\nprintln!(\"a\");\nmy_print!(1);\n#[cfg(test)]\ndbg!(1);\n";
        assert_eq!(lines(prints_at_the_edges, "src/pager/mod.rs", text), [2]);
        for path in [
            "src/cli/help.rs",
            "build.rs",
            "vendor/a/build.rs",
            "benches/a.rs",
        ] {
            assert_eq!(lines(prints_at_the_edges, path, text), NONE, "{path}");
        }
        assert_eq!(
            lines(prints_at_the_edges, "src/a.rs", "eprint!(\"a\"); dbg!(b)"),
            [1, 1]
        );
    }

    #[test]
    fn a_note_to_oneself_is_found() {
        let text = format!(
            "ok\n// {}{}: later\nmastodon\n{}{}()\n",
            "TO", "DO", "to", "do!"
        );
        assert_eq!(lines(nothing_is_left_undone, "src/a.rs", &text), [2, 4]);
        let text = format!("{}{}\n{}{}()\n", "FIX", "ME", "unimple", "mented!");
        assert_eq!(lines(nothing_is_left_undone, "src/a.rs", &text), [1, 2]);
    }

    #[test]
    fn an_empty_name_is_found() {
        for path in [
            "src/utils.rs",
            "src/common/mod.rs",
            "tests/helpers.rs",
            "src/a/types.rs",
        ] {
            assert_eq!(lines(name_says_something, path, ""), [1], "{path}");
        }
        assert_eq!(lines(name_says_something, "src/pager/mod.rs", ""), NONE);
    }

    #[test]
    fn traces_of_a_machine_are_found() {
        let bad = [
            format!("path = \"/{}/main\"", "work"),
            format!("/{}/someone/file", "home"),
            format!("`/{}/.cargo`", "root"),
            format!("https://{}{}/", "index.", "crates.io"),
            format!("see issue {}", 12),
            format!("Issue #{}", 7),
        ];
        for line in bad {
            let text = format!("fine\n{line}\n");
            assert_eq!(
                lines(speaks_of_the_project_alone, "a", &text),
                [2],
                "{line}"
            );
        }
        for line in [
            "src/work/a",
            "$HOME/root/a",
            "an issue of 3 tokens",
            "https://a/home/b",
        ] {
            assert_eq!(
                lines(speaks_of_the_project_alone, "a", line),
                NONE,
                "{line}"
            );
        }
    }
}
