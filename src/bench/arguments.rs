//! A case in llama.cpp's own words: the command line that its parser reads.

use std::ffi::CString;

use super::case::Case;
use super::{Paging, Process};
use crate::device::{Budget, LAZY_BYTES_MIN, PagingConfig, Storage};
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::llama::{self, Params};
use crate::pager::engine_host::Faults;

/// Builds the words for the cases of a sweep.
pub struct Arguments {
    /// What all cases share.
    process: Process,
    /// Whether flags for GPUs mean anything here: otherwise llama.cpp would say so for
    /// each of them.
    offloads: bool,
    /// The environment variables of llama.cpp's options: llama-bench reads none of them.
    variables: Vec<CString>,
}

impl Arguments {
    /// Asks llama.cpp about its options.
    ///
    /// # Errors
    /// `Failed` when it cannot list them.
    pub fn new(process: Process) -> Result<Self> {
        let variables = llama::options()?
            .into_iter()
            .filter_map(|option| option.env)
            .filter(|name| name != "HF_TOKEN")
            .filter_map(|name| CString::new(name).ok());
        Ok(Self {
            process,
            offloads: llama::bench::supports_gpu_offload(),
            variables: variables.collect(),
        })
    }

    /// Reads `words` with llama.cpp's parser.
    ///
    /// # Errors
    /// `Usage` when a value is wrong, `Failed` when a download fails.
    pub fn parse(&self, words: &[String]) -> Result<Params> {
        let fixed = ["rpaged-cli", "--fit", "off", "--no-warmup", "-lv"];
        let verbosity = if self.process.verbose { "4" } else { "0" };
        let all = fixed.into_iter().chain([verbosity]);
        let all = all.chain(words.iter().map(String::as_str));
        let all = all.map(|word| {
            CString::new(word).map_err(|_| Error::Usage(format!("'{word}' contains a NUL")))
        });
        Params::parse(all.collect::<Result<_>>()?, &self.variables)
    }

    /// llama.cpp's parameters for `case`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn params(&self, case: &Case) -> Result<Params> {
        let mut words = self.model_words(case);
        words.extend(self.context_words(case));
        self.parse(&words)
    }

    /// The GPU that computes when `case` is paged; None: the processor.
    ///
    /// # Errors
    /// As [`Self::parse`], and `Usage` when `-dev` names what cannot.
    pub fn inner_device(&self, case: &Case) -> Result<Option<InnerDevice>> {
        self.params(case)?.inner_device(case.n_gpu_layers != 0)
    }

    /// What holds for the whole process; the parser wants a model, too.
    pub fn process_words(&self, model: &str) -> Vec<String> {
        let mut words = Words::default();
        words.pair("-m", model);
        words.pair_unless("--numa", &self.process.numa, "");
        words.0
    }

    /// What the model is loaded with: cases for which this is the same share one.
    pub fn model_words(&self, case: &Case) -> Vec<String> {
        let mut words = Words::default();
        words.pair("-m", &case.model.path);
        words.pair("-lm", &case.load_mode);
        words.pair("-lzm", &case.lazy_mode);
        words.pair_unless("-ot", &case.overrides.replace(';', ","), "none");
        words.pair_unless("-ncmoe", &case.n_cpu_moe.to_string(), "0");
        words.pair_unless("-dev", &case.devices.replace('/', ","), "auto");
        words.flag_if("--no-host", case.no_host);
        words.flag_if("--no-repack", !case.repack);
        if self.offloads {
            words.pair("-ngl", &case.n_gpu_layers.to_string());
            words.pair("-sm", &case.split_mode);
            words.pair("-mg", &case.main_gpu.to_string());
            words.pair_unless("-ts", &case.tensor_split, "0.00");
        }
        words.0
    }

    /// What a context is made with, beside its size.
    pub fn context_words(&self, case: &Case) -> Vec<String> {
        let mut words = Words::default();
        words.pair("-b", &case.n_batch.to_string());
        words.pair("-ub", &case.n_ubatch.to_string());
        words.pair("-ctk", &case.type_k);
        words.pair("-ctv", &case.type_v);
        words.pair("-fa", flash_attention(case.flash_attn));
        words.flag_if("-nkvo", case.no_kv_offload);
        words.flag_if("--no-op-offload", case.no_op_offload);
        words.pair("-t", &case.n_threads.to_string());
        let no_mask = case
            .cpu_mask
            .trim_start_matches("0x")
            .trim_matches('0')
            .is_empty();
        if !no_mask {
            words.pair("-C", &case.cpu_mask);
        }
        words.pair("--cpu-strict", if case.cpu_strict { "1" } else { "0" });
        words.pair("--poll", &case.poll.to_string());
        words.pair("--prio", &self.process.priority.to_string());
        words.0
    }
}

