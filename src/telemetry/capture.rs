//! Standard error as objects: what llama.cpp, a library or we write there is caught in a
//! pipe and becomes `log` records, line by line.
//!
//! ```text
//!  llama.cpp's log thread ─┐
//!  fprintf, libgomp, ... ──┼─► descriptor 2 ─► pipe ─► a thread ─┐
//!  our own sentences ──────┘                                     ├─► standard error
//!  metrics ──────────────────────────────────────────────────────┘
//! ```
//!
//! At the end descriptor 2 is pointed to nowhere: the pipe then has no writer, the thread
//! reads what is left and ends. So nothing is lost, and nothing follows the last record.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::metrics::Metrics;

/// Bytes of a line that are kept together; what is longer is cut.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// How long the end waits for the thread. A child process that still holds the pipe must
/// not keep us.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says that the thread has read everything; None: nothing is caught.
static DONE: Mutex<Option<Receiver<()>>> = Mutex::new(None);

/// Catches standard error from now on; `metrics` gets it, and the real one.
///
/// # Errors
/// When the system has no descriptor or no thread left; then nothing has changed.
pub fn start(metrics: &'static Metrics) -> io::Result<()> {
    let real = io::stderr().as_fd().try_clone_to_owned()?;
    let (reader, writer) = io::pipe()?;
    let (sender, done) = channel();
    std::thread::Builder::new()
        .name("stderr".to_owned())
        .spawn(move || read(reader, metrics, &sender))?;
    rustix::stdio::dup2_stderr(&writer)?;
    metrics.add_stderr(Box::new(Patient(File::from(real))));
    *DONE.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
    Ok(())
}

/// Returns when all that was written so far is a record; what is written later vanishes.
pub fn finish() {
    let done = DONE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(done) = done else { return };
    let nowhere = File::options().write(true).open("/dev/null");
    if nowhere.is_ok_and(|nowhere| rustix::stdio::dup2_stderr(&nowhere).is_ok()) {
        // An error means that the thread is gone.
        let _ = done.recv_timeout(PATIENCE);
    }
}

fn read(mut reader: PipeReader, metrics: &'static Metrics, done: &Sender<()>) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => lines.add(&buffer[..count], |level, text| metrics.log(level, text)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    lines.end(|level, text| metrics.log(level, text));
    // Nobody waits when the process ends otherwise.
    let _ = done.send(());
}

/// A file that may have been set not to block, as terminals are by some programs that
/// share them: a line must be whole all the same.
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts lines together, whoever writes them in how many pieces.
#[derive(Debug, Default)]
struct Lines {
    line: Vec<u8>,
    /// The level of the last line that had one: what follows without one continues it.
    level: Option<&'static str>,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], mut tell: impl FnMut(Option<&'static str>, String)) {
        for &byte in bytes {
            // A progress display ends its lines without going to the next.
            if byte == b'\n' || byte == b'\r' {
                self.end(&mut tell);
                continue;
            }
            self.line.push(byte);
            if self.line.len() >= LINE_BYTES_MAX {
                self.end(&mut tell);
            }
        }
    }

    /// Tells the line that has no end yet, unless nothing is in it.
    fn end(&mut self, mut tell: impl FnMut(Option<&'static str>, String)) {
        let text = plain(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        let (level, text) = split(&text);
        self.level = level.or(self.level);
        if !text.trim().is_empty() {
            tell(self.level, text.trim_end().to_owned());
        }
    }
}

/// The text without a terminal's colours.
fn plain(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::with_capacity(text.len());
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let end = after.find(|letter: char| ('@'..='~').contains(&letter));
        rest = end.map_or("", |end| &after[end + 1..]);
    }
    plain.push_str(rest);
    plain
}

/// Takes off what llama.cpp's log puts in front, `0.01.234.567 W ` or `W `.
fn split(line: &str) -> (Option<&'static str>, &str) {
    let is_time =
        |word: &str| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let rest = match line.split_once(' ') {
        Some((word, rest)) if is_time(word) => rest,
        _ => line,
    };
    let level = match rest.as_bytes() {
        [b'E', b' ', ..] => "error",
        [b'W', b' ', ..] => "warn",
        [b'I', b' ', ..] => "info",
        [b'D', b' ', ..] => "debug",
        _ => return (None, line),
    };
    (Some(level), &rest[2..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<(Option<&'static str>, String)> {
        let mut all = Vec::new();
        let mut lines = Lines::default();
        for piece in pieces {
            lines.add(piece.as_bytes(), |level, text| all.push((level, text)));
        }
        lines.end(|level, text| all.push((level, text)));
        all
    }

    #[test]
    fn pieces_become_lines() {
        let all = lines(&["a", "b\n\n", "c\r50 %\r100 %\nd"]);
        let texts: Vec<_> = all.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["ab", "c", "50 %", "100 %", "d"]);
        assert!(all.iter().all(|(level, _)| level.is_none()));
    }

    #[test]
    fn levels_and_times_of_llama_are_taken_off() {
        let all = lines(&[
            "0.00.012.345 I loading\n",
            "W \x1b[35mcareful\x1b[0m\n",
            "\x1b[34m0.01.000.000\x1b[0m \x1b[31mE \x1b[0mbroken\n",
            "\tmore of it\n",
            "0.00.000.001 I \n",
            "D x\n",
            "1.5 is a number\n",
        ]);
        let expected = [
            ("info", "loading"),
            ("warn", "careful"),
            ("error", "broken"),
            ("error", "\tmore of it"),
            ("debug", "x"),
            ("debug", "1.5 is a number"),
        ];
        let expected = expected.map(|(level, text)| (Some(level), text.to_owned()));
        assert_eq!(all, expected);
    }

    #[test]
    fn what_is_no_text_or_never_ends_does_no_harm() {
        let mut all = Vec::new();
        let mut lines = Lines::default();
        lines.add(&[0xff, 0, b'a', b'\n'], |_, text| all.push(text));
        lines.add(&vec![b'x'; LINE_BYTES_MAX * 2 + 1], |_, text| {
            all.push(text);
        });
        lines.add(b"\x1b[", |_, text| all.push(text));
        lines.end(|_, text| all.push(text));
        assert_eq!(all[0], "\u{fffd}\0a");
        assert_eq!(all.len(), 4);
        assert_eq!(all[3], "x");
    }
}
