//! llama.cpp's own logging: a queue that a thread writes, results to standard output,
//! the rest to standard error, all of it to `--log-file`.
#![allow(unsafe_code, reason = "calls the C doors")]

use std::ffi::{CString, c_char};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use super::bytes;
use crate::error::Error;
use crate::telemetry::{self, metrics};

/// Starts the logging and installs what turns an abort of ggml into a sentence.
/// Calls after the first do nothing.
pub fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // SAFETY:
        // - called once, before any other door, as the function asks.
        unsafe { ggml_sys::rpaged_init() };
        // SAFETY:
        // - the callback is a function that lives as long as the program.
        unsafe { ggml_sys::ggml_set_abort_callback(Some(on_abort)) };
    });
}

/// How long other threads that abort leave the first one its last words.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// ggml's last resort: it aborts the process when this returns, so it never returns.
unsafe extern "C" fn on_abort(message: *const c_char) {
    // SAFETY:
    // - ggml passes a string of its own that ends by NUL and outlives this call.
    let message = unsafe { bytes::text_at(message) }.unwrap_or_default();
    let line = message.lines().next().unwrap_or("no reason given");
    // Where the sources lay when they were compiled says nothing to anybody else.
    let line = line
        .rsplit_once("/llama.cpp/")
        .map_or(line, |(_, rest)| rest);
    let error = error_of(line, &suspect());
    static ABORTING: AtomicBool = AtomicBool::new(false);
    if ABORTING.swap(true, Ordering::Relaxed) {
        // The threads that compute tend to find the same thing wrong at the same time.
        std::thread::sleep(LAST_WORDS);
        exit_at_once(error.exit_code().into());
    }
    let on_stderr = metrics::RUN.is_on_stderr();
    if metrics::RUN.is_on() || error.exit_code() != 70 {
        // What is queued comes first; whoever aborts has no lock of the log's.
        stop();
    }
    if metrics::RUN.is_on() {
        telemetry::finish(Some(&error));
    }
    if !on_stderr {
        let sentence = format!("\nerror: {error}\n");
        drop(std::io::stderr().write_all(sentence.as_bytes()));
    }
    exit_at_once(error.exit_code().into());
}

/// A model whose header llama.cpp may give up on.
#[derive(Default)]
struct Suspect {
    name: String,
    /// Whether its header is being read.
    loads: bool,
    /// Whether the command line says otherwise than the header.
    overridden: bool,
}

static SUSPECT: Mutex<Suspect> = Mutex::new(Suspect {
    name: String::new(),
    loads: false,
    overridden: false,
});

fn suspect() -> MutexGuard<'static, Suspect> {
    SUSPECT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, a model is loaded: that llama.cpp aborts is then the header's fault.
pub(super) struct Loading;

impl Loading {
    /// Begins with the model called `name`; `overridden`: --override-kv changes its header,
    /// which is to be blamed for what comes later as well.
    pub fn begin(name: &str, overridden: bool) -> Self {
        *suspect() = Suspect {
            name: name.to_owned(),
            loads: true,
            overridden,
        };
        Self
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        suspect().loads = false;
    }
}

/// What ggml's last words mean. That it aborts where a server is lost is no bug, nor that it
/// does over a header that makes no sense.
fn error_of(line: &str, suspect: &Suspect) -> Error {
    if let Some((_, reason)) = line.split_once("ggml-rpc.cpp:") {
        let reason = reason.split_once(": ").map_or(reason, |(_, reason)| reason);
        return Error::Failed(format!(
            "an RPC server does not answer as it should ({}); see --rpc",
            reason.trim()
        ));
    }
    let name = &suspect.name;
    if suspect.overridden {
        return Error::Failed(format!(
            "llama.cpp gave up on the model '{name}' as --override-kv has it: {line}"
        ));
    }
    if suspect.loads && line.starts_with("src/") {
        return Error::Failed(format!(
            "could not load the model '{name}': llama.cpp gave up on its header: {line}"
        ));
    }
    Error::Bug(format!("llama.cpp gave up: {line}"))
}

/// Ends the process without running destructors, which might wait for the very thread
/// that has just failed.
#[cfg(unix)]
fn exit_at_once(code: i32) -> ! {
    super::console::restore_terminal();
    // SAFETY:
    // - may be called at any time, and does not return.
    unsafe { libc::_exit(code) }
}

/// Ends the process.
#[cfg(not(unix))]
fn exit_at_once(code: i32) -> ! {
    std::process::exit(code)
}

fn write(level: ggml_sys::rpaged_log_level, text: Vec<u8>) {
    let end = text
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(text.len());
    let mut text = text;
    // llama.cpp prints C strings: what follows a NUL is not printed there either.
    text.truncate(end);
    let Ok(text) = CString::new(text) else { return };
    // SAFETY:
    // - `text` is a C string that lives through the call; the queue copies it.
    unsafe { ggml_sys::rpaged_log(level, text.as_ptr()) }
}

/// Queues bytes for standard output, as they are.
pub fn output(bytes: &[u8]) {
    write(ggml_sys::RPAGED_LOG_OUTPUT, bytes.to_vec());
}

