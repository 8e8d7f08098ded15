//! The flags of ours that print something and end, beside llama.cpp's own of that kind.

use clap_complete::Shell;

use super::help::Topic;
use super::nearest::nearest;
use super::words::spelling;
use crate::error::{Error, Result};
use crate::llama::OptionInfo;

/// The texts that can be asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Print {
    /// `--help`, and what about.
    Help(About),
    /// `--man`
    Man,
    /// `--completion SHELL`, `--completion-bash`
    Completion(Shell),
    /// `--version`
    Version,
    /// `--list-devices`, with those of these RPC servers.
    Devices(Vec<String>),
    /// `--cache-list`
    Cache,
}

/// What the help is to be about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum About {
    /// The flags that one needs: `--help`.
    Most,
    /// All of them: `--help-all`.
    Everything,
    /// One topic: `--help sampling`.
    Topic(Topic),
    /// One option, by one of its spellings: `--help temp`.
    Option(String),
}

/// A flag that prints something.
pub struct PrintFlag {
    /// With its hyphens.
    pub name: &'static str,
    /// What the help shows in place of the value; empty when it takes none.
    pub hint: &'static str,
    /// A sentence.
    pub about: &'static str,
    /// A command line with it.
    pub example: &'static str,
}

/// The flags of ours that print something.
pub const FLAGS: &[PrintFlag] = &[
    PrintFlag {
        name: "--help-all",
        hint: "",
        about: "Print what every flag does, by topic, and end.",
        example: "rpaged-cli --help-all | less",
    },
    PrintFlag {
        name: "--man",
        hint: "",
        about: "Print the manual page, and end.",
        example: "rpaged-cli --man | man -l -",
    },
    PrintFlag {
        name: "--completion",
        hint: "SHELL",
        about: "Print a script that has a shell complete our flags and their values, and end: \
                bash, zsh, fish, powershell or elvish.",
        example: "rpaged-cli --completion bash >> ~/.bash_completion",
    },
];

/// What the help says of `--help`, which is llama.cpp's flag and does more here.
pub const HELP: PrintFlag = PrintFlag {
    name: "--help",
    hint: "[TOPIC]",
    about: "Print the flags that one needs most, or all of a topic, or what one flag does, and \
            end.",
    example: "rpaged-cli --help sampling",
};

/// The shells, by the names that `--completion` takes.
pub const SHELLS: [(&str, Shell); 5] = [
    ("bash", Shell::Bash),
    ("zsh", Shell::Zsh),
    ("fish", Shell::Fish),
    ("powershell", Shell::PowerShell),
    ("elvish", Shell::Elvish),
];

/// What the word `name` has printed; None when it is no such flag. `value` stood behind an
/// equals sign, `next` is the word that follows.
///
/// # Errors
/// `Usage` for a value that makes no sense.
pub fn asked_for(
    name: &str,
    value: Option<&str>,
    next: Option<&str>,
    options: &[OptionInfo],
) -> Result<Option<Print>> {
    let upstream = options.iter().find(|option| option.is_spelled(name));
    let name = upstream.map_or(name, OptionInfo::name);
    let print = match name {
        "--help" => {
            // Somebody may put it in front of the flags of a line.
            let next = next.filter(|next| !next.starts_with('-'));
            Print::Help(about(value.or(next), options)?)
        }
        "--completion" => {
            let value = value.or(next).ok_or_else(|| {
                Error::Usage("option '--completion' needs a value; name a shell".to_owned())
            })?;
            return shell(value).map(|shell| Some(Print::Completion(shell)));
        }
        "--help-all" => Print::Help(About::Everything),
        "--man" => Print::Man,
        "--completion-bash" => Print::Completion(Shell::Bash),
        "--version" => Print::Version,
        "--list-devices" => Print::Devices(Vec::new()),
        "--cache-list" => Print::Cache,
        _ => return Ok(None),
    };
    match value {
        Some(_) if name != "--help" => Err(Error::Usage(format!("option '{name}' takes no value"))),
        _ => Ok(Some(print)),
    }
}

/// What help is asked for.
fn about(word: Option<&str>, options: &[OptionInfo]) -> Result<About> {
    let Some(word) = word else {
        return Ok(About::Most);
    };
    if let Some(topic) = Topic::named(word) {
        return Ok(About::Topic(topic));
    }
    let spelled = super::help::spellings(options);
    for name in [word.to_owned(), format!("--{word}"), format!("-{word}")] {
        let name = spelling(&name);
        if spelled.contains(&name) {
            return Ok(About::Option(name));
        }
    }
    let topics: Vec<_> = Topic::all().map(Topic::word).collect();
    Err(Error::Usage(match nearest(word, topics.iter().copied()) {
        Some(near) => format!("there is no help on '{word}'; did you mean '{near}'?"),
        None => format!(
            "there is no help on '{word}'; name a flag, or one of: {}",
            topics.join(", ")
        ),
    }))
}

fn shell(word: &str) -> Result<Shell> {
    let found = SHELLS.iter().find(|(name, _)| *name == word);
    found.map(|(_, shell)| *shell).ok_or_else(|| {
        let names = SHELLS.map(|(name, _)| name);
        let near = nearest(word, names);
        let advice = near.map_or(format!("it takes {}", names.join(", ")), |near| {
            format!("did you mean '{near}'?")
        });
        Error::Usage(format!(
            "there is no shell '{word}' for --completion; {advice}"
        ))
    })
}
