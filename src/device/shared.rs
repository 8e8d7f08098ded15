//! What all callbacks of one paged device share.

use std::ffi::CStr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ggml_sys as sys;

use super::addresses::AddressMap;
use super::driver::{Meter, automatic_budget_now, covers_driver};
use super::engine;
use super::interface::Interface;
use super::rehearsal::Notebook;
use super::report::{Change, Move, Reason};
use super::{Cold, PagingConfig, Report, Storage};
use crate::cuda::Holding;
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::pager::block::Arena;
use crate::pager::model_index::ModelIndex;
use crate::pager::storage::Access;
use crate::pager::{Pager, PagerConfig};
use crate::planner::LookAhead;
use crate::planner::cold::Reach;
use crate::telemetry::memory::{available_bytes, share_of};

/// The pager, and the addresses under which llama.cpp knows its tensors.
#[derive(Debug)]
pub struct Paged {
    pub pager: Pager,
    pub addresses: AddressMap,
    /// Time spent inside the inner backend, in seconds.
    pub compute_seconds: f64,
    /// Bytes that a pass over the last graph moves in.
    pub pass_bytes: u64,
    /// Bytes of weights that the processor computes with in a pass over the last graph.
    pub host_pass_bytes: u64,
    /// Bytes of weights that it has computed with, and the time that took, in seconds.
    pub host_bytes: u64,
    pub host_seconds: f64,
    // Bytes of the inner device's own buffers, and of weights that llama.cpp keeps to
    // itself: what the budget covers beside the arena.
    scratch_bytes: u64,
    unpaged_bytes: u64,
    // Bytes of what lies beside the model: a draft model.
    beside_bytes: u64,
    /// What its driver takes of the device's memory; None where that is not counted.
    pub driver: Option<Meter>,
}

/// State of one paged device. Lock order: `paged` before `error`.
#[derive(Debug)]
pub struct Shared {
    pub config: PagingConfig,
    pub inner: InnerDevice,
    pub index: ModelIndex,
    /// Open when nothing is to be computed.
    pub notebook: Notebook,
    paged: Mutex<Paged>,
    error: Mutex<Option<Error>>,
    broken: AtomicBool,
    // Whether layers of the model lie on other machines.
    shares_model: AtomicBool,
    graphs: AtomicU64,
    // llama.cpp's thread pools and how many threads each has; null until attached.
    threadpools: [(AtomicPtr<sys::ggml_threadpool>, AtomicI32); 2],
    /// Whether files are read past the page cache.
    pub direct: bool,
    loading: Mutex<Loading>,
    // Plans that took effect and that nobody has asked for yet.
    changes: Mutex<Vec<Change>>,
    // Sentences for the user that nobody has asked for yet, and those already said.
    notices: Mutex<Notices>,
    // The structs that ggml holds pointers to; they point back to this object.
    interface: OnceLock<Pin<Box<Interface>>>,
}

