//! What the chat writes on the terminal.

use std::io::Write;

use crate::error::{Error, Result};

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// Columns where the terminal does not tell.
const COLUMNS: usize = 80;

/// The terminal, as far as we have written on it.
pub(super) struct Screen<W> {
    out: W,
    /// Whether colours are wanted; otherwise words say what colours would.
    colours: bool,
    at_line_start: bool,
    /// What was written last of an answer.
    part: Part,
    /// Columns of the line about progress, if there is one.
    progress: Option<usize>,
    failed: Option<std::io::Error>,
}

/// The parts of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    None,
    Thoughts,
    Content,
}

impl<W: Write> Screen<W> {
    /// The cursor is at the beginning of a line.
    pub fn new(out: W, colours: bool) -> Self {
        Self {
            out,
            colours,
            at_line_start: true,
            part: Part::None,
            progress: None,
            failed: None,
        }
    }

    fn put(&mut self, text: &str) {
        let written = self.out.write_all(text.as_bytes());
        if let Err(error) = written.and_then(|()| self.out.flush()) {
            self.failed.get_or_insert(error);
        }
    }

    /// Whether the terminal still takes what is written.
    ///
    /// # Errors
    /// `OutputClosed` when it is gone, `Failed` when a write failed otherwise.
    pub fn check(&mut self) -> Result<()> {
        match self.failed.take() {
            None => Ok(()),
            Some(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                Err(Error::OutputClosed)
            }
            Some(error) => Err(Error::Failed(format!(
                "could not write to the terminal: {error}"
            ))),
        }
    }

    fn styled(&mut self, style: &str, text: &str) {
        if self.colours {
            // In one piece, so that no signal finds the terminal coloured.
            self.put(&format!("{style}{text}{PLAIN}"));
        } else {
            self.put(text);
        }
    }

    /// Begins a line, unless the cursor is at the beginning of one.
    pub fn end_line(&mut self) {
        self.clear_progress();
        if !self.at_line_start {
            self.put("\n");
            self.at_line_start = true;
        }
    }

    /// Somebody else has begun a line (the editor after Enter).
    pub fn line_was_ended(&mut self) {
        self.at_line_start = true;
    }

    /// Lines of our own.
    pub fn say(&mut self, text: &str) {
        self.end_line();
        let text = visible(text);
        self.put(text.trim_end_matches('\n'));
        self.put("\n");
    }

    /// A sentence about what cannot be done.
    pub fn complain(&mut self, sentence: &str) {
        self.end_line();
        let text = format!("error: {}", visible(sentence));
        self.styled(RED, &text);
        self.put("\n");
    }

    /// A line of our own that steps back: cut to what fits.
    pub fn note(&mut self, text: &str) {
        self.end_line();
        let text = fitted(&visible(text), columns());
        self.styled(DIM, &text);
        self.put("\n");
    }

    /// A message that was not typed.
    pub fn echo(&mut self, text: &str) {
        self.end_line();
        let text = visible(text);
        self.put(&format!("> {}\n", text.trim_end_matches('\n')));
    }

    /// More of what the model thinks.
    pub fn think(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.clear_progress();
        if self.part != Part::Thoughts && !self.colours {
            self.end_line();
            self.put("[thinking]\n");
        }
        self.part = Part::Thoughts;
        let text = visible(text);
        self.styled(DIM, &text);
        self.at_line_start = text.ends_with('\n');
    }

    /// More of what the model says.
    pub fn answer(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.clear_progress();
        let mut text = visible(text);
        if self.part == Part::Thoughts {
            self.end_thoughts();
            text = text.trim_start_matches('\n').to_owned();
        }
        self.part = Part::Content;
        self.put(&text);
        self.at_line_start = text.ends_with('\n') || (text.is_empty() && self.at_line_start);
    }

    fn end_thoughts(&mut self) {
        self.end_line();
        let end = if self.colours {
            "\n"
        } else {
            "[end of thinking]\n\n"
        };
        self.put(end);
    }

