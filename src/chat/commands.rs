//! What begins with a slash: the chat's own commands.

use std::path::PathBuf;

use crate::cli::nearest;

/// What a line asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Command {
    Help,
    Clear,
    Regenerate,
    Save(PathBuf),
    Load(PathBuf),
    Read(PathBuf),
    Stats,
    Budget(String),
    Exit,
}

/// A line, understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Line {
    /// Nothing.
    Empty,
    /// For the model.
    Message(String),
    /// For us.
    Command(Command),
    /// For us, but it cannot be done; the sentence says why.
    Wrong(String),
}

/// A command's name, what follows it, and what it does.
struct Entry {
    name: &'static str,
    argument: Option<&'static str>,
    help: &'static str,
}

const fn entry(name: &'static str, argument: Option<&'static str>, help: &'static str) -> Entry {
    Entry {
        name,
        argument,
        help,
    }
}

const COMMANDS: [Entry; 10] = [
    entry("/help", None, "show this"),
    entry(
        "/clear",
        None,
        "forget the conversation; the system message stays",
    ),
    entry("/regen", None, "answer the last message again"),
    entry(
        "/save",
        Some("FILE"),
        "write the conversation to a file, as JSON",
    ),
    entry(
        "/load",
        Some("FILE"),
        "go on with the conversation in a file",
    ),
    entry(
        "/read",
        Some("FILE"),
        "put a file's text before your next message",
    ),
    entry("/stats", None, "speed, context and memory in detail"),
    entry(
        "/vram",
        Some("SIZE"),
        "change the memory budget, as in 512M, 2G or 50%",
    ),
    entry("/exit", None, "leave; Ctrl-D does too"),
    entry("/quit", None, "leave"),
];

/// What `/help` shows.
pub(super) fn help(multiline: bool) -> String {
    let mut text = String::new();
    for entry in &COMMANDS {
        let usage = match entry.argument {
            Some(argument) => format!("{} {argument}", entry.name),
            None => entry.name.to_owned(),
        };
        text.push_str(&format!("  {usage:<12} {}\n", entry.help));
    }
    text.push_str(
        "\n  Ctrl-C       stop an answer; at the prompt, drop the line\n  \
         Tab          complete a command or a file's name\n  \
         Up, Down     earlier input; Ctrl-R searches it\n",
    );
    text.push_str(if multiline {
        "  \\ at an end  send; Enter alone begins a new line (--multiline-input)\n"
    } else {
        "  \\ at an end  one more line follows; so does Alt-Enter\n"
    });
    text.push_str(
        "  \"\"\"          begins and ends a text of several lines, taken as it is\n  \
         a space      before a slash sends the line to the model\n",
    );
    text
}

/// The names that begin with `start`, for completion.
pub(super) fn beginning_with(start: &str) -> Vec<&'static str> {
    let names = COMMANDS.iter().map(|entry| entry.name);
    names.filter(|name| name.starts_with(start)).collect()
}

/// If `line` names a command that takes a file: where the file's name begins in it.
pub(super) fn file_argument(line: &str) -> Option<usize> {
    let entry = COMMANDS.iter().find(|entry| {
        let rest = line.strip_prefix(entry.name);
        entry.argument == Some("FILE") && rest.is_some_and(|rest| rest.starts_with(' '))
    })?;
    let rest = &line[entry.name.len()..];
    Some(line.len() - rest.trim_start().len())
}

/// Understands what was typed.
pub(super) fn parse(text: &str) -> Line {
    if text.trim().is_empty() {
        return Line::Empty;
    }
    if !text.starts_with('/') || text.contains('\n') {
        return Line::Message(text.trim_start().to_owned());
    }
    let (name, argument) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let argument = argument.trim();
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else {
        return Line::Wrong(unknown(name));
    };
    match entry.argument {
        Some(hint) if argument.is_empty() => {
            return Line::Wrong(format!("{name} needs something: {name} {hint}"));
        }
        None if !argument.is_empty() => {
            return Line::Wrong(format!("{name} takes nothing, got '{argument}'"));
        }
        _ => {}
    }
    Line::Command(match name {
        "/help" => Command::Help,
        "/clear" => Command::Clear,
        "/regen" => Command::Regenerate,
        "/save" => Command::Save(path(argument)),
        "/load" => Command::Load(path(argument)),
        "/read" => Command::Read(path(argument)),
        "/stats" => Command::Stats,
        "/vram" => Command::Budget(argument.to_owned()),
        _ => Command::Exit,
    })
}

fn unknown(name: &str) -> String {
    let meant = nearest(name, COMMANDS.iter().map(|entry| entry.name));
    let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
    format!(
        "there is no command '{name}'{meant} (/help shows all, and a space before the slash \
         sends the line to the model)"
    )
}

/// A file's name as typed: quotes round it are taken off, `~/` is the user's home.
pub(super) fn path(text: &str) -> PathBuf {
    let quoted = ['"', '\''].iter().find_map(|quote| {
        let inner = text.strip_prefix(*quote)?;
        inner.strip_suffix(*quote)
    });
    let text = quoted.unwrap_or(text);
    let home = text.strip_prefix("~/").zip(std::env::var_os("HOME"));
    match home {
        Some((rest, home)) => PathBuf::from(home).join(rest),
        None => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        let message = |text: &str| Line::Message(text.to_owned());
        for (text, expected) in [
            ("", Line::Empty),
            (" \n ", Line::Empty),
            ("Hello there", message("Hello there")),
            (" /help", message("/help")),
            (
                "/etc/passwd\nwhat is it?",
                message("/etc/passwd\nwhat is it?"),
            ),
            ("/help", Line::Command(Command::Help)),
            ("/help ", Line::Command(Command::Help)),
            ("/quit", Line::Command(Command::Exit)),
            ("/regen", Line::Command(Command::Regenerate)),
            (
                "/vram  50%",
                Line::Command(Command::Budget("50%".to_owned())),
            ),
            (
                "/save a b.json ",
                Line::Command(Command::Save("a b.json".into())),
            ),
            ("/load \"a b\"", Line::Command(Command::Load("a b".into()))),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_command_is_a_sentence() {
        let wrong = |text: &str| match parse(text) {
            Line::Wrong(sentence) => sentence,
            other => panic!("{other:?}"),
        };
        assert!(wrong("/lod x").contains("did you mean /load?"));
        assert!(wrong("/regenerate").contains("did you mean /regen?"));
        assert!(wrong("/ls").contains("a space"));
        assert_eq!(wrong("/save"), "/save needs something: /save FILE");
        assert_eq!(wrong("/clear all"), "/clear takes nothing, got 'all'");
    }

    #[test]
    fn names_and_files_complete() {
        assert_eq!(beginning_with("/re"), ["/regen", "/read"]);
        assert!(beginning_with("/x").is_empty());
        assert_eq!(file_argument("/load  a b"), Some(7));
        assert_eq!(file_argument("/load "), Some(6));
        assert_eq!(file_argument("/loads a"), None);
        assert_eq!(file_argument("/vram a"), None);
    }

    #[test]
    fn every_command_is_in_the_help() {
        for entry in &COMMANDS {
            assert!(help(false).contains(entry.name));
            let line = format!("{} {}", entry.name, entry.argument.unwrap_or_default());
            assert!(matches!(parse(&line), Line::Command(_)), "{line}");
        }
        assert!(help(true).lines().all(|line| line.chars().count() <= 80));
    }
}
