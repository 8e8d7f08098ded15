//! The prompt cache: the state of a context in a file, so that the beginning of a prompt
//! that was decoded once need not be decoded again (`--prompt-cache`).
//!
//! The file is llama.cpp's own: the tokens, and the state without the last of them, whose
//! logits are not kept. That one is decoded again to have them.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::llama::{Dialogue, Session, Token, log};
use crate::session::replace::{self, replace_file};

/// The cache of a run; without a file it does nothing.
#[derive(Default)]
pub(super) struct PromptCache {
    /// Where it is; None as well when the context no longer holds the text's beginning.
    path: Option<PathBuf>,
    in_use: bool,
    /// What the context holds, and what it will hold once the rest of the cache is reused.
    tokens: Vec<Token>,
    /// How many of them were taken.
    taken: usize,
    /// The prompt is to be saved as soon as it is decoded.
    saves_prompt: bool,
    /// The text is to be saved at its end.
    saves_all: bool,
    is_read_only: bool,
}

impl PromptCache {
    /// Loads what there is.
    ///
    /// # Errors
    /// `Failed` when there is a file, and the model cannot go on from it.
    pub fn open(session: &mut Session, path: Option<PathBuf>, wanted: &Dialogue) -> Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let tokens = load(session, &path)?;
        Ok(Self {
            path: Some(path),
            in_use: true,
            tokens,
            saves_all: wanted.prompt_cache_all,
            is_read_only: wanted.prompt_cache_ro,
            ..Self::default()
        })
    }

    /// What was loaded, if anything.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Keeps of the loaded state what `prompt` begins with. Returns the token that has to be
    /// decoded again, and its position.
    pub fn match_prompt(
        &mut self,
        session: &mut Session,
        prompt: &[Token],
        is_given: bool,
    ) -> Option<(Token, i32)> {
        let pairs = self.tokens.iter().zip(prompt);
        let mut same = pairs.take_while(|(ours, theirs)| ours == theirs).count();
        if !self.tokens.is_empty() {
            tell(same, prompt.len(), is_given);
            // The last token's logits are not there: it goes, to be decoded again. Where it
            // was never decoded, there is nothing to forget.
            let from = i32::try_from(same.saturating_sub(1)).unwrap_or(i32::MAX);
            if session.truncate(from) {
                self.tokens.truncate(same);
            } else {
                log::warn(
                    "llama_completion: this model's memory cannot forget a part of the \
                     context; the prompt is decoded anew\n",
                );
                session.clear();
                self.tokens.clear();
                same = 0;
            }
        }
        self.saves_prompt = self.path.is_some() && same < prompt.len() && !self.is_read_only;
        let last = *self.tokens.last()?;
        self.saves_prompt = false;
        Some((last, i32::try_from(same - 1).unwrap_or(i32::MAX)))
    }

    /// How many tokens at the beginning of `batch` the context holds already.
    pub fn take_known(&mut self, batch: &[Token]) -> usize {
        let rest = &self.tokens[self.taken.min(self.tokens.len())..];
        let pairs = rest.iter().zip(batch);
        let same = pairs.take_while(|(ours, theirs)| ours == theirs).count();
        if same < rest.len().min(batch.len()) {
            self.tokens.truncate(self.taken + same);
        }
        self.taken += same;
        same
    }

    /// Notes that `batch` is decoded next; whether the state is to be saved before its last
    /// token. `is_last`: nothing of the prompt follows.
    pub fn note(&mut self, batch: &[Token], is_last: bool) -> bool {
        if self.in_use {
            self.tokens.extend(batch);
            self.taken += batch.len();
        }
        is_last && std::mem::take(&mut self.saves_prompt)
    }

    /// The context no longer holds the text's beginning: it will not be saved.
    pub fn give_up(&mut self) {
        self.path = None;
    }

    /// Saves the state, which lacks the last token.
    pub fn save(&self, session: &mut Session) {
        let Some(path) = &self.path else { return };
        match save(session, path, &self.tokens) {
            Ok(()) => log::info(format!(
                "llama_completion: saved {} tokens to '{}'\n",
                self.tokens.len(),
                path.display()
            )),
            Err(error) => log::warn(format!(
                "llama_completion: could not save the prompt cache '{}': {error}; see \
                 --prompt-cache\n",
                path.display()
            )),
        }
    }

    /// The file to which the whole text is to be saved at its end.
    pub fn saves_all(&self) -> Option<&Path> {
        let wanted = self.saves_all && !self.is_read_only;
        self.path.as_deref().filter(|_| wanted)
    }

    /// Saves the whole text. Of `rest`, which the context does not hold yet, only the first
    /// token: a state lacks no more than its last.
    pub fn save_all(&mut self, session: &mut Session, rest: &[Token]) {
        self.tokens.extend(rest.first());
        self.save(session);
    }
}

