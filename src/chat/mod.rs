//! The chat at a terminal: an editor for what is typed, llama.cpp's own templates for what
//! the model reads, thoughts apart from answers, commands that begin with a slash.
//!
//! ```text
//!  editor ─► commands ─► conversation ─► answer ─► screen
//!                                         │ reader: what the context holds already
//!                                         │ stream: stops, whole characters
//! ```
//!
//! A terminal on both ends is needed; what comes from a pipe is the completion's.

mod answer;
mod commands;
mod conversation;
mod editor;
mod input;
mod reader;
mod screen;
mod stats;
mod stream;

use std::io::{Stdout, stdout};
use std::path::Path;
use std::time::Instant;

use answer::{End, Outcome, Rules};
use commands::{Command, Line};
use conversation::Conversation;
use editor::{Editor, Typed};
use reader::Reader;
use screen::Screen;
use stats::{Standing, Totals};

use crate::cli::size::{parse_budget, show_bytes};
use crate::device::PagedDevice;
use crate::error::{Error, Result};
use crate::llama::chat::{self, Chat, ChatSettings, Message};
use crate::llama::console;
use crate::llama::{Session, Settings};
use crate::session::boundary::Boundary;
use crate::session::signal;
use crate::telemetry::memory::ProcessReader;

/// Talks with the user until one of them leaves; with or without `colours`, what is typed is
/// kept in the file `history`, see [`Editor::new`].
///
/// # Errors
/// Whatever ended the run before its time.
pub(crate) fn talk(
    session: &mut Session,
    settings: &Settings,
    boundary: &mut Boundary,
    (colours, history): (bool, Option<&Path>),
) -> Result<()> {
    if session.has_encoder() {
        return Err(Error::Failed(
            "this model has an encoder, so it cannot chat; use -no-cnv".into(),
        ));
    }
    let params = session.params();
    let how = chat::chat_settings(params)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let first = Some(text(params.prompt()?)).filter(|prompt| !prompt.is_empty());
    let conversation = Conversation::new(&text(chat::system_prompt(params)?));
    let rules = Rules {
        n_predict: settings.n_predict,
        shift: settings.ctx_shift,
        special: settings.special,
        verbose_prompt: settings.verbose_prompt,
        stops: params.antiprompts()?,
    };
    let chat = Chat::new(session)?;
    // A template that fails does so before anything is typed.
    chat.apply(&[Message::new("user", "Hello")])?;
    console::remember_terminal();
    let editor = Editor::new(how.multiline_input, colours, history)?;
    // The editor has taken the handler of Ctrl-C, and needs it only while it reads keys.
    signal::Editing::note_editor();
    signal::install();
    let batch = usize::try_from(settings.n_batch.min(settings.n_ubatch)).unwrap_or(1);
    let talk = Talk {
        reader: Reader::new(session, boundary, batch, settings.n_print),
        chat,
        conversation,
        rules,
        how,
        editor,
        screen: Screen::new(stdout(), colours),
        attached: String::new(),
        totals: Totals::default(),
        process: ProcessReader::new(),
        attempt: 0,
        begun: false,
        display_prompt: settings.display_prompt,
    };
    talk.run(first)
}

/// A chat under way.
struct Talk<'a> {
    reader: Reader<'a>,
    chat: Chat,
    conversation: Conversation,
    rules: Rules,
    how: ChatSettings,
    editor: Editor,
    screen: Screen<Stdout>,
    /// Texts of files, for the next message.
    attached: String,
    totals: Totals,
    process: ProcessReader,
    /// How often the last message was answered again.
    attempt: u32,
    /// Whether the first answer has begun.
    begun: bool,
    display_prompt: bool,
}