/// Queues an error.
pub fn error(text: impl Into<String>) {
    write(ggml_sys::RPAGED_LOG_ERROR, text.into().into_bytes());
}

/// Queues a warning.
pub fn warn(text: impl Into<String>) {
    write(ggml_sys::RPAGED_LOG_WARN, text.into().into_bytes());
}

/// Queues an informational line.
pub fn info(text: impl Into<String>) {
    write(ggml_sys::RPAGED_LOG_INFO, text.into().into_bytes());
}

/// Continues an informational line.
pub fn cont(text: impl Into<String>) {
    write(ggml_sys::RPAGED_LOG_CONT, text.into().into_bytes());
}

/// Queues a line for debugging; `text` is only made when it will be shown.
pub fn debug(text: impl FnOnce() -> String) {
    if verbosity() >= 5 {
        write(ggml_sys::RPAGED_LOG_DEBUG, text().into_bytes());
    }
}

/// Returns when all that was queued is written; what comes later is discarded.
pub fn stop() {
    // SAFETY:
    // - takes nothing; only this program's main thread stops the log.
    unsafe { ggml_sys::rpaged_log_stop() }
}

/// Whether `--log-disable` was given.
static DISABLED: AtomicBool = AtomicBool::new(false);

/// Notes that `--log-disable` was given: nothing may switch the log on again.
pub fn note_disabled() {
    DISABLED.store(true, Ordering::Relaxed);
}

/// Returns when all that was queued is written; what comes later will be written too.
pub fn drain() {
    if !DISABLED.load(Ordering::Relaxed) {
        // SAFETY:
        // - takes nothing; only this program's main thread drains the log.
        unsafe { ggml_sys::rpaged_log_drain() }
    }
}

/// The verbosity: 0 output only, 1 errors, 2 warnings, 3 information, 5 debugging.
pub fn verbosity() -> i32 {
    // SAFETY:
    // - reads one integer that only this thread changes.
    unsafe { ggml_sys::rpaged_log_verbosity() }
}

/// Says whether a computation stops because it was asked to: what llama.cpp calls errors
/// and warnings meanwhile are none. From any thread.
pub fn set_stopping(stopping: bool) {
    // SAFETY:
    // - stores one atomic.
    unsafe { ggml_sys::rpaged_log_stopping(stopping) }
}

/// Does `work` with a verbosity of at least `least`: what it logs is to be read even where
/// llama.cpp's own lines are not.
pub fn at_least<T>(least: i32, work: impl FnOnce() -> T) -> T {
    let usual = verbosity();
    if usual >= least {
        return work();
    }
    set_verbosity(least);
    let done = work();
    set_verbosity(usual);
    done
}

/// Sets what is logged. Another thread that logs meanwhile may go by the old value.
pub fn set_verbosity(verbosity: i32) {
    // SAFETY:
    // - sets one aligned integer, which this thread alone changes; whoever reads it meanwhile
    //   gets the old value or the new one.
    unsafe { ggml_sys::rpaged_log_set_verbosity(verbosity) }
}

/// Forgets the first error, so that the next one is the first.
pub(super) fn forget_error() {
    // SAFETY:
    // - takes nothing; works under a lock.
    unsafe { ggml_sys::rpaged_log_forget_error() }
}

/// The first error that llama.cpp logged since the last one was forgotten, or since the
/// last session began to be made.
pub(super) fn first_error() -> String {
    // SAFETY:
    // - takes nothing; the text is a copy made under a lock.
    let bytes = unsafe { ggml_sys::rpaged_log_last_error() };
    bytes::take_text(bytes).unwrap_or_default()
}

/// Whether a write to standard output has failed so far.
pub fn output_failed() -> bool {
    // SAFETY:
    // - reads the error flag of C's stdout, which is never closed.
    unsafe { ggml_sys::rpaged_output_failed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_llama_cpp_give_up_is_named() {
        let header = "src/llama-model.cpp:1: GGML_ASSERT(n > 0) failed";
        let graph = "ggml/src/ggml.c:1: GGML_ASSERT(eps >= 0) failed";
        let mut suspect = Suspect {
            name: "a.gguf".to_owned(),
            loads: true,
            overridden: false,
        };
        let said = |line: &str, suspect: &Suspect| {
            let error = error_of(line, suspect);
            (error.exit_code(), error.to_string())
        };
        let (code, sentence) = said(header, &suspect);
        assert!(code == 1 && sentence.contains("'a.gguf'"), "{sentence}");
        assert_eq!(said(graph, &suspect).0, 70);
        suspect.loads = false;
        assert_eq!(said(header, &suspect).0, 70);
        suspect.overridden = true;
        let (code, sentence) = said(graph, &suspect);
        assert!(
            code == 1 && sentence.contains("--override-kv"),
            "{sentence}"
        );
        let (code, sentence) = said("ggml-rpc.cpp:7: lost", &suspect);
        assert!(code == 1 && sentence.contains("--rpc"), "{sentence}");
    }
}
