//! `--help`: what one needs, on one or two screens.

use super::entry::Entry;
use super::page::Page;
use super::topics::Topic;
use super::{ABOUT, EXAMPLES, USAGE};

/// Where the second column begins.
const COLUMN: usize = 30;

/// The flags of llama.cpp that are used most, in our words.
const MOST_USED: &[(Topic, &[(&str, &str)])] = &[
    (
        Topic::Model,
        &[
            ("--model", "the model's file"),
            ("--hf-repo", "a model on Hugging Face, downloaded once"),
            ("--lora", "an adapter to put on the model"),
        ],
    ),
    (
        Topic::Text,
        &[
            ("--prompt", "the text to go on with"),
            ("--file", "the same, from a file"),
            ("--predict", "tokens to generate (-1: until the model ends)"),
            ("--reverse-prompt", "stop where this text comes"),
            ("--display-prompt", "whether to print the prompt too"),
        ],
    ),
    (
        Topic::Chat,
        &[
            ("--conversation", "chat with the model, or complete a text"),
            ("--system-prompt", "what the model is told before the chat"),
            ("--chat-template", "how the model marks who speaks"),
            (
                "--chat-history",
                "the file that keeps what is typed, or none",
            ),
        ],
    ),
    (
        Topic::Sampling,
        &[
            ("--seed", "the seed: the same one gives the same text"),
            ("--temp", "0: the likeliest token; higher: more variety"),
            ("--top-k", "choose among so many tokens"),
            ("--top-p", "choose among the likeliest, up to this sum"),
            (
                "--repeat-penalty",
                "how unwelcome repetitions are (1: not at all)",
            ),
            ("--grammar-file", "allow only what this grammar does"),
            ("--json-schema", "allow only JSON of this schema"),
        ],
    ),
    (
        Topic::Context,
        &[
            (
                "--ctx-size",
                "tokens of context (0: as the model was trained)",
            ),
            (
                "--ubatch-size",
                "tokens computed at once; fewer take less memory",
            ),
            ("--cache-type-k", "the keys' format, as q8_0"),
            ("--flash-attn", "flash attention: on, off or auto"),
        ],
    ),
    (Topic::Threads, &[("--threads", "threads that compute")]),
    (
        Topic::Logging,
        &[(
            "--verbosity",
            "0: the text only, 3: the usual, 5: everything",
        )],
    ),
];

/// Writes the page.
pub fn write(page: &mut Page, entries: &[Entry]) {
    page.paragraph(&format!("rpaged-cli: {ABOUT}"), 0);
    page.blank();
    page.paragraph(&format!("Usage: {USAGE}"), 0);
    page.heading("Examples", "");
    for (line, about) in EXAMPLES {
        page.flag(line, 2);
        page.paragraph(about, 6);
    }
    for topic in [Topic::Paging, Topic::Metrics] {
        page.heading(topic.heading(), "");
        for entry in entries.iter().filter(|entry| entry.topic == topic) {
            page.row(&entry.head(), &with_example(entry), COLUMN);
        }
    }
    for (topic, flags) in MOST_USED {
        page.heading(topic.heading(), "");
        for (name, about) in *flags {
            if let Some(entry) = entries.iter().find(|entry| entry.name == *name) {
                page.row(&brief_head(entry), about, COLUMN);
            }
        }
    }
    page.heading("More", "");
    let topics: Vec<_> = Topic::all().map(Topic::word).collect();
    let topic = format!("all of a topic: {}", topics.join(", "));
    page.row("--help TOPIC", &topic, COLUMN);
    page.row("--help FLAG", "what one flag does: --help temp", COLUMN);
    page.row("--help-all", "everything, by topic", COLUMN);
    page.row(
        "--man",
        "the manual page: rpaged-cli --man | man -l -",
        COLUMN,
    );
    let shells = "a script for bash, zsh, fish, powershell, elvish";
    page.row("--completion SHELL", shells, COLUMN);
    page.row("--version", "the version, and llama.cpp's", COLUMN);
}

/// What our flag does, with the end of its example where that shows its value.
fn with_example(entry: &Entry) -> String {
    let example = entry.example.as_deref().unwrap_or_default();
    let shown = example.find(&entry.name).map(|start| &example[start..]);
    match shown {
        Some(shown) if !entry.hints.is_empty() => format!("{} E.g. {shown}", entry.about),
        _ => entry.about.clone(),
    }
}

/// The shortest and the longest spelling are enough.
fn brief_head(entry: &Entry) -> String {
    let short = entry.spellings.iter().find(|word| !word.starts_with("--"));
    let mut words: Vec<&str> = short.into_iter().map(String::as_str).collect();
    words.push(&entry.name);
    // A switch that is on unless it is turned off.
    if let Some(negation) = entry.negations.first() {
        words = vec![words[0], negation];
    }
    let mut head = words.join(", ");
    for hint in &entry.hints {
        head.push(' ');
        head.push_str(match hint.as_str() {
            hint if hint.contains('|') => "WHEN",
            hint if hint.contains('<') || hint.starts_with("JINJA") => "NAME",
            hint => hint,
        });
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_used_flags_exist_and_have_their_topic() {
        crate::llama::log::start();
        let entries = super::super::entries(&crate::llama::options().unwrap());
        for (topic, flags) in MOST_USED {
            for (name, _) in *flags {
                let entry = entries.iter().find(|entry| entry.name == *name);
                assert_eq!(entry.map(|entry| entry.topic), Some(*topic), "{name}");
            }
        }
    }
}
