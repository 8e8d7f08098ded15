//! How fast this machine is: rates that were measured here, never assumed.
//!
//! ```text
//!  machine.rs    whose rates they are
//!  store.rs      the file in the cache folder: found, read, judged, written
//!  copies.rs     storage, memory and a device's link, through the engine that a run uses
//!  kinds.rs      matrices by their type
//!  products.rs   matrices, attention and nodes, on ggml's CPU backend or a device's
//!  link.rs       what a run on a device needs besides
//!  observed.rs   what runs have seen of the storage since
//!  measure.rs    which rates are wanted, and those of copying and computing at once
//! ```
//!
//! A rate is of one machine, one number of threads, of the file system that the model lies
//! on, and of what computes: the processor, or a device. Where a device does, the rates of
//! matrices, attention and nodes are the device's, copying is copying over its link, and
//! [`LinkRates`] has what a run on a device needs besides.

mod copies;
mod kinds;
mod link;
mod machine;
mod measure;
pub mod observed;
mod products;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::kinds::Kinds;
pub use self::machine::{Device, Machine, Run, machine};
pub use self::measure::measure;
use crate::ggml::InnerDevice;
use crate::ggml::workload::{is_measurable, kind_name};
use crate::planner::cold;
use crate::planner::cost::{Rate, transfer_seconds};

/// Types of matrices that the processor is measured with where a device computes.
const PROCESSOR_KINDS_MAX: usize = 3;

/// The number of this format; another one is measured anew.
pub const FORMAT: u32 = 1;

/// What was measured, as the cache folder keeps it: one JSON object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The number of the format: 1.
    pub format: u32,
    /// When it was measured: ISO 8601, UTC.
    pub date: String,
    /// The same in seconds since 1970.
    pub date_seconds: u64,
    /// What it was measured with: this program's version, and llama.cpp's.
    pub program: String,
    /// Whose rates they are.
    pub machine: Machine,
    /// How it was measured, for a reader.
    pub method: String,
    /// How long measuring took, in seconds.
    pub measuring_seconds: f64,
    /// Bytes per second of reading the model's file system as a run does; null where the
    /// model's file has no bytes to read (it is sparse).
    pub storage_bytes_per_second: Option<f64>,
    /// Bytes per second of copying in memory.
    pub memory_bytes_per_second: f64,
    /// By type of matrix, as llama.cpp names it.
    pub kinds: BTreeMap<String, KindRates>,
    /// Types of matrices that the device does not compute with.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refused_kinds: BTreeSet<String>,
    /// Attention by one token: tokens x rows x width of all heads, per second.
    pub attention_per_second: f64,
    /// Attention by a batch, by the batch's size in tokens.
    pub attention_batch_per_second: BTreeMap<u32, f64>,
    /// Seconds that a node of a graph takes at least.
    pub node_seconds: f64,
    /// Seconds that an element of a node takes.
    pub element_seconds: f64,
    /// Copying (from storage, or over the link to a device) while tokens are computed one by
    /// one; null where it was not measured.
    pub contention_decode: Option<Contention>,
    /// Copying while a batch is computed; null where it was not measured.
    pub contention_prefill: Option<Contention>,
    /// What a run on a device needs besides; absent where the processor computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkRates>,
    /// Runs that have corrected the rate of the storage since it was measured.
    #[serde(default)]
    pub observed_runs: u32,
}

/// How fast matrices of one type are multiplied with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindRates {
    /// By one token: bytes of the matrix per second.
    pub bytes_per_second: f64,
    /// By a batch, by its size in tokens: elements x tokens per second.
    pub products_per_second: BTreeMap<u32, f64>,
}

/// What a run on a device needs beside the rates of what computes: its link, and the processor
/// that may compute what is cold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRates {
    /// Bytes per second into the device's memory from pinned memory; null where none can be
    /// pinned.
    pub pinned_bytes_per_second: Option<f64>,
    /// The same from ordinary memory.
    pub pageable_bytes_per_second: f64,
    /// The processor's products by one token, by type of matrix: bytes of it per second.
    pub processor_bytes_per_second: BTreeMap<String, f64>,
    /// Copying over the link while the processor multiplies: both draw on one memory.
    pub processor_contention: Contention,
    /// Seconds from the device to the processor and back, with next to nothing to compute.
    pub handover_seconds: f64,
}

impl LinkRates {
    /// Bytes per second of what streams: it is kept in pinned memory where there is any.
    pub fn bytes_per_second(&self) -> f64 {
        self.pinned_bytes_per_second
            .unwrap_or(self.pageable_bytes_per_second)
    }

    /// The processor's rate for a type; the slowest known one for a type that was not
    /// measured.
    pub fn processor(&self, name: &str) -> Option<f64> {
        let all = &self.processor_bytes_per_second;
        let slowest = || all.values().copied().min_by(f64::total_cmp);
        all.get(name).copied().or_else(slowest)
    }
}

