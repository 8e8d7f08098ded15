//! The command line word by word: which words are our flags, which are upstream's, and
//! what is wrong with the others.

use std::ffi::{CString, OsStr, OsString};
use std::path::PathBuf;

use super::flags::OwnFlags;
use super::help;
use super::nearest::nearest;
use super::printing::{Print, asked_for};
use crate::error::{Error, Result};
use crate::llama::{Arity, OptionInfo};

/// What may stand first in place of flags.
const SUBCOMMANDS: [&str; 3] = ["bench", "plan", "inspect"];

/// The command line, sorted.
#[derive(Debug, Default)]
pub struct Words {
    /// Our flags with their values, as clap reads them.
    pub own: Vec<OsString>,
    /// Upstream's flags with their values.
    pub upstream: Vec<CString>,
    /// `--gpu-layers` as it was spelled, and its value: under paging it is ours.
    pub gpu_layers: Option<[CString; 2]>,
    /// The options among these: index in the list of options, and the word itself.
    pub used: Vec<(usize, String)>,
    /// What the first flag that prints something and ends is to print.
    pub prints: Option<Print>,
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
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy().into_owned();
        let (name, value) = split(&text, options);
        let next = args.peek().map(|next| next.to_string_lossy().into_owned());
        if let Some(print) = asked_for(&name, value.as_deref(), next.as_deref(), options)? {
            words.prints = Some(print);
            return Ok(words);
        }
        if let Some(takes_value) = OwnFlags::takes_value(&name) {
            let value = match (takes_value, value) {
                (false, None) => None,
                (true, Some(_)) => behind_equals(&arg),
                (true, None) => Some(args.next().ok_or_else(|| missing(&name))?),
                (false, Some(_)) => return Err(takes_none(&name)),
            };
            let mut word = OsString::from(name);
            if let Some(value) = value {
                word.push("=");
                word.push(value);
            }
            words.own.push(word);
            continue;
        }
        let Some(index) = options.iter().position(|option| option.is_spelled(&name)) else {
            return Err(unknown(&text, &name, options));
        };
        let mut values: Vec<CString> = value_behind_equals(&arg, &name, options[index].arity)?;
        while values.len() < options[index].arity.count() {
            let value = args.next().ok_or_else(|| missing(&name))?;
            values.push(c_string(value)?);
        }
        let word = CString::new(name.as_str()).map_err(|_| contains_nul())?;
        words.used.push((index, name));
        if options[index].name() == "--gpu-layers" {
            words.gpu_layers = values.pop().map(|value| [word, value]);
            continue;
        }
        words.upstream.push(word);
        words.upstream.extend(values);
    }
    Ok(words)
}

/// The flag that `text` spells, and the value behind its equals sign.
fn split(text: &str, options: &[OptionInfo]) -> (String, Option<String>) {
    let whole = spelling(text);
    match text.split_once('=') {
        Some((name, value)) if !options.iter().any(|option| option.is_spelled(&whole)) => {
            (spelling(name), Some(value.to_owned()))
        }
        _ => (whole, None),
    }
}

/// What stands behind the first equals sign of a word, byte by byte.
#[cfg(unix)]
fn behind_equals(arg: &OsStr) -> Option<OsString> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = arg.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned())
}

/// What stands behind the first equals sign of a word.
#[cfg(not(unix))]
fn behind_equals(arg: &OsStr) -> Option<OsString> {
    let text = arg.to_string_lossy();
    let (_, value) = text.split_once('=')?;
    Some(OsString::from(value))
}

/// The value that stands in the same word as the flag `name` of upstream's, byte by byte.
fn value_behind_equals(arg: &OsString, name: &str, arity: Arity) -> Result<Vec<CString>> {
    let bytes = arg.as_encoded_bytes();
    let behind = bytes.get(name.len()).filter(|byte| **byte == b'=');
    match (behind, arity) {
        (None, _) => Ok(Vec::new()),
        (Some(_), Arity::One) => {
            let value = CString::new(&bytes[name.len() + 1..]).map_err(|_| contains_nul())?;
            Ok(vec![value])
        }
        (Some(_), Arity::Switch) => Err(takes_none(name)),
        (Some(_), Arity::Two) => Err(Error::Usage(format!(
            "option '{name}' takes two values; write them behind it, each as a word of its own"
        ))),
    }
}

/// Where metrics are wanted, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MetricsWanted {
    /// On standard error.
    pub on_stderr: bool,
    /// In this file.
    pub file: Option<PathBuf>,
    /// With indents.
    pub pretty: bool,
}

impl MetricsWanted {
    /// What the environment says.
    fn by_environment() -> Self {
        let is_true = |name| {
            let variable = std::env::var(name).unwrap_or_default();
            super::flags::parse_truth(&variable).unwrap_or(false)
        };
        Self {
            on_stderr: is_true("LLAMA_ARG_METRICS"),
            file: std::env::var_os("LLAMA_ARG_METRICS_FILE").map(PathBuf::from),
            pretty: is_true("LLAMA_ARG_METRICS_PRETTY"),
        }
    }
}

