//! Bytes, tokens and failures as the C doors hand them out.
#![allow(unsafe_code, reason = "takes over memory that C allocated")]

use std::ffi::{CStr, c_char};

use crate::error::{Error, Result};
use crate::llama::Token;

/// What the last failing door on this thread said.
pub(super) fn last_error() -> String {
    // SAFETY:
    // - takes nothing.
    let text = unsafe { ggml_sys::rpaged_last_error() };
    // SAFETY:
    // - a C string, empty when nothing failed;
    // - valid until this thread's next call, and copied before that.
    unsafe { text_at(text) }.unwrap_or_default()
}

/// The last failure as an [`Error::Failed`], or as `otherwise` when C gave no sentence.
pub(super) fn failure(otherwise: &str) -> Error {
    let said = last_error();
    Error::Failed(if said.is_empty() {
        otherwise.to_owned()
    } else {
        said
    })
}

/// A copy of the C string at `text`; None when it is null.
///
/// # Safety
/// `text` is null, or points at a string ended by NUL that nobody changes meanwhile.
pub(super) unsafe fn text_at(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY:
    // - not null, as just tested;
    // - ended by NUL and not changed meanwhile, as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// Takes over bytes that a door has returned.
pub(super) fn take(bytes: ggml_sys::rpaged_bytes) -> Result<Vec<u8>> {
    if bytes.data.is_null() {
        return Err(failure("llama.cpp gave no text"));
    }
    // SAFETY:
    // - `data` is not null and the door made it `size` bytes long;
    // - nobody else knows it, so nobody writes to it while it is copied.
    let copy = unsafe { std::slice::from_raw_parts(bytes.data.cast::<u8>(), bytes.size) }.to_vec();
    // SAFETY:
    // - `bytes` came from a door, so the shim's own free fits it;
    // - it is not used afterwards.
    unsafe { ggml_sys::rpaged_bytes_free(bytes) };
    Ok(copy)
}

/// Takes over text that a door has returned; what is not UTF-8 is replaced.
pub(super) fn take_text(bytes: ggml_sys::rpaged_bytes) -> Result<String> {
    Ok(String::from_utf8_lossy(&take(bytes)?).into_owned())
}

/// Takes over tokens that a door has returned.
pub(super) fn take_tokens(tokens: ggml_sys::rpaged_tokens) -> Result<Vec<Token>> {
    if tokens.data.is_null() {
        return Err(failure("llama.cpp gave no tokens"));
    }
    // SAFETY:
    // - `data` is not null, aligned by malloc, and holds `count` tokens;
    // - nobody else knows it, so nobody writes to it while it is copied.
    let copy = unsafe { std::slice::from_raw_parts(tokens.data, tokens.count) }.to_vec();
    // SAFETY:
    // - `tokens` came from a door, so the shim's own free fits it;
    // - it is not used afterwards.
    unsafe { ggml_sys::rpaged_tokens_free(tokens) };
    Ok(copy)
}
