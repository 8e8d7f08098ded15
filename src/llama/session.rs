//! A loaded model with one context and one sampler.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::ffi::c_void;
use std::ptr::NonNull;

use super::{Drafting, Params, Token, bytes, log};
use crate::device::PagedDevice;
use crate::error::{Error, Result};

/// Starts llama.cpp's backends; `numa` is one of its strategies. Before any model loads.
pub fn start_backend(numa: i32) {
    // SAFETY:
    // - takes nothing, and does nothing when it is called again.
    unsafe { ggml_sys::llama_backend_init() };
    let numa = ggml_sys::ggml_numa_strategy::try_from(numa).unwrap_or(0);
    // SAFETY:
    // - the value is one of llama.cpp's own, read by its parser.
    unsafe { ggml_sys::llama_numa_init(numa) };
}

/// How a decode ended, when it did not fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decoded {
    /// The logits of the last token are there.
    Done,
    /// The abort callback said to stop; the context's memory is undefined.
    Aborted,
}

/// A loaded model with one context and one sampler.
pub struct Session {
    /// Dropped first, by `drop`: it refers to the session proper.
    drafting: Option<Drafting>,
    /// Freed next, by `drop`: it refers to both fields below.
    raw: NonNull<ggml_sys::rpaged_session>,
    params: Params,
    /// Freed last: model and context keep tensors in its buffers.
    device: Option<PagedDevice>,
}

impl Session {
    /// Loads the model, makes the context and the sampler.
    ///
    /// # Errors
    /// What `device` recorded, or `Failed` with the reason that llama.cpp gave.
    pub fn new(mut params: Params, device: Option<PagedDevice>, path: &str) -> Result<Self> {
        if let Some(device) = &device {
            params.use_device(device)?;
        }
        let loading = log::Loading::begin(path, params.settings()?.kv_overrides > 0);
        // SAFETY:
        // - `params` is alive, and moves into the session that is made of it, which
        //   frees it only after the session proper.
        let raw = unsafe { ggml_sys::rpaged_session_new(params.raw()) };
        drop(loading);
        let Some(raw) = NonNull::new(raw) else {
            let recorded = device.as_ref().and_then(PagedDevice::take_error);
            return Err(recorded.unwrap_or_else(|| load_error(path, device.is_some())));
        };
        let mut session = Self {
            drafting: None,
            raw,
            params,
            device,
        };
        // What llama.cpp went on without.
        if let Some(error) = session.recorded() {
            return Err(error);
        }
        if session
            .device
            .as_ref()
            .is_some_and(PagedDevice::lacks_weights)
        {
            return Err(Error::Usage(
                "nothing is left to page: --override-tensor or --rpc has placed all layers \
                 elsewhere; leave out --dynamic-layers"
                    .into(),
            ));
        }
        if let Some(device) = &session.device {
            // SAFETY:
            // - the session is alive.
            let pools = unsafe { ggml_sys::rpaged_session_threadpools(session.raw()) };
            let pools = [
                (pools.decode, pools.decode_threads),
                (pools.batch, pools.batch_threads),
            ];
            // SAFETY:
            // - the pools live as long as the session, and so longer than its context.
            unsafe { device.attach_threadpools(pools) };
        }
        session.drafting = Drafting::new(&session)?;
        Ok(session)
    }

