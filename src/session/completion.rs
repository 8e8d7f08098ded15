//! The loop that completes a prompt, with llama-completion's rules.
//!
//! A round decodes the tokens of the round before, then takes the next tokens: from the
//! input, a batch at a time, and when it is used up, one from the sampler. What was taken
//! is shown at once, decoded in the next round. Where the user takes turns, a round whose
//! text gives control back reads a line, which becomes input:
//!
//! ```text
//!   input batch ─► show ─► decode ─► input batch ─► show ─► decode ─► sample ─► show ─► ...
//!        ▲                                                                       │
//!        └──────────────────────── read a line ◄─────────────────────────────────┘
//! ```

use std::time::Instant;

use super::boundary::Boundary;
use super::dialogue::Turn;
use super::generator::Generator;
use super::job::{Job, RESERVE};
use super::output::{self, Screen};
use super::signal;
use crate::error::{Error, Result};
use crate::llama::chat::chat_settings;
use crate::llama::console::Display;
use crate::llama::{Decoded, Session, Settings, Token, log};

/// One run of the loop.
struct Run<'a> {
    session: &'a mut Session,
    boundary: &'a mut Boundary,
    job: Job,
    screen: Screen,
    /// What the context holds.
    context: Generator,
    /// The prompt, and all that came from the user since.
    input: Vec<Token>,
    /// Tokens of the input that were taken.
    consumed: usize,
    /// What the next round decodes.
    batch: Vec<Token>,
    batch_max: usize,
    /// Tokens that may still be generated; negative: no bound.
    remaining: i64,
    /// Tokens generated.
    generated: usize,
    /// The model's answer in a conversation.
    answer: Vec<u8>,
    /// Whether the user has control.
    interacting: bool,
    /// Whether the user took it while the model wrote.
    is_cut: bool,
    /// Whether a string that ends the text was found.
    stopped: bool,
    /// Whether what was taken is shown: not what the user has just typed.
    echo: bool,
    /// Whether the prompt is shown; later all is.
    display: bool,
}

/// Completes the prompt; returns how many tokens were generated.
///
/// # Errors
/// `Interrupted` and `OutputClosed` when asked to stop, else what the model or the device
/// failed with.
pub(super) fn complete(
    session: &mut Session,
    mut job: Job,
    boundary: &mut Boundary,
) -> Result<usize> {
    let simple = chat_settings(session.params())?.simple_io;
    // Where nothing is read the terminal is left alone.
    let screen = Screen::open(simple || !job.dialogue.interactive, job.settings.use_color)?;
    let mut input = std::mem::take(&mut job.prompt);
    if let Some((token, position)) = job.replay {
        boundary.before_decode(session.device());
        if Generator::replay(session, token, position)? == Decoded::Aborted {
            return Err(signal::interrupted());
        }
    }
    if session.has_encoder() {
        input = encode(session, &input)?;
    }
    let batch_max = batch_max(session, &job.settings);
    let mut run = Run {
        context: Generator::default(),
        consumed: 0,
        batch: Vec::with_capacity(input.len().min(batch_max)),
        batch_max,
        remaining: i64::from(job.settings.n_predict),
        generated: 0,
        answer: Vec::new(),
        interacting: job.dialogue.first,
        is_cut: false,
        stopped: false,
        echo: true,
        display: job.dialogue.shows_input(),
        session,
        boundary,
        job,
        screen,
        input,
    };
    run.screen.show(Display::Prompt);
    // Until the user has had control there is nothing to interrupt but the run.
    let dialogue = &run.job.dialogue;
    let _interjecting = dialogue
        .interactive
        .then(|| signal::Interjecting::begin(!dialogue.first));
    run.go()?;
    run.save_all()?;
    Ok(run.generated)
}

/// Tokens that one decode takes at most. The context may hold more than its batches do:
/// its size is rounded up, that of the batch is not.
fn batch_max(session: &Session, settings: &Settings) -> usize {
    let asked = usize::try_from(settings.n_batch).unwrap_or(1);
    asked.min(session.n_batch()).max(1)
}