impl Talk<'_> {
    fn run(mut self, first: Option<String>) -> Result<()> {
        self.screen
            .note("/help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves");
        if let Some(prompt) = first {
            if self.display_prompt {
                self.screen.echo(&prompt);
            }
            self.send(prompt)?;
            if self.how.single_turn {
                return Ok(());
            }
        }
        loop {
            let line = match self.read()? {
                Typed::Text(text) => commands::parse(&text),
                Typed::Block(text) => Line::Message(text),
                Typed::Dropped => continue,
                Typed::Garbled => {
                    self.screen
                        .complain("what was typed is no UTF-8, and was dropped");
                    continue;
                }
                Typed::Left => return Ok(()),
            };
            match line {
                Line::Empty => {}
                Line::Wrong(sentence) => self.screen.complain(&sentence),
                Line::Command(Command::Exit) => return Ok(()),
                Line::Command(command) => {
                    if let Err(error) = self.obey(command) {
                        self.survive(error)?;
                    }
                }
                Line::Message(text) => {
                    self.send(text)?;
                    if self.how.single_turn {
                        return Ok(());
                    }
                }
            }
            self.screen.check()?;
        }
    }

    /// Waits for the user; a signal then ends the process, as nothing is under way.
    fn read(&mut self) -> Result<Typed> {
        let started = Instant::now();
        signal::generation_ends();
        // One that came between the answer's end and here stops nothing any more, or all.
        reader::is_interrupted()?;
        let typed = self.editor.read();
        signal::generation_begins();
        self.reader.boundary.waited(started.elapsed());
        self.screen.line_was_ended();
        typed
    }

    /// What failed is told, and the chat goes on, unless nothing can.
    fn survive(&mut self, error: Error) -> Result<()> {
        match error {
            Error::Failed(_) | Error::Memory(_) | Error::Usage(_) | Error::NotBuilt(_) => {
                self.screen.end_answer();
                self.screen.complain(&error.to_string());
                self.screen.check()
            }
            end => Err(end),
        }
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => self.screen.say(&commands::help(self.how.multiline_input)),
            Command::Clear => {
                self.conversation.clear();
                self.attached.clear();
                self.screen.note("the conversation is forgotten");
            }
            Command::Regenerate => return self.regenerate(),
            Command::Save(path) => {
                self.conversation.save(&path)?;
                let count = self.conversation.count();
                self.screen
                    .note(&format!("{count} messages saved in '{}'", path.display()));
            }
            Command::Load(path) => self.load(&path)?,
            Command::Read(path) => {
                let text = conversation::read_text(&path)?;
                let size = show_bytes(text.len() as u64);
                self.attached
                    .push_str(&format!("File '{}':\n\n{text}\n\n", path.display()));
                self.screen.note(&format!(
                    "'{}' ({size}) goes with your next message",
                    path.display()
                ));
            }
            Command::Stats => {
                let at = self.standing();
                let count = self.conversation.count();
                self.screen.say(&stats::details(&self.totals, count, &at));
            }
            Command::Budget(size) => self.change_budget(&size)?,
            Command::Exit => {}
        }
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let loaded = Conversation::load(path)?;
        // What this model's template cannot write is of no use here.
        self.chat.apply(&loaded.visible()).map_err(|error| {
            Error::Failed(format!("could not load '{}': {error}", path.display()))
        })?;
        let more = if loaded.last_is("user") {
            "; the last one is yours, /regen answers it"
        } else {
            ""
        };
        let count = loaded.count();
        self.conversation = loaded;
        self.screen.note(&format!(
            "{count} messages loaded from '{}'{more}",
            path.display()
        ));
        Ok(())
    }

    fn change_budget(&mut self, size: &str) -> Result<()> {
        let budget = parse_budget(size)
            .map_err(|reason| Error::Usage(format!("/vram got '{size}': {reason}")))?;
        let Some(device) = self.reader.session.device() else {
            return Err(Error::Usage(
                "nothing is paged, so there is no budget; start with --dynamic-layers or \
                 --paged-kv"
                    .into(),
            ));
        };
        let before = device.report().budget_bytes;
        let changed = self.reader.boundary.set_budget(device, budget);
        let after = changed.map_err(|error| match error {
            Error::Memory(sentence) => Error::Memory(format!(
                "the budget stays at {}: {sentence}",
                show_bytes(before)
            )),
            other => other,
        })?;
        let (before, after) = (show_bytes(before), show_bytes(after));
        self.screen
            .note(&format!("the budget changes from {before} to {after}"));
        Ok(())
    }

    /// Answers the last message again.
    fn regenerate(&mut self) -> Result<()> {
        let old = self.conversation.take_back("assistant");
        if !self.conversation.last_is("user") {
            if let Some(old) = old {
                self.conversation.push(old);
            }
            return Err(Error::Usage("there is no message to answer again".into()));
        }
        self.attempt += 1;
        let forgotten = self.conversation.forgotten();
        let answered = self.respond();
        if self.conversation.last_is("user") {
            // No new answer came: the old one stays.
            self.conversation.recall(forgotten);
            if let Some(old) = old {
                self.conversation.push(old);
            }
        }
        answered
    }

    /// Sends a message and shows the answer; without one, the message is taken back.
    fn send(&mut self, text: String) -> Result<()> {
        let attached = std::mem::take(&mut self.attached);
        self.conversation
            .push(Message::new("user", format!("{attached}{text}")));
        self.attempt = 0;
        let forgotten = self.conversation.forgotten();
        let answered = self.respond();
        if self.conversation.last_is("user") {
            self.conversation.recall(forgotten);
            self.conversation.take_back("user");
            self.attached = attached;
        }
        if self.how.single_turn {
            // Nothing follows that could be right: the run has failed.
            return answered;
        }
        answered.or_else(|error| self.survive(error))
    }

    /// Has the model answer what the conversation ends with.
    fn respond(&mut self) -> Result<()> {
        if !self.begun {
            let turn = self.chat.apply(&self.conversation.visible())?;
            let prompt = self.reader.session.tokenize(&turn.prompt()?, true)?;
            let device = self.reader.session.device();
            self.reader.boundary.begin(device, prompt.len());
            self.begun = true;
        }
        let outcome = answer::answer(
            &mut self.reader,
            &self.chat,
            &mut self.conversation,
            &self.rules,
            self.attempt,
            &mut self.screen,
        )?;
        self.conclude(outcome)
    }

    fn conclude(&mut self, outcome: Outcome) -> Result<()> {
        let Outcome {
            answer,
            end,
            timings,
        } = outcome;
        self.screen.end_answer();
        let said_nothing = timings.tokens == 0;
        if !said_nothing {
            self.conversation.push(Message {
                role: "assistant".into(),
                content: answer.content,
                reasoning: answer.reasoning,
            });
            self.totals.add(&timings);
        }
        match end {
            End::Said => {}
            End::Long => self.screen.note("the answer is as long as -n allows"),
            End::Full => self.screen.note(
                "the context is full; /clear it, raise -c, or have the oldest turns go with \
                 --context-shift",
            ),
            End::Interrupted if said_nothing => {
                self.screen.note("interrupted; the message is taken back");
            }
            End::Interrupted => self.screen.note("interrupted"),
        }
        if self.how.show_timings && !said_nothing {
            let at = self.standing();
            self.screen.note(&stats::line(&timings, &at));
        }
        self.screen.check()
    }

    fn standing(&mut self) -> Standing {
        Standing {
            held_tokens: self.reader.held(),
            context_tokens: self.reader.session.n_ctx(),
            report: self.reader.session.device().map(PagedDevice::report),
            process_bytes: self.process.read().resident_bytes,
        }
    }
}
