//! One entry for each flag, ours and llama.cpp's: what all texts about flags are made of.

use clap::CommandFactory;

use super::topics::Topic;
use crate::cli::flags::OwnFlags;
use crate::cli::printing::{self, PrintFlag, SHELLS};
use crate::cli::support::{Support, WhenPaged, support, when_paged};
use crate::cli::values::{self, Value};
use crate::llama::OptionInfo;

/// A flag, as the texts show it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name: the first long spelling.
    pub name: String,
    /// Its spellings.
    pub spellings: Vec<String>,
    /// Its `--no-...` spellings.
    pub negations: Vec<String>,
    /// What stands for its values.
    pub hints: Vec<String>,
    /// What it does; a line that begins with a hyphen is an item of a list.
    pub about: String,
    /// A command line with it.
    pub example: Option<String>,
    /// Its environment variable.
    pub env: Option<String>,
    /// What is different here, in brackets.
    pub notes: Vec<String>,
    /// What it is about.
    pub topic: Topic,
    /// What follows it.
    pub value: Value,
}

impl Entry {
    /// Spellings and hints, as in `-n, --predict N`.
    pub fn head(&self) -> String {
        let spelled = self.spellings.iter().chain(&self.negations);
        let spelled: Vec<_> = spelled.map(String::as_str).collect();
        let mut head = spelled.join(", ");
        for hint in &self.hints {
            head.push(' ');
            head.push_str(&short_hint(hint));
        }
        head
    }

    /// What it does, in one line.
    pub fn sentence(&self) -> String {
        let line = self.about.lines().next().unwrap_or_default();
        line.trim_end_matches([':', '.']).to_owned()
    }
}

/// A hint that is a long list says no more than that words are wanted.
fn short_hint(hint: &str) -> String {
    const HINT_MAX: usize = 40;
    if hint.len() > HINT_MAX {
        "TYPE,...".to_owned()
    } else {
        hint.to_owned()
    }
}

/// All flags: by topic, ours first.
pub fn entries(options: &[OptionInfo]) -> Vec<Entry> {
    let command = OwnFlags::command();
    let mut all: Vec<(usize, Entry)> = Vec::new();
    all.extend(
        command
            .get_arguments()
            .filter_map(own)
            .map(|entry| (0, entry)),
    );
    all.extend(options.iter().map(|option| {
        let place = Topic::of_upstream(option).map_or(usize::MAX, |(_, place)| place);
        (place.saturating_add(1), upstream(option))
    }));
    all.extend(printing::FLAGS.iter().map(|flag| (1, print_flag(flag))));
    let order = |topic| Topic::all().position(|other| other == topic);
    all.sort_by_key(|(place, entry)| (order(entry.topic), *place));
    all.into_iter().map(|(_, entry)| entry).collect()
}

fn own(argument: &clap::Arg) -> Option<Entry> {
    let name = format!("--{}", argument.get_long()?);
    let text = argument.get_long_help().map(ToString::to_string);
    let text = text.unwrap_or_default();
    let (about, example) = text.split_once("\n\n").unwrap_or((text.as_str(), ""));
    let takes_value = argument.get_action().takes_values();
    let hints = argument.get_value_names().filter(|_| takes_value);
    let hints: Vec<_> = hints
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let value = match (name.as_str(), hints.first().map(String::as_str)) {
        ("--spill-dir", _) => Value::Folder,
        (_, Some("PATH")) => Value::File,
        (_, Some(_)) => Value::Other,
        (_, None) => Value::None,
    };
    Some(Entry {
        spellings: vec![name.clone()],
        negations: Vec::new(),
        hints,
        about: about.replace('\n', " "),
        example: Some(example.trim().to_owned()),
        env: argument
            .get_env()
            .map(|env| env.to_string_lossy().into_owned()),
        notes: Vec::new(),
        topic: Topic::of_own(&name),
        value,
        name,
    })
}

fn print_flag(flag: &PrintFlag) -> Entry {
    let shells = SHELLS.iter().map(|(name, _)| (*name).to_owned()).collect();
    Entry {
        name: flag.name.to_owned(),
        spellings: vec![flag.name.to_owned()],
        negations: Vec::new(),
        hints: Some(flag.hint.to_owned())
            .filter(|hint| !hint.is_empty())
            .into_iter()
            .collect(),
        about: flag.about.to_owned(),
        example: Some(flag.example.to_owned()),
        env: None,
        notes: Vec::new(),
        topic: Topic::Information,
        value: if flag.hint == "SHELL" {
            Value::Words(shells)
        } else {
            Value::None
        },
    }
}

fn upstream(option: &OptionInfo) -> Entry {
    let topic = Topic::of_upstream(option).map_or(Topic::Information, |(topic, _)| topic);
    let mut entry = Entry {
        name: option.name().to_owned(),
        spellings: option.args.clone(),
        negations: option.args_neg.clone(),
        hints: option.value_hints.clone(),
        about: about(option),
        example: None,
        env: option.env.clone(),
        notes: notes(option),
        topic,
        value: values::value_of(option),
    };
    if entry.name == printing::HELP.name {
        let help = print_flag(&printing::HELP);
        entry = Entry {
            spellings: entry.spellings,
            ..help
        };
    }
    entry
}

/// llama.cpp's description, without what the entry says by other means.
fn about(option: &OptionInfo) -> String {
    let lines = option.help.lines().map(without_links);
    let kept = lines.filter(|line| !line.trim_start().starts_with("(env: "));
    kept.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// What is different here.
fn notes(option: &OptionInfo) -> Vec<String> {
    let mut notes = Vec::new();
    match support(option.name()) {
        Some(Support::Refused(what)) => notes.push(format!("refused: {what}")),
        Some(Support::Chat | Support::Terminal) => {
            notes.push("in the chat at a terminal only".to_owned())
        }
        _ => {}
    }
    match when_paged(option.name()) {
        Some(WhenPaged::Means(what)) => notes.push(format!("with paging: {what}")),
        Some(WhenPaged::Contradicts(why)) => notes.push(format!("not with paging: {why}")),
        Some(WhenPaged::NotBuilt(what)) => {
            notes.push(format!("not built yet together with paging: {what}"));
        }
        None => {}
    }
    notes
}

/// Markdown links give way to their addresses' absence: a terminal cannot follow them,
/// and they are wider than it.
fn without_links(line: &str) -> String {
    let mut rest = line;
    let mut out = String::new();
    while let Some(start) = rest.find("[(more info)](") {
        out.push_str(&rest[..start]);
        rest = rest[start..]
            .split_once("](")
            .map_or("", |(_, after)| after);
        rest = rest.split_once(')').map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_left_out() {
        assert_eq!(without_links("x[(more info)](https://a.b/c) y"), "x y");
    }
}
