//! What all parts of one device share.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ggml_sys as sys;

use crate::device::Interface;
use crate::event::lock;
use crate::memory::Space;
use crate::platform::Platform;

/// Complaints that are kept; one bug can give thousands.
const COMPLAINTS_MAX: usize = 50;

/// How long a stream dawdles before each thing it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Delays {
    /// Not at all.
    #[default]
    None,
    /// Up to 50 µs, before every second thing.
    Short,
    /// Up to 2 ms, before every eighth thing.
    Long,
}

/// What a device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Launches without waiting, and has events; otherwise everything is done at once.
    pub asynchronous: bool,
    /// How long streams dawdle.
    pub delays: Delays,
    /// What the delays are drawn from.
    pub seed: u64,
    /// Rows of quantised tensors are padded like ggml-cuda's, and the padding is looked at
    /// whenever a matrix is multiplied: it must be zero. Behind a view there must be numbers.
    pub padded: bool,
    /// Has a type of host buffers, which a driver would pin.
    pub pinned: bool,
    /// Promises no more than ggml-vulkan does at its worst. Copies into the device have a
    /// queue of their own on each backend: a graph comes after those before it, and nothing
    /// else is ordered but by events. Blocking for an event takes back what its earlier
    /// recordings were made of: a stream that still waits for one is a complaint, as is an
    /// event that is recorded anew while another backend waits for it. Tensors that are
    /// computed with begin in their buffers.
    pub loose: bool,
    /// Captures graphs that do not change, and replays them, as ggml-cuda does.
    pub captures: bool,
    /// Memory of the device, in bytes.
    pub memory_bytes: usize,
}

impl Default for Options {
    /// Asynchronous, without delays, padding, captures or pinned memory, 1 GiB of its own.
    fn default() -> Self {
        Self {
            asynchronous: true,
            delays: Delays::None,
            seed: 1,
            padded: false,
            pinned: false,
            loose: false,
            captures: false,
            memory_bytes: 1 << 30,
        }
    }
}

/// What was done so far, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Graphs computed.
    pub graphs: u64,
    /// Asynchronous copies done.
    pub copies: u64,
    /// Graphs captured, as part of a launch.
    pub captures: u64,
    /// Launches that replayed a capture.
    pub replays: u64,
    /// Waits for an event that had not come when the stream got there.
    pub waits: u64,
    /// Rows of which the padding was looked at.
    pub paddings: u64,
    /// Live buffers.
    pub buffers: u64,
    /// Live backends.
    pub streams: u64,
    /// Live events.
    pub events: u64,
}

/// Counters that many threads count with.
#[derive(Debug, Default)]
pub struct Tally {
    pub graphs: AtomicU64,
    pub copies: AtomicU64,
    pub captures: AtomicU64,
    pub replays: AtomicU64,
    pub waits: AtomicU64,
    pub paddings: AtomicU64,
    pub streams: AtomicU64,
    pub events: AtomicU64,
    /// Streams ever made: each has delays of its own.
    pub streams_made: AtomicU64,
}

/// State of one device.
#[derive(Debug)]
pub struct Shared {
    pub options: Options,
    pub space: Space,
    /// What takes the place of our own memory, streams and events.
    pub platform: Option<Arc<dyn Platform>>,
    pub tally: Tally,
    cpu: sys::ggml_backend_dev_t,
    complaints: Mutex<Vec<String>>,
    // The structs that ggml holds pointers to; they point back to this object.
    interface: OnceLock<Pin<Box<Interface>>>,
}

// SAFETY: the CPU's device is static, and its functions may be called from any thread; the
// structs of the interface lead back here, and do not change.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// A device without memory, streams or events yet.
    pub fn new(options: Options, platform: Option<Arc<dyn Platform>>) -> Result<Arc<Self>, String> {
        // SAFETY: no preconditions.
        let cpu = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
        if cpu.is_null() {
            return Err("llama.cpp has no CPU backend".to_owned());
        }
        let shared = Arc::new(Self {
            options,
            space: Space::new(options.memory_bytes, platform.clone()),
            platform,
            tally: Tally::default(),
            cpu,
            complaints: Mutex::default(),
            interface: OnceLock::new(),
        });
        shared.interface.get_or_init(|| Interface::new(&shared));
        Ok(shared)
    }

    fn interface(&self) -> &Interface {
        self.interface.get().expect("made with the device")
    }

    pub fn device_ptr(&self) -> sys::ggml_backend_dev_t {
        self.interface().device()
    }

    pub fn buffer_type_ptr(&self) -> sys::ggml_backend_buffer_type_t {
        self.interface().buffer_type()
    }

    /// The type of host buffers, where there is one.
    pub fn host_type_ptr(&self) -> Option<sys::ggml_backend_buffer_type_t> {
        self.options.pinned.then(|| self.interface().host_type())
    }

    /// ggml's CPU device, which computes.
    pub fn cpu(&self) -> sys::ggml_backend_dev_t {
        self.cpu
    }

    pub fn complain(&self, sentence: String) {
        let mut complaints = lock(&self.complaints);
        if complaints.len() < COMPLAINTS_MAX {
            complaints.push(sentence);
        }
    }

    pub fn take_complaints(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.complaints))
    }

    pub fn check_canaries(&self) {
        for sentence in self.space.check_canaries() {
            self.complain(sentence);
        }
    }

    pub fn counters(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            graphs: of(&self.tally.graphs),
            copies: of(&self.tally.copies),
            captures: of(&self.tally.captures),
            replays: of(&self.tally.replays),
            waits: of(&self.tally.waits),
            paddings: of(&self.tally.paddings),
            buffers: self.space.count() as u64,
            streams: of(&self.tally.streams),
            events: of(&self.tally.events),
        }
    }
}

/// Counts one more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts one less.
pub fn discount(counter: &AtomicU64) {
    counter.fetch_sub(1, Ordering::Relaxed);
}
