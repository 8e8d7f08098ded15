//! The line editor: history, several lines, completion.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustyline::completion::{Completer, Pair};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, Context, Editor as Rustyline, Helper, KeyCode, KeyEvent, Modifiers};

use super::{commands, input};
use crate::error::{Error, Result};

/// Entries that the history keeps.
const HISTORY_MAX: usize = 1000;

/// What the user did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Typed {
    /// Sent a text.
    Text(String),
    /// Sent a text that is to be taken as it is.
    Block(String),
    /// Dropped the line (Ctrl-C).
    Dropped,
    /// Bytes that are no UTF-8: the line is lost.
    Garbled,
    /// Left (Ctrl-D).
    Left,
}

/// Reads lines from the terminal.
pub(super) struct Editor {
    lines: Rustyline<Assistant, FileHistory>,
    /// Where the history is kept; None when it is not.
    history: Option<PathBuf>,
    multiline: bool,
}

impl Editor {
    /// Takes over the terminal; a history that cannot be kept is no failure.
    ///
    /// # Errors
    /// `Failed` when the terminal refuses.
    pub fn new(multiline: bool, colours: bool) -> Result<Self> {
        let mut lines = Rustyline::new().map_err(|error| failed(&error))?;
        lines.set_helper(Some(Assistant { multiline, colours }));
        drop(lines.set_max_history_size(HISTORY_MAX));
        lines.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let history = history_file();
        if let Some(path) = &history {
            drop(lines.load_history(path));
        }
        Ok(Self {
            lines,
            history,
            multiline,
        })
    }

    /// Waits for the user.
    ///
    /// # Errors
    /// `Failed` when the terminal fails.
    pub fn read(&mut self) -> Result<Typed> {
        match self.lines.readline("> ") {
            Ok(text) => {
                self.remember(&text);
                Ok(match input::block(&text) {
                    Some(inside) => Typed::Block(inside.to_owned()),
                    None => Typed::Text(input::joined(&text, self.multiline)),
                })
            }
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Ok(Typed::Dropped),
            Err(ReadlineError::Eof) => Ok(Typed::Left),
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                Ok(Typed::Garbled)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    fn remember(&mut self, text: &str) {
        let is_new = !text.trim().is_empty() && self.lines.add_history_entry(text).unwrap_or(false);
        if let (true, Some(path)) = (is_new, &self.history) {
            drop(self.lines.append_history(path));
        }
    }
}

fn failed(error: &ReadlineError) -> Error {
    Error::Failed(format!(
        "could not read from the terminal: {error}; --simple-io reads plain lines"
    ))
}

/// The history's file in the user's data folder, which is made if need be.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("APPDATA"))
        .or_else(|| {
            // A home that is not there is not to be made.
            let home = absolute("HOME").filter(|home| home.is_dir())?;
            Some(home.join(".local/share"))
        })?;
    let folder = data.join("rpaged");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat-history"))
}

/// What the editor asks while a line is typed.
struct Assistant {
    multiline: bool,
    colours: bool,
}

impl Helper for Assistant {}

impl Hinter for Assistant {
    type Hint = String;
}

impl Highlighter for Assistant {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        if self.colours {
            Cow::Owned(format!("\x1b[1;32m{prompt}\x1b[0m"))
        } else {
            Cow::Borrowed(prompt)
        }
    }
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if input::is_complete(context.input(), self.multiline) {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..at];
        let pair = |name: String, more: &str| Pair {
            replacement: format!("{name}{more}"),
            display: name,
        };
        if let Some(from) = commands::file_argument(typed) {
            let names = file_names(&typed[from..]).into_iter();
            return Ok((from, names.map(|name| pair(name, "")).collect()));
        }
        if !typed.starts_with('/') || typed.contains(char::is_whitespace) {
            return Ok((at, Vec::new()));
        }
        let names = commands::beginning_with(typed).into_iter();
        Ok((0, names.map(|name| pair(name.to_owned(), " ")).collect()))
    }
}

/// The files that `typed` may become, folders with a slash at their end.
fn file_names(typed: &str) -> Vec<String> {
    let (folder, start) = match typed.rfind('/') {
        Some(slash) => typed.split_at(slash + 1),
        None => ("", typed),
    };
    let looked_in = match folder {
        "" => PathBuf::from("."),
        folder => commands::path(folder),
    };
    let Ok(entries) = std::fs::read_dir(&looked_in) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(start))
        .filter(|name| start.starts_with('.') || !name.starts_with('.'))
        .filter(|name| !name.contains(char::is_control))
        .map(|name| with_slash(&looked_in, folder, &name))
        .collect();
    names.sort();
    names
}

fn with_slash(looked_in: &Path, folder: &str, name: &str) -> String {
    let slash = if looked_in.join(name).is_dir() {
        "/"
    } else {
        ""
    };
    format!("{folder}{name}{slash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_complete_with_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["talk.json", "tale of two.txt", ".hidden", "other"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("tables")).unwrap();
        let start = format!("{}/", folder.path().display());
        let found = |end: &str| -> Vec<String> {
            let names = file_names(&format!("{start}{end}")).into_iter();
            names.map(|name| name[start.len()..].to_owned()).collect()
        };
        assert_eq!(found("ta"), ["tables/", "tale of two.txt", "talk.json"]);
        assert_eq!(found("").len(), 4);
        assert_eq!(found(".h"), [".hidden"]);
        assert!(found("none/").is_empty());
    }
}
