//! The options of llama-completion, asked of llama.cpp's own parser.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::ffi::{CStr, CString, c_char};

use super::bytes;
use crate::error::{Error, Result};

/// How many values follow a flag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arity {
    /// None.
    Switch,
    /// One.
    One,
    /// Two.
    Two,
}

impl Arity {
    /// The count as a number.
    pub fn count(self) -> usize {
        match self {
            Self::Switch => 0,
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// One option of upstream's.
#[derive(Clone, Debug)]
pub struct OptionInfo {
    /// The heading under which upstream's help shows it.
    pub section: String,
    /// Its spellings, e.g. `-n`, `--predict`.
    pub args: Vec<String>,
    /// Its `--no-...` spellings.
    pub args_neg: Vec<String>,
    /// What the help shows in place of the values.
    pub value_hints: Vec<String>,
    /// Its environment variable.
    pub env: Option<String>,
    /// Its description.
    pub help: String,
    /// How many values follow it.
    pub arity: Arity,
}

impl OptionInfo {
    /// The name the option goes by in tables and messages: its first long spelling.
    pub fn name(&self) -> &str {
        let long = self.args.iter().find(|arg| arg.starts_with("--"));
        long.or(self.args.first()).map_or("", String::as_str)
    }

    /// Whether it says how tokens are drafted.
    pub fn is_about_drafting(&self) -> bool {
        self.section == "speculative params"
    }

    /// Whether one of its spellings is `arg`.
    pub fn is_spelled(&self, arg: &str) -> bool {
        self.args
            .iter()
            .chain(&self.args_neg)
            .any(|spelling| spelling == arg)
    }
}

/// All options that llama-completion has at the pinned commit, in upstream's order.
///
/// # Errors
/// `Failed` when llama.cpp cannot list them.
pub fn options() -> Result<Vec<OptionInfo>> {
    // SAFETY:
    // - takes nothing; null on failure, which is tested next.
    let list = unsafe { ggml_sys::rpaged_options_new() };
    if list.is_null() {
        return Err(bytes::failure("llama.cpp does not list its options"));
    }
    // SAFETY:
    // - `list` is not null and was just made.
    let count = unsafe { ggml_sys::rpaged_options_count(list) };
    let all = (0..count)
        .map(|index| {
            // SAFETY:
            // - `list` is alive and `index` is below its count.
            let raw = unsafe { ggml_sys::rpaged_options_get(list, index) };
            // SAFETY:
            // - the strings of `raw` belong to `list`, which lives until after the loop.
            unsafe { copy(&raw) }
        })
        .collect();
    // SAFETY:
    // - `list` came from `rpaged_options_new` and is not used afterwards.
    unsafe { ggml_sys::rpaged_options_free(list) };
    Ok(all)
}

/// # Safety
/// The pointers in `raw` are null or point at strings, or at arrays of strings ended by
/// null, that live through the call.
unsafe fn copy(raw: &ggml_sys::rpaged_option) -> OptionInfo {
    // SAFETY:
    // - null or a living string, as the caller promises; so for the calls below.
    let text = |at: *const c_char| unsafe { bytes::text_at(at) };
    OptionInfo {
        section: text(raw.section).unwrap_or_default(),
        // SAFETY:
        // - a living array ended by null, as the caller promises.
        args: unsafe { copy_array(raw.args) },
        // SAFETY:
        // - a living array ended by null, as the caller promises.
        args_neg: unsafe { copy_array(raw.args_neg) },
        value_hints: [text(raw.value_hint), text(raw.value_hint_2)]
            .into_iter()
            .flatten()
            .collect(),
        env: text(raw.env),
        help: text(raw.help).unwrap_or_default(),
        arity: match raw.values {
            0 => Arity::Switch,
            1 => Arity::One,
            _ => Arity::Two,
        },
    }
}

/// # Safety
/// `array` is null or points at pointers to strings, ended by a null pointer.
unsafe fn copy_array(array: *const *const c_char) -> Vec<String> {
    let mut all = Vec::new();
    if array.is_null() {
        return all;
    }
    for index in 0.. {
        // SAFETY:
        // - every index up to that of the ending null is inside the array, and the loop
        //   ends there.
        let place = unsafe { array.add(index) };
        // SAFETY:
        // - inside the array, as just said, which lives through the call.
        let entry = unsafe { *place };
        if entry.is_null() {
            break;
        }
        // SAFETY:
        // - a living string ended by NUL, as the caller promises.
        let text = unsafe { CStr::from_ptr(entry) };
        all.push(text.to_string_lossy().into_owned());
    }
    all
}

/// The option that the last refused [`super::Params::parse`] was about, by one of its
/// spellings, and its value; None when it was about none.
pub fn blamed() -> Option<(String, String)> {
    // SAFETY:
    // - takes nothing.
    let option = bytes::take_text(unsafe { ggml_sys::rpaged_blamed_option() }).ok()?;
    // SAFETY:
    // - takes nothing.
    let value = bytes::take_text(unsafe { ggml_sys::rpaged_blamed_value() }).ok()?;
    Some((option, value)).filter(|(option, _)| !option.is_empty())
}

/// What `--list-devices` prints, with the devices of these RPC servers.
///
/// # Errors
/// `Failed` when a device cannot be asked.
pub fn device_list(rpc_servers: &str) -> Result<String> {
    let servers = CString::new(rpc_servers)
        .map_err(|_| Error::Usage("an argument contains a NUL".to_owned()))?;
    // SAFETY:
    // - `servers` ends with NUL and outlives the call.
    bytes::take_text(unsafe { ggml_sys::rpaged_device_list(servers.as_ptr()) })
}

/// What `--cache-list` prints.
///
/// # Errors
/// `Failed` when the cache cannot be read.
pub fn cache_list() -> Result<String> {
    // SAFETY:
    // - takes nothing.
    bytes::take_text(unsafe { ggml_sys::rpaged_cache_list() })
}

/// llama.cpp's version, commit and compiler, in one line.
///
/// # Errors
/// `Failed` when memory runs out.
pub fn build_info() -> Result<String> {
    // SAFETY:
    // - takes nothing.
    bytes::take_text(unsafe { ggml_sys::rpaged_build_info() })
}
