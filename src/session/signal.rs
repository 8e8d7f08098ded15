//! Ctrl-C and termination. Before the first token there is nothing to save: the process
//! ends at once. Afterwards the first signal asks the generation to stop, and a second one
//! ends the process.
//!
//! ```text
//!            signal                     signal                    signal
//!  loading ─────────► gone   generating ─────────► stopping ─────────────► gone
//! ```
#![allow(
    unsafe_code,
    reason = "signal handlers and the computation's abort callback"
)]

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The signal that asked to stop; 0: none did.
static ASKED: AtomicU8 = AtomicU8::new(0);
/// Whether a first signal is to stop gently.
static GENERATING: AtomicBool = AtomicBool::new(false);
/// Whether the terminal has to be set back to its plain colour.
static COLOURED: AtomicBool = AtomicBool::new(false);

/// From now on a first signal stops the generation gently.
pub fn generation_begins() {
    GENERATING.store(true, Ordering::Relaxed);
}

/// Notes whether the terminal shows a colour.
pub fn set_coloured(coloured: bool) {
    COLOURED.store(coloured, Ordering::Relaxed);
}

/// The signal that asked the generation to stop.
pub fn asked() -> Option<u8> {
    Some(ASKED.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// For long computations: whether to stop.
pub extern "C" fn abort(_data: *mut c_void) -> bool {
    ASKED.load(Ordering::Relaxed) != 0
}

/// Has a file that may not grow be an error of the write that fails, not the end of the
/// process. Before anything is written.
pub fn ignore_file_size_limit() {
    #[cfg(unix)]
    // SAFETY:
    // - ignoring a signal runs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN)
    };
}

/// Installs the handlers.
#[cfg(unix)]
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY:
        // - all zeroes are a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as extern "C" fn(i32) as usize;
        // A slow read or write goes on after the handler.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY:
        // - `action` is a complete structure, and the handler only does what a handler may:
        //   atomics, `write` and `_exit`;
        // - the previous action is not asked for.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Installs nothing: here a signal ends the process.
#[cfg(not(unix))]
pub fn install() {}

#[cfg(unix)]
extern "C" fn on_signal(signal: i32) {
    let number = u8::try_from(signal).unwrap_or(1);
    let before = ASKED.swap(number, Ordering::Relaxed);
    if before == 0 && GENERATING.load(Ordering::Relaxed) {
        return;
    }
    let reset: &[u8] = if COLOURED.load(Ordering::Relaxed) {
        b"\x1b[0m\n"
    } else {
        b"\n"
    };
    // SAFETY:
    // - `reset` points at as many bytes as it says; `write` may be called in a handler.
    unsafe { libc::write(libc::STDERR_FILENO, reset.as_ptr().cast(), reset.len()) };
    // SAFETY:
    // - may be called in a handler; runs no destructors, which may need locks.
    unsafe { libc::_exit(128 + i32::from(number)) }
}
