//! Standard output: bytes as they come, through llama.cpp's log so that they keep their
//! place among its lines and reach `--log-file`; a closed pipe shows as an error.

use std::io::Write;

use super::interrupt;
use crate::error::{Error, Result};
use crate::llama::log;

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8]) {
    log::output(bytes);
}

/// Writes text.
pub fn text(text: &str) {
    log::output(text.as_bytes());
}

/// Ends the line that is being written.
pub fn end_line() {
    text("\n");
}

/// Whether standard output still takes what is written; asked after each token.
///
/// # Errors
/// `OutputClosed` when nobody reads any more, `Failed` when a write failed otherwise.
pub fn check() -> Result<()> {
    if reader_is_gone() {
        return Err(Error::OutputClosed);
    }
    if log::output_failed() {
        return Err(Error::Failed(
            "could not write to standard output; is the disk full?".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "asks poll about one descriptor")]
fn reader_is_gone() -> bool {
    let mut descriptor = libc::pollfd {
        fd: libc::STDOUT_FILENO,
        events: 0,
        revents: 0,
    };
    // SAFETY:
    // - one structure is passed, and one is what the count says;
    // - a timeout of zero returns at once.
    let ready = unsafe { libc::poll(&raw mut descriptor, 1, 0) };
    ready > 0 && descriptor.revents & libc::POLLERR != 0
}

#[cfg(not(unix))]
fn reader_is_gone() -> bool {
    false
}

/// Colours the prompt. `--color auto`, the default, wants colours on a terminal only.
pub struct Colour {
    on: bool,
}

impl Colour {
    /// Starts the prompt's colour.
    pub fn prompt(wanted: bool) -> Self {
        if wanted {
            interrupt::set_coloured(true);
            text("\x1b[33m");
        }
        Self { on: wanted }
    }

    /// Back to the plain colour.
    pub fn reset(&mut self) {
        if self.on {
            self.on = false;
            text("\x1b[0m");
            interrupt::set_coloured(false);
        }
    }
}

impl Drop for Colour {
    fn drop(&mut self) {
        self.reset();
    }
}

/// Writes lines to standard error; that nobody may read them is no failure.
pub fn say(lines: &str) {
    drop(std::io::stderr().lock().write_all(lines.as_bytes()));
}
