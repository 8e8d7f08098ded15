//! The manual page.

use clap::{Arg, ArgAction, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::completions::ONE_HYPHEN;
use super::entry::{Entry, entries};
use super::{ABOUT, EXAMPLES, EXIT_CODES, USAGE};
use crate::error::{Error, Result};
use crate::llama::OptionInfo;

/// Stands for a new line.
const BREAK: char = '\u{e001}';
/// Stands for a backslash, which roff would double.
const BACKSLASH: char = '\u{e002}';

const DESCRIPTION: &str = "\
rpaged-cli runs the models that llama.cpp runs, with the flags and the output of \
llama-completion. With --dynamic-layers and --paged-kv it moves weights and KV cache through \
memory of a fixed size while the model computes, so that a model may be larger than the memory \
it is given. What comes out stays the same.

A value follows its flag as a word of its own, or behind an equals sign. A flag that names an \
environment variable takes it as its default.";

/// The page, in roff.
///
/// # Errors
/// `Failed` when it cannot be put together.
pub fn manual(options: &[OptionInfo]) -> Result<String> {
    let entries = entries(options);
    let mut page = Vec::new();
    write(&entries, &mut page)
        .map_err(|error| Error::Failed(format!("could not write the manual page: {error}")))?;
    let page = String::from_utf8_lossy(&page).into_owned();
    // clap's two hyphens come before a head that has its own.
    let page = page.replace(&format!("\\-\\-{ONE_HYPHEN}"), "");
    let page = page.replace(BACKSLASH, "\\(rs");
    Ok(page.replace(BREAK, "\n.br\n"))
}

fn write(entries: &[Entry], page: &mut Vec<u8>) -> std::io::Result<()> {
    let man = Man::new(command(entries)).manual("User Commands");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    for (index, paragraph) in DESCRIPTION.split("\n\n").enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph)]);
    }
    roff.to_writer(page)?;
    man.render_options_section(page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, about) in EXIT_CODES {
        roff.control("TP", []);
        roff.text([bold(code)]);
        roff.text([roman(about)]);
    }
    roff.control("SH", ["FILES"]);
    roff.control("TP", []);
    roff.text([bold(
        "~/.config/llama.cpp/config.ini, /etc/llama.cpp/config.ini",
    )]);
    roff.text([roman(
        "Defaults of llama.cpp's flags, which all its programs read.",
    )]);
    roff.control("SH", ["EXAMPLES"]);
    for (line, about) in EXAMPLES {
        roff.control("TP", []);
        roff.text([bold(line)]);
        roff.text([roman(about)]);
    }
    roff.to_writer(page)
}

fn command(entries: &[Entry]) -> Command {
    let arguments = entries.iter().enumerate();
    Command::new("rpaged-cli")
        .about(ABOUT)
        .override_usage(USAGE)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(arguments.map(|(place, entry)| argument(entry, place)))
}

fn argument(entry: &Entry, place: usize) -> Arg {
    let about = entry.about.replace("\n- ", &format!("{BREAK}- "));
    let mut body = vec![
        about
            .replace('\n', " ")
            .replace('\\', &BACKSLASH.to_string()),
    ];
    body.extend(
        entry
            .example
            .iter()
            .map(|example| format!("Example: {example}")),
    );
    body.extend(entry.notes.iter().map(|note| format!("({note})")));
    body.extend(
        entry
            .env
            .iter()
            .map(|env| format!("Environment variable: {env}")),
    );
    let body = body.join(&BREAK.to_string());
    Arg::new(entry.name.clone())
        .long(format!("{ONE_HYPHEN}{}", entry.head()))
        .action(ArgAction::SetTrue)
        .help(body)
        .help_heading(entry.topic.heading())
        .display_order(place)
}
