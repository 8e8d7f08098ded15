//! Our own flags, typed by clap. They are taken out of the command line before
//! llama.cpp's parser sees the rest.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};

use super::size::parse_budget;
use crate::device::{Budget, Cold};
use crate::error::{Error, Result};

/// Layers beyond this number are a typing error: no model has so many.
const LAYERS_MAX: u32 = 9999;

/// Our own flags. The first paragraph of each is its help, the second an example.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "rpaged-cli",
    disable_help_flag = true,
    disable_version_flag = true
)]
#[command(args_override_self = true)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct OwnFlags {
    /// Page the weights: layers that do not fit the budget travel through it while the
    /// model computes.
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers
    #[arg(long, env = "LLAMA_ARG_DYNAMIC_LAYERS", value_parser = parse_truth)]
    pub dynamic_layers: bool,

    /// Page the KV cache: a long context needs no more memory than the budget.
    ///
    /// rpaged-cli -m big.gguf -no-cnv -f book.txt -c 65536 --paged-kv
    #[arg(long, env = "LLAMA_ARG_PAGED_KV", value_parser = parse_truth)]
    pub paged_kv: bool,

    /// Memory that paging may take, a GPU's where one computes: MiB, or with a unit (K, M, G,
    /// KiB, MiB, GiB), or a share of the model in percent (default: auto, most of what is
    /// free).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --vram-budget 4G
    #[arg(long, value_name = "SIZE", env = "LLAMA_ARG_VRAM_BUDGET")]
    #[arg(value_parser = parse_budget, allow_hyphen_values = true)]
    pub vram_budget: Option<Budget>,

    /// Read the budget from this file, in place of --vram-budget: at the start, and again
    /// at each SIGUSR1 while the model generates.
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --vram-budget-file size
    #[arg(long, value_name = "PATH", env = "LLAMA_ARG_VRAM_BUDGET_FILE")]
    #[arg(allow_hyphen_values = true)]
    pub vram_budget_file: Option<PathBuf>,

    /// The share of memory in use (machine, control group or GPU, 0 to 1) above which the
    /// budget shrinks; it grows again when memory is free (default: 0.85; GPU: 0.95).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --mem-pressure 0.7
    #[arg(long, value_name = "F", env = "LLAMA_ARG_MEM_PRESSURE")]
    #[arg(value_parser = parse_share, allow_hyphen_values = true)]
    pub mem_pressure: Option<f64>,

    /// Layers whose weights stay in memory, counted from 0: numbers and ranges.
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --pin-layers 0,15,30-31
    #[arg(long, value_name = "LIST", env = "LLAMA_ARG_PIN_LAYERS")]
    #[arg(value_parser = parse_layers, allow_hyphen_values = true)]
    pub pin_layers: Option<Layers>,

    /// Who computes with weights that a GPU has no room for: cpu (feed-forward blocks),
    /// stream (the GPU) or auto (default: auto).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --device CUDA0 --cold cpu
    #[arg(long, value_name = "WHO", env = "LLAMA_ARG_COLD")]
    #[arg(value_parser = parse_cold, allow_hyphen_values = true)]
    pub cold: Option<Cold>,

    /// Fetch the next layers while one computes (the default with paging).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --async-prefetch
    #[arg(long, env = "LLAMA_ARG_ASYNC_PREFETCH", value_parser = parse_truth)]
    pub async_prefetch: bool,

    /// Copy only when a layer is needed; the output is the same, slower.
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --no-async-prefetch
    #[arg(long, env = "LLAMA_ARG_NO_ASYNC_PREFETCH", value_parser = parse_truth)]
    pub no_async_prefetch: bool,

    /// Layers fetched ahead of the one that computes, 1 to 64 (default: 1).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --prefetch-depth 2
    #[arg(long, value_name = "N", env = "LLAMA_ARG_PREFETCH_DEPTH")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64), allow_hyphen_values = true)]
    pub prefetch_depth: Option<u32>,

    /// Threads that copy, 1 to 64 (default: 2).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --prefetch-threads 4
    #[arg(long, value_name = "N", env = "LLAMA_ARG_PREFETCH_THREADS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64), allow_hyphen_values = true)]
    pub prefetch_threads: Option<u16>,

    /// Tokens of one page of the KV cache, 16 to 8192 (default: 256).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -f book.txt -c 65536 --paged-kv --kv-page-size 64
    #[arg(long, value_name = "N", env = "LLAMA_ARG_KV_PAGE_SIZE")]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=8192), allow_hyphen_values = true)]
    pub kv_page_size: Option<u32>,

    /// Folder for the file to which the KV cache spills (default: the system's temporary
    /// folder). The file has no name and vanishes with the program.
    ///
    /// rpaged-cli -m big.gguf -no-cnv -f book.txt -c 65536 --paged-kv --spill-dir /var/tmp
    #[arg(long, value_name = "PATH", env = "LLAMA_ARG_SPILL_DIR")]
    #[arg(allow_hyphen_values = true)]
    pub spill_dir: Option<PathBuf>,

    /// Write metrics to standard error as JSON Lines; everything else that would stand
    /// there becomes an object as well.
    ///
    /// rpaged-cli --demo --metrics 2>&1 >/dev/null | jq .
    #[arg(long, env = "LLAMA_ARG_METRICS", value_parser = parse_truth)]
    pub metrics: bool,

    /// Write metrics to this file as JSON Lines.
    ///
    /// rpaged-cli --demo --metrics-file run.jsonl
    #[arg(long, value_name = "PATH", env = "LLAMA_ARG_METRICS_FILE")]
    #[arg(allow_hyphen_values = true)]
    pub metrics_file: Option<PathBuf>,

    /// Tokens from one record of the metrics to the next (default: 1).
    ///
    /// rpaged-cli --demo --metrics --metrics-interval 16
    #[arg(long, value_name = "N", env = "LLAMA_ARG_METRICS_INTERVAL")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..), allow_hyphen_values = true)]
    pub metrics_interval: Option<u32>,

    /// Indent the metrics' objects.
    ///
    /// rpaged-cli --demo --metrics --metrics-pretty
    #[arg(long, env = "LLAMA_ARG_METRICS_PRETTY", value_parser = parse_truth)]
    pub metrics_pretty: bool,

    /// Keep what is typed in the chat at a terminal in this file; 'none': nowhere (default:
    /// rpaged/chat-history in the user's data folder).
    ///
    /// rpaged-cli -m model.gguf --chat-history none
    #[arg(long, value_name = "PATH", env = "LLAMA_ARG_CHAT_HISTORY")]
    #[arg(allow_hyphen_values = true)]
    pub chat_history: Option<PathBuf>,

    /// Use the small model inside this program in place of -m; without a prompt, tell a
    /// story with half of the model's size as memory.
    ///
    /// rpaged-cli --demo
    #[arg(long, env = "LLAMA_ARG_DEMO", value_parser = parse_truth)]
    pub demo: bool,

    /// Which of the two prefetch flags the command line gave last.
    #[arg(skip)]
    pub prefetch_flag: Option<bool>,

    /// The flags that stand on the command line, the others are from the environment.
    #[arg(skip)]
    pub on_command_line: Vec<String>,
}

