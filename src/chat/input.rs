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

/// What a complete text says: without the marks of a block, without the backslashes that
/// joined its lines or sent it.
pub(super) fn joined(text: &str, multiline: bool) -> String {
    let trimmed = text.trim();
    let block = trimmed
        .strip_prefix(BLOCK)
        .and_then(|rest| rest.strip_suffix(BLOCK));
    if let Some(inside) = block {
        let inside = inside.strip_prefix('\n').unwrap_or(inside);
        return inside.strip_suffix('\n').unwrap_or(inside).to_owned();
    }
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
            assert_eq!(joined(text, multiline), "a \\\n\n  b");
            assert_eq!(joined("\"\"\"one\"\"\" ", multiline), "one");
        }
    }
}