/// Runs the encoder over the prompt; returns what the decoder starts with.
fn encode(session: &mut Session, prompt: &[Token]) -> Result<Vec<Token>> {
    if !session.has_decoder() {
        return Err(Error::Failed(
            "this model has an encoder but no decoder, so it cannot write".into(),
        ));
    }
    match session.encode(prompt)? {
        Decoded::Done => Ok(vec![session.decoder_start()]),
        Decoded::Aborted => Err(signal::interrupted()),
    }
}

impl Run<'_> {
    fn go(&mut self) -> Result<()> {
        while self.job.dialogue.interactive || (self.remaining != 0 && !self.stopped) {
            if !self.batch.is_empty() && !self.advance()? {
                break;
            }
            self.batch.clear();
            self.see_interjection();
            self.take()?;
            self.show()?;
            if self.consumed >= self.input.len() && !self.take_turns()? {
                break;
            }
            let ended = |token: &Token| self.session.is_end(*token);
            if !self.job.dialogue.interactive && self.batch.last().is_some_and(ended) {
                output::text(" [end of text]\n");
                break;
            }
            let bound = self.job.settings.n_predict;
            if self.job.dialogue.interactive && self.remaining <= 0 && bound >= 0 {
                self.remaining = i64::from(bound);
                self.interacting = true;
            }
        }
        Ok(())
    }

    /// Decodes the batch, after making room for it; false when the context is full.
    fn advance(&mut self) -> Result<bool> {
        let n_ctx = self.session.n_ctx();
        let most = n_ctx.saturating_sub(RESERVE).max(1);
        if self.batch.len() > most {
            let skipped = self.batch.len() - most;
            let plural = if skipped == 1 { "" } else { "s" };
            self.batch.truncate(most);
            self.screen.show(Display::Error);
            log::warn(format!(
                "<<input too long: skipped {skipped} token{plural}>>"
            ));
            self.screen.show(Display::Plain);
        }
        let (count, mut shifted) = (self.batch.len(), false);
        let (context, session) = (&mut self.context, &mut *self.session);
        if !self.job.room.make(context, session, count, &mut shifted)? {
            return Ok(false);
        }
        if shifted {
            self.job.cache.give_up();
        }
        let known = self.job.cache.take_known(&self.batch);
        self.context.hold(self.session, &self.batch[..known])?;
        self.batch.drain(..known);
        if self.batch.is_empty() {
            return Ok(true);
        }
        let is_last = self.consumed >= self.input.len();
        let saves = self.job.cache.note(&self.batch, is_last);
        let batch = std::mem::take(&mut self.batch);
        match batch.split_last() {
            // The state is saved without the last token: some models cannot forget it, and
            // its logits are needed again.
            Some((last, rest)) if saves && !rest.is_empty() => {
                self.feed(rest)?;
                self.context.settle(self.session)?;
                self.job.cache.save(self.session);
                self.feed(&[*last])?;
            }
            _ => self.feed(&batch)?,
        }
        self.batch = batch;
        let past = self.context.past();
        if self.job.settings.n_print > 0 && past % self.job.settings.n_print == 0 {
            log::debug(|| format!("\nTokens consumed so far = {past} / {n_ctx}\n"));
        }
        Ok(true)
    }

    fn feed(&mut self, tokens: &[Token]) -> Result<()> {
        self.boundary.before_decode(self.session.device());
        let stopped = signal::asked().is_some();
        if stopped || self.context.feed(self.session, tokens)? == Decoded::Aborted {
            return Err(signal::interrupted());
        }
        Ok(())
    }

    /// Fills the batch: from the input, or with one token from the sampler.
    fn take(&mut self) -> Result<()> {
        if self.consumed >= self.input.len() && !self.interacting {
            let token = self.context.next(self.session)?;
            self.batch.push(token);
            let dialogue = &self.job.dialogue;
            let answers = dialogue.is_conversation && !dialogue.awaits_first;
            if answers && !self.session.is_end(token) {
                self.answer.extend(self.session.piece(token, false)?);
            }
            self.echo = true;
            self.remaining -= 1;
            self.generated += 1;
            self.boundary.token(self.session.device(), token);
            return Ok(());
        }
        let end = self.input.len().min(self.consumed + self.batch_max);
        for &token in &self.input[self.consumed..end] {
            // The penalties look at the prompt too, the grammar does not.
            self.session.accept(token, false)?;
            self.batch.push(token);
        }
        self.consumed = end;
        Ok(())
    }

    /// Shows what was taken.
    fn show(&mut self) -> Result<()> {
        if self.echo && self.display {
            for &token in &self.batch {
                let piece = self.session.piece(token, self.job.settings.special)?;
                output::bytes(&piece);
            }
        }
        output::check()?;
        if self.echo && self.consumed == self.input.len() {
            self.screen.show(Display::Plain);
            self.display = true;
        }
        Ok(())
    }

    /// The input is used up: looks whether the text is over, or whose turn it is. False when
    /// the user has nothing more to say.
    fn take_turns(&mut self) -> Result<bool> {
        let interactive = self.job.dialogue.interactive;
        if self.job.stops.first().is_some() {
            self.stopped = self.job.stops.are_met(self.session, interactive)?;
            self.interacting |= self.stopped && interactive;
        }
        let dialogue = &self.job.dialogue;
        if interactive && !dialogue.awaits_first && self.has_ended() {
            self.end_answer()?;
        }
        let dialogue = &self.job.dialogue;
        let answers = dialogue.is_conversation && !dialogue.awaits_first;
        if answers && std::mem::take(&mut self.job.has_opening) {
            self.interacting = false;
            signal::Interjecting::model_has_control();
        }
        self.see_interjection();
        let may_read = self.context.past() > 0 || self.job.dialogue.awaits_first;
        if !may_read {
            return Ok(true);
        }
        if !self.interacting {
            return Ok(true);
        }
        signal::Interjecting::user_has_control();
        if !self.read()? {
            return Ok(false);
        }
        self.session.reset_sampler();
        let is_empty = self.context.past() == 0 && self.batch.is_empty();
        if is_empty && self.consumed >= self.input.len() {
            // An empty line before anything else: there is nothing to answer yet.
            return Ok(true);
        }
        self.interacting = false;
        let dialogue = &mut self.job.dialogue;
        if std::mem::take(&mut dialogue.awaits_first) && dialogue.is_single {
            dialogue.interactive = false;
        }
        if dialogue.interactive {
            signal::Interjecting::model_has_control();
        }
        Ok(true)
    }

    fn has_ended(&self) -> bool {
        let last = self.session.last_token();
        last.is_some_and(|last| self.session.is_end(last))
    }

    /// The model has ended its turn: the string that stands for that follows, if there is
    /// one, and the user has control.
    fn end_answer(&mut self) -> Result<()> {
        if let Some(stop) = self.job.stops.first() {
            let stop = self.session.tokenize(stop, false)?;
            self.input.extend(stop);
            self.stopped = true;
        }
        self.job.dialogue.answered(&self.answer);
        self.interacting = true;
        output::text("\n");
        Ok(())
    }

    /// Reads the user's turn; false when the input has ended.
    fn read(&mut self) -> Result<bool> {
        let dialogue = &mut self.job.dialogue;
        let asked = Instant::now();
        let turn = dialogue.read(self.session, &mut self.screen, &mut self.is_cut)?;
        self.boundary.waited(asked.elapsed());
        let Turn::Tokens(tokens, typed) = turn else {
            return Ok(false);
        };
        if typed > 0 {
            self.answer.clear();
            self.remaining -= i64::try_from(typed).unwrap_or(i64::MAX);
        }
        self.input.extend(tokens);
        // The user sees what was typed already.
        self.echo = false;
        Ok(true)
    }

    /// Ctrl-C while the model writes gives the user control.
    fn see_interjection(&mut self) {
        if !self.interacting && signal::Interjecting::has_come() {
            self.interacting = true;
            self.is_cut = true;
        }
    }

    /// At the end: the whole text goes into the prompt cache, if that is wanted.
    fn save_all(&mut self) -> Result<()> {
        self.context.settle(self.session)?;
        if let Some(path) = self.job.cache.saves_all() {
            output::text("\nllama_completion: saving final output to session file '");
            output::bytes(path.as_os_str().as_encoded_bytes());
            output::text("'\n");
            if self.context.past() > 0 {
                self.job.cache.save_all(self.session, &self.batch);
            }
        }
        Ok(())
    }
}