/// Numbers of layers, each once, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers(pub Vec<u32>);

/// A truth value, as upstream's environment variables spell it.
pub(super) fn parse_truth(text: &str) -> std::result::Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "true" | "enabled" | "yes" => Ok(true),
        "0" | "off" | "false" | "disabled" | "no" | "" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

/// A share from 0 to 1.
fn parse_share(text: &str) -> std::result::Result<f64, String> {
    let share = text.trim().parse().ok();
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "give a share from 0 to 1, as in 0.85".to_owned())
}

/// Numbers and ranges, as in `0,15,30-31`.
pub(super) fn parse_layers(text: &str) -> std::result::Result<Layers, String> {
    let wrong = || "give layers as in '0,15,30-31'".to_owned();
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
    let mut layers = std::collections::BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if last > LAYERS_MAX {
            return Err(format!("no model has a layer {last}"));
        }
        if first > last {
            return Err(format!("the range {first}-{last} is empty"));
        }
        layers.extend(first..=last);
    }
    Ok(Layers(layers.into_iter().collect()))
}

impl OwnFlags {
    /// Whether the flags name `arg` (without a value), and whether it takes one.
    pub fn takes_value(arg: &str) -> Option<bool> {
        let name = arg.strip_prefix("--")?;
        let command = Self::command();
        let found = command
            .get_arguments()
            .find(|found| found.get_long() == Some(name))?;
        Some(found.get_action().takes_values())
    }

    /// All spellings.
    pub fn spellings() -> Vec<String> {
        let command = Self::command();
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        longs.map(|long| format!("--{long}")).collect()
    }

