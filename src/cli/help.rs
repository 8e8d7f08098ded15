//! Texts of `--help`, `--version` and `--completion-bash`.

use clap::CommandFactory;

use super::flags::OwnFlags;
use crate::error::Result;
use crate::llama::{self, OptionInfo};

const WIDTH: usize = 80;
pub(super) const INDENT: usize = 8;
/// Blanks in front of a line that are kept.
const INDENT_OWN_MAX: usize = 4;

/// The whole help, at most 80 columns wide: ours first, then upstream's options in
/// upstream's sections.
pub fn help(options: &[OptionInfo]) -> String {
    let mut text = String::from(
        "rpaged-cli: llama.cpp's llama-completion for models larger than the memory\n\
         they are given.\n\n\
         \x20 rpaged-cli --demo                           a story, from a model inside\n\
         \x20 rpaged-cli -m MODEL -no-cnv -p PROMPT       a text, as llama-completion does\n\
         \x20 rpaged-cli -m MODEL -no-cnv -p PROMPT --dynamic-layers --vram-budget 4G\n\
         \x20 rpaged-cli bench --help                     speeds, as llama-bench does\n\n\
         ----- paging -----\n\n",
    );
    for argument in OwnFlags::command().get_arguments() {
        let Some(long) = argument.get_long() else {
            continue;
        };
        let names = argument.get_value_names().unwrap_or_default();
        let hint: String = if argument.get_action().takes_values() {
            names.iter().map(|name| format!(" {name}")).collect()
        } else {
            String::new()
        };
        text.push_str(&format!("--{long}{hint}\n"));
        let about = argument
            .get_long_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let (about, example) = about.split_once("\n\n").unwrap_or((about.as_str(), ""));
        wrap(&mut text, &about.replace('\n', " "), INDENT);
        wrap(&mut text, &format!("e.g. {}", example.trim()), INDENT);
        if let Some(env) = argument.get_env() {
            wrap(
                &mut text,
                &format!("(env: {})", env.to_string_lossy()),
                INDENT,
            );
        }
    }
    text.push_str("\nExit codes: 0 done, 1 failed, 2 usage, 3 not built yet, 4 memory, 70 bug,\n");
    text.push_str("130 Ctrl-C, 141 output closed, 143 terminated.\n");
    text.push_str("What follows are llama.cpp's own options.\n");
    for section in [
        "common params",
        "sampling params",
        "speculative params",
        "completion params",
        "llama-cli params",
    ] {
        let mut inside = options
            .iter()
            .filter(|option| option.section == section)
            .peekable();
        if inside.peek().is_some() {
            text.push_str(&format!("\n----- {section} -----\n\n"));
        }
        for option in inside {
            add_option(&mut text, option);
        }
    }
    text
}

fn add_option(text: &mut String, option: &OptionInfo) {
    let spellings: Vec<_> = option
        .args
        .iter()
        .chain(&option.args_neg)
        .map(String::as_str)
        .collect();
    let mut line = spellings.join(", ");
    for hint in &option.value_hints {
        line.push(' ');
        line.push_str(hint);
    }
    wrap(text, &line, 0);
    for line in option.help.lines() {
        wrap(text, &without_links(line), INDENT);
    }
    if let Some(super::support::Support::Refused(what)) = super::support::support(option.name()) {
        wrap(text, &format!("(not built yet: {what})"), INDENT);
    }
}

/// Markdown links give way to their addresses' absence: a terminal cannot follow them,
/// and they are wider than it.
fn without_links(line: &str) -> String {
    let mut rest = line;
    let mut out = String::new();
    while let Some(start) = rest.find("[(more info)](") {
        out.push_str(&rest[..start]);
        rest = rest[start..]
            .split_once("](")
            .map_or("", |(_, after)| after);
        rest = rest.split_once(')').map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out
}

/// Adds `line` in words, each line starting with `indent` blanks; a word that is too long
/// for a line is cut.
pub(super) fn wrap(text: &mut String, line: &str, indent: usize) {
    let room = WIDTH - indent;
    let blanks = " ".repeat(indent);
    let kept = line.len() - line.trim_start().len();
    let mut current = " ".repeat(kept.min(INDENT_OWN_MAX));
    let mut empty = true;
    let mut lines = Vec::new();
    for word in line.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(room - INDENT_OWN_MAX) {
            let piece: String = piece.iter().collect();
            let width = current.chars().count() + usize::from(!empty) + piece.chars().count();
            if width > room && !empty {
                lines.push(std::mem::take(&mut current));
                empty = true;
            }
            if !empty {
                current.push(' ');
            }
            current.push_str(&piece);
            empty = false;
        }
    }
    if !empty {
        lines.push(current);
    }
    for line in lines {
        text.push_str(&blanks);
        text.push_str(&line);
        text.push('\n');
    }
}

/// What `--version` prints.
///
/// # Errors
/// `Failed` when llama.cpp does not tell its version.
pub fn version() -> Result<String> {
    let own = option_env!("RPAGED_VERSION_STAMP").unwrap_or(env!("CARGO_PKG_VERSION"));
    let theirs = llama::build_info()?;
    let (ggml, carrier) = (ggml_sys::GGML_VERSION, ggml_sys::LLAMA_CPP_SYS_VERSION);
    Ok(format!(
        "rpaged-cli {own}\n{theirs}\nggml {ggml}, from llama-cpp-sys-2 {carrier}\n"
    ))
}

/// A script that teaches bash our flags and upstream's.
pub fn completion_bash(options: &[OptionInfo]) -> String {
    let mut words = OwnFlags::spellings();
    for option in options {
        words.extend(option.args.iter().chain(&option.args_neg).cloned());
    }
    let words = words.join(" ");
    format!(
        "_rpaged_cli() {{\n\
         \x20   local word=\"${{COMP_WORDS[COMP_CWORD]}}\"\n\
         \x20   case \"${{COMP_WORDS[COMP_CWORD-1]}}\" in\n\
         \x20       -m|--model) local files='!*.gguf' ;;\n\
         \x20       --grammar-file) local files='!*.gbnf' ;;\n\
         \x20       -f|--file|-bf|--binary-file|-jf|--log-file) local files='' ;;\n\
         \x20       *) COMPREPLY=($(compgen -W \"{words}\" -- \"$word\")); return ;;\n\
         \x20   esac\n\
         \x20   COMPREPLY=($(compgen -f -X \"$files\" -- \"$word\") $(compgen -d -- \"$word\"))\n\
         }}\n\
         complete -o filenames -F _rpaged_cli rpaged-cli\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_cut() {
        let mut text = String::new();
        wrap(
            &mut text,
            &format!("  {} b {}", "a".repeat(100), "c".repeat(70)),
            8,
        );
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert_eq!(text.matches('a').count(), 100);
    }

    #[test]
    fn links_are_left_out() {
        assert_eq!(without_links("x[(more info)](https://a.b/c) y"), "x y");
    }
}
