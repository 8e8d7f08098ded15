//! Ctrl-C, termination, and the end of the terminal. Before the first token there is nothing
//! to save: the process ends at once. Afterwards the first signal asks the generation to
//! stop, and a second one ends the process.
//!
//! ```text
//!            signal                     signal                    signal
//!  loading ─────────► gone   generating ─────────► stopping ─────────────► gone
//! ```
//!
//! With metrics, "gone" comes after the last record: a thread that waits for that writes it
//! and ends the process. A further signal does not wait for the thread.
//!
//! Where the user takes turns, a first Ctrl-C while the model writes gives the user control
//! ([`Interjecting`]); while a line is awaited, a signal ends the waiting ([`Waiting`]), and
//! with it the run.
//!
//! While a line is edited, the process may be stopped and continued: the terminal is set back
//! meanwhile, and the line shown again afterwards ([`Editing`]).
//!
//! SIGUSR1 under paging has the budget's file read again before the next decode.
#![allow(
    unsafe_code,
    reason = "signal handlers and the computation's abort callback"
)]

use std::ffi::c_void;
#[cfg(unix)]
use std::sync::atomic::AtomicI32;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

#[cfg(unix)]
use crate::llama::console::restore_terminal;

use crate::error::Error;
use crate::llama::log;

/// The signal that asked to stop; 0: none did.
static ASKED: AtomicU8 = AtomicU8::new(0);
/// Whether a first signal is to stop gently.
static GENERATING: AtomicBool = AtomicBool::new(false);
/// Whether the terminal has to be set back to its plain colour.
static COLOURED: AtomicBool = AtomicBool::new(false);

/// How many progress bars stand on the terminal, the cursor at the end of the last.
static BARS: AtomicUsize = AtomicUsize::new(0);

/// Whether SIGUSR1 came since it was last asked for.
static RELOAD: AtomicBool = AtomicBool::new(false);
/// The descriptor that wakes the thread that ends the process; negative: there is none, or
/// it was woken.
#[cfg(unix)]
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// What Ctrl-C does while the model writes: [`ENDS`], [`INTERJECTS`], or it has done that.
static INTERJECTION: AtomicU8 = AtomicU8::new(ENDS);
const ENDS: u8 = 0;
const INTERJECTS: u8 = 1;
const INTERJECTED: u8 = 2;

/// From now on a first signal stops the generation gently.
pub fn generation_begins() {
    GENERATING.store(true, Ordering::Relaxed);
}

/// From now on a first signal ends the process: nothing is under way.
pub fn generation_ends() {
    GENERATING.store(false, Ordering::Relaxed);
}

/// Notes whether the terminal shows a colour.
pub fn set_coloured(coloured: bool) {
    COLOURED.store(coloured, Ordering::Relaxed);
}

/// Notes how many progress bars stand on the terminal.
pub fn set_bars(count: usize) {
    BARS.store(count, Ordering::Relaxed);
}