    /// Reads the flags (without a program name) and their environment variables.
    ///
    /// # Errors
    /// `Usage` when a value is wrong.
    pub fn parse(args: &[OsString]) -> Result<Self> {
        let words = std::iter::once(OsStr::new("rpaged-cli"));
        let words = words.chain(args.iter().map(OsString::as_os_str));
        let matches = Self::command()
            .try_get_matches_from(words)
            .map_err(|error| say(&error, args))?;
        let mut flags = Self::from_arg_matches(&matches).map_err(|error| say(&error, args))?;
        flags.prefetch_flag = args.iter().rev().find_map(|arg| match arg.to_str() {
            Some("--async-prefetch") => Some(true),
            Some("--no-async-prefetch") => Some(false),
            _ => None,
        });
        flags.on_command_line = on_command_line(&matches);
        flags.settle_budget()?;
        Ok(flags)
    }

    /// Whether layers are fetched ahead: the last flag, else the environment, else yes.
    pub fn prefetch(&self) -> bool {
        let from_environment = || match (self.async_prefetch, self.no_async_prefetch) {
            (_, true) => false,
            (true, false) => true,
            (false, false) => std::env::var_os("LLAMA_ARG_ASYNC_PREFETCH").is_none(),
        };
        self.prefetch_flag.unwrap_or_else(from_environment)
    }

    fn is_on_command_line(&self, flag: &str) -> bool {
        self.on_command_line.iter().any(|word| word == flag)
    }

