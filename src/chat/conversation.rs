//! Who said what, and its file.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cli::size::show_bytes;
use crate::error::{Error, Result};
use crate::llama::chat::Message;
use crate::session::replace::{self, replace_file};

/// Bytes that a file may have to be read: more is no conversation.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The messages, oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Conversation {
    messages: Vec<Message>,
    /// Messages after the system's that the model no longer reads: the context was full.
    forgotten: usize,
}

/// A conversation's file.
#[derive(Serialize, Deserialize)]
struct Stored {
    messages: Vec<StoredMessage>,
}

#[derive(Serialize, Deserialize)]
struct StoredMessage {
    role: String,
    content: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
}

impl Conversation {
    /// Nobody has said anything; `system` is empty when there is no such message.
    pub fn new(system: &str) -> Self {
        let mut all = Self::default();
        if !system.is_empty() {
            all.messages.push(Message::new("system", system));
        }
        all
    }

    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Takes the last message back if it is `role`'s.
    pub fn take_back(&mut self, role: &str) -> Option<Message> {
        let taken = self.messages.pop_if(|message| message.role == role);
        self.recall(self.forgotten);
        taken
    }

    pub fn last_is(&self, role: &str) -> bool {
        self.messages.last().is_some_and(|last| last.role == role)
    }

    /// Forgets all but the system's message.
    pub fn clear(&mut self) {
        self.messages.truncate(self.fixed());
        self.forgotten = 0;
    }

    /// Messages that always stay: the system's.
    fn fixed(&self) -> usize {
        let first = self.messages.first();
        usize::from(first.is_some_and(|first| first.role == "system"))
    }

    /// What was said, without the system's message.
    pub fn count(&self) -> usize {
        self.messages.len() - self.fixed()
    }

    /// What the model is to read.
    pub fn visible(&self) -> Vec<Message> {
        let fixed = self.fixed();
        let mut all = self.messages[..fixed].to_vec();
        all.extend_from_slice(&self.messages[fixed + self.forgotten..]);
        all
    }

    /// How many of the oldest messages the model no longer reads.
    pub fn forgotten(&self) -> usize {
        self.forgotten
    }

    /// The model reads again all but so many of the oldest messages.
    pub fn recall(&mut self, forgotten: usize) {
        let count = self.count();
        self.forgotten = forgotten.min(count);
    }

    /// The model no longer reads the oldest turn; false when only the last is left.
    pub fn forget_oldest(&mut self) -> bool {
        let from = self.fixed() + self.forgotten;
        let next = self.messages.iter().skip(from + 1);
        let Some(turn) = next.clone().position(|message| message.role == "user") else {
            return false;
        };
        self.forgotten += turn + 1;
        true
    }

    /// The file's text.
    fn to_json(&self) -> Result<String> {
        let stored = Stored {
            messages: self
                .messages
                .iter()
                .map(|message| StoredMessage {
                    role: message.role.clone(),
                    content: message.content.clone(),
                    reasoning_content: message.reasoning.clone(),
                })
                .collect(),
        };
        serde_json::to_string_pretty(&stored)
            .map(|text| text + "\n")
            .map_err(|error| Error::Bug(format!("a conversation is no JSON: {error}")))
    }

    /// Reads a file's text.
    fn from_json(text: &str) -> std::result::Result<Self, String> {
        let stored: Stored = serde_json::from_str(text)
            .map_err(|error| format!("it holds no conversation ({error})"))?;
        for (index, message) in stored.messages.iter().enumerate() {
            let role = message.role.as_str();
            if !["system", "user", "assistant"].contains(&role) {
                return Err(format!("message {} is by '{role}'", index + 1));
            }
            if role == "system" && index > 0 {
                return Err(format!(
                    "message {} is the system's, which can only be the first",
                    index + 1
                ));
            }
        }
        let messages = stored.messages.into_iter().map(|message| Message {
            role: message.role,
            content: message.content,
            reasoning: message.reasoning_content,
        });
        Ok(Self {
            messages: messages.collect(),
            forgotten: 0,
        })
    }