/// What the cache is worth to the prompt, in upstream's words.
fn tell(same: usize, length: usize, is_given: bool) {
    if !is_given && same == length {
        log::info("llama_completion: using the whole prompt of the cache\n");
    } else if same >= length {
        log::info("llama_completion: the cache holds the whole prompt\n");
    } else if same < length / 2 {
        log::warn(format!(
            "llama_completion: the cache has little in common with the prompt ({same} / {length} \
             tokens); most of it is decoded anew\n"
        ));
    } else {
        log::info(format!(
            "llama_completion: the cache holds {same} / {length} tokens of the prompt\n"
        ));
    }
}

fn failed(path: &Path, why: &str) -> Error {
    Error::Failed(format!(
        "could not use the prompt cache '{}': {why}; remove it, or name another with \
         --prompt-cache",
        path.display()
    ))
}

fn load(session: &mut Session, path: &Path) -> Result<Vec<Token>> {
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            log::info("llama_completion: there is no prompt cache yet, it will be made\n");
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(path, &error.to_string())),
    };
    if about.is_dir() {
        return Err(failed(path, "that is a folder"));
    }
    if is_pipe(&about) {
        return Err(failed(path, "that is a pipe, which keeps nothing"));
    }
    // A device or a pipe has nothing to load, and may never end.
    if !about.is_file() || about.len() == 0 {
        log::info("llama_completion: the prompt cache is empty\n");
        return Ok(Vec::new());
    }
    let mut file = fs::File::open(path).map_err(|error| failed(path, &error.to_string()))?;
    let name = as_c(path)?;
    let tokens = session
        .check_state(&mut file)
        .and_then(|()| session.load_state(&name))
        .map_err(|error| match error {
            Error::Failed(why) => {
                failed(path, &format!("{why} (is it damaged, or another model's?)"))
            }
            other => other,
        })?;
    log::info(format!(
        "llama_completion: loaded {} tokens from '{}'\n",
        tokens.len(),
        path.display()
    ));
    Ok(tokens)
}

/// Saves in one step: see [`replace_file`].
fn save(session: &mut Session, path: &Path, tokens: &[Token]) -> Result<()> {
    replace_file(path, |path| {
        session.save_state(&as_c(path)?, tokens)?;
        let about = fs::metadata(path).map_err(replace::failed)?;
        // What was still in a buffer when the file was closed may have got lost silently.
        if about.is_file() && about.len() != session.state_bytes(tokens.len()) {
            return Err(Error::Failed(
                "not all could be written; is the disk full?".into(),
            ));
        }
        Ok(())
    })
}

#[cfg(unix)]
fn is_pipe(about: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    about.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_pipe(_about: &fs::Metadata) -> bool {
    false
}

#[cfg(unix)]
fn as_c(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(path, "its name holds a NUL"))
}

#[cfg(not(unix))]
fn as_c(path: &Path) -> Result<CString> {
    CString::new(path.to_string_lossy().as_bytes())
        .map_err(|_| failed(path, "its name holds a NUL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_context_holds_is_taken_batch_by_batch() {
        let mut cache = PromptCache {
            in_use: true,
            tokens: vec![1, 2, 3, 4, 5],
            ..PromptCache::default()
        };
        assert_eq!(cache.take_known(&[1, 2, 3]), 3);
        assert_eq!(cache.take_known(&[4, 5, 6]), 2);
        assert!(!cache.note(&[6], true));
        assert_eq!(cache.take_known(&[7]), 0);
        assert_eq!(cache.tokens, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn another_text_ends_what_is_taken() {
        let mut cache = PromptCache {
            in_use: true,
            saves_prompt: true,
            tokens: vec![1, 2, 3],
            ..PromptCache::default()
        };
        assert_eq!(cache.take_known(&[1, 7]), 1);
        assert_eq!(cache.tokens, [1]);
        assert!(!cache.note(&[7], false));
        assert!(cache.note(&[8], true));
        assert!(!cache.note(&[9], true));
    }
}
