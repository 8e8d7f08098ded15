//! Our own flags, typed by clap. They are taken out of the command line before
//! llama.cpp's parser sees the rest.

use clap::{CommandFactory, FromArgMatches, Parser};

use super::size::parse_budget;
use crate::device::Budget;
use crate::error::{Error, Result};

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

    /// Memory that paging may take: a number of MiB, or with a unit (K, M, G, KiB, MiB,
    /// GiB), or a share of the model's size in percent (default: auto, most of what is
    /// free).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --vram-budget 4G
    #[arg(long, value_name = "SIZE", env = "LLAMA_ARG_VRAM_BUDGET")]
    #[arg(value_parser = parse_budget, allow_hyphen_values = true)]
    pub vram_budget: Option<Budget>,

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

    /// Threads that copy, 1 to 64 (default: 2).
    ///
    /// rpaged-cli -m big.gguf -no-cnv -p "Hello" --dynamic-layers --prefetch-threads 4
    #[arg(long, value_name = "N", env = "LLAMA_ARG_PREFETCH_THREADS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64), allow_hyphen_values = true)]
    pub prefetch_threads: Option<u16>,

    /// Use the small model inside this program in place of -m; without a prompt, tell a
    /// story with half of the model's size as memory.
    ///
    /// rpaged-cli --demo
    #[arg(long, env = "LLAMA_ARG_DEMO", value_parser = parse_truth)]
    pub demo: bool,

    /// Which of the two prefetch flags the command line gave last.
    #[arg(skip)]
    pub prefetch_flag: Option<bool>,
}

/// A truth value, as upstream's environment variables spell it.
fn parse_truth(text: &str) -> std::result::Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "true" | "enabled" | "yes" => Ok(true),
        "0" | "off" | "false" | "disabled" | "no" | "" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
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
    pub fn parse(args: &[String]) -> Result<Self> {
        let words = std::iter::once("rpaged-cli").chain(args.iter().map(String::as_str));
        let matches = Self::command()
            .try_get_matches_from(words)
            .map_err(|error| say(&error))?;
        let mut flags = Self::from_arg_matches(&matches).map_err(|error| say(&error))?;
        flags.prefetch_flag = args.iter().rev().find_map(|arg| match arg.as_str() {
            "--async-prefetch" => Some(true),
            "--no-async-prefetch" => Some(false),
            _ => None,
        });
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

    /// The first flag given that makes sense only with paging.
    pub fn needs_paging(&self) -> Option<&'static str> {
        let given = [
            (self.vram_budget.is_some(), "--vram-budget"),
            (self.prefetch_threads.is_some(), "--prefetch-threads"),
            (self.prefetch_flag == Some(true), "--async-prefetch"),
            (self.prefetch_flag == Some(false), "--no-async-prefetch"),
        ];
        given
            .into_iter()
            .find_map(|(given, name)| given.then_some(name))
    }
}

/// clap's complaint as one sentence of ours.
fn say(error: &clap::Error) -> Error {
    use clap::error::ContextKind;
    let text = |kind| error.get(kind).map(ToString::to_string);
    let option = text(ContextKind::InvalidArg).unwrap_or_default();
    let option = option
        .split_whitespace()
        .next()
        .unwrap_or("an option")
        .to_owned();
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let reason = std::error::Error::source(error).map(ToString::to_string);
    let reason = reason.unwrap_or_else(|| error.kind().to_string());
    Error::Usage(format!("option '{option}' got '{value}': {reason}"))
}
