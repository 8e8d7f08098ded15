//! Drafting: tokens proposed by llama.cpp's engine of speculative decoding, with a draft
//! model or from what was written before. Whether they are right, the session's model says.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::ffi::c_void;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Params, Session, Token, bytes, log};
use crate::error::{Error, Result};
use crate::telemetry::drafts::Tally;

/// What the command line says of drafting; fields are the C doors'.
pub type DraftingSettings = ggml_sys::rpaged_drafting_settings;

impl Params {
    /// What the command line says of drafting.
    ///
    /// # Errors
    /// `Failed` when llama.cpp cannot tell.
    pub fn drafting(&self) -> Result<DraftingSettings> {
        let mut out = std::mem::MaybeUninit::<DraftingSettings>::zeroed();
        // SAFETY:
        // - the handle is alive as long as `self`;
        // - `out` is a place for one structure.
        let status = unsafe { ggml_sys::rpaged_params_drafting(self.raw(), out.as_mut_ptr()) };
        if status != ggml_sys::RPAGED_OK as i32 {
            return Err(bytes::failure("llama.cpp does not tell how it drafts"));
        }
        // SAFETY:
        // - all zeroes are valid for integers and booleans, and the call has filled it in.
        Ok(unsafe { out.assume_init() })
    }

    /// Path of the draft model's file; None when there is none.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn draft_path(&self) -> Result<Option<PathBuf>> {
        // SAFETY:
        // - the handle is alive as long as `self`; the text is a copy.
        let path = bytes::take(unsafe { ggml_sys::rpaged_params_draft_path(self.raw()) })?;
        let path = String::from_utf8_lossy(&path).into_owned();
        Ok((!path.is_empty()).then(|| path.into()))
    }

    /// The kinds of drafting that are asked for, by their names.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn draft_kinds(&self) -> Result<String> {
        // SAFETY:
        // - the handle is alive as long as `self`; the text is a copy.
        bytes::take_text(unsafe { ggml_sys::rpaged_params_draft_kinds(self.raw()) })
    }
}

/// Proposes tokens for one session, which has to outlive it.
pub struct Drafting {
    raw: NonNull<ggml_sys::rpaged_drafter>,
    tally: Arc<Tally>,
}

impl Drafting {
    /// What the command line asks for; None when it asks for no drafting. Under paging the
    /// draft model stays in main memory, and the budget covers it.
    ///
    /// # Errors
    /// `Failed` when the session's model, or the draft model, cannot be used for it,
    /// `Memory` when the budget has no room for the draft model.
    pub(super) fn new(session: &Session) -> Result<Option<Self>> {
        let settings = session.params().drafting()?;
        if !settings.with_model && !settings.without_model {
            return Ok(None);
        }
        if session.has_encoder() || !session.can_forget() {
            let why = match session.has_encoder() {
                true => "has an encoder",
                false => "cannot forget a part of its context",
            };
            return Err(Error::Failed(format!(
                "drafts cannot be checked by a model that {why}; leave out --spec-type and \
                 --spec-draft-model"
            )));
        }
        if session.n_ubatch() < 2 || session.n_batch() < 2 {
            return Err(Error::Usage(
                "a draft is checked in one batch, which has no room for it; raise -ub and -b to \
                 more than 1"
                    .into(),
            ));
        }
        let resident = session.device().is_some();
        if let Some(device) = session.device().filter(|_| settings.with_model) {
            // SAFETY:
            // - the session is alive as long as it is borrowed.
            let bytes = unsafe { ggml_sys::rpaged_draft_model_bytes(session.raw(), resident) };
            if bytes == 0 {
                return Err(unusable(session));
            }
            device.keep_beside(bytes)?;
        }
        // SAFETY:
        // - the session is alive, and drops this before itself.
        let raw = unsafe { ggml_sys::rpaged_drafter_new(session.raw(), resident) };
        let raw = NonNull::new(raw).ok_or_else(|| unusable(session))?;
        log::info(format!("drafting: {}\n", session.params().draft_kinds()?));
        Ok(Some(Self {
            raw,
            tally: Arc::default(),
        }))
    }

