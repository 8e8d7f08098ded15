//! `--help-all`, and its parts: one topic, one flag.

use super::entry::Entry;
use super::page::Page;
use super::topics::Topic;
use super::{ABOUT, EXIT_CODES, USAGE};

const INDENT: usize = 8;

/// Every flag, by topic, then the exit codes.
pub fn everything(page: &mut Page, entries: &[Entry]) {
    page.paragraph(&format!("rpaged-cli: {ABOUT}"), 0);
    page.blank();
    page.paragraph(&format!("Usage: {USAGE}"), 0);
    page.blank();
    page.paragraph(
        "A value follows its flag as a word of its own, or behind an equals sign. A flag with \
         an environment variable (env) takes it as its default.",
        0,
    );
    for one in Topic::all() {
        topic(page, entries, one);
    }
    page.heading("Exit codes", "");
    for (code, about) in EXIT_CODES {
        page.row(code, about, INDENT);
    }
}

/// The flags of one topic.
pub fn topic(page: &mut Page, entries: &[Entry], topic: Topic) {
    page.heading(topic.heading(), topic.about());
    for entry in entries.iter().filter(|entry| entry.topic == topic) {
        page.blank();
        write(page, entry);
    }
}

/// The flag that is spelled `name`.
pub fn option(page: &mut Page, entries: &[Entry], name: &str) {
    let is_it = |entry: &&Entry| {
        let mut spelled = entry.spellings.iter().chain(&entry.negations);
        spelled.any(|spelling| spelling == name)
    };
    if let Some(entry) = entries.iter().find(is_it) {
        write(page, entry);
        let about = format!("More of this: --help {}", entry.topic.word());
        page.blank();
        page.paragraph(&about, 0);
    }
}

fn write(page: &mut Page, entry: &Entry) {
    page.flag(&entry.head(), 2);
    page.paragraph(&entry.about, INDENT);
    if let Some(example) = &entry.example {
        page.paragraph(&format!("e.g. {example}"), INDENT);
    }
    for note in &entry.notes {
        page.paragraph(&format!("({note})"), INDENT);
    }
    if let Some(env) = &entry.env {
        page.paragraph(&format!("(env: {env})"), INDENT);
    }
}
