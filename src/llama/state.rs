//! The state of a session: saved to a file, loaded from one, moved within the context.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::ffi::CString;

use super::session::Session;
use super::state_file::{self, ARCHITECTURE_BYTES_MAX, Expected};
use super::{Decoded, Token, bytes, log};
use crate::error::{Error, Result};

/// How llama.cpp begins to say that a state ended before its file, or after it.
const WRONG_LENGTH: &str = "did not read all of the session file data";

impl Session {
    /// Whether `file` begins as one does that [`Session::save_state`] has written for a context
    /// of this model.
    ///
    /// # Errors
    /// `Failed` with the reason why not.
    pub fn check_state(&self, file: &mut std::fs::File) -> Result<()> {
        let architecture = self.architecture();
        // What a line of the header says, --override-kv may have replaced.
        let as_in_header = self.params().settings()?.kv_overrides == 0;
        let expected = Expected {
            tokens_max: self.n_ctx(),
            architecture: as_in_header.then_some(architecture.as_str()),
        };
        state_file::check(file, &expected).map_err(Error::Failed)
    }

    /// The model's architecture as its header has it, e.g. `llama`.
    fn architecture(&self) -> String {
        let mut name = [0; ARCHITECTURE_BYTES_MAX];
        // SAFETY:
        // - the model is alive as long as `self`, and the key ends with NUL;
        // - `name` has room for as many bytes as it says, the last of which is a NUL.
        let found = unsafe {
            ggml_sys::llama_model_meta_val_str(
                self.model(),
                c"general.architecture".as_ptr(),
                name.as_mut_ptr(),
                name.len(),
            )
        };
        if found < 0 {
            return String::new();
        }
        // SAFETY:
        // - the call has written a C string, which nobody changes.
        unsafe { bytes::text_at(name.as_ptr()) }.unwrap_or_default()
    }

    /// Loads what [`Session::save_state`] has saved; returns the tokens saved with it. When
    /// it fails, the context may hold anything.
    ///
    /// # Errors
    /// What the device recorded, or `Failed` with llama.cpp's reason.
    pub fn load_state(&mut self, path: &CString) -> Result<Vec<Token>> {
        log::forget_error();
        let mut tokens = vec![0; self.n_ctx()];
        let mut count = 0;
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone;
        // - `path` ends with NUL; `tokens` has room for as many tokens as it says;
        // - `count` is a place for one number.
        let loaded = unsafe {
            ggml_sys::llama_state_load_file(
                self.context(),
                path.as_ptr(),
                tokens.as_mut_ptr(),
                tokens.len(),
                &raw mut count,
            )
        };
        self.state_result(loaded)?;
        tokens.truncate(count);
        let known = 0..self.n_vocab();
        if let Some(token) = tokens.iter().find(|token| !known.contains(token)) {
            return Err(Error::Failed(format!(
                "it holds the token {token}, which this model does not have"
            )));
        }
        match usize::try_from(self.last_position()) {
            Ok(last) if last >= tokens.len() => Err(Error::Failed(format!(
                "it holds {count} tokens and the state of one at position {last}"
            ))),
            _ => Ok(tokens),
        }
    }

    /// The last position that the context holds; negative when it holds nothing.
    fn last_position(&self) -> i32 {
        // SAFETY:
        // - the context is alive as long as `self`.
        let memory = unsafe { ggml_sys::llama_get_memory(self.context()) };
        // SAFETY:
        // - the memory is the context's own; null is known to the call.
        unsafe { ggml_sys::llama_memory_seq_pos_max(memory, 0) }
    }

    /// Saves what the context holds, and `tokens` with it.
    ///
    /// # Errors
    /// What the device recorded, or `Failed` with llama.cpp's reason.
    pub fn save_state(&mut self, path: &CString, tokens: &[Token]) -> Result<()> {
        log::forget_error();
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone;
        // - `path` ends with NUL; `tokens` holds as many tokens as it says.
        let saved = unsafe {
            ggml_sys::llama_state_save_file(
                self.context(),
                path.as_ptr(),
                tokens.as_ptr(),
                tokens.len(),
            )
        };
        self.state_result(saved)
    }

    /// Bytes of the file that [`Session::save_state`] writes with so many tokens.
    pub fn state_bytes(&mut self, tokens: usize) -> u64 {
        // SAFETY:
        // - the context is alive as long as `self`, and borrowed alone.
        let state = unsafe { ggml_sys::llama_state_get_size(self.context()) };
        // In front stand three numbers of four bytes, then the tokens.
        (state + 4 * (3 + tokens)) as u64
    }

