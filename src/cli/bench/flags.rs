//! The flags of `bench`, typed by clap: llama-bench's, then ours.

use std::path::PathBuf;

use clap::Parser;

use crate::bench::ranges::{Numbers, Pair, numbers, pair, signed_numbers};
use crate::cli::flags::{Layers, parse_cold, parse_layers};
use crate::cli::size::parse_budget;
use crate::device::{Budget, Cold};

/// Texts, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

/// Truth values, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truths(pub Vec<bool>);

/// Budgets, each as it was given and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Budgets(pub Vec<(String, Budget)>);

/// Who computes with cold weights, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Colds(pub Vec<Cold>);

/// The flags of `bench`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "rpaged-cli bench",
    disable_help_flag = true,
    disable_version_flag = true
)]
#[command(args_override_self = true)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct BenchFlags {
    /// Print this help.
    #[arg(long)]
    pub help: bool,

    /// Print versions.
    #[arg(long)]
    pub version: bool,

    /// Print the devices that llama.cpp finds.
    #[arg(long)]
    pub list_devices: bool,

    /// Help with the machine's memory: distribute, isolate or numactl.
    #[arg(long, value_name = "MODE", value_parser = parse_numa)]
    pub numa: Option<String>,

    /// How often each case is run (default: 5).
    #[arg(long, value_name = "N", default_value = "5", hide_default_value = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000), allow_hyphen_values = true)]
    pub repetitions: u32,

    /// Priority of the process, -1 to 3 (default: 0).
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    #[arg(value_parser = clap::value_parser!(i32).range(-1..=3), allow_hyphen_values = true)]
    pub prio: i32,

    /// Seconds of rest before each run (default: 0).
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "0",
        hide_default_value = true
    )]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=86_400), allow_hyphen_values = true)]
    pub delay: u64,

    /// Format on standard output: md, csv, json, jsonl, sql or none (default: md).
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub output: Option<String>,

    /// Format on standard error (default: none).
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub output_err: Option<String>,

    /// Show what llama.cpp logs.
    #[arg(long)]
    pub verbose: bool,

    /// Say what happens, line by line, on standard error; on a terminal there is a bar
    /// without it.
    #[arg(long)]
    pub progress: bool,

    /// Measure at once, with nothing run before.
    #[arg(long)]
    pub no_warmup: bool,

    /// Only '0' (off): there is no device here whose memory a model could be fitted to.
    #[arg(long, value_name = "MIB", allow_hyphen_values = true)]
    pub fit_target: Vec<String>,

    /// Only '0' (off), as above.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub fit_ctx: Vec<String>,

    /// Refused: this llama.cpp was built without RPC.
    #[arg(long, value_name = "SERVERS")]
    pub rpc: Option<String>,

    /// Files of models.
    #[arg(long, value_name = "FILE", value_parser = parse_texts)]
    pub model: Vec<Texts>,

    /// Repositories to download models from, each with a quantisation if need be.
    #[arg(long, value_name = "USER/MODEL", value_parser = parse_texts)]
    pub hf_repo: Vec<Texts>,

    /// The files there.
    #[arg(long, value_name = "FILE", value_parser = parse_texts)]
    pub hf_file: Vec<Texts>,

    /// The token for it (default: the variable HF_TOKEN).
    #[arg(long, value_name = "TOKEN")]
    pub hf_token: Option<String>,

    /// Use what was downloaded before, without a look at the network.
    #[arg(long)]
    pub offline: bool,

    /// Lengths of prompts, in tokens (default: 512).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub n_prompt: Vec<Numbers>,

    /// Lengths of generations, in tokens (default: 128).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub n_gen: Vec<Numbers>,

    /// A prompt and a generation, measured together.
    #[arg(long, value_name = "PP,TG", value_parser = pair, allow_hyphen_values = true)]
    pub pg: Vec<Pair>,

    /// Tokens that the context holds before (default: 0).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub n_depth: Vec<Numbers>,

    /// Keep what contexts hold at a depth in files of this folder, and read it from there the
    /// next time (default: it is computed for each context).
    #[arg(long, value_name = "PATH")]
    pub depth_dir: Option<PathBuf>,

    /// Tokens of a batch (default: 2048).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub batch_size: Vec<Numbers>,

    /// Tokens that are computed at once (default: 512).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub ubatch_size: Vec<Numbers>,

    /// Format of the KV cache's keys (default: f16).
    #[arg(long, value_name = "TYPE", value_parser = parse_cache_types)]
    pub cache_type_k: Vec<Texts>,

    /// Format of the KV cache's values (default: f16).
    #[arg(long, value_name = "TYPE", value_parser = parse_cache_types)]
    pub cache_type_v: Vec<Texts>,

    /// Threads (default: as many as llama.cpp takes).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub threads: Vec<Numbers>,

    /// Processors, as hexadecimal masks (default: 0x0, any).
    #[arg(long, value_name = "HEX", value_parser = parse_texts)]
    pub cpu_mask: Vec<Texts>,

    /// Whether each thread keeps its processor: 0 or 1 (default: 0).
    #[arg(long, value_name = "0|1", value_parser = parse_truths)]
    pub cpu_strict: Vec<Truths>,

    /// How eagerly threads wait, 0 to 100 (default: 50).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub poll: Vec<Numbers>,

    /// Layers on a GPU; under paging an upper bound on resident layers (default: -1, all).
    #[arg(long, value_name = "N", value_parser = signed_numbers, allow_hyphen_values = true)]
    pub n_gpu_layers: Vec<Numbers>,

    /// Layers whose experts stay on the CPU (default: 0).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub n_cpu_moe: Vec<Numbers>,

    /// How a model is split over GPUs: none, layer, row or tensor (default: layer).
    #[arg(long, value_name = "MODE", value_parser = parse_split_modes)]
    pub split_mode: Vec<Texts>,

    /// The GPU for what is not split (default: 0).
    #[arg(long, value_name = "N", value_parser = numbers, allow_hyphen_values = true)]
    pub main_gpu: Vec<Numbers>,

    /// Whether the KV cache stays off the device: 0 or 1 (default: 0).
    #[arg(long, value_name = "0|1", value_parser = parse_truths)]
    pub no_kv_offload: Vec<Truths>,

    /// Flash attention: on, off or auto (default: auto).
    #[arg(long, value_name = "MODE", value_parser = parse_flash, allow_hyphen_values = true)]
    pub flash_attn: Vec<Numbers>,

    /// Devices, '/' between them (default: auto).
    #[arg(long, value_name = "DEVICES", value_parser = parse_texts)]
    pub device: Vec<Texts>,

    /// How models are loaded: auto, none, mmap, mlock, mmap+mlock or dio (default: auto).
    #[arg(long, value_name = "MODE", value_parser = parse_load_modes)]
    pub load_mode: Vec<Texts>,

    /// Whether some tensors are read row by row: on, auto or off (default: auto).
    #[arg(long, value_name = "MODE", value_parser = parse_lazy_modes)]
    pub lazy_mode: Vec<Texts>,

    /// Whether embeddings are computed: 0 or 1 (default: 0).
    #[arg(long, value_name = "0|1", value_parser = parse_truths)]
    pub embeddings: Vec<Truths>,

    /// Shares of GPUs, '/' between them (default: 0).
    #[arg(long, value_name = "SHARES", value_parser = parse_splits)]
    pub tensor_split: Vec<Texts>,

    /// Where tensors lie: PATTERN=BUFFER, ';' between them (default: none).
    #[arg(long, value_name = "RULES", value_parser = parse_overrides)]
    pub override_tensor: Vec<Texts>,

    /// Whether operations on host memory stay on the host: 0 or 1 (default: 0).
    #[arg(long, value_name = "0|1", value_parser = parse_truths)]
    pub no_op_offload: Vec<Truths>,

    /// Whether host buffers are left out: 0 or 1 (default: 0).
    #[arg(long, value_name = "0|1", value_parser = parse_truths)]
    pub no_host: Vec<Truths>,

    /// Whether unpaged weights are repacked for the CPU: 0 or 1 (default: 1).
    #[arg(long, value_name = "0|1", value_parser = parse_truths)]
    pub repack: Vec<Truths>,

    /// Measure paged, within each of these budgets: sizes, shares of the model's size, or
    /// auto.
    #[arg(long, alias = "vram-budget", value_name = "SIZES", value_parser = parse_budgets)]
    #[arg(allow_hyphen_values = true)]
    pub vram_budgets: Vec<Budgets>,

    /// Measure unpaged beside the budgets, in alternation, for ratios.
    #[arg(long)]
    pub stock: bool,

    /// Page the weights, and the KV cache only with --paged-kv (default: both).
    #[arg(long)]
    pub dynamic_layers: bool,

    /// Page the KV cache, and the weights only with --dynamic-layers.
    #[arg(long)]
    pub paged_kv: bool,

    /// Who computes with weights that a GPU has no room for: cpu, stream (the GPU) or auto
    /// (default: auto).
    #[arg(long, value_name = "WHO", value_parser = parse_colds)]
    pub cold: Vec<Colds>,

    /// Layers whose weights stay in memory.
    #[arg(long, value_name = "LIST", value_parser = parse_layers, allow_hyphen_values = true)]
    pub pin_layers: Option<Layers>,

    /// Fetch the next layers while one computes (the default).
    #[arg(long, overrides_with = "no_async_prefetch")]
    pub async_prefetch: bool,

    /// Copy only when a layer is needed.
    #[arg(long, overrides_with = "async_prefetch")]
    pub no_async_prefetch: bool,

    /// Layers fetched ahead, 1 to 64 (default: 1).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    #[arg(allow_hyphen_values = true)]
    pub prefetch_depth: Option<u32>,

    /// Threads that copy, 1 to 64 (default: 2).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    #[arg(allow_hyphen_values = true)]
    pub prefetch_threads: Option<u16>,

    /// Tokens of one page of the KV cache, 16 to 8192 (default: 256).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=8192))]
    #[arg(allow_hyphen_values = true)]
    pub kv_page_size: Option<u32>,

    /// Folder for the file to which the KV cache spills.
    #[arg(long, value_name = "PATH")]
    pub spill_dir: Option<PathBuf>,

    /// Measure the small model inside this program.
    #[arg(long)]
    pub demo: bool,

    /// Write the results to this file as well, anew after each run, in the format of
    /// --output, or in the one its name ends in.
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,

    /// Draw speeds over budgets: a name that ends in .svg or .png.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,

    /// Note each run in this file, and go on where it ends.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
}

