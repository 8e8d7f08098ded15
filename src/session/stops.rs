//! The strings that end a text, or give control back to the user (`-r`).

use crate::error::Result;
use crate::llama::{Session, Token};

/// Tokens that are looked at for such a string.
const TAIL_TOKENS: i32 = 32;
/// Bytes by which the string may end before the text's end where nobody will type on: the
/// token that completes it may bring a few letters more.
const TAIL_SLACK: usize = 2;

/// The strings, and what is known of them.
pub(super) struct Stops {
    strings: Vec<Vec<u8>>,
    /// Those that are one token.
    tokens: Vec<Token>,
}

impl Stops {
    /// Finds out which of the strings are one token.
    pub fn new(session: &Session, strings: Vec<Vec<u8>>) -> Result<Self> {
        let mut tokens = Vec::new();
        for string in &strings {
            if let [token] = session.tokenize(string, false)?[..] {
                tokens.push(token);
            }
        }
        Ok(Self { strings, tokens })
    }

    /// The first string, which stands for the end of an answer.
    pub fn first(&self) -> Option<&[u8]> {
        self.strings.first().map(Vec::as_slice)
    }

    /// All strings.
    pub fn strings(&self) -> &[Vec<u8>] {
        &self.strings
    }

    /// Whether the text so far ends in one of them.
    pub fn are_met(&self, session: &mut Session, interactive: bool) -> Result<bool> {
        let tail = session.last_text(TAIL_TOKENS)?;
        let slack = if interactive { 0 } else { TAIL_SLACK };
        if self.strings.iter().any(|stop| ends_in(&tail, stop, slack)) {
            return Ok(true);
        }
        let last = session.last_token().filter(|_| !tail.is_empty());
        Ok(last.is_some_and(|last| self.tokens.contains(&last)))
    }
}

/// Whether `wanted` occurs at the end of `tail`, give or take `slack` bytes.
fn ends_in(tail: &[u8], wanted: &[u8], slack: usize) -> bool {
    let start = tail.len().saturating_sub(wanted.len() + slack);
    wanted.is_empty()
        || tail[start..]
            .windows(wanted.len())
            .any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_found_with_slack() {
        assert!(ends_in(b"and so on.", b"on.", 2));
        assert!(ends_in(b"and so on.\n\n", b"on.", 2));
        assert!(!ends_in(b"and so on.\n\nx", b"on.", 2));
        assert!(!ends_in(b"and so on.\n", b"on.", 0));
        assert!(ends_in(b"and so on.", b"on.", 0));
        assert!(ends_in(b"abc", b"", 0));
        assert!(!ends_in(b"a", b"abc", 2));
        assert!(ends_in(b"", b"", 2));
    }
}
