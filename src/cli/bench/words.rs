//! The words of `bench`'s command line: llama-bench's short spellings become the long ones
//! that clap reads.

use std::ffi::OsString;

use clap::CommandFactory;

use super::flags::BenchFlags;
use crate::error::{Error, Result};

/// llama-bench's short spellings.
pub const SHORT: [(&str, &str); 38] = [
    ("-h", "--help"),
    ("-r", "--repetitions"),
    ("-o", "--output"),
    ("-oe", "--output-err"),
    ("-v", "--verbose"),
    ("-fitt", "--fit-target"),
    ("-fitc", "--fit-ctx"),
    ("-rpc", "--rpc"),
    ("-m", "--model"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
    ("-hff", "--hf-file"),
    ("-hft", "--hf-token"),
    ("-p", "--n-prompt"),
    ("-n", "--n-gen"),
    ("-pg", "--pg"),
    ("-d", "--n-depth"),
    ("-b", "--batch-size"),
    ("-ub", "--ubatch-size"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-dev", "--device"),
    ("-t", "--threads"),
    ("-C", "--cpu-mask"),
    ("-ngl", "--n-gpu-layers"),
    ("-ncmoe", "--n-cpu-moe"),
    ("-sm", "--split-mode"),
    ("-lm", "--load-mode"),
    ("-lzm", "--lazy-mode"),
    ("-mg", "--main-gpu"),
    ("-nkvo", "--no-kv-offload"),
    ("-fa", "--flash-attn"),
    ("-embd", "--embeddings"),
    ("-nopo", "--no-op-offload"),
    ("-ts", "--tensor-split"),
    ("-ot", "--override-tensor"),
    // As rpaged-cli itself spells them.
    ("--gpu-layers", "--n-gpu-layers"),
    ("--vram-budget", "--vram-budgets"),
];

/// Flags of rpaged-cli that a measurement has no use for.
const REFUSED: [(&str, &str); 8] = [
    (
        "--vram-budget-file",
        "a budget that changes cannot be measured; list some with --vram-budgets",
    ),
    (
        "--mem-pressure",
        "a budget that changes cannot be measured; list some with --vram-budgets",
    ),
    (
        "--metrics",
        "its results are records; see -o jsonl and --resume",
    ),
    (
        "--metrics-file",
        "its results are records; see -o jsonl and --resume",
    ),
    (
        "--metrics-interval",
        "its results are records; see -o jsonl and --resume",
    ),
    ("--metrics-pretty", "its results are records; see -o json"),
    (
        "--prompt",
        "its prompts are random tokens; -p gives their number",
    ),
    (
        "--ctx-size",
        "its contexts are as large as the tests need; see -p, -n and -d",
    ),
];

/// The words as clap reads them: one for each flag.
///
/// # Errors
/// `Usage` for an unknown flag, with the nearest real one, and for a missing value.
pub fn sort(args: impl IntoIterator<Item = OsString>) -> Result<Vec<String>> {
    let command = BenchFlags::command();
    let mut words = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (text.as_str(), None),
        };
        // As llama-bench: a long flag may be written with underscores.
        let name = if name.starts_with("--") {
            name.replace('_', "-")
        } else {
            name.to_owned()
        };
        let long = SHORT.iter().find(|(short, _)| *short == name);
        let long = long.map_or(name.as_str(), |(_, long)| *long).to_owned();
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == long) {
            return Err(Error::Usage(format!("'{name}' is no flag of bench: {why}")));
        }
        let found = command
            .get_arguments()
            .find(|argument| argument.get_long() == long.strip_prefix("--"));
        let Some(found) = found else {
            return Err(unknown(&name, &command));
        };
        match (found.get_action().takes_values(), value) {
            (false, None) => words.push(long),
            (false, Some(_)) => {
                return Err(Error::Usage(format!("option '{name}' takes no value")));
            }
            (true, Some(value)) => words.push(format!("{long}={value}")),
            (true, None) => {
                let value = args.next().ok_or_else(|| {
                    Error::Usage(format!("option '{name}' needs a value; see bench --help"))
                })?;
                words.push(format!("{long}={}", value.to_string_lossy()));
            }
        }
    }
    Ok(words)
}

/// The spelling on the command line of the flag that clap knows as `long`, for messages.
pub fn spelled(long: &str, args: &[String]) -> String {
    let is_there = |spelling: &str| {
        args.iter()
            .any(|arg| arg.split('=').next() == Some(spelling))
    };
    let short = SHORT
        .iter()
        .find(|(short, other)| *other == long && is_there(short));
    short.map_or(long, |(short, _)| *short).to_owned()
}

fn unknown(name: &str, command: &clap::Command) -> Error {
    if !name.starts_with('-') {
        return Error::Usage(format!(
            "unexpected argument '{name}'; a model goes behind -m, see bench --help"
        ));
    }
    let longs = command.get_arguments().filter_map(clap::Arg::get_long);
    let longs = longs.map(|long| format!("--{long}"));
    let shorts = SHORT.iter().map(|(short, _)| (*short).to_owned());
    let likeness = |spelling: String| {
        (
            strsim::normalized_damerau_levenshtein(name, &spelling),
            spelling,
        )
    };
    let nearest = longs
        .chain(shorts)
        .map(likeness)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .filter(|(likeness, _)| *likeness >= 0.6);
    Error::Usage(match nearest {
        Some((_, near)) => format!("unknown option '{name}' of bench; did you mean '{near}'?"),
        None => format!("unknown option '{name}' of bench; see bench --help"),
    })
}