    /// Has a draft model's computations ask `abort` now and then whether to stop.
    pub(super) fn set_abort(&mut self, abort: extern "C" fn(*mut c_void) -> bool) {
        // SAFETY:
        // - the drafter is alive as long as `self`, and borrowed alone;
        // - `abort` is a function, it lives as long as the program, and needs no data.
        unsafe { ggml_sys::rpaged_drafter_set_abort(self.raw.as_ptr(), Some(abort)) }
    }

    /// What is counted of it.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// The session's context holds `tokens` from position `from` on, and nothing behind.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn hold(&mut self, from: i32, tokens: &[Token]) -> Result<()> {
        let (at, count) = (tokens.as_ptr(), tokens.len());
        // SAFETY:
        // - the drafter is alive as long as `self`, and borrowed alone;
        // - `at` points at `count` tokens, which live through the call.
        let status = unsafe { ggml_sys::rpaged_drafter_hold(self.raw.as_ptr(), from, at, count) };
        done(status)
    }

    /// The session's context forgot `discard` tokens after the first `keep`.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn shift(&mut self, keep: i32, discard: i32) -> Result<()> {
        // SAFETY:
        // - the drafter is alive as long as `self`, and borrowed alone.
        done(unsafe { ggml_sys::rpaged_drafter_shift(self.raw.as_ptr(), keep, discard) })
    }

    /// At most `most` tokens that may follow `last`, which follows what the context holds.
    ///
    /// # Errors
    /// `Failed` when the engine fails.
    pub fn draft(&mut self, last: Token, most: usize) -> Result<Vec<Token>> {
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        // SAFETY:
        // - the drafter is alive as long as `self`, and borrowed alone.
        let tokens = unsafe { ggml_sys::rpaged_drafter_draft(self.raw.as_ptr(), last, most) };
        bytes::take_tokens(tokens)
    }

    /// Of the last draft that was not empty, so many tokens were right.
    ///
    /// # Errors
    /// `Failed` when the engine fails.
    pub fn judge(&mut self, accepted: usize) -> Result<()> {
        let accepted = i32::try_from(accepted).unwrap_or(i32::MAX);
        // SAFETY:
        // - the drafter is alive as long as `self`, and borrowed alone.
        done(unsafe { ggml_sys::rpaged_drafter_judge(self.raw.as_ptr(), accepted) })
    }

    /// Logs how much of what was drafted was right.
    pub(super) fn log_tally(&self) {
        let drafts = self.tally.read();
        #[allow(
            clippy::cast_precision_loss,
            reason = "a share, shown with three digits"
        )]
        let share = drafts.accepted as f64 / drafts.drafted.max(1) as f64;
        log::info(format!(
            "draft acceptance = {share:.3} ({} accepted / {} drafted)\n",
            drafts.accepted, drafts.drafted
        ));
    }
}

fn done(status: i32) -> Result<()> {
    if status == ggml_sys::RPAGED_OK as i32 {
        return Ok(());
    }
    Err(bytes::failure("llama.cpp could not draft"))
}

/// Why the draft model cannot be used, from what llama.cpp said and logged.
fn unusable(session: &Session) -> Error {
    let path = session.params().draft_path().ok().flatten();
    let path = path.unwrap_or_default();
    let said = bytes::last_error();
    let reason = if said.is_empty() {
        log::first_error()
    } else {
        said
    };
    let reason = match reason.as_str() {
        "" => "llama.cpp gave no reason",
        reason => reason,
    };
    Error::Failed(format!(
        "could not draft with '{}': {reason}; see --spec-draft-model",
        path.display()
    ))
}

impl Drop for Drafting {
    fn drop(&mut self) {
        // SAFETY:
        // - the drafter came from `rpaged_drafter_new` and is dropped once, before the
        //   session whose context it refers to.
        unsafe { ggml_sys::rpaged_drafter_free(self.raw.as_ptr()) }
    }
}