    /// Two words on the budget: the one on the command line wins, two there contradict
    /// each other.
    fn settle_budget(&mut self) -> Result<()> {
        if self.vram_budget.is_none() || self.vram_budget_file.is_none() {
            return Ok(());
        }
        let size = self.is_on_command_line("--vram-budget");
        let file = self.is_on_command_line("--vram-budget-file");
        match (size, file) {
            (true, false) => self.vram_budget_file = None,
            (false, true) => self.vram_budget = None,
            (true, true) => {
                return Err(Error::Usage(
                    "'--vram-budget' and '--vram-budget-file' both say the budget; give one of \
                     them"
                        .to_owned(),
                ));
            }
            (false, false) => {
                return Err(Error::Usage(
                    "the environment variables 'LLAMA_ARG_VRAM_BUDGET' and \
                     'LLAMA_ARG_VRAM_BUDGET_FILE' both say the budget; set one of them"
                        .to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// Refuses flags on the command line that do something only in the chat at a terminal.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check_no_chat(&self) -> Result<()> {
        if !self.is_on_command_line("--chat-history") {
            return Ok(());
        }
        Err(Error::Usage(
            "'--chat-history' is for the chat at a terminal, which this is not".to_owned(),
        ))
    }

    /// Refuses flags on the command line that lack another one, without which they would
    /// do nothing. A variable only sets a default.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check_needs(&self) -> Result<()> {
        let needs: [(&[&str], bool, &str); 4] = [
            (
                PAGING,
                self.dynamic_layers || self.paged_kv,
                "paging; add --dynamic-layers (weights), --paged-kv (KV cache) or both",
            ),
            (
                &["--pin-layers", "--cold"],
                self.dynamic_layers,
                "paged weights; add --dynamic-layers",
            ),
            (
                &["--kv-page-size", "--spill-dir"],
                self.paged_kv,
                "a paged KV cache; add --paged-kv",
            ),
            (
                &["--metrics-interval", "--metrics-pretty"],
                self.metrics || self.metrics_file.is_some(),
                "metrics; add --metrics or --metrics-file",
            ),
        ];
        let lacking = needs.iter().filter(|(_, is_there, _)| !is_there);
        for (flags, _, what) in lacking {
            if let Some(flag) = flags.iter().find(|flag| self.is_on_command_line(flag)) {
                return Err(Error::Usage(format!("'{flag}' needs {what}")));
            }
        }
        Ok(())
    }
}

/// Who computes with cold weights.
pub fn parse_cold(text: &str) -> std::result::Result<Cold, String> {
    let mut all = [Cold::Cpu, Cold::Stream, Cold::Auto].into_iter();
    all.find(|cold| cold.word() == text.trim())
        .ok_or_else(|| "it is one of cpu, stream and auto".to_owned())
}

/// The flags that do something only with paging.
const PAGING: &[&str] = &[
    "--vram-budget",
    "--vram-budget-file",
    "--mem-pressure",
    "--prefetch-threads",
    "--prefetch-depth",
    "--async-prefetch",
    "--no-async-prefetch",
];

/// The flags that came from the command line, by their spellings.
fn on_command_line(matches: &ArgMatches) -> Vec<String> {
    let command = OwnFlags::command();
    let given = command
        .get_arguments()
        .filter(|arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine))
        .filter_map(clap::Arg::get_long);
    given.map(|long| format!("--{long}")).collect()
}

/// clap's complaint as one sentence of ours; it names the variable when the value is not
/// among `args`.
fn say(error: &clap::Error, args: &[OsString]) -> Error {
    use clap::error::{ContextKind, ErrorKind};
    let shown = |arg: &OsString| arg.to_string_lossy().into_owned();
    let garbled = args.iter().find(|arg| arg.to_str().is_none()).map(shown);
    let garbled = garbled.filter(|_| error.kind() == ErrorKind::InvalidUtf8);
    if let Some((option, value)) = garbled.as_ref().and_then(|arg| arg.split_once('=')) {
        return Error::Usage(format!("option '{option}' got '{value}': it is no UTF-8"));
    }
    let text = |kind| error.get(kind).map(ToString::to_string);
    let option = text(ContextKind::InvalidArg).unwrap_or_default();
    let option = option.split_whitespace().next().unwrap_or("an option");
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let reason = std::error::Error::source(error).map(ToString::to_string);
    let reason = reason.unwrap_or_else(|| error.kind().to_string());
    let is_there = args
        .iter()
        .any(|arg| shown(arg).split('=').next() == Some(option));
    let command = OwnFlags::command();
    let argument = command
        .get_arguments()
        .find(|argument| argument.get_long() == option.strip_prefix("--"));
    let variable = argument.and_then(clap::Arg::get_env).filter(|_| !is_there);
    Error::Usage(match variable {
        Some(variable) => format!(
            "environment variable '{}' is '{value}': {reason}",
            variable.to_string_lossy()
        ),
        None => format!("option '{option}' got '{value}': {reason}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        let read = |text| parse_layers(text).map(|layers| layers.0);
        assert_eq!(read("0,15,31"), Ok(vec![0, 15, 31]));
        assert_eq!(read(" 3-5 , 1,4"), Ok(vec![1, 3, 4, 5]));
        for text in ["", ",", "x", "1-", "-1", "5-3", "1,,2", "0-99999", "1.5"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_from_0_to_1() {
        assert_eq!(parse_share("0.7"), Ok(0.7));
        assert_eq!(parse_share(" 1 "), Ok(1.0));
        for text in ["", "1.1", "-0.1", "NaN", "85%", "inf"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_flag_has_its_variable() {
        let command = OwnFlags::command();
        for argument in command.get_arguments() {
            let long = argument.get_long().unwrap();
            let name = long.to_uppercase().replace('-', "_");
            let variable = argument.get_env().unwrap().to_string_lossy();
            assert_eq!(variable, format!("LLAMA_ARG_{name}"));
        }
    }

    #[test]
    fn flags_say_what_they_lack() {
        let check = |args: &[&str]| {
            let args: Vec<_> = args.iter().map(OsString::from).collect();
            OwnFlags::parse(&args).and_then(|flags| flags.check_needs())
        };
        for (args, missing) in [
            (&["--mem-pressure=0.5"][..], "--paged-kv"),
            (&["--pin-layers=1", "--paged-kv"], "--dynamic-layers"),
            (&["--cold=cpu", "--paged-kv"], "--dynamic-layers"),
            (&["--kv-page-size=64", "--dynamic-layers"], "--paged-kv"),
            (&["--spill-dir=x", "--dynamic-layers"], "--paged-kv"),
            (&["--metrics-pretty"], "--metrics"),
        ] {
            let sentence = check(args).unwrap_err().to_string();
            assert!(sentence.contains(missing), "{sentence}");
        }
        let all = [
            "--dynamic-layers",
            "--paged-kv",
            "--vram-budget=1",
            "--pin-layers=1",
            "--kv-page-size=64",
            "--metrics",
            "--metrics-interval=2",
        ];
        assert!(check(&all).is_ok());
        let both = ["--paged-kv", "--vram-budget=1", "--vram-budget-file=x"];
        let sentence = check(&both).unwrap_err().to_string();
        assert!(sentence.contains("give one of them"), "{sentence}");
    }
}
