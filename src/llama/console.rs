//! llama.cpp's console: lines that are read, and the colours of what is shown.
//!
//! Unless `--simple-io` is given it edits lines itself, and so changes the terminal's state.
//! However the process ends, [`restore_terminal`] sets it back.
#![allow(unsafe_code, reason = "calls the C doors and the terminal")]

use super::{bytes, log};
use crate::error::Result;

/// What is being shown, each with its colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Display {
    /// Generated text.
    Plain,
    /// The prompt.
    Prompt,
    /// What the user types.
    Input,
    /// A complaint amid the text.
    Error,
}

/// The console, open; there is one.
pub struct Console {
    coloured: bool,
}

impl Console {
    /// Opens it; `simple_io` leaves the terminal as it is.
    ///
    /// # Errors
    /// `Failed` when llama.cpp cannot.
    pub fn open(simple_io: bool, coloured: bool) -> Result<Self> {
        if !simple_io {
            terminal::remember();
        }
        // SAFETY:
        // - takes two booleans; the console is closed before it is opened again.
        let status = unsafe { ggml_sys::rpaged_console_open(simple_io, coloured) };
        if status != ggml_sys::RPAGED_OK as i32 {
            return Err(bytes::failure("the console could not be opened"));
        }
        Ok(Self { coloured })
    }

    /// Changes to the colour of `display`, when what was shown before has been written.
    pub fn show(&mut self, display: Display) {
        let display = match display {
            Display::Plain => ggml_sys::RPAGED_DISPLAY_PLAIN,
            Display::Prompt => ggml_sys::RPAGED_DISPLAY_PROMPT,
            Display::Input => ggml_sys::RPAGED_DISPLAY_INPUT,
            Display::Error => ggml_sys::RPAGED_DISPLAY_ERROR,
        };
        // SAFETY:
        // - the console is open as long as `self`, and borrowed alone.
        unsafe { ggml_sys::rpaged_console_display(display) }
    }

    /// Whether colours are shown.
    pub fn is_coloured(&self) -> bool {
        self.coloured
    }

    /// Reads lines until the text is complete. Nothing at all: the input is at its end, or
    /// a signal came.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn read(&mut self, multiline: bool) -> Result<Vec<u8>> {
        // The console writes past the log: what is queued there comes first.
        log::drain();
        let mut text = Vec::new();
        loop {
            let mut more = false;
            // SAFETY:
            // - the console is open as long as `self`, and borrowed alone;
            // - `more` is a place for one boolean.
            let line = unsafe { ggml_sys::rpaged_console_read_line(multiline, &raw mut more) };
            text.extend(bytes::take(line)?);
            if !more {
                return Ok(text);
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // SAFETY:
        // - the console is open, and closed once.
        unsafe { ggml_sys::rpaged_console_close() }
        // Standard input may have been taken away from the console meanwhile.
        restore_terminal();
    }
}

/// `text` with its escapes resolved, as `-e` has it.
///
/// # Errors
/// `Failed` when memory runs out.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>> {
    // SAFETY:
    // - the pointer gives the address of as many bytes as it says.
    bytes::take(unsafe { ggml_sys::rpaged_unescape(text.as_ptr().cast(), text.len()) })
}

/// Notes how the terminal is set, for an editor that sets it otherwise and has pasted text
/// marked.
pub fn remember_terminal() {
    terminal::remember();
    terminal::marks_pasted();
}

/// Sets the terminal back to the state in which console or editor found it. May be called in a
/// signal handler, and when there is nothing to set back.
pub fn restore_terminal() {
    terminal::restore();
}

#[cfg(unix)]
mod terminal {
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Whether pasted text may come marked.
    static MARKED: AtomicBool = AtomicBool::new(false);
    const UNMARKED: &[u8] = b"\x1b[?2004l";

    /// The terminal, under a number of its own, and its state before the first change.
    static BEFORE: OnceLock<(i32, libc::termios)> = OnceLock::new();

    pub fn remember() {
        let mut state = MaybeUninit::<libc::termios>::zeroed();
        // SAFETY:
        // - `state` is a place for one structure, which is filled in only for a terminal.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, state.as_mut_ptr()) } != 0 {
            return;
        }
        // SAFETY:
        // - all zeroes are valid, and the call has filled it in.
        let state = unsafe { state.assume_init() };
        BEFORE.get_or_init(|| {
            // SAFETY:
            // - takes a number; a failure gives one that later calls refuse.
            let own = unsafe { libc::dup(libc::STDIN_FILENO) };
            (own, state)
        });
    }

    pub fn marks_pasted() {
        MARKED.store(true, Ordering::Relaxed);
    }

    pub fn restore() {
        if let Some((terminal, state)) = BEFORE.get() {
            if MARKED.load(Ordering::Relaxed) {
                // SAFETY:
                // - the pointer gives the address of as many bytes as it says; the call may
                //   be made in a signal handler.
                unsafe { libc::write(*terminal, UNMARKED.as_ptr().cast(), UNMARKED.len()) };
            }
            // SAFETY:
            // - the structure is one that the terminal gave; the call may be made in a
            //   signal handler.
            unsafe { libc::tcsetattr(*terminal, libc::TCSANOW, state) };
        }
    }
}

#[cfg(not(unix))]
mod terminal {
    pub fn remember() {}
    pub fn marks_pasted() {}
    pub fn restore() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_resolved() {
        assert_eq!(unescape(b"a\\nb\\x41\\\\").unwrap(), b"a\nbA\\");
        assert_eq!(unescape(b"\xff\\t").unwrap(), b"\xff\t");
        assert_eq!(unescape(b"").unwrap(), b"");
    }
}
