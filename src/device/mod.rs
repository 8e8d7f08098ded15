//! The paged ggml device: what llama.cpp sees instead of the device that computes.
//!
//! ```text
//!  llama.cpp ──► vtables (ggml's structs, filled in from here)
//!                  device.rs   what the device is and can
//!                  buffer.rs   buffer type and buffers: paged memory, or the inner device's
//!                  outside.rs  what of a model lies elsewhere, and whether the budget covers it
//!                  backend.rs  graph_compute: scan.rs ─► schedule.rs ─► launch, by segments
//!                  experts.rs  which experts a segment reads
//!                  host/       what of a graph the processor computes
//!                  engine.rs   what copies, and what it cannot do
//!                  driver.rs   what the driver takes of the budget
//!                guard.rs      no panic crosses; what cannot be reported is recorded
//!                    │
//!                  pager         inner backend
//! ```

#![allow(unsafe_code, reason = "thread pools are llama.cpp's, given by pointer")]

mod addresses;
mod backend;
mod buffer;
mod driver;
mod engine;
mod experts;
mod guard;
mod host;
mod interface;
mod outside;
pub mod rehearsal;
pub mod report;
mod scan;
pub mod schedule;
mod scratch;
mod shared;
mod translate;

use std::path::PathBuf;
use std::sync::Arc;

use ggml_sys as sys;
use serde::{Deserialize, Serialize};

pub(crate) use self::driver::{automatic_budget, automatic_budget_now, covers_driver};
pub(crate) use self::engine::{keep_bytes, link_to};
use self::rehearsal::Notebook;
pub use self::report::Report;
use self::report::{Change, Reason};
use self::shared::Shared;
pub(crate) use self::shared::is_direct;
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
pub use crate::pager::engine_host::Faults;
use crate::pager::mib;
use crate::planner::cold::Reach;
use crate::telemetry::memory::{Level, share_of};
use crate::telemetry::pressure::DriverIs;

/// How much memory the arena may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// An absolute size in bytes.
    Bytes(u64),
    /// A share of the model's tensor bytes; 1.0 is all of it.
    ModelShare(f64),
    /// What is there to give: 85 % of the machine's memory available at start, or what a
    /// device's own memory has free but for a margin.
    Auto,
}

impl Budget {
    /// In bytes, for a model of `model_bytes`; `automatic` says what there is to give.
    pub fn bytes(self, model_bytes: u64, automatic: impl FnOnce() -> u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::ModelShare(part) => share_of(model_bytes, part),
            Self::Auto => automatic(),
        }
    }
}

/// Who computes with weights that have no room in a device's memory, in decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cold {
    /// The processor, from a copy in host memory, with those of feed-forward blocks.
    Cpu,
    /// The device: they cross the link for each pass.
    Stream,
    /// Both, by what is faster.
    #[default]
    Auto,
}

impl Cold {
    /// As the command line spells it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Stream => "stream",
            Self::Auto => "auto",
        }
    }
}

/// How the model's files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// Past the page cache when the model does not fit in the memory there is.
    #[default]
    Auto,
    /// Past the page cache, where the file system can.
    Direct,
    /// Through the page cache.
    Cached,
}

/// From how many bytes on llama.cpp reads tensors by row, unless it is told otherwise.
pub const LAZY_BYTES_MIN: u64 = (4 << 30) + 1;

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
    /// The device that computes, and in whose memory the arena is; None: the processor.
    pub inner: Option<InnerDevice>,
    /// Fetch ahead of use (`--async-prefetch`); otherwise copy on demand.
    pub prefetch: bool,
    /// Copy workers (`--prefetch-threads`), at least 1.
    pub prefetch_threads: usize,
    /// Layers fetched ahead of the one that computes (`--prefetch-depth`), at least 1.
    pub prefetch_depth: u32,
    /// Layers whose weights stay in the arena (`--pin-layers`).
    pub pinned_layers: Vec<u32>,
    /// Tokens of one page of the KV cache (`--kv-page-size`), 16 to 8192.
    pub kv_page_tokens: u32,
    /// Folder of the KV cache's spill file (`--spill-dir`); None: the system's temporary
    /// folder.
    pub spill_folder: Option<PathBuf>,
    /// How the model's files are read (`--load-mode`).
    pub storage: Storage,
    /// Who computes with weights that have no room in the inner device's memory (`--cold`).
    pub cold: Cold,
    /// Lock the weights in the arena in memory (`--load-mode mlock`).
    pub lock: bool,
    /// Tensors by row that have at least this many bytes are left to llama.cpp, which maps
    /// them and reads the rows that it needs (`--lazy-mode`); None: it does not. The budget
    /// does not cover them: their memory is the page cache's.
    pub lazy_bytes_min: Option<u64>,
    /// Upper bound on resident layers, the output counted as one (`-ngl`); None: as many
    /// as fit.
    pub resident_layers_max: Option<u32>,
    /// Fill claimed ring slots with a poison pattern, so that whatever was not waited
    /// for shows (tests).
    pub poison: bool,
    /// Delays and failures of the copy engine (tests).
    pub faults: Faults,
}

/// The ggml device under which weights and KV are paged.
///
/// It must outlive every model and context made with it.
#[derive(Debug)]
pub struct PagedDevice {
    shared: Arc<Shared>,
}

impl PagingConfig {
    /// The device whose own memory the budget is of; None: the machine's.
    pub fn device_with_memory(&self) -> Option<InnerDevice> {
        self.inner.filter(|inner| !inner.is_host())
    }

    /// Whether copies go on while something computes.
    pub fn overlaps(&self) -> bool {
        let device = self.device_with_memory();
        self.prefetch && device.is_none_or(InnerDevice::is_asynchronous)
    }
}