type Parsed<T> = Result<T, String>;

fn parse_texts(text: &str) -> Parsed<Texts> {
    let parts: Vec<String> = text.split(',').map(str::to_owned).collect();
    if parts.iter().any(String::is_empty) {
        return Err("a value in the list is empty".to_owned());
    }
    Ok(Texts(parts))
}

/// Texts, each one of `known`.
fn choose(text: &str, known: &[&str]) -> Parsed<Texts> {
    let texts = parse_texts(text)?;
    match texts.0.iter().find(|text| !known.contains(&text.as_str())) {
        Some(other) => Err(format!("'{other}' is none of {}", known.join(", "))),
        None => Ok(texts),
    }
}

fn parse_numa(text: &str) -> Parsed<String> {
    let text = if text.is_empty() { "distribute" } else { text };
    choose(text, &["distribute", "isolate", "numactl"])?;
    Ok(text.to_owned())
}

fn parse_format(text: &str) -> Parsed<String> {
    let known = ["md", "csv", "json", "jsonl", "sql", "none"];
    if known.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "it is none of {}; a file is named by --output-file",
        known.join(", ")
    ))
}

fn parse_cache_types(text: &str) -> Parsed<Texts> {
    let known = [
        "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "f32",
    ];
    choose(text, &known)
}

