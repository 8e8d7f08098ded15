//! The messages of a conversation, as the chat template writes them one by one.

use crate::error::Result;
use crate::llama::chat::{Chat, Message, chat_settings, system_prompt};
use crate::llama::{Session, Settings, log};

const ON: i32 = 1;
const AUTO: i32 = 2;

/// Whether the text is to consist of turns, and the template for it.
pub(super) enum Kind {
    /// No conversation.
    Plain,
    /// A conversation without a template: strings stand between the turns.
    Untemplated,
    /// A conversation by a template.
    Templated(Conversation),
}

impl Kind {
    /// Looks at command line and model.
    ///
    /// # Errors
    /// `Failed` when the template cannot be read.
    pub fn new(session: &Session, settings: &Settings) -> Result<Self> {
        let auto = settings.conversation_mode == AUTO;
        if !auto && settings.conversation_mode != ON {
            return Ok(Self::Plain);
        }
        // A template is read only where one is wanted: it may be broken.
        if auto && !session.has_template() {
            return Ok(Self::Plain);
        }
        let chat = Chat::new(session)?;
        match (auto, chat.is_explicit()) {
            (true, false) => return Ok(Self::Plain),
            (true, true) => log::info(
                "llama_completion: chat template is available, enabling conversation mode \
                 (disable it with -no-cnv)\n",
            ),
            (false, false) => log::warn(
                "llama_completion: chat template is not available or is not supported. This may \
                 cause the model to output suboptimal responses\n",
            ),
            (false, true) => {}
        }
        let params = session.params();
        if !chat_settings(params)?.enable_template {
            log::info(
                "llama_completion: in-suffix/prefix is specified, chat template will be disabled\n",
            );
            return Ok(Self::Untemplated);
        }
        let system = system_prompt(params)?;
        if system.is_empty() && !params.prompt()?.is_empty() {
            log::warn(
                "*** User-specified prompt will pre-start conversation, did you mean to set \
                 --system-prompt (-sys) instead?\n",
            );
        }
        if let Ok(example) = chat.example() {
            let example = String::from_utf8_lossy(&example).into_owned();
            log::info(format!(
                "llama_completion: chat template example:\n{example}\n"
            ));
        }
        Ok(Self::Templated(Conversation {
            chat,
            messages: Vec::new(),
            system,
        }))
    }
}

/// The messages so far, and the template that makes text of them.
pub(super) struct Conversation {
    chat: Chat,
    messages: Vec<Message>,
    system: Vec<u8>,
}

impl Conversation {
    /// The text before the first answer, or before the first turn of the user's when
    /// `prompt` is empty; empty when nothing is known yet.
    ///
    /// # Errors
    /// `Failed` when the template fails.
    pub fn opening(&mut self, prompt: &[u8]) -> Result<Vec<u8>> {
        let system = std::mem::take(&mut self.system);
        if !system.is_empty() {
            self.note("system", &system);
        }
        if !prompt.is_empty() {
            self.note("user", prompt);
        }
        if self.messages.is_empty() {
            return Ok(Vec::new());
        }
        self.chat.format_all(&self.messages, !prompt.is_empty())
    }

    /// What the user's message adds to the text, with the beginning of an answer.
    ///
    /// # Errors
    /// `Failed` when the template fails.
    pub fn ask(&mut self, content: &[u8]) -> Result<Vec<u8>> {
        let message = Message::new("user", String::from_utf8_lossy(content));
        let text = self.chat.format_single(&self.messages, &message, true)?;
        self.messages.push(message);
        Ok(text)
    }

    /// Notes a message whose text is there already.
    pub fn note(&mut self, role: &str, content: &[u8]) {
        let message = Message::new(role, String::from_utf8_lossy(content));
        self.messages.push(message);
    }
}
