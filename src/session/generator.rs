//! The tokens that a context holds, and the ones that follow them: the one place that
//! decodes and samples, for completion and chat alike.

use crate::error::{Error, Result};
use crate::llama::{Decoded, Session, Token};

/// Where the generation stands in its context.
#[derive(Debug, Default)]
pub(super) struct Generator {
    /// Positions that the context holds.
    past: i32,
}

#[allow(dead_code, reason = "prompt caches and chat are being built on it")]
impl Generator {
    /// The context holds `past` tokens already.
    pub fn after(past: i32) -> Self {
        Self { past }
    }

    /// Positions that the context holds.
    pub fn past(&self) -> i32 {
        self.past
    }

    /// The context holds `tokens` already: they came with a saved state.
    pub fn hold(&mut self, tokens: &[Token]) {
        self.past += i32::try_from(tokens.len()).unwrap_or(i32::MAX);
    }

    /// Decodes once more the last token of a saved state, whose logits are not in it.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn replay(session: &mut Session, token: Token, position: i32) -> Result<Decoded> {
        session.decode_at(token, position)
    }

    /// The tokens that the context holds now take `positions` fewer.
    pub fn moved_back(&mut self, positions: i32) {
        self.past -= positions;
    }

    /// Decodes `tokens`, which follow what the context holds.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn feed(&mut self, session: &mut Session, tokens: &[Token]) -> Result<Decoded> {
        let decoded = session.decode(tokens)?;
        if decoded == Decoded::Done {
            self.past += i32::try_from(tokens.len()).unwrap_or(i32::MAX);
        }
        Ok(decoded)
    }

    /// The token that follows; the sampler knows of it, the context does not yet.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn next(&mut self, session: &mut Session) -> Result<Token> {
        let token = session.sample()?;
        session.accept(token, true)?;
        Ok(token)
    }

    /// Forgets `discard` tokens after the first `keep` and moves the later ones up.
    ///
    /// # Errors
    /// `Failed` when the model's memory cannot do that.
    pub fn shift(&mut self, session: &mut Session, keep: i32, discard: i32) -> Result<()> {
        session.shift(keep, discard, self.past)?;
        self.past -= discard;
        Ok(())
    }

    /// Forgets the tokens from position `to` on.
    ///
    /// # Errors
    /// `Failed` when the model's memory cannot forget a part.
    pub fn rewind(&mut self, session: &mut Session, to: i32) -> Result<()> {
        if !session.truncate(to) {
            return Err(Error::Failed(
                "this model's memory cannot forget a part of the context".into(),
            ));
        }
        self.past = self.past.min(to);
        Ok(())
    }
}
