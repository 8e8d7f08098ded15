#![allow(unsafe_code, reason = "hooks into the inner device's buffers")]
//! The inner device's own buffers (compute scratch, tensors that are not paged): the
//! budget covers them, so we have to know when one goes. ggml tells nobody but the
//! buffer itself, whose slot for that is wrapped.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ggml_sys as sys;

use super::guard::guard;
use super::shared::Shared;
use crate::error::{Error, Result};

type Free = unsafe extern "C" fn(sys::ggml_backend_buffer_t);

/// What is to be done when a buffer goes.
struct Entry {
    shared: *const Shared,
    bytes: u64,
    free: Option<Free>,
}

// SAFETY: the pointer leads to `Shared`, which is Sync and outlives all buffers made for it
// (contract of `PagedDevice`).
unsafe impl Send for Entry {}

/// By the buffer's address.
static BUFFERS: Mutex<Option<HashMap<usize, Entry>>> = Mutex::new(None);

/// A buffer of the inner device's own type, which the budget covers as long as it lives.
///
/// # Errors
/// `Memory` when the budget cannot cover it, or the system does not give it.
pub fn allocate(shared: &Shared, size: usize) -> Result<sys::ggml_backend_buffer_t> {
    let bytes = size as u64;
    shared.change_scratch(|known| known + bytes)?;
    // SAFETY: the inner buffer type is static.
    let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(shared.inner.buffer_type(), size) };
    if buffer.is_null() {
        shared.change_scratch(|known| known.saturating_sub(bytes))?;
        return Err(Error::Memory(format!(
            "could not get {} MiB to compute with; lower -ub or -c",
            size.div_ceil(1 << 20)
        )));
    }
    // SAFETY: the buffer was made just now, and nobody else knows it.
    let free = unsafe { (*buffer).iface.free_buffer.replace(on_free) };
    let entry = Entry {
        shared,
        bytes,
        free,
    };
    let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    buffers
        .get_or_insert_with(HashMap::new)
        .insert(buffer as usize, entry);
    Ok(buffer)
}

unsafe extern "C" fn on_free(buffer: sys::ggml_backend_buffer_t) {
    let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = buffers
        .as_mut()
        .and_then(|known| known.remove(&(buffer as usize)));
    drop(buffers);
    let Some(entry) = entry else { return };
    if let Some(free) = entry.free {
        // SAFETY: the buffer's own slot, called once, as ggml would.
        unsafe { free(buffer) };
    }
    // SAFETY: `Shared` outlives all buffers (contract of `PagedDevice`).
    let shared = unsafe { &*entry.shared };
    guard(shared, (), |shared| {
        shared.change_scratch(|known| known.saturating_sub(entry.bytes))
    });
}