impl Shared {
    pub fn new(config: PagingConfig, notebook: Notebook) -> Result<Arc<Self>> {
        let (index, direct) = open_model(&config)?;
        let inner = config.inner.map_or_else(InnerDevice::cpu, Ok);
        let inner = inner.map_err(Error::Failed)?;
        let arena = Arena::of(inner);
        let budget_bytes = config.budget.bytes(index.bytes(), || match arena {
            Arena::Host => share_of(available_bytes(), 0.85),
            Arena::Device(inner, _) => automatic_budget_now(inner),
        });
        let chosen = engine::choose(inner, &config, notebook.is_open())?;
        let pager_config = pager_config(&config, inner, arena, (budget_bytes, direct));
        let mut pager = Pager::new(pager_config, chosen.engine);
        if !inner.is_host() && config.cold != Cold::Stream {
            pager.keep_copies(chosen.copies);
        }
        let (driver, lack) = Meter::of(inner).unzip();
        // Where only notes are taken, other budgets will be asked about.
        let limit = if notebook.is_open() {
            u64::MAX
        } else {
            budget_bytes
        };
        let driver = driver.map(|meter| meter.within(limit));
        if let Some(meter) = &driver {
            pager.expect_driver(meter.part());
        }
        let holds = covers_driver(inner) && !notebook.is_open();
        if let Some(bus_id) = inner.bus_id().filter(|_| holds) {
            pager.keep_account(Holding::on(&bus_id));
        }
        let shared = Arc::new(Self {
            config,
            inner,
            index,
            notebook,
            paged: Mutex::new(Paged {
                pager,
                addresses: AddressMap::default(),
                compute_seconds: 0.0,
                pass_bytes: 0,
                host_pass_bytes: 0,
                host_bytes: 0,
                host_seconds: 0.0,
                scratch_bytes: 0,
                unpaged_bytes: 0,
                beside_bytes: 0,
                driver,
            }),
            direct,
            error: Mutex::new(None),
            broken: AtomicBool::new(false),
            shares_model: AtomicBool::new(false),
            graphs: AtomicU64::new(0),
            threadpools: Default::default(),
            loading: Mutex::default(),
            changes: Mutex::default(),
            notices: Mutex::default(),
            interface: OnceLock::new(),
        });
        let made = Interface::new(&shared);
        shared
            .interface
            .set(made)
            .expect("a new device has no interface yet");
        let lacks = chosen.lacks.iter().chain(lack.iter().flatten());
        lacks.for_each(|lack| shared.note_once(lack));
        shared.note_flags_without_meaning();
        Ok(shared)
    }

    /// Tells of what was asked for and has no meaning in a device's memory.
    fn note_flags_without_meaning(&self) {
        if self.inner.is_host() {
            if self.config.cold != Cold::Auto {
                self.note_once(&format!(
                    "'--cold {}' changes nothing: the processor computes everything, see --device",
                    self.config.cold.word()
                ));
            }
            return;
        }
        let name = self.inner.name();
        if self.config.lock {
            self.note_once(&format!(
                "'--load-mode mlock' locks nothing: the weights lie in the memory of {name}"
            ));
        }
        if self.config.spill_folder.is_some() {
            self.note_once(&format!(
                "'--spill-dir' is not used: what {name} has no room for of the KV cache lies in \
                 this machine's memory"
            ));
        }
    }

    /// ggml's device struct.
    pub fn device_ptr(&self) -> sys::ggml_backend_dev_t {
        self.interface().device()
    }