    /// A failure of the device shows only in what it recorded.
    fn state_result(&self, done: bool) -> Result<()> {
        if let Some(error) = self.recorded() {
            return Err(error);
        }
        if done {
            return Ok(());
        }
        let logged = log::first_error();
        // In front of the reason stands the function that found it.
        let reason = logged
            .split_once(": ")
            .filter(|(front, _)| !front.contains(' '))
            .map_or(logged.as_str(), |(_, rest)| rest);
        let reason = reason
            .strip_prefix("error loading session file: ")
            .or_else(|| reason.strip_prefix("error saving session file: "))
            .unwrap_or(reason);
        let reason = match reason.strip_prefix(WRONG_LENGTH) {
            Some(_) => "it is shorter or longer than it says",
            None => reason,
        };
        Err(Error::Failed(if reason.is_empty() {
            "llama.cpp gave no reason".to_owned()
        } else {
            reason.to_owned()
        }))
    }

    /// Forgets all that the context holds.
    pub fn clear(&mut self) {
        // SAFETY:
        // - the context is alive as long as `self`.
        let memory = unsafe { ggml_sys::llama_get_memory(self.context()) };
        // SAFETY:
        // - the memory is the context's own, borrowed alone with it; a context without
        //   memory gives null, which the call knows.
        unsafe { ggml_sys::llama_memory_clear(memory, true) }
    }

    /// Whether positions can be moved.
    pub fn can_move(&self) -> bool {
        // SAFETY:
        // - the context is alive as long as `self`.
        let memory = unsafe { ggml_sys::llama_get_memory(self.context()) };
        // SAFETY:
        // - the memory is the context's own; null is known to the call.
        unsafe { ggml_sys::llama_memory_can_shift(memory) }
    }

    /// Moves the positions `from..to` by `delta`. Only where [`Session::can_move`].
    pub fn move_positions(&mut self, from: i32, to: i32, delta: i32) {
        // SAFETY:
        // - the context is alive as long as `self`.
        let memory = unsafe { ggml_sys::llama_get_memory(self.context()) };
        // SAFETY:
        // - the memory is the context's own, borrowed alone with it; positions that are not
        //   there are ignored.
        unsafe { ggml_sys::llama_memory_seq_add(memory, 0, from, to, delta) }
    }

    /// Divides the positions `from..to` by `divisor`. Only where [`Session::can_move`].
    pub fn divide_positions(&mut self, from: i32, to: i32, divisor: i32) {
        // SAFETY:
        // - the context is alive as long as `self`.
        let memory = unsafe { ggml_sys::llama_get_memory(self.context()) };
        // SAFETY:
        // - as above; `divisor` is not zero, as callers promise by asking for a factor.
        unsafe { ggml_sys::llama_memory_seq_div(memory, 0, from, to, divisor.max(1)) }
    }

    /// Runs the decoder over one token at a position that the context does not hold.
    ///
    /// # Errors
    /// What the device recorded, or `Failed`.
    pub fn decode_at(&mut self, token: Token, position: i32) -> Result<Decoded> {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone.
        let status = unsafe { ggml_sys::rpaged_decode_at(self.raw(), token, position) };
        self.judge(status, "decode", 1)
    }

    /// Has the sampler forget the tokens it was told of.
    pub fn reset_sampler(&mut self) {
        // SAFETY:
        // - the session is alive as long as `self`, and borrowed alone.
        unsafe { ggml_sys::rpaged_reset_sampler(self.raw()) }
    }

    /// How many tokens the vocabulary has.
    fn n_vocab(&self) -> Token {
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        unsafe { ggml_sys::llama_vocab_n_tokens(self.vocab()) }
    }

    /// The tokens of `text`, in which nothing is a special token.
    ///
    /// # Errors
    /// `Failed` when the text is too long.
    pub fn tokenize_plain(&self, text: &[u8]) -> Result<Vec<Token>> {
        let (at, size) = (text.as_ptr().cast(), text.len());
        // SAFETY:
        // - the session is alive as long as `self`;
        // - `at` points at `size` bytes, which live through the call.
        let tokens = unsafe { ggml_sys::rpaged_tokenize(self.raw(), at, size, false, false) };
        bytes::take_tokens(tokens)
    }

    /// The token that ends a turn, or else a text; None when the model has neither.
    pub fn end_of_turn(&self) -> Option<Token> {
        // SAFETY:
        // - the vocabulary is alive as long as `self`.
        let turn = unsafe { ggml_sys::llama_vocab_eot(self.vocab()) };
        // SAFETY: as above.
        let text = unsafe { ggml_sys::llama_vocab_eos(self.vocab()) };
        let known = |token: &Token| *token != ggml_sys::LLAMA_TOKEN_NULL;
        Some(turn).filter(known).or(Some(text).filter(known))
    }
}