/// How much slower copying and computing are beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contention {
    /// Copying: rate alone / rate beside computing; at least 1.
    pub copy_slowdown: f64,
    /// Computing: rate alone / rate beside copying; at least 1.
    pub compute_slowdown: f64,
}

impl Contention {
    /// From both rates.
    pub fn of(copy: Rate, compute: Rate) -> Self {
        Self {
            copy_slowdown: copy.slowdown(),
            compute_slowdown: compute.slowdown(),
        }
    }
}

/// What has to be known for a forecast.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Whose rates.
    pub machine: Machine,
    /// The model's first file.
    pub model: PathBuf,
    /// ggml's numbers of the types of its matrices, the largest sum of bytes first.
    pub kinds: Vec<u32>,
    /// Tokens of a batch; None: no rates of batches are wanted.
    pub ubatch: Option<u32>,
    /// Elements of an attention head.
    pub head: u32,
    /// The device that computes; None: the processor.
    pub device: Option<InnerDevice>,
}

impl Wanted {
    /// The types that the processor is measured with where a device computes: the largest.
    fn kinds_of_processor(&self) -> impl Iterator<Item = u32> {
        let kinds = self.kinds.iter().copied();
        kinds
            .filter(|kind| is_measurable(*kind))
            .take(PROCESSOR_KINDS_MAX)
    }
}

impl Calibration {
    /// Whether everything that is wanted is there.
    pub fn has(&self, wanted: &Wanted) -> bool {
        let of_kind = |kind: &u32| {
            let name = kind_name(*kind);
            let rates = name.and_then(|name| self.kinds.get(name));
            let has_batch = |rates: &KindRates| {
                let mut ubatch = wanted.ubatch.iter();
                ubatch.all(|tokens| rates.products_per_second.contains_key(tokens))
            };
            let is_refused = name.is_some_and(|name| self.refused_kinds.contains(name));
            is_refused || rates.is_some_and(has_batch)
        };
        let mut ubatch = wanted.ubatch.iter();
        wanted.kinds.iter().all(of_kind)
            && ubatch.all(|tokens| self.attention_batch_per_second.contains_key(tokens))
            && (wanted.device.is_none() || self.has_link(wanted))
    }

    fn has_link(&self, wanted: &Wanted) -> bool {
        let of_processor = |kind: u32| {
            let known = self.link.as_ref().zip(kind_name(kind));
            known.is_some_and(|(link, name)| link.processor_bytes_per_second.contains_key(name))
        };
        self.link.is_some()
            && (wanted.ubatch.is_none() || self.contention_prefill.is_some())
            && wanted.kinds_of_processor().all(of_processor)
    }

    /// Seconds until so many bytes are where they are computed with, with nothing beside: from
    /// storage; or over the link to a device, for which those that have room in `keep_bytes`
    /// of memory are read once. None when a rate is not known.
    pub fn travel_seconds(&self, bytes: u64, keep_bytes: u64) -> Option<f64> {
        let storage = |bytes| {
            let rate = self.storage_bytes_per_second?;
            Some(transfer_seconds(bytes, rate))
        };
        let Some(link) = &self.link else {
            return storage(bytes);
        };
        let crossing = transfer_seconds(bytes, link.bytes_per_second());
        match bytes.saturating_sub(keep_bytes) {
            0 => Some(crossing),
            // Both go on at the same time.
            read => Some(crossing.max(storage(read)?)),
        }
    }

    /// The rates of a pass over one token on a device: `crossing` bytes cross the link in it, as
    /// far as there is room for `keep_bytes` from memory; `processor` and `device` are their
    /// products' bytes per second. None when a rate is not known.
    pub fn cold_rates(
        &self,
        (crossing, keep_bytes): (u64, u64),
        processor: f64,
        device: f64,
    ) -> Option<cold::Rates> {
        let link = self.link.as_ref()?;
        let contention = link.processor_contention;
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let effective = match crossing {
            0 => link.bytes_per_second(),
            bytes => bytes as f64 / self.travel_seconds(bytes, keep_bytes)?.max(1e-12),
        };
        Some(cold::Rates {
            link: effective,
            processor,
            device,
            link_slowdown: contention.copy_slowdown,
            processor_slowdown: contention.compute_slowdown,
            segment_seconds: link.handover_seconds,
        })
    }

    /// The rates of a type; those of the slowest known one for a type that cannot be
    /// measured.
    pub fn kind(&self, name: &str) -> Option<&KindRates> {
        let slowest = || {
            let all = self.kinds.values();
            all.min_by(|a, b| a.bytes_per_second.total_cmp(&b.bytes_per_second))
        };
        self.kinds.get(name).or_else(slowest)
    }
}
