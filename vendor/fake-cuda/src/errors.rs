//! CUDA's error codes, with names and texts.

use std::ffi::{CStr, c_char, c_int};

/// What a call gives back: 0 or an error code.
pub type Status = c_int;

/// Done.
pub const SUCCESS: Status = 0;
/// An argument is wrong.
pub const INVALID_VALUE: Status = 1;
/// The card is full.
pub const OUT_OF_MEMORY: Status = 2;
/// `cuInit` was not called.
pub const NOT_INITIALIZED: Status = 3;
/// There is no card.
pub const NO_DEVICE: Status = 100;
/// There is no card of this number.
pub const INVALID_DEVICE: Status = 101;
/// The thread has no current context.
pub const INVALID_CONTEXT: Status = 201;
/// A stream or event that does not exist.
pub const INVALID_HANDLE: Status = 400;
/// A symbol that is not there.
pub const NOT_FOUND: Status = 500;
/// Work is not done yet.
pub const NOT_READY: Status = 600;
/// The range overlaps a registered one.
pub const ALREADY_REGISTERED: Status = 712;
/// The range was not registered.
pub const NOT_REGISTERED: Status = 713;
/// Not from a host function.
pub const NOT_PERMITTED: Status = 800;
/// Not with this card.
pub const NOT_SUPPORTED: Status = 801;

const TEXTS: [(Status, &CStr, &CStr); 17] = [
    (SUCCESS, c"CUDA_SUCCESS", c"no error"),
    (
        INVALID_VALUE,
        c"CUDA_ERROR_INVALID_VALUE",
        c"invalid argument",
    ),
    (OUT_OF_MEMORY, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
    (
        NOT_INITIALIZED,
        c"CUDA_ERROR_NOT_INITIALIZED",
        c"initialization error",
    ),
    (
        NO_DEVICE,
        c"CUDA_ERROR_NO_DEVICE",
        c"no CUDA-capable device is detected",
    ),
    (
        INVALID_DEVICE,
        c"CUDA_ERROR_INVALID_DEVICE",
        c"invalid device ordinal",
    ),
    (
        INVALID_CONTEXT,
        c"CUDA_ERROR_INVALID_CONTEXT",
        c"invalid device context",
    ),
    (
        INVALID_HANDLE,
        c"CUDA_ERROR_INVALID_HANDLE",
        c"invalid resource handle",
    ),
    (
        NOT_FOUND,
        c"CUDA_ERROR_NOT_FOUND",
        c"named symbol not found",
    ),
    (NOT_READY, c"CUDA_ERROR_NOT_READY", c"device not ready"),
    (
        700,
        c"CUDA_ERROR_ILLEGAL_ADDRESS",
        c"an illegal memory access was encountered",
    ),
    (
        ALREADY_REGISTERED,
        c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        c"part or all of the requested memory range is already mapped",
    ),
    (
        NOT_REGISTERED,
        c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        c"pointer does not correspond to a registered memory region",
    ),
    (
        719,
        c"CUDA_ERROR_LAUNCH_FAILED",
        c"unspecified launch failure",
    ),
    (
        NOT_PERMITTED,
        c"CUDA_ERROR_NOT_PERMITTED",
        c"operation not permitted",
    ),
    (
        NOT_SUPPORTED,
        c"CUDA_ERROR_NOT_SUPPORTED",
        c"operation not supported",
    ),
    (999, c"CUDA_ERROR_UNKNOWN", c"unknown error"),
];

fn text(
    error: Status,
    out: *mut *const c_char,
    pick: fn(&(Status, &'static CStr, &'static CStr)) -> &'static CStr,
) -> Status {
    if out.is_null() {
        return INVALID_VALUE;
    }
    let found = TEXTS.iter().find(|(code, ..)| *code == error);
    let text = found.map_or(std::ptr::null(), |entry| pick(entry).as_ptr());
    // SAFETY: not null, so a place for a pointer: the caller's promise.
    unsafe { out.write(text) };
    if found.is_some() {
        SUCCESS
    } else {
        INVALID_VALUE
    }
}

/// The name of an error.
///
/// # Safety
/// - `out` is null or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: Status, out: *mut *const c_char) -> Status {
    text(error, out, |entry| entry.1)
}

/// The text of an error.
///
/// # Safety
/// - `out` is null or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: Status, out: *mut *const c_char) -> Status {
    text(error, out, |entry| entry.2)
}
