//! The paged ggml device (interface; being written).

use std::path::PathBuf;

use crate::error::Result;

/// How much memory the arena may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// An absolute size in bytes.
    Bytes(u64),
    /// A share of the model's tensor bytes, 0 < share, 1.0 = 100 %.
    ModelShare(f64),
    /// What the machine has to give (85 % of the memory available at start).
    Auto,
}

/// What the paged device is asked to do; decided before the model loads.
#[derive(Clone, Debug)]
pub struct PagingConfig {
    /// The model's file; the first part when it is split.
    pub model: PathBuf,
    /// Page weights (`--dynamic-layers`).
    pub weights: bool,
    /// Page the KV cache and recurrent states (`--paged-kv`).
    pub kv: bool,
    /// Bound of the arena (`--vram-budget`).
    pub budget: Budget,
    /// Fetch ahead of use (`--async-prefetch`); otherwise copy on demand.
    pub prefetch: bool,
    /// Copy workers (`--prefetch-threads`), at least 1.
    pub prefetch_threads: usize,
    /// Upper bound on resident layers (`-ngl`); None: as many as fit.
    pub resident_layers_max: Option<u32>,
    /// Fill freed slots with a poison pattern (tests).
    pub poison: bool,
    /// Delays and failures of the copy engine (tests).
    pub faults: Faults,
}

/// Delays and failures that the host copy engine is told to have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Seed of the random delays; None: no delays.
    pub delay_seed: Option<u64>,
    /// Upper bound of one delay, in microseconds.
    pub delay_us_max: u32,
    /// The copy request (counted from 0) that fails.
    pub fail_request: Option<u64>,
    /// The copy request (counted from 0) that is refused at submission.
    pub refuse_request: Option<u64>,
}

/// Counters since the device was made, and sizes; all in bytes or seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Tensor bytes of the model that the device holds (resident + streamed weights).
    pub model_bytes: u64,
    /// The bound of the arena.
    pub budget_bytes: u64,
    /// Bytes of the arena in use (resident tensors and ring slots).
    pub arena_bytes_used: u64,
    /// Weight bytes that stay in the arena.
    pub resident_bytes: u64,
    /// Weight bytes that travel for each pass over the model.
    pub streamed_bytes: u64,
    /// Layers whose weights all stay in the arena, and layers in all.
    pub resident_layers: u32,
    /// Layers of the model (output counted as one).
    pub layers: u32,
    /// Bytes copied into the arena after loading (weights and KV).
    pub bytes_in: u64,
    /// Bytes written back from the arena (KV).
    pub bytes_out: u64,
    /// Time the copy engine spent copying, in seconds.
    pub copy_seconds: f64,
    /// Time the computation waited for copies, in seconds.
    pub stall_seconds: f64,
    /// Graphs computed (one per ubatch).
    pub graphs: u64,
}

/// The ggml device under which weights and KV are paged.
///
/// It must outlive every model and context made with it.
pub struct PagedDevice {}

impl PagedDevice {
    /// Reads the model's header, reserves the arena, starts the copy workers.
    ///
    /// # Errors
    /// `Failed` when the file is not a readable GGUF, `Memory` when the budget is below
    /// the minimum (the message says it).
    pub fn new(_config: PagingConfig) -> Result<Self> {
        Ok(Self {})
    }

    /// The device for `llama_model_params.devices`; valid until `self` is dropped.
    pub fn raw(&self) -> ggml_sys::ggml_backend_dev_t {
        std::ptr::null_mut()
    }

    /// The first error recorded inside a callback that could not report it. To be asked
    /// when loading the model, making the context or a decode has failed.
    pub fn take_error(&self) -> Option<crate::error::Error> {
        None
    }

    /// Counters and sizes at this moment.
    pub fn report(&self) -> Report {
        Report::default()
    }
}