    /// The answer is over.
    pub fn end_answer(&mut self) {
        self.end_line();
        if self.part == Part::Thoughts && !self.colours {
            self.put("[end of thinking]\n");
        }
        self.part = Part::None;
    }

    /// Draws a line about progress, in place of the one before.
    pub fn progress(&mut self, text: &str) {
        self.clear_progress();
        if !self.at_line_start {
            return;
        }
        // One column less: a full line would wrap on some terminals.
        let text = fitted(text, columns().saturating_sub(1));
        self.styled(DIM, &text);
        self.progress = Some(text.chars().count());
    }

    /// Takes the line about progress away, and all that a terminal made narrower
    /// meanwhile may have wrapped it into.
    fn clear_progress(&mut self) {
        if let Some(length) = self.progress.take() {
            let rows_above = length.saturating_sub(1) / columns().max(1);
            if rows_above > 0 {
                self.put(&format!("\x1b[{rows_above}A"));
            }
            self.put("\r\x1b[J");
        }
    }
}

/// The text without what would command the terminal.
fn visible(text: &str) -> String {
    let plain = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(plain).collect()
}

/// `text` in at most so many columns, with a mark where it was cut. Every character counts
/// as one column: a note with a file's name in wide characters may wrap, which does no harm,
/// and progress has no other characters.
fn fitted(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(columns.saturating_sub(1)).collect();
    if columns > 0 {
        cut.push('…');
    }
    cut
}

/// The terminal's width.
#[cfg(unix)]
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
    let columns = size.map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { COLUMNS } else { columns }
}

#[cfg(not(unix))]
fn columns() -> usize {
    COLUMNS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(colours: bool, write: impl FnOnce(&mut Screen<Vec<u8>>)) -> String {
        let mut screen = Screen::new(Vec::new(), colours);
        write(&mut screen);
        String::from_utf8(screen.out).unwrap()
    }

    fn answer(screen: &mut Screen<Vec<u8>>) {
        screen.think("Hm");
        screen.think("m.\n");
        screen.answer("\nYes");
        screen.answer(".");
        screen.end_answer();
        screen.note("1 token");
    }

    #[test]
    fn thoughts_are_dimmed() {
        let expected = "\x1b[2mHm\x1b[0m\x1b[2mm.\n\x1b[0m\nYes.\n\x1b[2m1 token\x1b[0m\n";
        assert_eq!(written(true, answer), expected);
    }

    #[test]
    fn without_colours_words_mark_thoughts() {
        let expected = "[thinking]\nHmm.\n[end of thinking]\n\nYes.\n1 token\n";
        assert_eq!(written(false, answer), expected);
        let only = written(false, |screen| {
            screen.think("Hm");
            screen.end_answer();
        });
        assert_eq!(only, "[thinking]\nHm\n[end of thinking]\n");
    }

    #[test]
    fn a_model_cannot_command_the_terminal() {
        let text = written(false, |screen| screen.answer("a\x1b[2Jb\rc\u{9b}d\te"));
        assert_eq!(text, "a[2Jbcd\te");
    }

    #[test]
    fn a_name_in_a_note_cannot_command_the_terminal() {
        let text = written(true, |screen| screen.note("saved in 'a\x1b[2J\rb'"));
        assert_eq!(text, "\x1b[2msaved in 'a[2Jb'\x1b[0m\n");
    }

    #[test]
    fn progress_leaves_nothing() {
        let text = written(false, |screen| {
            screen.progress("reading 1 of 3");
            screen.progress("reading 2 of 3");
            screen.answer("Yes");
        });
        assert_eq!(text, "reading 1 of 3\r\x1b[Jreading 2 of 3\r\x1b[JYes");
    }

    #[test]
    fn lines_of_ours_fit() {
        assert_eq!(fitted("12 tokens", 9), "12 tokens");
        assert_eq!(fitted("12 tokens", 5), "12 t…");
        assert_eq!(fitted("12 tokens", 0), "");
    }
}
