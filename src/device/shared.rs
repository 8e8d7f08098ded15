//! What all callbacks of one paged device share.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ggml_sys as sys;

use super::interface::Interface;
use super::report::{Change, Reason, Stalls, Traffic};
use super::schedule::AddressMap;
use super::{Budget, PagingConfig, Report};
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::pager::engine_host::HostEngine;
use crate::pager::model_index::ModelIndex;
use crate::pager::storage::Access;
use crate::pager::{Pager, PagerConfig};
use crate::planner::Limits;

/// The pager, and the addresses under which llama.cpp knows its tensors.
#[derive(Debug)]
pub struct Paged {
    pub pager: Pager,
    pub addresses: AddressMap,
}

/// State of one paged device. Lock order: `paged` before `error`.
#[derive(Debug)]
pub struct Shared {
    pub config: PagingConfig,
    pub inner: InnerDevice,
    pub index: ModelIndex,
    paged: Mutex<Paged>,
    error: Mutex<Option<Error>>,
    broken: AtomicBool,
    graphs: AtomicU64,
    // llama.cpp's thread pools and how many threads each has; null until attached.
    threadpools: [(AtomicPtr<sys::ggml_threadpool>, AtomicI32); 2],
    budget_bytes: AtomicU64,
    // Plans that took effect and that nobody has asked for yet.
    changes: Mutex<Vec<Change>>,
    // The structs that ggml holds pointers to; they point back to this object.
    interface: OnceLock<Pin<Box<Interface>>>,
}

impl Shared {
    pub fn new(config: PagingConfig) -> Result<Arc<Self>> {
        let index = ModelIndex::read(&config.model, Access::Cached)?;
        let inner = InnerDevice::cpu().map_err(Error::Failed)?;
        let budget_bytes = match config.budget {
            Budget::Bytes(bytes) => bytes,
            Budget::ModelShare(share) => share_of(index.bytes(), share),
            Budget::Auto => share_of(available_memory_bytes(), 0.85),
        };
        let engine = HostEngine::new(config.prefetch_threads, config.faults)
            .map_err(|error| Error::Failed(format!("could not start a copy thread ({error})")))?;
        let pager_config = PagerConfig {
            limits: Limits {
                budget_bytes,
                resident_groups_max: config.resident_layers_max,
            },
            poison: config.poison,
            alignment: inner.arena_alignment(),
            states_follow: config.kv,
        };
        let pager = Pager::new(pager_config, Box::new(engine));
        let shared = Arc::new(Self {
            config,
            inner,
            index,
            paged: Mutex::new(Paged {
                pager,
                addresses: AddressMap::default(),
            }),
            error: Mutex::new(None),
            broken: AtomicBool::new(false),
            graphs: AtomicU64::new(0),
            threadpools: Default::default(),
            budget_bytes: AtomicU64::new(budget_bytes),
            changes: Mutex::default(),
            interface: OnceLock::new(),
        });
        let made = Interface::new(&shared);
        shared
            .interface
            .set(made)
            .expect("a new device has no interface yet");
        Ok(shared)
    }

    /// ggml's device struct.
    pub fn device_ptr(&self) -> sys::ggml_backend_dev_t {
        self.interface().device()
    }

    /// ggml's buffer type struct.
    pub fn buffer_type_ptr(&self) -> sys::ggml_backend_buffer_type_t {
        self.interface().buffer_type()
    }

    fn interface(&self) -> &Interface {
        self.interface.get().expect("made with the device")
    }

    /// The pager, for the time of one callback.
    pub fn paged(&self) -> MutexGuard<'_, Paged> {
        // A panic with the lock held marks the device as broken before the next call.
        self.paged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first error until somebody asks.
    pub fn record(&self, error: Error) {
        let mut slot = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
    }

    pub fn take_error(&self) -> Option<Error> {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// After a caught panic: nothing is trusted any more.
    pub fn break_down(&self, error: Error) {
        self.broken.store(true, Ordering::Relaxed);
        self.record(error);
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub fn attach_threadpools(&self, pools: [(sys::ggml_threadpool_t, i32); 2]) {
        for ((slot, threads), (pool, count)) in self.threadpools.iter().zip(pools) {
            slot.store(pool, Ordering::Relaxed);
            threads.store(count, Ordering::Relaxed);
        }
    }

    /// The attached thread pool with `count` threads; null when there is none.
    pub fn threadpool(&self, count: i32) -> sys::ggml_threadpool_t {
        let fitting = |(_, threads): &&(_, AtomicI32)| threads.load(Ordering::Relaxed) == count;
        let found = self.threadpools.iter().find(fitting);
        found.map_or(std::ptr::null_mut(), |(pool, _)| {
            pool.load(Ordering::Relaxed)
        })
    }

    /// Notes that a graph begins. The first one ends loading: counters start there.
    pub fn begin_graph(&self, pager: &mut Pager) {
        if self.graphs.fetch_add(1, Ordering::Relaxed) == 0 {
            pager.start_counting();
        }
    }

    pub fn report(&self) -> Report {
        let usage = self.paged().pager.usage();
        Report {
            model_bytes: self.index.bytes(),
            budget_bytes: self.budget_bytes.load(Ordering::Relaxed),
            minimum_bytes: usage.minimum_bytes,
            arena_bytes_used: usage.arena_bytes,
            resident_bytes: usage.resident_weight_bytes,
            streamed_bytes: usage.streamed_weight_bytes,
            resident_layers: usage.resident_layers,
            layers: usage.layers,
            traffic: Traffic {
                storage_bytes: usage.engine.storage_bytes,
                link_bytes: usage.engine.link_bytes,
                write_back_bytes: usage.engine.write_back_bytes,
                storage_seconds: usage.engine.storage_seconds,
                link_seconds: usage.engine.link_seconds,
                write_back_seconds: usage.engine.write_back_seconds,
            },
            stalls: Stalls {
                storage_seconds: usage.stalled.as_secs_f64(),
                ..Stalls::default()
            },
            graphs: self.graphs.load(Ordering::Relaxed),
            ..Report::default()
        }
    }

    pub fn set_budget(&self, bytes: u64, reason: Reason) -> Result<()> {
        self.paged().pager.set_budget(bytes)?;
        self.budget_bytes.store(bytes, Ordering::Relaxed);
        self.note_change(reason);
        Ok(())
    }

    fn note_change(&self, reason: Reason) {
        let report = self.report();
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.push(Change {
            reason,
            moves: Vec::new(),
            report,
        });
    }

    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `share` of `bytes`, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a size needs no more than 52 bits; the cast saturates"
)]
fn share_of(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share).max(0.0) as u64
}

/// Memory that could be taken without swapping, in bytes: the machine's, or what the
/// control group leaves when that is less.
fn available_memory_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = system
        .cgroup_limits()
        .map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(group)
}