impl PagedDevice {
    /// Reads the model's header and starts the copy workers.
    ///
    /// # Errors
    /// `Failed` when the file is not a readable GGUF or a thread cannot be started;
    /// `Usage` when nothing is to be paged.
    pub fn new(config: PagingConfig) -> Result<Self> {
        Self::with_notebook(config, Notebook::default())
    }

    /// A device that, when its notebook is open, only takes notes.
    fn with_notebook(config: PagingConfig, notebook: Notebook) -> Result<Self> {
        if !config.weights && !config.kv {
            let sentence = "nothing is paged: give --dynamic-layers, --paged-kv or both";
            return Err(Error::Usage(sentence.to_owned()));
        }
        Ok(Self {
            shared: Shared::new(config, notebook)?,
        })
    }

    /// The device for `llama_model_params.devices`; valid until `self` is dropped.
    pub fn raw(&self) -> sys::ggml_backend_dev_t {
        self.shared.device_ptr()
    }

    /// Whether weights stay in llama.cpp's own mapping of the model: they are not paged.
    pub fn keeps_mapping(&self) -> bool {
        !self.shared.config.weights
    }

    /// Whether weights are to be locked in memory.
    pub fn is_locked(&self) -> bool {
        self.shared.config.lock
    }

    /// Says, before the model loads, whether other machines' devices share it: the layers
    /// that are not on this device are not in this machine's memory then.
    pub fn share_model(&self, shared: bool) {
        self.shared.share_model(shared);
    }

    /// Has the inner backend compute with these thread pools, each with its number of
    /// threads: whichever has as many as llama.cpp asks for. Null ones are left out.
    ///
    /// # Safety
    /// - the pools live as long as every context made with the device.
    pub unsafe fn attach_threadpools(&self, pools: [(sys::ggml_threadpool_t, i32); 2]) {
        self.shared.attach_threadpools(pools);
    }

    /// The first error recorded inside a callback that could not report it; to be asked
    /// for when loading the model, making the context or decoding has failed.
    pub fn take_error(&self) -> Option<Error> {
        let error = self.shared.take_error()?;
        Some(outside::explain_no_room(&self.shared, error))
    }

    /// Whether weights were to be paged, and the model that was loaded has none here.
    pub fn lacks_weights(&self) -> bool {
        let report = self.report();
        self.shared.config.weights && report.resident_bytes + report.streamed_bytes == 0
    }

    /// Sizes and counters at this moment.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// Bounds the arena anew and moves tensors accordingly. Between graphs only; what is
    /// computed does not change.
    ///
    /// # Errors
    /// `Memory` when no plan fits `bytes`, or the memory for a larger one is not given:
    /// the plan is what it was before.
    pub fn set_budget(&self, bytes: u64, reason: Reason) -> Result<()> {
        self.shared.set_budget(bytes, reason)
    }

    /// Has the processor compute this part, 0 to 1, of the weights without room in the inner
    /// device's memory that it can compute with in decode, and stream the others. Between
    /// graphs only. Nothing where the arena is the machine's memory, or all are streamed
    /// (`Cold::Stream`).
    pub fn set_host_share(&self, share: f64) {
        self.shared.set_host_share(share);
    }

    /// The part, 0 to 1, of those weights that it does compute: whole layers, and no more than
    /// memory has room for copies of. None where all are streamed, or nothing is to be.
    pub fn host_share(&self) -> Option<f64> {
        self.shared.host_share()
    }

    /// Says which weights without room in the inner device's memory the processor can compute
    /// with in decode: at first those of feed-forward blocks. Between graphs only.
    pub fn set_host_reach(&self, reach: Reach) {
        self.shared.set_host_reach(reach);
    }

    /// Bytes of the weights without room in the inner device's memory that the processor can
    /// compute with in decode, and how many times a pass goes to it and back for them.
    pub fn cold_weights(&self) -> (u64, u32) {
        self.shared.cold_weights()
    }

    /// Has the budget cover a draft model of `bytes`, which stays in memory beside the
    /// paged one. Between graphs only.
    ///
    /// # Errors
    /// `Memory` when no plan leaves so much.
    pub fn keep_beside(&self, bytes: u64) -> Result<()> {
        self.shared.keep_beside(bytes).map_err(|error| match error {
            Error::Memory(sentence) => Error::Memory(format!(
                "no room for the draft model, which takes {}: {sentence}, or leave out \
                 --spec-draft-model",
                mib(bytes)
            )),
            other => other,
        })
    }

    /// Sentences that the user should read, each given once.
    pub fn take_notices(&self) -> Vec<String> {
        self.shared.take_notices()
    }

    /// How full the memory is that the budget is a part of, where that is the inner device's
    /// own; None: it is the machine's.
    pub fn memory(&self) -> Option<Level> {
        self.shared
            .config
            .device_with_memory()
            .map(Level::of_device)
    }

    /// Whether the budget covers what the driver of the inner device takes of its memory.
    pub fn driver_is(&self) -> DriverIs {
        match self.shared.paged().driver {
            Some(_) => DriverIs::Covered,
            None => DriverIs::Beside,
        }
    }

    /// The memory that the budget is a part of, in words.
    pub fn memory_name(&self) -> String {
        match self.shared.config.device_with_memory() {
            Some(device) => format!("the memory of {}", device.name()),
            None => "memory".to_owned(),
        }
    }

    /// Whether the model's files are read past the page cache.
    pub fn is_direct(&self) -> bool {
        self.shared.direct
    }

    /// The plans that took effect since this was last asked, oldest first.
    pub fn take_changes(&self) -> Vec<Change> {
        self.shared.take_changes()
    }
}
