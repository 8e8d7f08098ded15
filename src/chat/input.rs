//! When typed text is complete, and what it then says.

/// Begins and ends a text of several lines.
const BLOCK: &str = "\"\"\"";

/// Whether `text` can be sent; otherwise Enter begins another line. `multiline`: a
/// backslash at the end sends, in place of asking for another line.
pub(super) fn is_complete(text: &str, multiline: bool) -> bool {
    if let Some(rest) = text.trim_start().strip_prefix(BLOCK) {
        return rest.trim_end().ends_with(BLOCK);
    }
    if text.trim().is_empty() || (text.starts_with('/') && !text.contains('\n')) {
        return true;
    }
    text.ends_with('\\') == multiline
}

/// What stands in a block, if a complete text is one: every character between its marks,
/// but for the ends of the lines that the marks stand on.
pub(super) fn block(text: &str) -> Option<&str> {
    let inside = text.trim().strip_prefix(BLOCK)?.strip_suffix(BLOCK)?;
    let inside = inside.strip_prefix('\n').unwrap_or(inside);
    Some(inside.strip_suffix('\n').unwrap_or(inside))
}

/// What a complete text that is no block says: without the backslashes that joined its
/// lines or sent it.
pub(super) fn joined(text: &str, multiline: bool) -> String {
    if multiline {
        return text.strip_suffix('\\').unwrap_or(text).to_owned();
    }
    text.replace("\\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_asks_for_another_line() {
        assert!(is_complete("Hello", false));
        assert!(!is_complete("Hello\\", false));
        assert!(is_complete("Hello\\\nthere", false));
        assert_eq!(joined("Hello\\\nthere", false), "Hello\nthere");
        assert_eq!(joined("C:\\dir", false), "C:\\dir");
    }

    #[test]
    fn with_multiline_input_a_backslash_sends() {
        assert!(!is_complete("Hello", true));
        assert!(!is_complete("Hello\nthere", true));
        assert!(is_complete("Hello\nthere\\", true));
        assert_eq!(joined("Hello\nthere\\", true), "Hello\nthere");
        for text in ["", "  ", "/help"] {
            assert!(is_complete(text, true), "{text:?}");
        }
    }

    #[test]
    fn a_block_is_taken_as_it_is() {
        for multiline in [false, true] {
            for text in ["\"\"\"", "\"\"\"a\\", "\"\"\"\na\n", " \"\"\"\"\""] {
                assert!(!is_complete(text, multiline), "{text:?}");
            }
            let text = "\"\"\"\na \\\n\n  b\n\"\"\"";
            assert!(is_complete(text, multiline));
            assert_eq!(block(text), Some("a \\\n\n  b"));
            assert_eq!(block("\"\"\"  one\"\"\" "), Some("  one"));
            assert_eq!(block("one \"\"\""), None);
        }
    }
}