/// The signal that asked the generation to stop.
pub fn asked() -> Option<u8> {
    Some(ASKED.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// The error for a computation, or a wait, that a signal has ended.
pub fn interrupted() -> Error {
    match asked() {
        Some(signal) => Error::Interrupted { signal },
        None => Error::Bug("the computation stopped, and nobody had asked for it".into()),
    }
}

/// While it lives, a first Ctrl-C while the model has control gives it to the user instead
/// of ending the run.
pub struct Interjecting;

impl Interjecting {
    /// Begins; whether the model has control.
    pub fn begin(by_model: bool) -> Self {
        if by_model {
            Self::model_has_control();
        }
        Self
    }

    /// Whether Ctrl-C came while the model had control.
    pub fn has_come() -> bool {
        INTERJECTION.load(Ordering::Relaxed) == INTERJECTED
    }

    /// The next Ctrl-C is an interjection.
    pub fn model_has_control() {
        INTERJECTION.store(INTERJECTS, Ordering::Relaxed);
    }

    /// The next Ctrl-C ends the run.
    pub fn user_has_control() {
        INTERJECTION.store(ENDS, Ordering::Relaxed);
    }
}

impl Drop for Interjecting {
    fn drop(&mut self) {
        Self::user_has_control();
    }
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
    // A slow read or write goes on after the handler.
    handle_ending(libc::SA_RESTART);
}

#[cfg(unix)]
fn handle_ending(flags: i32) {
    handle(libc::SIGINT, on_signal, flags);
    handle(libc::SIGTERM, on_signal, flags);
    // Under nohup it stays ignored.
    if !is_ignored(libc::SIGHUP) {
        handle(libc::SIGHUP, on_signal, flags);
    }
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    action_of(signal).is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

/// What a signal does now.
#[cfg(unix)]
fn action_of(signal: i32) -> Option<libc::sigaction> {
    // SAFETY:
    // - all zeroes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY:
    // - nothing is set; what is set now is written to a complete structure.
    let status = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    (status == 0).then_some(action)
}

/// Installs the handler of SIGUSR1, which otherwise ends the process, as everywhere.
#[cfg(unix)]
pub fn install_reload() {
    handle(libc::SIGUSR1, on_reload, libc::SA_RESTART);
}

#[cfg(unix)]
fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    // SAFETY:
    // - all zeroes are a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = flags;
    // SAFETY:
    // - `action` is a complete structure, and all handlers only do what a handler may:
    //   atomics, `write`, `dup2`, `tcsetattr`, signals and `_exit`;
    // - the previous action is not asked for.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

/// While it lives, this thread edits a line at the terminal. When the process goes on after it
/// was stopped, the editor is interrupted, to begin anew.
#[cfg(unix)]
pub struct Editing;

#[cfg(unix)]
mod editing {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    /// The editor's own handler of SIGINT; 0: there is none.
    pub static HANDLER: AtomicUsize = AtomicUsize::new(0);
    /// Whether the process went on since that was last asked for. The editor's handler was
    /// called then: as long as this holds, an interruption of it is not the user's.
    pub static CONTINUED: AtomicBool = AtomicBool::new(false);
}

#[cfg(unix)]
impl Editing {
    /// Notes the handler of SIGINT that an editor has just installed, before ours take its
    /// place.
    pub fn note_editor() {
        let handler = action_of(libc::SIGINT).map_or(0, |action| action.sa_sigaction);
        editing::HANDLER.store(handler, Ordering::Relaxed);
    }

    /// Whether the editor was interrupted because the process went on after it was stopped;
    /// asking takes the answer back.
    pub fn take_continued() -> bool {
        editing::CONTINUED.swap(false, Ordering::Relaxed)
    }

    /// Begins.
    pub fn begin() -> Self {
        if !is_ignored(libc::SIGTSTP) {
            // In its handler it is to stop the process.
            handle(libc::SIGTSTP, on_stop, libc::SA_NODEFER);
        }
        // Whoever reads a key is to notice.
        handle(libc::SIGCONT, on_continue, 0);
        Self
    }
}

#[cfg(unix)]
impl Drop for Editing {
    fn drop(&mut self) {
        if !is_ignored(libc::SIGTSTP) {
            by_default(libc::SIGTSTP);
        }
        by_default(libc::SIGCONT);
    }
}

/// Has the system do what it does with a signal.
#[cfg(unix)]
fn by_default(signal: i32) {
    // SAFETY:
    // - runs no code of ours; may be called in a handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[cfg(unix)]
extern "C" fn on_stop(signal: i32) {
    restore_terminal();
    by_default(signal);
    // SAFETY:
    // - takes a number; may be called in a handler. Here the process stops.
    unsafe { libc::raise(signal) };
    handle(signal, on_stop, libc::SA_NODEFER);
    on_continue(signal);
}

#[cfg(unix)]
extern "C" fn on_continue(_signal: i32) {
    let handler = editing::HANDLER.load(Ordering::Relaxed);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        return;
    }
    editing::CONTINUED.store(true, Ordering::Relaxed);
    // SAFETY:
    // - the system gave the address as that of a handler, which takes a signal's number.
    let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(i32)>(handler) };
    handler(libc::SIGINT);
}

/// Stops the process, and those that were started with it, as the terminal does for its key;
/// returns when somebody continues it. Not while a line is edited.
#[cfg(unix)]
pub fn stop() {
    if is_ignored(libc::SIGTSTP) {
        return;
    }
    // SAFETY:
    // - ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGTSTP, libc::SIG_IGN) };
    // SAFETY:
    // - takes two numbers; the signal goes to the others of the group.
    unsafe { libc::kill(0, libc::SIGTSTP) };
    by_default(libc::SIGTSTP);
    // To this thread, so that nothing is done before the process has stopped.
    // SAFETY:
    // - takes a number.
    unsafe { libc::raise(libc::SIGTSTP) };
}

/// Here no key stops a process.
#[cfg(not(unix))]
pub fn stop() {}

/// Here nothing stops a process that reads keys.
#[cfg(not(unix))]
pub struct Editing;

#[cfg(not(unix))]
impl Editing {
    /// Notes nothing.
    pub fn note_editor() {}

    /// No process is stopped.
    pub fn take_continued() -> bool {
        false
    }

    /// Begins.
    pub fn begin() -> Self {
        Self
    }
}

/// While it lives, this thread waits for standard input, and a signal that ends the process
/// ends the waiting: the input is then at its end.
#[cfg(unix)]
pub struct Waiting {
    /// What stands in for the input once a signal came. Open as long as the handlers that
    /// use it are installed.
    _nothing: Option<std::fs::File>,
}

#[cfg(unix)]
mod waiting {
    use std::sync::atomic::{AtomicI32, AtomicUsize};

    /// The descriptor that stands in for standard input; negative: nobody waits.
    pub static NOTHING: AtomicI32 = AtomicI32::new(-1);
    /// The thread that waits.
    pub static THREAD: AtomicUsize = AtomicUsize::new(0);
}

#[cfg(unix)]
impl Waiting {
    /// Begins. A read that is on its way returns, as the handlers do not restart it; one
    /// that begins later finds nothing to read.
    pub fn begin() -> Self {
        use std::os::fd::AsRawFd;
        let nothing = std::fs::File::open("/dev/null").ok();
        if let Some(nothing) = &nothing {
            // SAFETY:
            // - takes nothing, and cannot fail.
            let thread = unsafe { libc::pthread_self() };
            #[allow(clippy::cast_possible_truncation, reason = "as wide as an address")]
            waiting::THREAD.store(thread as usize, Ordering::Relaxed);
            waiting::NOTHING.store(nothing.as_raw_fd(), Ordering::Release);
            handle_ending(0);
            if ASKED.load(Ordering::Relaxed) != 0 {
                end_waiting(nothing.as_raw_fd());
            }
        }
        Self { _nothing: nothing }
    }
}

#[cfg(unix)]
impl Drop for Waiting {
    fn drop(&mut self) {
        waiting::NOTHING.store(-1, Ordering::Relaxed);
        install();
    }
}

/// Standard input is at its end from now on.
#[cfg(unix)]
fn end_waiting(nothing: i32) {
    // SAFETY:
    // - takes two numbers; may be called in a handler.
    unsafe { libc::dup2(nothing, libc::STDIN_FILENO) };
}

/// Here a signal ends the process.
#[cfg(not(unix))]
pub struct Waiting;

#[cfg(not(unix))]
impl Waiting {
    /// Begins.
    pub fn begin() -> Self {
        Self
    }
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
    let nothing = waiting::NOTHING.load(Ordering::Acquire);
    if nothing >= 0 {
        let thread = waiting::THREAD.load(Ordering::Relaxed) as libc::pthread_t;
        // SAFETY:
        // - takes nothing; answers in a handler as well.
        if unsafe { libc::pthread_self() } != thread {
            // Only a signal to the thread that waits ends its waiting.
            // SAFETY:
            // - the thread is alive: it is the one that waits.
            unsafe { libc::pthread_kill(thread, signal) };
            return;
        }
    } else if signal == libc::SIGINT {
        let (from, to) = (INTERJECTS, INTERJECTED);
        let order = Ordering::Relaxed;
        if INTERJECTION
            .compare_exchange(from, to, order, order)
            .is_ok()
        {
            return;
        }
    }
    let before = ASKED.swap(number, Ordering::Relaxed);
    if nothing >= 0 {
        end_waiting(nothing);
    }
    if before == 0 && GENERATING.load(Ordering::Relaxed) {
        return;
    }
    leave(number);
}

/// Ends the process from a handler.
#[cfg(unix)]
fn leave(number: u8) {
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
    match BARS.load(Ordering::Relaxed) {
        0 => put(libc::STDERR_FILENO, reset),
        bars => {
            // Nothing of them stays, nor of the "^C" that the terminal shows behind them.
            put(libc::STDERR_FILENO, b"\r\x1b[2K");
            for _ in 1..bars {
                put(libc::STDERR_FILENO, b"\x1b[A\x1b[2K");
            }
        }
    }
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