fn parse_split_modes(text: &str) -> Parsed<Texts> {
    choose(text, &["none", "layer", "row", "tensor"])
}

fn parse_load_modes(text: &str) -> Parsed<Texts> {
    choose(
        text,
        &["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"],
    )
}

fn parse_lazy_modes(text: &str) -> Parsed<Texts> {
    choose(text, &["on", "auto", "off"])
}

fn parse_truths(text: &str) -> Parsed<Truths> {
    let truth = |text: &str| match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("give 0 or 1, or both as in '0,1'".to_owned()),
    };
    Ok(Truths(text.split(',').map(truth).collect::<Parsed<_>>()?))
}

fn parse_flash(text: &str) -> Parsed<Numbers> {
    let number = |text: &str| match text {
        "on" | "enabled" | "true" | "1" => Ok(1),
        "off" | "disabled" | "false" | "0" => Ok(0),
        "auto" | "-1" => Ok(-1),
        _ => Err("give on, off or auto, or several as in 'on,off'".to_owned()),
    };
    Ok(Numbers(text.split(',').map(number).collect::<Parsed<_>>()?))
}

/// Shares as the results show them: two digits each, up to the last that is not zero.
fn parse_splits(text: &str) -> Parsed<Texts> {
    let split = |text: &str| {
        let shares = text.split([';', '/']).filter(|share| !share.is_empty());
        let share = |text: &str| text.parse::<f32>().ok().filter(|share| share.is_finite());
        let shares: Option<Vec<f32>> = shares.map(share).collect();
        let shares = shares.filter(|shares| !shares.is_empty());
        let shares = shares.ok_or("give shares, as in '3/1'")?;
        let last = shares.iter().rposition(|share| *share > 0.0).unwrap_or(0);
        let shown = shares[..=last].iter().map(|share| format!("{share:.2}"));
        Ok(shown.collect::<Vec<_>>().join("/"))
    };
    Ok(Texts(text.split(',').map(split).collect::<Parsed<_>>()?))
}