    /// Writes the file: all of it, or none.
    ///
    /// # Errors
    /// `Failed` when it cannot be written; what was there is still there.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = self.to_json()?;
        let failed =
            |why: &str| Error::Failed(format!("could not write '{}': {why}", path.display()));
        if std::fs::metadata(path).is_ok_and(|about| !about.is_file()) {
            // Nobody may read from a pipe, and what is a device is not to be replaced.
            return Err(failed("it is no regular file"));
        }
        replace_file(path, |path| {
            std::fs::write(path, &text).map_err(replace::failed)
        })
        .map_err(|error| failed(&error.to_string()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// `Failed` when it cannot be read or holds no conversation.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        Self::from_json(&text)
            .map_err(|why| Error::Failed(format!("could not load '{}': {why}", path.display())))
    }
}

/// The text in a file.
///
/// # Errors
/// `Failed` when it cannot be read, is too large, or is no text.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let name = path.display();
    let failed = |error: std::io::Error| Error::Failed(format!("could not read '{name}': {error}"));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        // A pipe may never end, and a terminal is where the user types.
        return Err(Error::Failed(format!(
            "could not read '{name}': it is no regular file"
        )));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::Failed(format!(
            "could not read '{name}': it is larger than {}",
            show_bytes(FILE_BYTES_MAX)
        )));
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::Failed(format!("could not read '{name}': it is no UTF-8 text")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Conversation {
        let mut all = Conversation::new("Be kind.");
        for (user, assistant) in [("one", "1"), ("two", "2"), ("three", "3")] {
            all.push(Message::new("user", user));
            all.push(Message {
                reasoning: format!("{user}?"),
                ..Message::new("assistant", assistant)
            });
        }
        all
    }

    fn contents(all: &Conversation) -> Vec<String> {
        let visible = all.visible().into_iter();
        visible.map(|message| message.content).collect()
    }

    #[test]
    fn a_saved_conversation_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        std::fs::write(&path, "what was there before").unwrap();
        talk().save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), talk());
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1, "something was left beside the file");
    }

    #[test]
    fn what_cannot_be_written_is_a_sentence_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = talk().save(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("could not write '"), "{error}");
        let error = talk().save(&folder.path().join("no/where")).unwrap_err();
        assert!(error.to_string().contains("no/where"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn only_a_regular_file_is_replaced() {
        use rustix::fs::{CWD, FileType, Mode};
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let [pipe, link] = ["pipe", "link"].map(|name| folder.path().join(name));
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [&pipe, &link] {
            let error = talk().save(path).unwrap_err().to_string();
            assert!(error.ends_with("it is no regular file"), "{error}");
        }
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert!(link.is_symlink());
        std::fs::remove_file(&pipe).unwrap();
        talk().save(&link).unwrap();
        assert!(link.is_symlink());
        assert_eq!(Conversation::load(&pipe).unwrap(), talk());
    }

    #[test]
    fn bad_files_are_sentences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad");
        for (text, reason) in [
            (&b"{"[..], "no conversation"),
            (b"[]", "no conversation"),
            (b"{\"messages\": [{\"role\": \"user\"}]}", "content"),
            (
                b"{\"messages\": [{\"role\": \"king\", \"content\": \"\"}]}",
                "message 1 is by 'king'",
            ),
            (
                b"{\"messages\": [{\"role\": \"user\", \"content\": \"\"},
                  {\"role\": \"system\", \"content\": \"\"}]}",
                "message 2 is the system's",
            ),
            (b"\xff", "no UTF-8"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Conversation::load(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let error = Conversation::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        assert!(Conversation::load(&folder.path().join("none")).is_err());
    }

    #[test]
    fn the_oldest_turns_are_forgotten_and_the_system_stays() {
        let mut all = talk();
        all.push(Message::new("user", "four"));
        assert!(all.forget_oldest());
        assert_eq!(
            contents(&all),
            ["Be kind.", "two", "2", "three", "3", "four"]
        );
        assert!(all.forget_oldest() && all.forget_oldest());
        assert_eq!(contents(&all), ["Be kind.", "four"]);
        assert!(!all.forget_oldest());
        assert_eq!(all.count(), 7);
        // A message that is taken back leaves what was forgotten for it.
        all.recall(2);
        all.take_back("user");
        assert_eq!(contents(&all), ["Be kind.", "two", "2", "three", "3"]);
        all.recall(100);
        assert_eq!(contents(&all), ["Be kind."]);
        all.clear();
        assert_eq!(contents(&all), ["Be kind."]);
        assert_eq!(all.count(), 0);
        assert!(!all.forget_oldest());
    }
}
