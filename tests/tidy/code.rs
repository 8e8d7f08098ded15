//! Rust source without its comments and literals: what the rules about code look at.

/// `source` with the contents of comments, strings and characters blanked. Lines stay
/// where they are.
pub fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = end_of_blank(&chars, at);
        if end == at {
            code.push(chars[at]);
            at += 1;
            continue;
        }
        code.extend(
            chars[at..end]
                .iter()
                .map(|&c| if c == '\n' { '\n' } else { ' ' }),
        );
        at = end;
    }
    code
}

/// The end of the comment or literal that begins at `at`; `at` itself where none does.
fn end_of_blank(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let in_word = at > 0 && is_word(chars[at - 1]);
    match rest {
        ['/', '/', ..] => at + rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => end_of_block_comment(chars, at),
        ['r', next, ..] if !in_word && matches!(next, '"' | '#') => end_of_raw(chars, at + 1),
        ['b' | 'c', 'r', next, ..] if !in_word && matches!(next, '"' | '#') => {
            end_of_raw(chars, at + 2)
        }
        ['"', ..] => end_of_quoted(chars, at, '"'),
        // A lifetime has no second quote after its first character.
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => end_of_quoted(chars, at, '\''),
        _ => at,
    }
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

/// `at` is behind the `r`; a raw identifier (`r#type`) is no literal and ends where it is.
fn end_of_raw(chars: &[char], at: usize) -> usize {
    let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
    let mut end = at + hashes;
    if chars.get(end) != Some(&'"') {
        return end;
    }
    end += 1;
    while end < chars.len() {
        let closing = chars[end + 1..]
            .iter()
            .take_while(|&&c| c == '#')
            .take(hashes)
            .count();
        if chars[end] == '"' && closing == hashes {
            return end + 1 + hashes;
        }
        end += 1;
    }
    end
}

fn end_of_quoted(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// Whether `c` can stand in an identifier.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `line` with no letter, digit or underscore at its ends.
pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The lines before the first `#[cfg(test)]`: what is built into the product.
pub fn product_lines(source: &str) -> usize {
    let test = source
        .lines()
        .position(|line| line.trim_start().starts_with("#[cfg(test)]"));
    test.unwrap_or_else(|| source.lines().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let kept = |source: &str| code_only(source).split_whitespace().collect::<String>();
        assert_eq!(kept("a // unsafe\nb"), "ab");
        assert_eq!(kept("a /* x /* unsafe */ y */ b"), "ab");
        assert_eq!(kept(r#"a("unsafe \" unsafe", b)"#), "a(,b)");
        assert_eq!(kept("a(r#\"unsafe \" unsafe\"#, br\"unsafe\") b"), "a(,)b");
        assert_eq!(kept("a('\"', '\\'', \"unsafe\")"), "a(,,)");
        assert_eq!(
            kept("fn f<'a>(x: &'a str) { unsafe }"),
            "fnf<'a>(x:&'astr){unsafe}"
        );
        assert_eq!(kept("\"never closed unsafe"), "");
    }

    #[test]
    fn lines_stay_where_they_are() {
        let source = "a\n/* b\n c */ d\n\"e\nf\" g\n";
        assert_eq!(code_only(source).lines().count(), source.lines().count());
        assert_eq!(code_only(source).lines().nth(4).map(str::trim), Some("g"));
    }

    #[test]
    fn a_word_has_ends() {
        assert!(has_word("unsafe {", "unsafe") && has_word("x=unsafe{", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe") && !has_word("notunsafe", "unsafe"));
    }

    #[test]
    fn tests_are_not_counted() {
        assert_eq!(product_lines("a\nb\n#[cfg(test)]\nmod tests {}\n"), 2);
        assert_eq!(product_lines("a\nb\n"), 2);
    }
}