/// Which metrics `args` ask for, whatever else is wrong with them; a text that is printed has
/// none.
pub fn metrics_wanted(args: &[OsString], options: &[OptionInfo]) -> MetricsWanted {
    let mut wanted = MetricsWanted::by_environment();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        let (name, value) = split(&text, options);
        if !matches!(asked_for(&name, value.as_deref(), None, options), Ok(None)) {
            return MetricsWanted::default();
        }
        let option = options.iter().find(|option| option.is_spelled(&name));
        let values = match (option, OwnFlags::takes_value(&name)) {
            (Some(option), _) => option.arity.count(),
            (None, takes_value) => usize::from(takes_value == Some(true)),
        };
        wanted.on_stderr |= name == "--metrics" && value.is_none();
        wanted.pretty |= name == "--metrics-pretty" && value.is_none();
        let follow = values.saturating_sub(usize::from(value.is_some()));
        let last = args.by_ref().take(follow).last();
        if name == "--metrics-file" {
            let file = value.and_then(|_| behind_equals(arg));
            let file = file.or_else(|| last.cloned()).map(PathBuf::from);
            wanted.file = file.or(wanted.file);
        }
    }
    wanted
}

/// Upstream reads `_` in a long flag as `-`.
pub(super) fn spelling(arg: &str) -> String {
    if arg.starts_with("--") {
        arg.replace('_', "-")
    } else {
        arg.to_owned()
    }
}

fn c_string(arg: OsString) -> Result<CString> {
    CString::new(arg.into_encoded_bytes()).map_err(|_| contains_nul())
}

fn contains_nul() -> Error {
    Error::Usage("an argument contains a NUL".to_owned())
}

fn missing(name: &str) -> Error {
    Error::Usage(format!("option '{name}' needs a value"))
}

fn takes_none(name: &str) -> Error {
    Error::Usage(format!("option '{name}' takes no value"))
}

fn unknown(text: &str, name: &str, options: &[OptionInfo]) -> Error {
    if !text.starts_with('-') || text == "-" {
        if let Some(near) = nearest(text, SUBCOMMANDS.iter().copied()) {
            return Error::Usage(format!(
                "unexpected argument '{text}'; a prompt goes behind -p; did you mean '{near}', \
                 as the first word?"
            ));
        }
        return Error::Usage(format!(
            "unexpected argument '{text}'; a prompt goes behind -p"
        ));
    }
    let all = help::spellings(options);
    Error::Usage(match nearest(name, all.iter().map(String::as_str)) {
        Some(near) => format!("unknown option '{name}'; did you mean '{near}'?"),
        None => format!("unknown option '{name}'; --help-all lists them all"),
    })
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
            metrics_wanted(&args, &options)
        };
        for line in [
            "--metrics",
            "--unknown --metrics",
            "-p x --metrics -n",
            "--metrics-file a --metrics",
            "--metrics --vram-budget",
            "--prompt=x --metrics",
        ] {
            assert!(asks(line).on_stderr, "{line}");
        }
        for line in [
            "-p --metrics",
            "--metrics-file --metrics",
            "--metrics --help",
            "--metrics=1",
            "--metrics --man",
            "--metrics --completion zsh",
            "--metrics-file=a",
            "",
        ] {
            assert!(!asks(line).on_stderr, "{line}");
        }
        for (line, file) in [
            ("--metrics-file a --unknown", Some("a")),
            (
                "-n --metrics-file=a --metrics-file b --metrics-file=c",
                Some("c"),
            ),
            ("--unknown --metrics-file=a", Some("a")),
            ("--metrics-file a --metrics-file", Some("a")),
            ("-p --metrics-file a", None),
            ("--metrics-file a --help", None),
            ("--metrics-file", None),
        ] {
            assert_eq!(asks(line).file, file.map(PathBuf::from), "{line}");
        }
        assert!(asks("--metrics-pretty -x").pretty && !asks("-p --metrics-pretty").pretty);
    }

    #[cfg(unix)]
    #[test]
    fn names_of_files_are_bytes() {
        use std::os::unix::ffi::OsStringExt;
        crate::llama::log::start();
        let options = crate::llama::options().unwrap();
        let word = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let name = word(b"a\xff=b");
        for args in [
            vec![word(b"--metrics_file=a\xff=b")],
            vec![word(b"--metrics-file"), name.clone()],
        ] {
            let wanted = metrics_wanted(&args, &options);
            assert_eq!(wanted.file, Some(PathBuf::from(&name)), "{args:?}");
            let own = sort(args, &options).unwrap().own;
            assert_eq!(own, [word(b"--metrics-file=a\xff=b")]);
            let flags = OwnFlags::parse(&own).unwrap();
            assert_eq!(flags.metrics_file, Some(PathBuf::from(&name)));
        }
        let refused = OwnFlags::parse(&[word(b"--vram-budget=1\xff")]).unwrap_err();
        let sentence = refused.to_string();
        assert!(
            sentence.contains("'--vram-budget' got '1\u{fffd}'") && sentence.contains("UTF-8"),
            "{sentence}"
        );
    }
}
