//! Every text about flags, made of one source: our flags as clap has them, llama.cpp's as
//! its parser lists them, and the table of what becomes of those ([`super::support`]).
//!
//! [`Entry`] is a flag as the texts show it, [`Topic`] is what it is about; `short`, `full`,
//! `manual` and `completions` are the texts.

mod completions;
mod entry;
mod full;
mod manual;
mod page;
mod short;
mod topics;

pub use completions::completion;
pub use entry::{Entry, entries};
pub use manual::manual;
pub use page::Page;
pub use topics::Topic;

use super::flags::OwnFlags;
use super::printing::{About, FLAGS};
use crate::error::Result;
use crate::llama::{self, OptionInfo};

/// What the program is, in one line.
const ABOUT: &str = "llama.cpp's llama-completion for models larger than the memory they are given";

/// How it is called.
const USAGE: &str = "rpaged-cli -m MODEL [-no-cnv] [-p PROMPT] [FLAG...]";

/// Command lines to begin with, and what they do.
pub const EXAMPLES: [(&str, &str); 7] = [
    (
        "rpaged-cli --demo",
        "a story, by a model inside the program",
    ),
    (
        "rpaged-cli -m model.gguf -no-cnv -p \"Once upon a time\"",
        "a text, as llama-completion writes it",
    ),
    (
        "rpaged-cli -m big.gguf -no-cnv -p \"Once\" --dynamic-layers --vram-budget 4G",
        "a model of any size in 4 GiB",
    ),
    (
        "rpaged-cli -m chat.gguf --dynamic-layers --vram-budget 50%",
        "a chat, where the model has a template and this is a terminal",
    ),
    (
        "rpaged-cli plan -m big.gguf --vram-budget 4G",
        "what would stay, travel and take how long; see plan --help",
    ),
    ("rpaged-cli inspect big.gguf", "what is in a model's file"),
    (
        "rpaged-cli bench -m big.gguf --vram-budgets 25%,50%,110%",
        "speeds over budgets, as llama-bench; see bench --help",
    ),
];

/// The exit codes, and when they occur.
const EXIT_CODES: [(&str, &str); 10] = [
    ("0", "the text is complete"),
    ("1", "a file, a model, a device or a computation failed"),
    ("2", "the command line cannot be understood"),
    ("3", "it is understood, but not built yet"),
    ("4", "the budget, or the memory there is, does not suffice"),
    ("70", "a bug, or llama.cpp aborted"),
    (
        "129",
        "the terminal was closed; what was generated has been printed",
    ),
    ("130", "Ctrl-C; what was generated has been printed"),
    ("141", "nobody reads standard output any more"),
    (
        "143",
        "a termination signal; what was generated has been printed",
    ),
];

/// The help about what was asked for, on `page`.
pub fn help(options: &[OptionInfo], about: &About, mut page: Page) -> String {
    let entries = entries(options);
    match about {
        About::Most => short::write(&mut page, &entries),
        About::Everything => full::everything(&mut page, &entries),
        About::Topic(topic) => full::topic(&mut page, &entries, *topic),
        About::Option(name) => full::option(&mut page, &entries, name),
    }
    page.into_text()
}

/// All spellings of all flags, ours first.
pub fn spellings(options: &[OptionInfo]) -> Vec<String> {
    let theirs = options
        .iter()
        .flat_map(|option| option.args.iter().chain(&option.args_neg));
    let printing = FLAGS.iter().map(|flag| flag.name.to_owned());
    let own = OwnFlags::spellings().into_iter();
    own.chain(printing).chain(theirs.cloned()).collect()
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

#[cfg(test)]
mod tests;
