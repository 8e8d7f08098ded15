//! The tokens that a context holds, and the ones that follow them: the one place that
//! decodes and samples, for completion and chat alike.
//!
//! With drafting, a fed token is computed together with a guess of what follows it. The
//! guess lies in the context behind the position that callers see, and each token that is
//! sampled is the model's own, from the logits at its place:
//!
//! ```text
//!   feed(a)   decode a b c d     b c d are drafted
//!   next()    b                  sampled behind a
//!   feed(b)   nothing to do      it is what was drafted
//!   next()    x                  sampled behind b
//!   feed(x)   forget c d, decode x ...
//! ```
//!
//! So nobody above knows of drafts: one token at a time is sampled, shown and counted.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::llama::{Decoded, Session, Token, log};

/// Tokens of the context that a draft leaves free: whoever finds it full has to see that
/// before it is.
const RESERVE: usize = 2;

/// Where the generation stands in its context.
#[derive(Debug, Default)]
pub struct Generator {
    /// Positions that the context holds, drafts not counted.
    past: i32,
    /// The last draft that was computed.
    draft: Vec<Token>,
    /// How many of its tokens were fed since, and so belong to `past`.
    accepted: usize,
    /// A draft was more than the budget could compute: no more are made.
    gave_up: bool,
}

impl Generator {
    /// Positions that the context holds.
    pub fn past(&self) -> i32 {
        self.past
    }

    /// The context holds `tokens` as well: they came with a saved state.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn hold(&mut self, session: &mut Session, tokens: &[Token]) -> Result<()> {
        self.advance(session, tokens)
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
        if let [token] = tokens
            && self.draft.get(self.accepted) == Some(token)
        {
            self.accepted += 1;
            self.advance(session, tokens)?;
            if let Some(drafting) = session.drafting_mut() {
                drafting.tally().accept();
            }
            return Ok(Decoded::Done);
        }
        self.settle(session)?;
        let mut decoded = None;
        if let [token] = tokens {
            let draft = self.propose(session, *token)?;
            if !draft.is_empty() {
                decoded = self.compute(session, *token, draft)?;
            }
        }
        let decoded = match decoded {
            Some(decoded) => decoded,
            None => session.decode(tokens)?,
        };
        if decoded == Decoded::Done {
            self.advance(session, tokens)?;
            if let ([_], Some(drafting)) = (tokens, session.drafting_mut()) {
                drafting.tally().pass();
            }
        }
        Ok(decoded)
    }

    /// The context holds `tokens` more.
    fn advance(&mut self, session: &mut Session, tokens: &[Token]) -> Result<()> {
        if let Some(drafting) = session.drafting_mut() {
            drafting.hold(self.past, tokens)?;
        }
        self.past += i32::try_from(tokens.len()).unwrap_or(i32::MAX);
        Ok(())
    }

    /// What may follow `token`, as far as there is room for it.
    fn propose(&self, session: &mut Session, token: Token) -> Result<Vec<Token>> {
        let held = usize::try_from(self.past).unwrap_or(0) + 1;
        let free = session.n_ctx().saturating_sub(held + RESERVE);
        // In one ubatch: the model is passed over once, and a window of attention that
        // slides has forgotten nothing that is needed when the draft is wrong.
        let batch = session.n_batch().min(session.n_ubatch()).saturating_sub(1);
        let Some(drafting) = session.drafting_mut().filter(|_| !self.gave_up) else {
            return Ok(Vec::new());
        };
        let started = Instant::now();
        let draft = drafting.draft(token, free.min(batch))?;
        drafting.tally().draft(draft.len(), started.elapsed());
        Ok(draft)
    }

    /// Decodes `token` and behind it `draft`; None when they do not fit, and `token` has to
    /// be decoded alone.
    fn compute(
        &mut self,
        session: &mut Session,
        token: Token,
        draft: Vec<Token>,
    ) -> Result<Option<Decoded>> {
        let mut batch = Vec::with_capacity(draft.len() + 1);
        batch.push(token);
        batch.extend(&draft);
        match session.decode_all(&batch) {
            Ok(Some(Decoded::Done)) => {
                self.draft = draft;
                Ok(Some(Decoded::Done))
            }
            Ok(decoded) => Ok(decoded),
            Err(Error::Memory(sentence)) => {
                log::warn(format!("no more drafts are made: {sentence}\n"));
                self.gave_up = true;
                if session.truncate(self.past) {
                    Ok(None)
                } else {
                    Err(Error::Memory(sentence))
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Has the context hold no more than `past` positions: whoever saves its state, or
    /// changes it in another way than this type's, calls this first.
    ///
    /// # Errors
    /// `Failed` when the model's memory cannot forget a part.
    pub fn settle(&mut self, session: &mut Session) -> Result<()> {
        if self.draft.is_empty() {
            return Ok(());
        }
        let rest = self.accepted < self.draft.len();
        self.draft.clear();
        let accepted = std::mem::take(&mut self.accepted);
        if let Some(drafting) = session.drafting_mut() {
            drafting.judge(accepted)?;
        }
        if rest && !session.truncate(self.past) {
            return Err(Error::Failed(
                "this model's memory cannot forget a draft that was wrong; leave out --spec-type \
                 and --spec-draft-model"
                    .into(),
            ));
        }
        Ok(())
    }

    /// The token that follows; the sampler knows of it, the context does not yet.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn next(&mut self, session: &mut Session) -> Result<Token> {
        let token = if self.draft.is_empty() {
            session.sample()?
        } else {
            session.sample_behind(self.accepted)?
        };
        session.accept(token, true)?;
        Ok(token)
    }

    /// Forgets `discard` tokens after the first `keep` and moves the later ones up.
    ///
    /// # Errors
    /// `Failed` when the model's memory cannot do that.
    pub fn shift(&mut self, session: &mut Session, keep: i32, discard: i32) -> Result<()> {
        self.settle(session)?;
        session.shift(keep, discard, self.past)?;
        self.past -= discard;
        if let Some(drafting) = session.drafting_mut() {
            drafting.shift(keep, discard)?;
        }
        Ok(())
    }

    /// Forgets the tokens from position `to` on.
    ///
    /// # Errors
    /// `Failed` when the model's memory cannot forget a part.
    pub fn rewind(&mut self, session: &mut Session, to: i32) -> Result<()> {
        self.settle(session)?;
        if !session.truncate(to) {
            return Err(Error::Failed(
                "this model's memory cannot forget a part of the context".into(),
            ));
        }
        self.past = self.past.min(to);
        if let Some(drafting) = session.drafting_mut() {
            drafting.hold(self.past, &[])?;
        }
        Ok(())
    }
}
