//! What the context holds, and how it comes to hold the next prompt: what is there
//! already is not computed again.

use std::time::Instant;

use super::screen::Screen;
use crate::error::{Error, Result};
use crate::llama::{Decoded, Session, Token, log};
use crate::session::boundary::Boundary;
use crate::session::generator::Generator;
use crate::session::signal;

/// SIGINT, what Ctrl-C sends.
const INTERRUPT: u8 = 2;
/// The verbosity with which warnings are shown.
const WARNINGS: i32 = 2;
/// Prompts with fewer batches than this are read without showing progress.
const BATCHES_SHOWN: usize = 2;

/// The context and what it holds.
pub(super) struct Reader<'a> {
    pub session: &'a mut Session,
    pub boundary: &'a mut Boundary,
    generator: Generator,
    held: Vec<Token>,
    /// Tokens read in one go.
    batch: usize,
    /// Every so many tokens a line is logged; none when it is not positive.
    n_print: i32,
}

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reading {
    /// All is read.
    Done {
        /// Tokens that were not there before.
        tokens: usize,
        seconds: f64,
    },
    /// Ctrl-C; the context holds a part.
    Interrupted,
}

impl<'a> Reader<'a> {
    /// The context is empty.
    pub fn new(
        session: &'a mut Session,
        boundary: &'a mut Boundary,
        batch: usize,
        n_print: i32,
    ) -> Self {
        let batch = batch.min(session.n_batch()).max(1);
        Self {
            session,
            boundary,
            generator: Generator::default(),
            held: Vec::new(),
            batch,
            n_print,
        }
    }

    /// How many tokens the context holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Has the context hold exactly `tokens`, the last of them with its logits.
    ///
    /// # Errors
    /// What the model or the device failed with; then the context is empty.
    pub fn hold(
        &mut self,
        tokens: &[Token],
        screen: &mut Screen<impl std::io::Write>,
    ) -> Result<Reading> {
        let kept = self.keep_prefix(tokens)?;
        let new = &tokens[kept..];
        let started = Instant::now();
        let shown = new.len() > self.batch * BATCHES_SHOWN;
        for batch in new.chunks(self.batch) {
            if shown {
                let read = self.held.len();
                screen.progress(&format!("reading: {read} of {} tokens", tokens.len()));
            }
            if !self.feed(batch)? {
                return Ok(Reading::Interrupted);
            }
        }
        Ok(Reading::Done {
            tokens: new.len(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Has the context hold `token` as well; false after Ctrl-C, when it does not.
    ///
    /// # Errors
    /// See [`Self::hold`].
    pub fn append(&mut self, token: Token) -> Result<bool> {
        self.feed(&[token])
    }

    /// The token that follows.
    ///
    /// # Errors
    /// See [`Self::hold`].
    pub fn next(&mut self) -> Result<Token> {
        match self.generator.next(self.session) {
            Ok(token) => {
                self.boundary.token(self.session.device(), token);
                Ok(token)
            }
            Err(error) => Err(self.lose(error)),
        }
    }

    fn feed(&mut self, tokens: &[Token]) -> Result<bool> {
        if is_interrupted()? {
            return Ok(false);
        }
        // Memory that gets scarce is news, whatever llama.cpp is to be silent about.
        log::at_least(WARNINGS, || {
            self.boundary.before_decode(self.session.device())
        });
        match self.generator.feed(self.session, tokens) {
            Ok(Decoded::Done) => {
                self.held.extend_from_slice(tokens);
                let held = self.held.len();
                if self.n_print > 0 && i32::try_from(held).is_ok_and(|n| n % self.n_print == 0) {
                    let n_ctx = self.session.n_ctx();
                    log::debug(|| format!("\nTokens consumed so far = {held} / {n_ctx}\n"));
                }
                Ok(true)
            }
            Ok(Decoded::Aborted) => {
                // What the aborted batch has left in the context is undefined.
                self.forget_from(self.held.len())?;
                if is_interrupted()? {
                    return Ok(false);
                }
                Err(signal::interrupted())
            }
            Err(error) => Err(self.lose(error)),
        }
    }

    /// After a failure nobody knows what the context holds.
    fn lose(&mut self, error: Error) -> Error {
        self.held.clear();
        match self.generator.rewind(self.session, 0) {
            Ok(()) => error,
            Err(worse) => Error::Bug(format!("{error}; and then {worse}")),
        }
    }

    /// Forgets what does not begin `tokens`; returns how many of them are there. The last
    /// one never is: its logits are needed.
    fn keep_prefix(&mut self, tokens: &[Token]) -> Result<usize> {
        let pairs = self.held.iter().zip(tokens);
        let common = pairs.take_while(|(a, b)| a == b).count();
        let common = common.min(tokens.len().saturating_sub(1));
        if common < self.held.len() {
            self.forget_from(common)?;
        }
        Ok(self.held.len())
    }

    /// Forgets the tokens from `to` on, or all where the model's memory cannot forget a
    /// part of what it holds.
    fn forget_from(&mut self, to: usize) -> Result<()> {
        let position = i32::try_from(to).unwrap_or(i32::MAX);
        let is_there = self.session.reaches_back_to(position);
        if is_there && self.generator.rewind(self.session, position).is_ok() {
            self.held.truncate(to);
            return Ok(());
        }
        self.held.clear();
        self.generator.rewind(self.session, 0)
    }
}

/// Whether Ctrl-C was pressed; the next one is a first one again.
pub fn is_interrupted() -> Result<bool> {
    match signal::asked() {
        None => Ok(false),
        Some(INTERRUPT) => {
            signal::take();
            Ok(true)
        }
        Some(signal) => Err(Error::Interrupted { signal }),
    }
}
