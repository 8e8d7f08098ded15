//! Scripts that have a shell complete our flags and their values.

use clap::{Arg, ArgAction, Command, ValueHint};
use clap_complete::Shell;

use super::entry::{Entry, entries};
use crate::cli::values::Value;
use crate::llama::OptionInfo;

/// Stands, behind clap's two hyphens, for there being only one: clap knows no flag like
/// `-ngl`.
pub(super) const ONE_HYPHEN: char = '\u{e000}';

/// The script for `shell`.
pub fn completion(options: &[OptionInfo], shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = command(&entries(options));
    clap_complete::generate(shell, &mut command, "rpaged-cli", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let mark = ONE_HYPHEN.to_string();
    // fish names both kinds of flags without their hyphens.
    let script = script.replace(&format!("--{mark}"), "-");
    let script = script.replace(&format!("-l {mark}"), "-o ");
    script.replace(&mark, "")
}

fn command(entries: &[Entry]) -> Command {
    Command::new("rpaged-cli")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(entries.iter().flat_map(arguments))
}

/// The flag, and its negation.
fn arguments(entry: &Entry) -> impl Iterator<Item = Arg> {
    let positive = spelled(Arg::new(entry.name.clone()), &entry.spellings);
    let positive = with_value(positive.help(plain(&entry.sentence())), entry);
    let negative = entry.negations.first().map(|name| {
        let arg = spelled(Arg::new(name.clone()), &entry.negations);
        let about = format!("not {}: {}", entry.name, entry.sentence());
        arg.help(plain(&about)).action(ArgAction::SetTrue)
    });
    std::iter::once(positive).chain(negative)
}

/// What shells read as their own in a description.
fn plain(text: &str) -> String {
    text.replace(['\'', '"', '`', '\\', '$'], "")
}

fn spelled(arg: Arg, spellings: &[String]) -> Arg {
    let mut arg = arg;
    for spelling in spellings {
        let bare = spelling.trim_start_matches('-');
        let long = if spelling.starts_with("--") {
            bare.to_owned()
        } else if let (Some(letter), 1) = (bare.chars().next(), bare.chars().count()) {
            arg = match arg.get_short() {
                None => arg.short(letter),
                Some(_) => arg.visible_short_alias(letter),
            };
            continue;
        } else {
            format!("{ONE_HYPHEN}{bare}")
        };
        arg = match arg.get_long() {
            None => arg.long(long),
            Some(_) => arg.visible_alias(long),
        };
    }
    arg
}

fn with_value(arg: Arg, entry: &Entry) -> Arg {
    let count = entry.hints.len();
    if entry.name == "--help" {
        // What follows is a topic or nothing.
        return arg.action(ArgAction::SetTrue);
    }
    let arg = match &entry.value {
        Value::None => return arg.action(ArgAction::SetTrue),
        Value::Words(words) => arg.value_parser(words.clone()),
        Value::File => arg.value_hint(ValueHint::FilePath),
        Value::Folder => arg.value_hint(ValueHint::DirPath),
        Value::Other => arg.value_hint(ValueHint::Other),
    };
    // Hints such as '<user>/<model>[:quant]' would be read by the shell.
    let names = std::iter::repeat_n("VALUE", count);
    arg.action(ArgAction::Set)
        .num_args(count)
        .value_names(names)
}
