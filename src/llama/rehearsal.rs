//! What a model and its context would take, without taking it.
#![allow(unsafe_code, reason = "calls the C doors")]

use super::session::load_error;
use super::{Params, log, start_backend};
use crate::device::rehearsal::Rehearsal;
use crate::error::Result;

/// What llama.cpp says of a model and its context; fields and units are its own.
pub type Facts = ggml_sys::rpaged_rehearsal;

/// Has llama.cpp make the model and the context of `params` on the rehearsal's device,
/// which takes notes. Only the header is read.
///
/// # Errors
/// What the device recorded, or `Failed` with the reason that llama.cpp gave.
pub fn rehearse(mut params: Params, rehearsal: &Rehearsal, path: &str) -> Result<Facts> {
    let settings = params.settings()?;
    start_backend(settings.numa);
    params.use_device(rehearsal.device())?;
    let _loading = log::Loading::begin(path, settings.kv_overrides > 0);
    let mut out = std::mem::MaybeUninit::<Facts>::zeroed();
    // SAFETY:
    // - the handle is alive as long as `params`, the device as long as `rehearsal`;
    // - `out` is a place for one structure.
    let status = unsafe { ggml_sys::rpaged_rehearse(params.raw(), out.as_mut_ptr()) };
    if let Some(error) = rehearsal.device().take_error() {
        return Err(error);
    }
    if status != ggml_sys::RPAGED_OK as i32 {
        return Err(load_error(path, true));
    }
    // SAFETY:
    // - all zeroes are valid for integers and booleans, and the call has filled it in.
    Ok(unsafe { out.assume_init() })
}
