//! The command line word by word: which words are our flags, which are upstream's, and
//! what is wrong with the others.

use std::ffi::{CString, OsString};

use super::flags::OwnFlags;
use crate::error::{Error, Result};
use crate::llama::OptionInfo;

/// The command line, sorted.
#[derive(Debug, Default)]
pub struct Words {
    /// Our flags with their values, as clap reads them.
    pub own: Vec<String>,
    /// Upstream's flags with their values.
    pub upstream: Vec<CString>,
    /// `--gpu-layers` as it was spelled, and its value: under paging it is ours.
    pub gpu_layers: Option<[CString; 2]>,
    /// The options among these: index in the list of options, and the word itself.
    pub used: Vec<(usize, String)>,
    /// The first flag that prints something and ends.
    pub prints: Option<usize>,
}

impl Words {
    /// The first value of each use of upstream's option `name`, in order.
    pub fn values_of(&self, name: &str, options: &[OptionInfo]) -> Vec<String> {
        let mut upstream = self.upstream.iter();
        let mut values = Vec::new();
        for (index, _) in &self.used {
            let option = &options[*index];
            if option.name() == "--gpu-layers" {
                continue;
            }
            // The flag itself, then its values.
            let mut words = upstream.by_ref().take(1 + option.arity.count());
            if let Some(value) = words.nth(1).filter(|_| option.name() == name) {
                values.push(value.to_string_lossy().into_owned());
            }
            words.for_each(drop);
        }
        values
    }
}

/// Sorts `args` (without the program's name).
///
/// # Errors
/// `Usage` for an unknown flag, with the nearest real one, and for a missing value.
pub fn sort(args: impl IntoIterator<Item = OsString>, options: &[OptionInfo]) -> Result<Words> {
    let mut words = Words::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (spelling(name), Some(value.to_owned())),
            None => (spelling(&text), None),
        };
        if let Some(takes_value) = OwnFlags::takes_value(&name) {
            words.own.push(match (takes_value, value) {
                (false, None) => name,
                (true, Some(value)) => format!("{name}={value}"),
                (true, None) => {
                    let value = args.next().ok_or_else(|| missing(&name))?;
                    format!("{name}={}", value.to_string_lossy())
                }
                (false, Some(_)) => {
                    return Err(Error::Usage(format!("option '{name}' takes no value")));
                }
            });
            continue;
        }
        let whole = spelling(&text);
        let Some(index) = options.iter().position(|option| option.is_spelled(&whole)) else {
            return Err(unknown(&text, &name, value.as_deref(), options));
        };
        if is_printing(&options[index]) {
            words.prints = Some(index);
            return Ok(words);
        }
        if options[index].name() == "--gpu-layers" {
            let value = args.next().ok_or_else(|| missing(&whole))?;
            words.gpu_layers = Some([c_string(arg)?, c_string(value)?]);
            words.used.push((index, whole));
            continue;
        }
        words.upstream.push(c_string(arg)?);
        for _ in 0..options[index].arity.count() {
            let value = args.next().ok_or_else(|| missing(&whole))?;
            words.upstream.push(c_string(value)?);
        }
        words.used.push((index, whole));
    }
    Ok(words)
}

/// Whether `args` ask for metrics on standard error, whatever else is wrong with them; a
/// text that is printed has none.
pub fn asks_for_metrics(args: &[OsString], options: &[OptionInfo]) -> bool {
    let variable = std::env::var("LLAMA_ARG_METRICS").unwrap_or_default();
    let mut asks = super::flags::parse_truth(&variable).unwrap_or(false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let word = spelling(&arg.to_string_lossy());
        let option = options.iter().find(|option| option.is_spelled(&word));
        let values = match (option, OwnFlags::takes_value(&word)) {
            (Some(option), _) if is_printing(option) => return false,
            (Some(option), _) => option.arity.count(),
            (None, takes_value) => usize::from(takes_value == Some(true)),
        };
        asks |= word == "--metrics";
        args.by_ref().take(values).for_each(drop);
    }
    asks
}

fn is_printing(option: &OptionInfo) -> bool {
    super::support::support(option.name()) == Some(super::support::Support::Prints)
}

/// Upstream reads `_` in a long flag as `-`.
fn spelling(arg: &str) -> String {
    if arg.starts_with("--") {
        arg.replace('_', "-")
    } else {
        arg.to_owned()
    }
}

fn c_string(arg: OsString) -> Result<CString> {
    CString::new(arg.into_encoded_bytes())
        .map_err(|_| Error::Usage("an argument contains a NUL".to_owned()))
}

fn missing(name: &str) -> Error {
    Error::Usage(format!("option '{name}' needs a value"))
}

fn unknown(text: &str, name: &str, value: Option<&str>, options: &[OptionInfo]) -> Error {
    if !text.starts_with('-') || text == "-" {
        return Error::Usage(format!(
            "unexpected argument '{text}'; a prompt goes behind -p"
        ));
    }
    let known = options.iter().any(|option| option.is_spelled(name));
    if let (true, Some(value)) = (known, value) {
        return Error::Usage(format!(
            "unknown option '{text}'; llama.cpp's options are written '{name} {value}'"
        ));
    }
    let near = nearest(name, options);
    Error::Usage(match near {
        Some(near) => format!("unknown option '{name}'; did you mean '{near}'?"),
        None => format!("unknown option '{name}'; --help lists them all"),
    })
}

/// The spelling that is most like `name`, if one is like it at all.
fn nearest(name: &str, options: &[OptionInfo]) -> Option<String> {
    let theirs = options
        .iter()
        .flat_map(|option| option.args.iter().chain(&option.args_neg));
    let all = OwnFlags::spellings().into_iter().chain(theirs.cloned());
    all.map(|spelling| {
        (
            strsim::normalized_damerau_levenshtein(name, &spelling),
            spelling,
        )
    })
    .max_by(|(left, _), (right, _)| left.total_cmp(right))
    .filter(|(likeness, _)| *likeness >= 0.6)
    .map(|(_, spelling)| spelling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_behind_their_own_flags_only() {
        crate::llama::log::start();
        let options = crate::llama::options().unwrap();
        let line = "-p --rpc -ngl 3 --rpc a:1 --control-vector-layer-range 1 2 --jinja --rpc b:2";
        let words = sort(line.split(' ').map(OsString::from), &options).unwrap();
        assert_eq!(words.values_of("--rpc", &options), ["a:1", "b:2"]);
        assert_eq!(words.values_of("--prompt", &options), ["--rpc"]);
        assert!(words.values_of("--jinja", &options).is_empty());
    }

    #[test]
    fn metrics_are_asked_for_by_the_flag_not_by_a_value() {
        crate::llama::log::start();
        let options = crate::llama::options().unwrap();
        let asks = |line: &str| {
            let args: Vec<_> = line.split(' ').map(OsString::from).collect();
            asks_for_metrics(&args, &options)
        };
        for line in [
            "--metrics",
            "--unknown --metrics",
            "-p x --metrics -n",
            "--metrics-file a --metrics",
            "--metrics --vram-budget",
        ] {
            assert!(asks(line), "{line}");
        }
        for line in [
            "-p --metrics",
            "--metrics-file --metrics",
            "--metrics --help",
            "--metrics=1",
            "",
        ] {
            assert!(!asks(line), "{line}");
        }
    }
}