    /// What the device says it is.
    pub fn description(&self) -> &CStr {
        self.interface().description()
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

    pub fn share_model(&self, shared: bool) {
        self.shares_model.store(shared, Ordering::Relaxed);
    }

    /// Whether layers of the model lie on other machines.
    pub fn shares_model(&self) -> bool {
        self.shares_model.load(Ordering::Relaxed)
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

    /// Notes that the loader has given bytes: the first estimate of the storage's rate.
    pub fn note_loaded(&self, bytes: usize) {
        let mut loading = lock(&self.loading);
        match loading.started {
            // What was read before the first call was not timed.
            None => loading.started = Some(Instant::now()),
            Some(started) => {
                loading.bytes += bytes as u64;
                loading.seconds = started.elapsed().as_secs_f64();
            }
        }
    }

    /// Has the budget cover `bytes` more, or less, of the inner device's own buffers.
    pub fn change_scratch(&self, change: impl Fn(u64) -> u64) -> Result<()> {
        let mut paged = self.paged();
        let scratch_bytes = change(paged.scratch_bytes);
        // Whoever computes has loaded: what the loader needed to stage is free again.
        let outside = scratch_bytes + paged.unpaged_bytes + paged.beside_bytes;
        paged.pager.set_outside(outside)?;
        paged.scratch_bytes = scratch_bytes;
        self.note_change(Reason::Context, &mut paged);
        Ok(())
    }

    /// Has the budget cover the weights that llama.cpp keeps to itself, and, while they are
    /// read past the page cache, `staging` times as much again.
    pub fn set_unpaged(&self, paged: &mut Paged, bytes: u64, staging: u64) -> Result<()> {
        let outside = paged.scratch_bytes + paged.beside_bytes + bytes + bytes * staging;
        paged.pager.set_outside(outside)?;
        paged.unpaged_bytes = bytes;
        Ok(())
    }

    /// Has the budget cover `bytes` of the machine's memory beside the model, if it is of
    /// that memory.
    pub fn keep_beside(&self, bytes: u64) -> Result<()> {
        if !self.inner.is_host() {
            return Ok(());
        }
        let mut paged = self.paged();
        let outside = paged.scratch_bytes + paged.unpaged_bytes + bytes;
        paged.pager.set_outside(outside)?;
        paged.beside_bytes = bytes;
        self.note_change(Reason::Context, &mut paged);
        Ok(())
    }

    pub fn report(&self) -> Report {
        self.report_of(&self.paged())
    }

    fn report_of(&self, paged: &Paged) -> Report {
        let usage = paged.pager.usage();
        let loading = *lock(&self.loading);
        Report {
            model_bytes: self.index.bytes(),
            budget_bytes: usage.budget_bytes,
            minimum_bytes: usage.minimum_bytes,
            arena_bytes_used: usage.arena_bytes,
            resident_bytes: usage.resident_weight_bytes,
            streamed_bytes: usage.streamed_weight_bytes,
            kv_resident_bytes: usage.resident_state_bytes,
            kv_streamed_bytes: usage.streamed_state_bytes,
            ring_bytes: usage.ring_bytes,
            scratch_bytes: usage.outside_bytes.saturating_sub(paged.beside_bytes),
            driver_bytes: usage.driver_bytes,
            guessed_bytes: usage.guessed_bytes,
            reserve_bytes: usage.reserve_bytes,
            draft_bytes: paged.beside_bytes,
            pass_bytes: paged.pass_bytes,
            resident_layers: usage.resident_layers,
            layers: usage.layers,
            layers_evicted: usage.layers_evicted,
            layers_loaded: usage.layers_loaded,
            kv_pages: usage.kv_pages,
            prefetches: usage.prefetches,
            expert_hits: usage.expert_hits,
            expert_misses: usage.expert_misses,
            traffic: usage.traffic,
            stalls: usage.stalls,
            compute_seconds: paged.compute_seconds,
            host_pass_bytes: paged.host_pass_bytes,
            host_layers: u32::try_from(paged.pager.host_layers().len()).unwrap_or(u32::MAX),
            host_copy_bytes: paged.pager.copied_bytes(),
            host_bytes: paged.host_bytes,
            host_seconds: paged.host_seconds,
            load_bytes: loading.bytes,
            load_seconds: loading.seconds,
            direct: self.direct,
            pinned: paged.pager.is_pinned(),
            graphs: self.graphs.load(Ordering::Relaxed),
        }
    }

    /// Whether the processor may compute what has no room in the device's memory.
    pub fn computes_on_host(&self) -> bool {
        !self.inner.is_host() && self.config.cold != Cold::Stream
    }

    /// Bytes of the cold weights that the processor can compute with, and how many times a
    /// pass goes to it and back for them.
    pub fn cold_weights(&self) -> (u64, u32) {
        match self.computes_on_host() {
            true => self.paged().pager.copyable(),
            false => (0, 0),
        }
    }

    /// Has the processor compute with these of the cold weights.
    pub fn set_host_reach(&self, reach: Reach) {
        self.paged().pager.set_host_reach(reach);
    }

    /// Has the processor compute this part, 0 to 1, of the cold weights that it can.
    pub fn set_host_share(&self, share: f64) {
        self.paged().pager.set_host_share(share);
    }

    /// The part of these that it does compute.
    pub fn host_share(&self) -> Option<f64> {
        self.paged().pager.host_share()
    }

    pub fn set_budget(&self, bytes: u64, reason: Reason) -> Result<()> {
        let mut paged = self.paged();
        let part = matches!(reason, Reason::Pressure | Reason::Calm);
        paged.pager.set_budget(bytes, part)?;
        self.note_change(reason, &mut paged);
        self.follow_driver(&mut paged)
    }

    /// Notes that a plan has taken effect. While the model loads, only the newest counts.
    pub fn note_change(&self, reason: Reason, paged: &mut Paged) {
        let moves = paged.pager.take_moves();
        let loading = self.graphs.load(Ordering::Relaxed) == 0;
        if matches!(reason, Reason::Growth | Reason::Driver) && moves.is_empty() {
            return;
        }
        let report = self.report_of(paged);
        let moves = if loading {
            Vec::new()
        } else {
            moves.into_iter().map(Move::from).collect()
        };
        let mut changes = lock(&self.changes);
        if loading {
            changes.clear();
        }
        changes.push(Change {
            reason,
            moves,
            report,
        });
    }

    pub fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *lock(&self.changes))
    }

