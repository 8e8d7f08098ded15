//! The user's turns: how they are announced, read and made part of the text, in interactive
//! mode and in conversations.

use super::conversation::Conversation;
use super::output::{self, Screen};
use super::signal;
use super::stops::Stops;
use crate::error::Result;
use crate::llama::chat::{chat_settings, input_prefix, input_suffix, system_prompt};
use crate::llama::console::{Display, unescape};
use crate::llama::{self, Session, Settings, Token, log};

/// How turns are taken.
pub(super) struct Dialogue {
    /// Whether the user takes turns.
    pub interactive: bool,
    /// Whether the text begins with a turn of the user's.
    pub first: bool,
    /// Whether the text consists of turns (`-cnv`), each marked with a prompt sign.
    pub is_conversation: bool,
    /// Whether the conversation's first turn is still to come from the user.
    pub awaits_first: bool,
    /// Whether the conversation ends after one answer.
    pub is_single: bool,
    /// The messages of a conversation; None where no template is used.
    conversation: Option<Conversation>,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    prefix_bos: bool,
    multiline: bool,
    escape: bool,
    display_prompt: bool,
    verbose: bool,
    has_system: bool,
}

/// What the user gave.
pub(super) enum Turn {
    /// No more input: the text ends.
    End,
    /// Tokens that follow what there is; the number of them that were typed.
    Tokens(Vec<Token>, usize),
}

impl Dialogue {
    /// Decides who takes turns, and when.
    pub fn new(
        session: &Session,
        settings: &Settings,
        wanted: &llama::Dialogue,
        conversation: Option<Conversation>,
        is_conversation: bool,
    ) -> Result<Self> {
        let params = session.params();
        let chat = chat_settings(params)?;
        let has_prompt = !params.prompt()?.is_empty();
        let (mut interactive, mut first) = (wanted.interactive, wanted.interactive_first);
        if is_conversation {
            first = !(chat.single_turn && has_prompt);
            interactive = first;
        }
        interactive |= first;
        Ok(Self {
            interactive,
            first,
            is_conversation,
            awaits_first: conversation.is_some() && !has_prompt,
            is_single: chat.single_turn,
            conversation,
            prefix: input_prefix(params)?,
            suffix: input_suffix(params)?,
            prefix_bos: chat.input_prefix_bos,
            multiline: chat.multiline_input,
            escape: settings.escape,
            display_prompt: settings.display_prompt,
            verbose: settings.verbose_prompt,
            has_system: !system_prompt(params)?.is_empty(),
        })
    }

    /// Logs the strings that stand between the turns.
    pub fn announce(&self, stops: &Stops) {
        if !self.interactive {
            return;
        }
        log::info("llama_completion: interactive mode on.\n");
        let show = |what: &str, text: &[u8]| {
            log::info(format!("{what}: '{}'\n", String::from_utf8_lossy(text)));
        };
        for stop in stops.strings() {
            show("Reverse prompt", stop);
        }
        if self.prefix_bos {
            log::info("Input prefix with BOS\n");
        }
        for (what, text) in [
            ("Input prefix", &self.prefix),
            ("Input suffix", &self.suffix),
        ] {
            if !text.is_empty() {
                show(what, text);
            }
        }
    }

    /// Logs what the user can do.
    pub fn explain(&self) {
        if !self.interactive {
            return;
        }
        log::info("== Running in interactive mode. ==\n");
        log::info(" - Press Ctrl+C to interject at any time.\n");
        log::info(if self.multiline {
            " - To return control to the AI, end your input with '\\'.\n \
             - To return control without starting a new line, end your input with '/'.\n"
        } else {
            " - Press Return to return control to the AI.\n \
             - To return control without starting a new line, end your input with '/'.\n \
             - If you want to submit another line, end your input with '\\'.\n"
        });
        if self.conversation.is_some() && !self.has_system {
            log::info(
                " - Not using system message. To change it, set a different value via -sys \
                 PROMPT\n",
            );
        }
        log::info("\n");
    }

    /// The model's answer is complete.
    pub fn answered(&mut self, answer: &[u8]) {
        if let Some(conversation) = &mut self.conversation {
            conversation.note("assistant", answer);
        }
    }

    /// Reads the user's turn. `is_cut`: the model's last turn was interrupted.
    pub fn read(
        &mut self,
        session: &Session,
        screen: &mut Screen,
        is_cut: &mut bool,
    ) -> Result<Turn> {
        if self.is_conversation {
            output::text("\n> ");
        }
        let mut tokens = Vec::new();
        if self.prefix_bos {
            tokens.push(session.bos());
        }
        if !self.is_conversation {
            output::bytes(&self.prefix);
        }
        let mut line = self.read_line(screen)?;
        if line.is_empty() {
            output::text("EOF by user\n");
            return Ok(Turn::End);
        }
        if line.ends_with(b"\n") {
            line.pop();
        }
        // An empty line gives control back as it is.
        if line.is_empty() {
            return Ok(Turn::Tokens(tokens, 0));
        }
        if !self.is_conversation {
            output::bytes(&self.suffix);
        }
        if self.escape {
            line = unescape(&line)?;
        }
        let typed = match &mut self.conversation {
            Some(conversation) => {
                let text = conversation.ask(&line)?;
                if std::mem::take(is_cut) {
                    tokens.extend(session.end_of_turn());
                }
                session.tokenize(&text, false)?
            }
            None => session.tokenize_plain(&line)?,
        };
        tokens.extend(session.tokenize(&self.prefix, false)?);
        tokens.extend(&typed);
        tokens.extend(session.tokenize(&self.suffix, false)?);
        if self.verbose {
            session.log_tokens("llama_completion: ", &tokens)?;
        }
        Ok(Turn::Tokens(tokens, typed.len()))
    }

    fn read_line(&self, screen: &mut Screen) -> Result<Vec<u8>> {
        screen.show(Display::Input);
        // A full disk, or a reader that is gone, must not wait for a line.
        log::drain();
        output::check()?;
        let line = {
            let _waiting = signal::Waiting::begin();
            screen.read(self.multiline)
        };
        screen.show(Display::Plain);
        if signal::asked().is_some() {
            return Err(signal::interrupted());
        }
        line
    }

    /// Whether the prompt, and what is typed, is shown.
    pub fn shows_input(&self) -> bool {
        self.display_prompt
    }
}