    /// Decodes a few tokens and forgets them, so that the first prompt finds memory and
    /// threads ready.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn warm_up(&mut self) -> Result<()> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone.
        let status = unsafe { ggml_sys::rpaged_warm_up(self.raw()) };
        if status == 0 {
            return Ok(());
        }
        Err(self.recorded().unwrap_or_else(|| {
            Error::Failed("the warm-up failed; skip it with --no-warmup".into())
        }))
    }

    /// The parameters the session was made of.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The paged device below, if there is one.
    pub fn device(&self) -> Option<&PagedDevice> {
        self.device.as_ref()
    }

    /// What proposes tokens, when the command line asks for drafting.
    pub fn drafting(&self) -> Option<&Drafting> {
        self.drafting.as_ref()
    }

    /// The same, to be told and asked.
    pub fn drafting_mut(&mut self) -> Option<&mut Drafting> {
        self.drafting.as_mut()
    }

    pub(super) fn raw(&self) -> *mut ggml_sys::rpaged_session {
        self.raw.as_ptr()
    }

    pub(super) fn model(&self) -> *const ggml_sys::llama_model {
        // SAFETY:
        // - the session is alive as long as `self`; its model lives as long.
        unsafe { ggml_sys::rpaged_session_model(self.raw()) }
    }

    pub(super) fn context(&self) -> *mut ggml_sys::llama_context {
        // SAFETY:
        // - the session is alive as long as `self`; its context lives as long.
        unsafe { ggml_sys::rpaged_session_context(self.raw()) }
    }

    pub(super) fn vocab(&self) -> *const ggml_sys::llama_vocab {
        // SAFETY:
        // - the model is alive as long as `self`.
        unsafe { ggml_sys::llama_model_get_vocab(self.model()) }
    }

    /// Has long computations ask `abort` now and then whether to stop.
    pub fn set_abort(&mut self, abort: extern "C" fn(*mut c_void) -> bool) {
        // SAFETY:
        // - the context is alive as long as `self`;
        // - `abort` is a function, it lives as long as the program, and needs no data.
        unsafe {
            ggml_sys::llama_set_abort_callback(self.context(), Some(abort), std::ptr::null_mut());
        }
        if let Some(drafting) = &mut self.drafting {
            drafting.set_abort(abort);
        }
    }

    /// Forgets the timings so far.
    pub fn reset_timings(&mut self) {
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::llama_perf_context_reset(self.context()) }
    }

    /// Size of the context, in tokens.
    pub fn n_ctx(&self) -> usize {
        // SAFETY:
        // - the context is alive as long as `self`.
        unsafe { ggml_sys::llama_n_ctx(self.context()) as usize }
    }

    /// Tokens that the context decodes at once, at most.
    pub fn n_batch(&self) -> usize {
        // SAFETY:
        // - the context is alive as long as `self`.
        unsafe { ggml_sys::llama_n_batch(self.context()) as usize }
    }

    /// Tokens that the context computes at once, at most.
    pub fn n_ubatch(&self) -> usize {
        // SAFETY:
        // - the context is alive as long as `self`.
        unsafe { ggml_sys::llama_n_ubatch(self.context()) as usize }
    }

    /// Whether the model's memory can forget the end of what it holds.
    pub fn can_forget(&self) -> bool {
        // SAFETY:
        // - the session is alive as long as `self`.
        unsafe { ggml_sys::rpaged_can_forget(self.raw()) }
    }

    /// Size of the context that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> usize {
        // SAFETY:
        // - the model is alive as long as `self`.
        let n_ctx = unsafe { ggml_sys::llama_model_n_ctx_train(self.model()) };
        usize::try_from(n_ctx).unwrap_or(0)
    }

    /// Whether the command line or the model names a chat template.
    pub fn has_template(&self) -> bool {
        // SAFETY:
        // - the session is alive as long as `self`.
        unsafe { ggml_sys::rpaged_session_has_template(self.raw()) }
    }

    /// Whether the model has an encoder.
    pub fn has_encoder(&self) -> bool {
        // SAFETY:
        // - the model is alive as long as `self`.
        unsafe { ggml_sys::llama_model_has_encoder(self.model()) }
    }

    /// Whether the model has a decoder.
    pub fn has_decoder(&self) -> bool {
        // SAFETY:
        // - the model is alive as long as `self`.
        unsafe { ggml_sys::llama_model_has_decoder(self.model()) }
    }

    /// The token that a decoder behind an encoder starts with.
    pub fn decoder_start(&self) -> Token {
        // SAFETY:
        // - the model is alive as long as `self`.
        let token = unsafe { ggml_sys::llama_model_decoder_start_token(self.model()) };
        if token == ggml_sys::LLAMA_TOKEN_NULL {
            self.bos()
        } else {
            token
        }
    }

    /// The token for the beginning of a text.
    pub fn bos(&self) -> Token {
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        unsafe { ggml_sys::llama_vocab_bos(self.vocab()) }
    }

    /// Whether the vocabulary wants its beginning token before a text.
    pub fn adds_bos(&self) -> bool {
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        unsafe { ggml_sys::llama_vocab_get_add_bos(self.vocab()) }
    }

    /// Whether the vocabulary wants its end token after a text.
    pub fn adds_eos(&self) -> bool {
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        unsafe { ggml_sys::llama_vocab_get_add_eos(self.vocab()) }
    }

    /// Whether `token` ends a generation.
    pub fn is_end(&self, token: Token) -> bool {
        // SAFETY:
        // - the vocabulary is alive as long as `self`; any number may be asked about.
        unsafe { ggml_sys::llama_vocab_is_eog(self.vocab(), token) }
    }

    /// The tokens of `text`; `special`: with the model's beginning token, if it wants one.
    /// Special tokens spelled out in `text` are recognised.
    ///
    /// # Errors
    /// `Failed` when the text is too long.
    pub fn tokenize(&self, text: &[u8], special: bool) -> Result<Vec<Token>> {
        let (at, size) = (text.as_ptr().cast(), text.len());
        // SAFETY:
        // - the session is alive as long as `self`;
        // - `at` points at `size` bytes, which live through the call.
        let tokens = unsafe { ggml_sys::rpaged_tokenize(self.raw(), at, size, special, true) };
        bytes::take_tokens(tokens)
    }

    /// The bytes of `token`; `special`: also of one that is only for control.
    ///
    /// # Errors
    /// `Failed` when the vocabulary has no such token.
    pub fn piece(&self, token: Token, special: bool) -> Result<Vec<u8>> {
        // SAFETY:
        // - the session is alive as long as `self`; a bad token comes back as a failure.
        bytes::take(unsafe { ggml_sys::rpaged_token_piece(self.raw(), token, special) })
    }

    /// Logs how many tokens a prompt has, behind `prefix`, and each with its text.
    ///
    /// # Errors
    /// As for `piece`.
    pub fn log_tokens(&self, prefix: &str, tokens: &[Token]) -> Result<()> {
        let count = tokens.len();
        log::info(format!("{prefix}number of tokens in prompt = {count}\n"));
        for &token in tokens {
            let piece = self.piece(token, true)?;
            let piece = String::from_utf8_lossy(&piece);
            log::info(format!("{token:6} -> '{piece}'\n"));
        }
        Ok(())
    }

    /// The tokens in a form for logs.
    pub fn tokens_text(&self, tokens: &[Token]) -> String {
        // SAFETY:
        // - the session is alive as long as `self`;
        // - `tokens` gives the address of as many tokens as it says.
        let text =
            unsafe { ggml_sys::rpaged_tokens_text(self.raw(), tokens.as_ptr(), tokens.len()) };
        bytes::take_text(text).unwrap_or_default()
    }

    /// Runs the decoder over `tokens`, which follow what the context holds.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn decode(&mut self, tokens: &[Token]) -> Result<Decoded> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone;
        // - `tokens` gives the address of as many tokens as it says.
        let status = unsafe { ggml_sys::rpaged_decode(self.raw(), tokens.as_ptr(), tokens.len()) };
        self.judge(status, "decode", tokens.len())
    }

    /// Runs the decoder over `tokens`, and has the logits of each of them ready; None when
    /// the memory has no room for so many, and holds what it held.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn decode_all(&mut self, tokens: &[Token]) -> Result<Option<Decoded>> {
        let (at, count) = (tokens.as_ptr(), tokens.len());
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone;
        // - `at` points at `count` tokens, which live through the call.
        let status = unsafe { ggml_sys::rpaged_decode_all(self.raw(), at, count) };
        if status == 1 {
            return Ok(None);
        }
        self.judge(status, "decode", count).map(Some)
    }

    /// Runs the encoder over `tokens`.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn encode(&mut self, tokens: &[Token]) -> Result<Decoded> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone;
        // - `tokens` gives the address of as many tokens as it says.
        let status = unsafe { ggml_sys::rpaged_encode(self.raw(), tokens.as_ptr(), tokens.len()) };
        self.judge(status, "encode", tokens.len())
    }

    pub(super) fn judge(&self, status: i32, what: &str, count: usize) -> Result<Decoded> {
        match status {
            0 => Ok(Decoded::Done),
            2 => Ok(Decoded::Aborted),
            _ => Err(self.recorded().unwrap_or_else(|| match status {
                1 => Error::Failed(format!(
                    "no room for {count} tokens in the context; raise -c or lower -b"
                )),
                _ => Error::Failed(format!(
                    "llama.cpp could not {what} {count} tokens (status {status})"
                )),
            })),
        }
    }

    pub(super) fn recorded(&self) -> Option<Error> {
        self.device.as_ref().and_then(PagedDevice::take_error)
    }

    /// Forgets `discard` tokens after the first `keep` and moves those up to `past` back.
    ///
    /// # Errors
    /// `Failed` when the model's memory cannot do that.
    pub fn shift(&mut self, keep: i32, discard: i32, past: i32) -> Result<()> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone; positions that
        //   are not there are ignored.
        let status = unsafe { ggml_sys::rpaged_shift(self.raw(), keep, discard, past) };
        if status == ggml_sys::RPAGED_OK as i32 {
            return Ok(());
        }
        Err(bytes::failure("the context could not be shifted; raise -c"))
    }

    /// Forgets the tokens from position `from` on; false when the model's memory cannot
    /// forget a part of what it holds, and holds it still.
    pub fn truncate(&mut self, from: i32) -> bool {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::rpaged_truncate(self.raw(), from) }
    }

    /// Whether all that a token at position `to` would look at is still there: a sliding
    /// window forgets what it has passed.
    pub fn reaches_back_to(&self, to: i32) -> bool {
        // SAFETY:
        // - the model is alive as long as `self`.
        let window = unsafe { ggml_sys::llama_model_n_swa(self.model()) };
        if window == 0 {
            return true;
        }
        // SAFETY:
        // - the context is alive as long as `self`, and its memory as long as it.
        let memory = unsafe { ggml_sys::llama_get_memory(self.context()) };
        // SAFETY:
        // - the memory is alive, as just said; a sequence that is not there has no
        //   positions.
        let first = unsafe { ggml_sys::llama_memory_seq_pos_min(memory, 0) };
        first <= to.saturating_sub(window).max(0)
    }

    /// Samples a token from the logits of the last decode.
    ///
    /// # Errors
    /// What the device recorded (its work may end only here), or `Failed`.
    pub fn sample(&mut self) -> Result<Token> {
        self.sample_from(-1)
    }

    /// Samples a token from the logits of the last decode's token at `index`.
    ///
    /// # Errors
    /// As for `sample`.
    pub fn sample_behind(&mut self, index: usize) -> Result<Token> {
        self.sample_from(i32::try_from(index).unwrap_or(i32::MAX))
    }

    fn sample_from(&mut self, output: i32) -> Result<Token> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone; an output that is
        //   not there comes back as a failure.
        let token = unsafe { ggml_sys::rpaged_sample(self.raw(), output) };
        if let Some(error) = self.recorded() {
            return Err(error);
        }
        if token == ggml_sys::LLAMA_TOKEN_NULL {
            return Err(bytes::failure("no token could be sampled"));
        }
        Ok(token)
    }

    /// Tells the sampler of `token`; `generated`: it also advances the grammar.
    ///
    /// # Errors
    /// `Failed` when the grammar does not allow it.
    pub fn accept(&mut self, token: Token, generated: bool) -> Result<()> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone.
        let status = unsafe { ggml_sys::rpaged_accept(self.raw(), token, generated) };
        if status == ggml_sys::RPAGED_OK as i32 {
            return Ok(());
        }
        Err(bytes::failure("the sampler refused a token"))
    }

    /// The last token that the sampler was told of.
    pub fn last_token(&self) -> Option<Token> {
        // SAFETY:
        // - the session is alive as long as `self`.
        let token = unsafe { ggml_sys::rpaged_last_token(self.raw()) };
        (token != ggml_sys::LLAMA_TOKEN_NULL).then_some(token)
    }

    /// The text of the last `count` tokens that the sampler was told of.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn last_text(&mut self, count: i32) -> Result<Vec<u8>> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone.
        bytes::take(unsafe { ggml_sys::rpaged_last_text(self.raw(), count) })
    }

    /// The seed in use.
    pub fn seed(&self) -> u32 {
        // SAFETY:
        // - the session is alive as long as `self`.
        unsafe { ggml_sys::rpaged_seed(self.raw()) }
    }

    /// The chain of samplers, as upstream prints it.
    pub fn sampler_text(&self) -> String {
        // SAFETY:
        // - the session is alive as long as `self`.
        bytes::take_text(unsafe { ggml_sys::rpaged_sampler_text(self.raw()) }).unwrap_or_default()
    }

    /// Logs upstream's closing lines: the timings and the use of memory.
    pub fn log_timings(&self) {
        // SAFETY:
        // - the session is alive as long as `self`.
        unsafe { ggml_sys::rpaged_perf_print(self.raw()) };
        if let Some(drafting) = &self.drafting {
            drafting.log_tally();
        }
    }
}