    /// Keeps a sentence for the user, the first time that it is said.
    pub fn note_once(&self, sentence: &str) {
        let mut notices = lock(&self.notices);
        if !notices.said.iter().any(|said| said == sentence) {
            notices.said.push(sentence.to_owned());
            notices.waiting.push(sentence.to_owned());
        }
    }

    pub fn take_notices(&self) -> Vec<String> {
        for sentence in self.paged().pager.notices() {
            self.note_once(&sentence);
        }
        std::mem::take(&mut lock(&self.notices).waiting)
    }
}

/// How the pager is set up, with a budget of so many bytes; `direct`: files are read past the
/// page cache.
fn pager_config(
    config: &PagingConfig,
    inner: InnerDevice,
    arena: Arena,
    (budget_bytes, direct): (u64, bool),
) -> PagerConfig {
    PagerConfig {
        budget_bytes,
        resident_groups_max: config.resident_layers_max,
        look_ahead: match (config.prefetch, config.prefetch_depth) {
            (false, _) => LookAhead::Nothing,
            (true, layers) => LookAhead::Layers(layers),
        },
        pinned_layers: config.pinned_layers.clone(),
        states_in: arena.states_in(|| spill_folder(config)),
        poison: config.poison,
        alignment: arena.alignment(inner, direct),
        states_follow: config.kv,
        lock: config.lock,
        arena,
    }
}

/// What the loader has given so far.
#[derive(Clone, Copy, Debug, Default)]
struct Loading {
    started: Option<Instant>,
    bytes: u64,
    seconds: f64,
}

#[derive(Debug, Default)]
struct Notices {
    waiting: Vec<String>,
    said: Vec<String>,
}

/// A lock whose holder may have panicked: the device is marked as broken then.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The model's tensors, and whether their files are read past the page cache: when they
/// do not fit in the memory there is, the cache would be emptied before each use.
fn open_model(config: &PagingConfig) -> Result<(ModelIndex, bool)> {
    let fits = |bytes: u64| bytes <= share_of(available_bytes(), 0.9);
    let index = ModelIndex::read(&config.model, |bytes| match config.storage {
        Storage::Direct if config.weights => Access::Direct,
        Storage::Auto if config.weights && !fits(bytes) => Access::Direct,
        _ => Access::Cached,
    })?;
    let direct = index.is_direct();
    Ok((index, direct))
}

/// Whether a run with these settings reads the model's files past the page cache.
///
/// # Errors
/// `Failed` when the model's header cannot be read.
pub fn is_direct(config: &PagingConfig) -> Result<bool> {
    open_model(config).map(|(_, direct)| direct)
}

/// Where the spill file goes: `--spill-dir`, else TMPDIR, else a folder that lies on a
/// disk even where /tmp is memory.
fn spill_folder(config: &PagingConfig) -> PathBuf {
    if let Some(folder) = &config.spill_folder {
        return folder.clone();
    }
    let on_disk = PathBuf::from("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && on_disk.is_dir() {
        return on_disk;
    }
    std::env::temp_dir()
}
