//! What an option takes as its value, as far as the parser's own texts tell: which words
//! there are, or whether it is a file.

use super::nearest::nearest;
use crate::llama::OptionInfo;

/// More words than these are not listed in a message.
const LISTED_MAX: usize = 12;

/// What follows a flag.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// Nothing.
    None,
    /// One of these words, or several of them.
    Words(Vec<String>),
    /// The name of a file.
    File,
    /// The name of a folder.
    Folder,
    /// Anything else.
    Other,
}

/// What follows `option`.
pub fn value_of(option: &OptionInfo) -> Value {
    let Some(hint) = option.value_hints.first() else {
        return Value::None;
    };
    let words = words(option);
    if !words.is_empty() {
        return Value::Words(words);
    }
    match (option.name(), hint.as_str()) {
        // The name of a file in a repository elsewhere.
        ("--hf-file", _) => Value::Other,
        ("--log-prompts-dir", _) | (_, "DIR") => Value::Folder,
        (_, "PATH" | "FILE" | "JINJA_TEMPLATE_FILE") => Value::File,
        (_, hint) if hint.starts_with("FNAME") => Value::File,
        _ => Value::Other,
    }
}

/// The words that `option` knows; empty where anything goes. They are read from the hints
/// and descriptions of llama.cpp's parser, which has no other list of them.
pub fn words(option: &OptionInfo) -> Vec<String> {
    let hint = option.value_hints.first().map_or("", String::as_str);
    let split = |text: &str, by: &[char]| -> Vec<String> {
        let parts = text.split(by).map(str::trim);
        parts
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let after = |text: &str| option.help.split_once(text).map(|(_, rest)| rest);
    match option.name() {
        "--spec-type" => return split(hint, &[',']),
        "--samplers" => {
            let list = after("(default: ").and_then(|rest| rest.split(')').next());
            return split(list.unwrap_or_default(), &[';']);
        }
        "--chat-template" => {
            let list = after("list of built-in templates:\n").map(|rest| {
                let line = rest.lines().next();
                line.unwrap_or_default()
            });
            return split(list.unwrap_or_default(), &[',']);
        }
        // The file's name stands there, not the template's.
        "--chat-template-file" => return Vec::new(),
        _ => {}
    }
    for (open, close) in [('{', '}'), ('[', ']'), ('<', '>')] {
        let inside = hint
            .strip_prefix(open)
            .and_then(|rest| rest.strip_suffix(close));
        let plain = |text: &&str| {
            !text.contains("..") && text.contains(['|', ',']) && !text.contains(['<', '['])
        };
        if let Some(inside) = inside.filter(plain) {
            return split(inside, &['|', ',']);
        }
    }
    if let Some(list) = after("allowed values: ").and_then(|rest| rest.lines().next()) {
        return split(list, &[',']);
    }
    let lines = option
        .help
        .lines()
        .filter_map(|line| line.strip_prefix("- "));
    let words = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(word, _)| word);
    words
        .filter(|word| !word.contains(char::is_whitespace))
        .map(str::to_owned)
        .collect()
}

/// What to say behind a refusal of `value`: the nearest word, or all of them.
pub fn advice(option: &OptionInfo, value: &str) -> String {
    if ["--device", "--spec-draft-device"].contains(&option.name()) {
        return "; --list-devices shows those that this program can use".to_owned();
    }
    let words = words(option);
    let known = |part: &str| words.iter().any(|word| word == part);
    let separator: &[char] = match option.name() {
        "--samplers" => &[';'],
        "--spec-type" => &[','],
        _ => &[],
    };
    let wrong = value
        .split(separator)
        .map(str::trim)
        .find(|part| !known(part));
    let (Some(wrong), false) = (wrong, words.is_empty()) else {
        return String::new();
    };
    if let Some(near) = nearest(wrong, words.iter().map(String::as_str)) {
        return format!("; did you mean '{near}'?");
    }
    if words.len() <= LISTED_MAX {
        return format!("; it takes {}", words.join(", "));
    }
    format!("; see --help {}", option.name().trim_start_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(name: &str) -> OptionInfo {
        crate::llama::log::start();
        let options = crate::llama::options().unwrap();
        let found = options.into_iter().find(|option| option.is_spelled(name));
        found.unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn the_words_of_an_option_are_found() {
        for (name, some, count) in [
            ("-fa", "auto", 3),
            ("-ctk", "q8_0", 9),
            ("--split-mode", "row", 4),
            ("--load-mode", "mmap+mlock", 6),
            ("--lazy-mode", "off", 3),
            ("--numa", "isolate", 3),
            ("--rope-scaling", "yarn", 3),
            ("--color", "on", 3),
            ("--log-colors", "on", 3),
            ("--fit", "off", 2),
            ("--reasoning-format", "deepseek", 3),
            ("--reasoning", "auto", 3),
            ("--spec-type", "ngram-simple", 11),
            ("--samplers", "top_k", 9),
            ("--cpu-strict", "1", 2),
        ] {
            let words = words(&option(name));
            assert!(words.iter().any(|word| word == some), "{name}: {words:?}");
            assert!(words.len() >= count, "{name}: {words:?}");
        }
        assert!(words(&option("--chat-template")).contains(&"chatml".to_owned()));
        for name in [
            "-p", "-n", "-m", "--temp", "-dev", "-hf", "-dr", "-ts", "--poll",
        ] {
            assert!(words(&option(name)).is_empty(), "{name}");
        }
    }

    #[test]
    fn files_and_folders_are_told_apart() {
        for (name, value) in [
            ("-m", Value::File),
            ("--lora-scaled", Value::File),
            ("--grammar-file", Value::File),
            ("-jf", Value::File),
            ("--chat-template-file", Value::File),
            ("--log-prompts-dir", Value::Folder),
            ("-hff", Value::Other),
            ("--verbose", Value::None),
        ] {
            assert_eq!(value_of(&option(name)), value, "{name}");
        }
    }

    #[test]
    fn a_wrong_word_is_met_with_the_nearest() {
        for (name, value, said) in [
            ("-ctk", "q8", "'q8_0'"),
            ("-fa", "offf", "'off'"),
            ("--numa", "distibute", "'distribute'"),
            ("--samplers", "top_k;top_q", "'top_"),
            ("--spec-type", "ngram-simpel", "'ngram-simple'"),
            ("--chat-template", "chatm", "'chatml'"),
            ("--lazy-mode", "sometimes", "on, auto, off"),
            ("--chat-template", "{{ messages }}", "--help chat-template"),
        ] {
            let advice = advice(&option(name), value);
            assert!(advice.contains(said), "{name} {value}: {advice}");
        }
        assert!(advice(&option("-dev"), "Vulkan0").contains("--list-devices"));
        assert_eq!(advice(&option("-n"), "4x"), "");
    }
}
