//! The line editor: history, several lines, completion.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::completion::{Completer, Pair};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Cmd, ConditionalEventHandler, Context, Editor as Rustyline, Event, EventContext, EventHandler,
    Helper, KeyCode, KeyEvent, Modifiers, RepeatCount,
};

use super::{commands, input};
use crate::error::{Error, Result};
use crate::session::signal::{self, Editing};

/// Entries that the history keeps.
const HISTORY_MAX: usize = 1000;
/// What stands before a line.
const PROMPT: &str = "> ";
/// Bytes of an entry that the history keeps: what is longer was hardly typed.
const ENTRY_BYTES_MAX: usize = 4096;
/// How a history's file begins.
const MARK: &[u8] = b"#V2\n";
/// The file that keeps no history.
const NOWHERE: &str = "none";

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
    unsent: Unsent,
}

impl Editor {
    /// Takes over the terminal. What is typed is kept in the file `history`, nowhere where
    /// that is `none`, in the user's data folder where it is not given; there, that it cannot
    /// be kept is no failure.
    ///
    /// # Errors
    /// `Failed` when the terminal refuses, or `history` cannot be opened.
    pub fn new(multiline: bool, colours: bool, history: Option<&Path>) -> Result<Self> {
        let mut lines = Rustyline::new().map_err(|error| failed(&error))?;
        lines.set_helper(Some(Assistant {
            multiline,
            colours,
            typed: RefCell::default(),
        }));
        drop(lines.set_max_history_size(HISTORY_MAX));
        lines.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let unsent = Unsent::default();
        let keys = UnsentKeys {
            keys: unsent_keys(),
            unsent: unsent.clone(),
        };
        lines.bind_sequence(Event::Any, EventHandler::Conditional(Box::new(keys)));
        let history = match history {
            Some(path) if path == Path::new(NOWHERE) => None,
            Some(path) => Some(opened(path)?),
            None => history_file(),
        };
        if let Some(path) = &history {
            drop(lines.load_history(path));
        }
        Ok(Self {
            lines,
            history,
            multiline,
            unsent,
        })
    }