/// llama.cpp's word for flash attention, by its number.
pub fn flash_attention(number: i32) -> &'static str {
    match number {
        0 => "off",
        1 => "on",
        _ => "auto",
    }
}

/// What the paged device of `case` is asked to do, with so large a budget.
pub fn paging_config(
    case: &Case,
    paging: &Paging,
    inner: Option<InnerDevice>,
    budget_bytes: u64,
) -> PagingConfig {
    PagingConfig {
        model: case.model.path.clone().into(),
        weights: paging.weights,
        kv: paging.kv,
        budget: Budget::Bytes(budget_bytes),
        prefetch: paging.prefetch,
        prefetch_threads: paging.prefetch_threads,
        prefetch_depth: paging.prefetch_depth,
        pinned_layers: paging.pinned_layers.clone(),
        kv_page_tokens: paging.kv_page_tokens,
        spill_folder: paging.spill_folder.clone(),
        storage: match case.load_mode.as_str() {
            "auto" => Storage::Auto,
            "dio" => Storage::Direct,
            _ => Storage::Cached,
        },
        lock: false,
        cold: case.variant.cold().unwrap_or_default(),
        lazy_bytes_min: (case.lazy_mode == "auto").then_some(LAZY_BYTES_MIN),
        inner,
        resident_layers_max: u32::try_from(case.n_gpu_layers).ok(),
        poison: false,
        faults: Faults::default(),
    }
}

/// Why `case` cannot be paged by its very flags; None when it can.
pub fn contradiction(case: &Case, paging: &Paging) -> Option<String> {
    let placed = case.overrides != "none" || case.n_cpu_moe > 0;
    let rules = [
        (
            placed,
            "'-ot' and '-ncmoe'",
            "tensors are placed by the budget",
        ),
        (
            case.main_gpu != 0,
            "'-mg'",
            "the model has one device, the paged one",
        ),
        (
            case.tensor_split != "0.00",
            "'-ts'",
            "the model has one device, the paged one",
        ),
        (
            !matches!(case.split_mode.as_str(), "none" | "layer"),
            "'-sm row' and '-sm tensor'",
            "the model has one device, the paged one",
        ),
        (
            case.load_mode.contains("mlock"),
            "'-lm mlock'",
            "weights come and go",
        ),
        (
            case.lazy_mode == "on",
            "'-lzm on'",
            "it is a second way of reading weights late",
        ),
        (
            case.no_kv_offload && paging.kv,
            "'-nkvo 1'",
            "it keeps the KV cache off the device that pages it; page weights alone with \
             --dynamic-layers",
        ),
    ];
    let broken = rules.iter().find(|(broken, ..)| *broken);
    broken.map(|(_, what, why)| format!("{what} cannot be combined with paging: {why}"))
}

/// Words of a command line.
#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn pair(&mut self, flag: &str, value: &str) {
        self.0.extend([flag.to_owned(), value.to_owned()]);
    }

    fn pair_unless(&mut self, flag: &str, value: &str, default: &str) {
        if value != default {
            self.pair(flag, value);
        }
    }

    fn flag_if(&mut self, flag: &str, given: bool) {
        if given {
            self.0.push(flag.to_owned());
        }
    }
}
