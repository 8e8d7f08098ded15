//! Ctrl-C and termination. Before the first token there is nothing to save: the process
//! ends at once. Afterwards the first signal asks the generation to stop, and a second one
//! ends the process.
//!
//! ```text
//!            signal                     signal                    signal
//!  loading ─────────► gone   generating ─────────► stopping ─────────────► gone
//! ```
//!
//! With metrics, "gone" comes after the last record: a thread that waits for that writes it
//! and ends the process. A further signal does not wait for the thread.
//!
//! SIGUSR1 under paging has the budget's file read again before the next decode.
#![allow(
    unsafe_code,
    reason = "signal handlers and the computation's abort callback"
)]

use std::ffi::c_void;
#[cfg(unix)]
use std::sync::OnceLock;
#[cfg(unix)]
use std::sync::atomic::AtomicI32;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::llama::log;

/// The signal that asked to stop; 0: none did.
static ASKED: AtomicU8 = AtomicU8::new(0);
/// Whether a first signal is to stop gently.
static GENERATING: AtomicBool = AtomicBool::new(false);
/// Whether the terminal has to be set back to its plain colour.
static COLOURED: AtomicBool = AtomicBool::new(false);

/// Whether SIGUSR1 came since it was last asked for.
static RELOAD: AtomicBool = AtomicBool::new(false);
/// How the terminal was set before an editor set it otherwise.
#[cfg(unix)]
static TERMINAL: OnceLock<libc::termios> = OnceLock::new();
/// The descriptor that wakes the thread that ends the process; negative: there is none, or
/// it was woken.
#[cfg(unix)]
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// From now on a first signal stops the generation gently.
pub fn generation_begins() {
    GENERATING.store(true, Ordering::Relaxed);
}

/// From now on a first signal ends the process: nothing is under way.
pub fn generation_ends() {
    GENERATING.store(false, Ordering::Relaxed);
}

/// Notes how the terminal is set, for the case that a signal ends the process while it is
/// set otherwise: an editor reads single keys.
#[cfg(unix)]
pub fn remember_terminal() {
    // SAFETY:
    // - all zeroes are a valid `termios`: integers and arrays of them.
    let mut terminal: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY:
    // - `terminal` is a place for one structure.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut terminal) } == 0 {
        TERMINAL.get_or_init(|| terminal);
    }
}

/// Does nothing: here no signal ends the process while the terminal is set otherwise.
#[cfg(not(unix))]
pub fn remember_terminal() {}

/// Sets the terminal as it was, and switches off what an editor has switched on.
#[cfg(unix)]
fn restore_terminal() {
    if let Some(terminal) = TERMINAL.get() {
        put(libc::STDOUT_FILENO, b"\x1b[?2004l");
        // SAFETY:
        // - `terminal` is a complete structure that `tcgetattr` has filled in;
        // - `tcsetattr` may be called in a handler.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, terminal) };
    }
}

/// Notes whether the terminal shows a colour.
pub fn set_coloured(coloured: bool) {
    COLOURED.store(coloured, Ordering::Relaxed);
}

/// The signal that asked the generation to stop.
pub fn asked() -> Option<u8> {
    Some(ASKED.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// The signal that asked the generation to stop; asking takes it back, so that the next one
/// is a first one again.
pub fn take() -> Option<u8> {
    log::set_stopping(false);
    Some(ASKED.swap(0, Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// Whether the budget's file is to be read again; asking takes the answer back.
pub fn take_reload() -> bool {
    RELOAD.swap(false, Ordering::Relaxed)
}

/// For long computations: whether to stop.
pub extern "C" fn abort(_data: *mut c_void) -> bool {
    let stops = ASKED.load(Ordering::Relaxed) != 0;
    if stops {
        log::set_stopping(true);
    }
    stops
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

/// Installs the handlers of the signals that end the process.
#[cfg(unix)]
pub fn install() {
    handle(libc::SIGINT, on_signal);
    handle(libc::SIGTERM, on_signal);
}

/// Installs the handler of SIGUSR1, which otherwise ends the process, as everywhere.
#[cfg(unix)]
pub fn install_reload() {
    handle(libc::SIGUSR1, on_reload);
}

#[cfg(unix)]
fn handle(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY:
    // - all zeroes are a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    // A slow read or write goes on after the handler.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY:
    // - `action` is a complete structure, and both handlers only do what a handler may:
    //   atomics, `write` and `_exit`;
    // - the previous action is not asked for.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

/// Installs nothing: here a signal ends the process.
#[cfg(not(unix))]
pub fn install() {}

/// Installs nothing: there is no such signal here.
#[cfg(not(unix))]
pub fn install_reload() {}

#[cfg(unix)]
extern "C" fn on_reload(_signal: i32) {
    RELOAD.store(true, Ordering::Relaxed);
}

/// From now on a signal that ends the process has `last_words` called first, with its
/// number, on a thread of its own; the first call counts. Where there is no thread, the
/// process ends without.
#[cfg(unix)]
pub fn end_with(last_words: fn(u8)) {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    if WAKE.load(Ordering::Relaxed) >= 0 {
        return;
    }
    let Ok((mut reader, writer)) = std::io::pipe() else {
        return;
    };
    let wait = move || {
        let mut number = [0];
        if reader.read_exact(&mut number).is_ok() {
            last_words(number[0]);
            // SAFETY:
            // - may be called at any time; runs no destructors, which may need locks.
            unsafe { libc::_exit(128 + i32::from(number[0])) }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    if thread.spawn(wait).is_ok() {
        // Open until the process ends.
        WAKE.store(writer.into_raw_fd(), Ordering::Relaxed);
    }
}

/// Does nothing: here a signal ends the process.
#[cfg(not(unix))]
pub fn end_with(_last_words: fn(u8)) {}

#[cfg(unix)]
extern "C" fn on_signal(signal: i32) {
    let number = u8::try_from(signal).unwrap_or(1);
    let before = ASKED.swap(number, Ordering::Relaxed);
    if before == 0 && GENERATING.load(Ordering::Relaxed) {
        return;
    }
    restore_terminal();
    let coloured = COLOURED.load(Ordering::Relaxed);
    let reset: &[u8] = if coloured { b"\x1b[0m\n" } else { b"\n" };
    let wake = WAKE.swap(-1, Ordering::Relaxed);
    if wake >= 0 {
        // Standard error holds nothing but objects; the colour is that of standard output.
        if coloured {
            put(libc::STDOUT_FILENO, reset);
        }
        put(wake, &[number]);
        return;
    }
    put(libc::STDERR_FILENO, reset);
    // SAFETY:
    // - may be called in a handler; runs no destructors, which may need locks.
    unsafe { libc::_exit(128 + i32::from(number)) }
}

/// Writes a few bytes as a handler may.
#[cfg(unix)]
fn put(descriptor: i32, bytes: &[u8]) {
    // SAFETY:
    // - `bytes` points at as many bytes as it says; `write` may be called in a handler.
    unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
}