    /// Waits for the user.
    ///
    /// # Errors
    /// `Failed` when the terminal fails.
    pub fn read(&mut self) -> Result<Typed> {
        let (mut typed, mut at) = (String::new(), 0);
        let line = loop {
            let line = self.edit(typed.split_at(at));
            (typed, at) = match (line, self.unsent.take()) {
                (Ok(_), Some((Asked::Drop, _))) => return Ok(Typed::Dropped),
                (Ok(text), Some((Asked::Stop, at))) => {
                    signal::stop();
                    (text, at)
                }
                // The process was stopped, and the terminal was somebody else's.
                (Err(ReadlineError::Interrupted), _) if Editing::take_continued() => self.typed(),
                // The terminal has another size.
                (Err(ReadlineError::Signal(_)), _) => self.typed(),
                (line, _) => break line,
            };
        };
        match line {
            Ok(text) => {
                self.remember(&text);
                Ok(match input::block(&text) {
                    Some(inside) => Typed::Block(inside.to_owned()),
                    None => Typed::Text(input::joined(&text, self.multiline)),
                })
            }
            Err(ReadlineError::Interrupted) => Ok(Typed::Dropped),
            Err(ReadlineError::Eof) => Ok(Typed::Left),
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                Ok(Typed::Garbled)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Has a line edited that begins as what is on both sides of the cursor.
    fn edit(&mut self, (left, right): (&str, &str)) -> rustyline::Result<String> {
        let _editing = Editing::begin();
        self.lines.readline_with_initial(PROMPT, (left, right))
    }

    /// What was typed of a line whose reading failed, and where the cursor stood in it.
    fn typed(&self) -> (String, usize) {
        let helper = self.lines.helper();
        helper.map_or_else(Default::default, Assistant::typed)
    }

    fn remember(&mut self, text: &str) {
        let is_kept = !text.trim().is_empty() && text.len() <= ENTRY_BYTES_MAX;
        let is_new = is_kept && self.lines.add_history_entry(text).unwrap_or(false);
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

/// The path of a history's file, which can be written. A file that is none is left alone: it
/// would be written anew.
fn opened(path: &Path) -> Result<PathBuf> {
    let refused = |why: &str| {
        Error::Failed(format!(
            "'{}' cannot keep what is typed: {why}; see --chat-history",
            path.display()
        ))
    };
    if path.exists() && !path.is_file() {
        return Err(refused("it is no regular file"));
    }
    let mut options = std::fs::OpenOptions::new();
    let mut front = Vec::new();
    options
        .create(true)
        .read(true)
        .append(true)
        .open(path)
        .and_then(|file| file.take(MARK.len() as u64).read_to_end(&mut front))
        .map_err(|error| refused(&error.to_string()))?;
    if !front.is_empty() && front != MARK {
        return Err(refused("it is a file of another kind"));
    }
    Ok(path.to_owned())
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

/// What a key asks for that ends a line unsent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asked {
    /// To forget the line.
    Drop,
    /// To stop the process, and to go on with the line afterwards.
    Stop,
}

/// What the key asked for that was pressed last, if it is one that ends a line unsent, and where
/// the cursor stood, in bytes.
#[derive(Clone, Default)]
struct Unsent(Arc<Mutex<Option<(Asked, usize)>>>);

impl Unsent {
    fn set(&self, asked: Option<(Asked, usize)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// Asking takes the answer back.
    fn take(&self) -> Option<(Asked, usize)> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.take()
    }
}

/// Looks at each key. Those that end a line unsent are Enter to the editor: of a read that
/// ends otherwise it would lose what was typed ahead.
struct UnsentKeys {
    keys: Vec<(KeyEvent, Asked)>,
    unsent: Unsent,
}

impl ConditionalEventHandler for UnsentKeys {
    fn handle(
        &self,
        event: &Event,
        _: RepeatCount,
        _: bool,
        context: &EventContext<'_>,
    ) -> Option<Cmd> {
        let known = self.keys.iter().find(|(key, _)| event.get(0) == Some(key));
        let asked = known.map(|(_, asked)| (*asked, context.pos()));
        self.unsent.set(asked);
        asked.map(|_| Cmd::AcceptLine)
    }
}

/// The keys that the terminal has for that.
#[cfg(unix)]
fn unsent_keys() -> Vec<(KeyEvent, Asked)> {
    use rustix::termios::{SpecialCodeIndex, tcgetattr};
    let Ok(terminal) = tcgetattr(rustix::stdio::stdin()) else {
        return Vec::new();
    };
    let keys = [
        (SpecialCodeIndex::VINTR, Asked::Drop),
        (SpecialCodeIndex::VQUIT, Asked::Drop),
        (SpecialCodeIndex::VSUSP, Asked::Stop),
    ];
    let keys = keys.map(|(index, asked)| (terminal.special_codes[index], asked));
    // Where there is no such key, there is a zero.
    let keys = keys.into_iter().filter(|(code, _)| *code != 0);
    let event = |code: u8| KeyEvent::new(char::from(code), Modifiers::NONE);
    keys.map(|(code, asked)| (event(code), asked)).collect()
}

#[cfg(not(unix))]
fn unsent_keys() -> Vec<(KeyEvent, Asked)> {
    vec![(KeyEvent::ctrl('C'), Asked::Drop)]
}

/// What the editor asks while a line is typed.
struct Assistant {
    multiline: bool,
    colours: bool,
    /// The line as it is, and where the cursor stands in it, in bytes.
    typed: RefCell<(String, usize)>,
}

impl Assistant {
    fn typed(&self) -> (String, usize) {
        self.typed.borrow().clone()
    }
}

impl Helper for Assistant {}

impl Hinter for Assistant {
    type Hint = String;

    /// Hints at nothing: it is asked whenever the line has changed.
    fn hint(&self, line: &str, at: usize, _: &Context<'_>) -> Option<String> {
        *self.typed.borrow_mut() = (line.to_owned(), at);
        None
    }
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
    fn a_history_takes_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        assert_eq!(opened(&path).unwrap(), path);
        std::fs::write(&path, "#V2\nhello\n").unwrap();
        assert_eq!(opened(&path).unwrap(), path);
        std::fs::write(&path, "Dear diary").unwrap();
        for (path, why) in [
            (path.as_path(), "another kind"),
            (folder.path(), "no regular"),
        ] {
            let sentence = opened(path).unwrap_err().to_string();
            assert!(
                sentence.contains(why) && sentence.contains("--chat-history"),
                "{sentence}"
            );
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"Dear diary");
    }

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