/// A reason of ggml's with the number of bytes at its end, if there is one, as MiB.
fn in_mib(reason: &str) -> String {
    let size = reason.rsplit_once("of size ");
    match size.and_then(|(what, bytes)| Some((what, bytes.trim().parse::<f64>().ok()?))) {
        Some((what, bytes)) => format!("{what}of {:.2} MiB", bytes / 1024.0 / 1024.0),
        None => reason.to_owned(),
    }
}

/// Why there is no session on the model at `path`, from what llama.cpp said and logged.
pub(super) fn load_error(path: &str, paged: bool) -> Error {
    let said = bytes::last_error();
    let logged = log::first_error();
    let reason = if said.is_empty() { logged } else { said };
    // In front of the reason stand the names of the functions that passed it on.
    let reason = reason
        .rsplit_once("error loading model: ")
        .or_else(|| {
            reason
                .split_once(": ")
                .filter(|(front, _)| !front.contains(' '))
        })
        .map_or(reason.as_str(), |(_, rest)| rest);
    if ["the adapter ", "the control vector"]
        .iter()
        .any(|start| reason.starts_with(start))
    {
        return Error::Failed(reason.to_owned());
    }
    if reason.starts_with("failed to parse grammar") {
        return Error::Failed(
            "llama.cpp could not read the grammar, and has said above why; see --grammar, \
             --grammar-file and --json-schema"
                .to_owned(),
        );
    }
    let memory = ["failed to allocate", "insufficient memory", "bad_alloc"];
    if memory.iter().any(|sign| reason.contains(sign)) {
        let reason = in_mib(reason);
        let help = if paged {
            "lower -c or --vram-budget"
        } else {
            "lower -c, or page with --dynamic-layers and --paged-kv"
        };
        return Error::Memory(format!(
            "not enough memory for the model '{path}': {reason}; {help}"
        ));
    }
    let reason = if reason.is_empty() {
        "llama.cpp gave no reason"
    } else {
        reason
    };
    Error::Failed(format!("could not load the model '{path}': {reason}"))
}

impl Drop for Session {
    fn drop(&mut self) {
        self.drafting = None;
        // SAFETY:
        // - the session came from `rpaged_session_new` and is dropped once;
        // - parameters and device, to which it refers, are fields and drop later.
        unsafe { ggml_sys::rpaged_session_free(self.raw()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_reasons_are_mib() {
        assert_eq!(
            in_mib("failed to allocate CPU buffer of size 1572864"),
            "failed to allocate CPU buffer of 1.50 MiB"
        );
        for reason in ["std::bad_alloc", "of size 3 MiB", ""] {
            assert_eq!(in_mib(reason), reason);
        }
    }
}
