//! Standard output: bytes as they come, through llama.cpp's log so that they keep their
//! place among its lines and reach `--log-file`; a closed pipe shows as an error.

use std::io::Write;

use super::signal;
use crate::error::{Error, Result};
use crate::llama::console::{Console, Display};
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
fn reader_is_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = rustix::stdio::stdout();
    let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ready = poll(&mut asked, Some(&at_once)).is_ok_and(|ready| ready > 0);
    ready && asked[0].revents().contains(PollFlags::ERR)
}

#[cfg(not(unix))]
fn reader_is_gone() -> bool {
    false
}

/// What is shown, in its colours, and what the user types. `--color auto`, the default,
/// wants colours on a terminal only.
pub struct Screen {
    console: Console,
}

impl Screen {
    /// Opens it; `simple_io` leaves the terminal as it is.
    ///
    /// # Errors
    /// `Failed` when llama.cpp cannot.
    pub fn open(simple_io: bool, coloured: bool) -> Result<Self> {
        let console = Console::open(simple_io, coloured)?;
        Ok(Self { console })
    }

    /// Changes to the colour of `display`.
    pub fn show(&mut self, display: Display) {
        let coloured = self.console.is_coloured() && display != Display::Plain;
        if coloured {
            signal::set_coloured(true);
        }
        self.console.show(display);
        signal::set_coloured(coloured);
    }

    /// Reads a text of one or more lines; nothing when the input is at its end, or when a
    /// signal came.
    ///
    /// # Errors
    /// `Failed` when memory runs out.
    pub fn read(&mut self, multiline: bool) -> Result<Vec<u8>> {
        self.console.read(multiline)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.show(Display::Plain);
    }
}

/// Writes lines to standard error; that nobody may read them is no failure.
pub fn say(lines: &str) {
    drop(std::io::stderr().lock().write_all(lines.as_bytes()));
}