fn parse_overrides(text: &str) -> Parsed<Texts> {
    let group = |text: &str| {
        if text.is_empty() {
            return Ok("none".to_owned());
        }
        match text.split(';').find(|rule| !rule.contains('=')) {
            Some(rule) => Err(format!("'{rule}' is not PATTERN=BUFFER")),
            None => Ok(text.to_owned()),
        }
    };
    Ok(Texts(text.split(',').map(group).collect::<Parsed<_>>()?))
}

fn parse_budgets(text: &str) -> Parsed<Budgets> {
    let budget = |text: &str| {
        let budget = parse_budget(text).map_err(|reason| format!("'{text}': {reason}"))?;
        Ok((text.trim().to_owned(), budget))
    };
    Ok(Budgets(text.split(',').map(budget).collect::<Parsed<_>>()?))
}

fn parse_colds(text: &str) -> Parsed<Colds> {
    let cold = |text: &str| parse_cold(text).map_err(|reason| format!("'{text}': {reason}"));
    Ok(Colds(text.split(',').map(cold).collect::<Parsed<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_shown_as_llama_bench_does() {
        assert_eq!(parse_splits("0"), Ok(Texts(vec!["0.00".into()])));
        let two = ["3.00/1.00", "0.00/0.50"].map(str::to_owned);
        assert_eq!(parse_splits("3/1,0;.5;0"), Ok(Texts(two.into())));
        assert!(parse_splits("a").is_err());
        assert!(parse_splits("").is_err());
    }

    #[test]
    fn rules_for_tensors_are_grouped() {
        let two = ["a=CPU;b=CPU", "none"].map(str::to_owned);
        assert_eq!(parse_overrides("a=CPU;b=CPU,"), Ok(Texts(two.into())));
        assert!(parse_overrides("a").is_err());
    }

    #[test]
    fn each_budget_keeps_its_spelling() {
        let budgets = parse_budgets("10%,2GiB, auto").unwrap().0;
        let shown: Vec<_> = budgets.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(shown, ["10%", "2GiB", "auto"]);
        for text in ["", "10%,", "0", "-5%", "lots"] {
            assert!(parse_budgets(text).is_err(), "{text}");
        }
    }
}
