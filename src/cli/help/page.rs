//! Text for a terminal or a file: words wrapped to a width, styled only where that shows.

use std::io::IsTerminal;

/// Columns where nobody knows how many there are.
const WIDTH: usize = 80;
/// Fewer than these are no use, more than those are hard to read.
const WIDTH_MIN: usize = 40;
const WIDTH_MAX: usize = 100;

/// A text that grows line by line.
#[derive(Debug)]
pub struct Page {
    text: String,
    width: usize,
    styled: bool,
}

impl Page {
    /// An empty page.
    pub fn new(width: usize, styled: bool) -> Self {
        Self {
            text: String::new(),
            width,
            styled,
        }
    }

    /// A page for standard output: as wide as the terminal, and styled, if it is one.
    pub fn for_stdout() -> Self {
        let out = std::io::stdout();
        if !out.is_terminal() {
            return Self::new(WIDTH, false);
        }
        let columns = terminal_size::terminal_size_of(&out).map(|(width, _)| usize::from(width.0));
        let columns = columns.filter(|columns| *columns > 0).unwrap_or(WIDTH);
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        let styled = set("NO_COLOR").is_none() && !dumb;
        Self::new(columns.clamp(WIDTH_MIN, WIDTH_MAX), styled)
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Ends a paragraph.
    pub fn blank(&mut self) {
        self.text.push('\n');
    }

    /// The title of a section, and what may be said of it.
    pub fn heading(&mut self, title: &str, about: &str) {
        if !self.text.is_empty() {
            self.blank();
        }
        let underlined = self.style("1;4", title);
        self.text.push_str(&underlined);
        self.text.push('\n');
        if !about.is_empty() {
            self.words(about, 2, 2);
        }
    }

    /// Text in lines of its own, wrapped; each line begins with `indent` blanks.
    pub fn paragraph(&mut self, text: &str, indent: usize) {
        for line in text.lines() {
            // The further lines of an item hang below its text.
            let hang = if line.starts_with("- ") { 2 } else { 0 };
            self.words(line, indent, indent + hang);
        }
    }

    /// A flag in bold, wrapped; the further lines are indented.
    pub fn flag(&mut self, head: &str, indent: usize) {
        let start = self.text.len();
        self.words(head, indent, indent + 4);
        if self.styled {
            let lines = self.text.split_off(start);
            for line in lines.lines() {
                let bare = line.trim_start();
                let bold = self.style("1", bare);
                self.text.push_str(&line[..line.len() - bare.len()]);
                self.text.push_str(&bold);
                self.text.push('\n');
            }
        }
    }

    /// A flag, with what it does in a column of its own from `column` on.
    pub fn row(&mut self, head: &str, about: &str, column: usize) {
        if self.width < column + WIDTH_MIN / 2 || head.chars().count() + 4 > column {
            self.flag(head, 2);
            self.words(about, column.min(6), column.min(6));
            return;
        }
        let start = self.text.len();
        self.words(about, column, column);
        let lines = self.text.split_off(start);
        let bold = self.style("1", head);
        let gap = " ".repeat(column - 2 - head.chars().count());
        self.text
            .push_str(&format!("  {bold}{gap}{}", lines.trim_start()));
    }

    fn style(&self, code: &str, text: &str) -> String {
        if self.styled {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Adds `text` in words; a word that is too long for a line is cut.
    fn words(&mut self, text: &str, first: usize, further: usize) {
        let room = self.width.saturating_sub(first.max(further)).max(1);
        let mut indent = first;
        let mut line = String::new();
        for word in text.split_whitespace() {
            let letters: Vec<char> = word.chars().collect();
            for piece in letters.chunks(room) {
                let between = usize::from(!line.is_empty());
                let width = line.chars().count() + between + piece.len();
                if between > 0 && indent + width > self.width {
                    self.line(&line, indent);
                    line.clear();
                    indent = further;
                }
                if !line.is_empty() {
                    line.push(' ');
                }
                line.extend(piece);
            }
        }
        if !line.is_empty() {
            self.line(&line, indent);
        }
    }

    fn line(&mut self, line: &str, indent: usize) {
        self.text.push_str(&" ".repeat(indent));
        self.text.push_str(line);
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_cut() {
        for width in [40, 80, 100] {
            let mut page = Page::new(width, false);
            let long = format!("{} b\n- {}", "a".repeat(150), "c d ".repeat(70));
            page.paragraph(&long, 8);
            page.flag(&"--flag ".repeat(20), 2);
            page.row("-a, --all", &"e ".repeat(100), 26);
            page.row(&"-a".repeat(40), "f", 26);
            let text = page.into_text();
            assert!(
                text.lines().all(|line| line.chars().count() <= width),
                "{text}"
            );
            assert_eq!(text.matches('c').count(), 70);
        }
    }

    #[test]
    fn a_plain_page_has_no_escapes_and_a_styled_one_says_the_same() {
        let fill = |styled| {
            let mut page = Page::new(80, styled);
            page.heading("Title", "About it.");
            page.flag("-a, --all", 2);
            page.row("-b", "does b", 26);
            page.into_text()
        };
        let (plain, styled) = (fill(false), fill(true));
        assert!(!plain.contains('\x1b'));
        assert!(styled.contains("\x1b[1m-a, --all\x1b[0m"));
        let mut bare = styled;
        for code in ["\x1b[1;4m", "\x1b[1m", "\x1b[0m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, plain);
    }
}
