//! Does one piece of work after the other, on ggml's CPU backend.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use ggml_sys as sys;

use crate::captures::Launch;
use crate::memory::Memory;
use crate::padding;
use crate::random::Random;
use crate::shared::{Delays, Shared, count};
use crate::snapshot::Snapshot;

/// Bytes of the device.
pub struct Range {
    /// The memory.
    pub memory: Arc<Memory>,
    /// Where they begin in it.
    pub offset: usize,
    /// How many there are.
    pub bytes: usize,
}

/// Bytes of the host, read or written when a stream gets there.
#[derive(Clone, Copy)]
pub struct HostBytes(pub *mut u8);

// SAFETY: who queues the work keeps the bytes until it is done.
unsafe impl Send for HostBytes {}

/// What a stream can do besides waiting.
pub enum Work {
    /// Computes a graph.
    Graph(Launch),
    /// Copies from the host.
    Write(Range, HostBytes),
    /// Copies to the host.
    Read(Range, HostBytes),
    /// Copies from the first range to the second.
    Copy(Range, Range),
}

/// Who does it.
#[derive(Debug)]
pub struct Executor {
    cpu: NonNull<sys::ggml_backend>,
    delays: Delays,
    random: Random,
}

// SAFETY: a backend may move between threads; it is used by one at a time.
unsafe impl Send for Executor {}

impl Executor {
    /// One with a CPU backend of its own; `number` makes its delays differ from others'.
    ///
    /// # Errors
    /// A sentence, when the CPU backend does not start.
    pub fn new(shared: &Shared, number: u64) -> Result<Self, String> {
        // SAFETY: the CPU's device is static; no parameters.
        let cpu = unsafe { sys::ggml_backend_dev_init(shared.cpu(), std::ptr::null()) };
        let cpu = NonNull::new(cpu).ok_or("the CPU backend did not start")?;
        // SAFETY: a live CPU backend.
        unsafe { sys::ggml_backend_cpu_set_n_threads(cpu.as_ptr(), 1) };
        Ok(Self {
            cpu,
            delays: shared.options.delays,
            random: Random::new(shared.options.seed.wrapping_mul(1_000_003) + number),
        })
    }

    /// Dawdles, as the options say.
    pub fn dawdle(&mut self) {
        let (one_in, us_max) = match self.delays {
            Delays::None => return,
            Delays::Short => (2, 50),
            Delays::Long => (8, 2000),
        };
        if self.random.below(one_in) == 0 {
            std::thread::sleep(Duration::from_micros(self.random.below(us_max + 1)));
        }
    }

    /// Does `work`.
    ///
    /// # Errors
    /// A sentence, when it uses what is freed, or ggml fails.
    pub fn run(&mut self, work: Work, shared: &Shared) -> Result<(), String> {
        match work {
            Work::Graph(launch) => return launch.run(|graph| self.compute(graph, shared)),
            Work::Write(to, HostBytes(from)) => {
                let at = place(&to)?;
                // SAFETY: both have that many bytes, one on the device, one on the host.
                unsafe { std::ptr::copy(from, at, to.bytes) };
            }
            Work::Read(from, HostBytes(to)) => {
                let at = place(&from)?;
                // SAFETY: both have that many bytes, one on the device, one on the host.
                unsafe { std::ptr::copy(at, to, from.bytes) };
            }
            Work::Copy(from, to) => {
                let (source, target) = (place(&from)?, place(&to)?);
                // SAFETY: both have that many bytes, and may overlap.
                unsafe { std::ptr::copy(source, target, from.bytes.min(to.bytes)) };
            }
        }
        count(&shared.tally.copies);
        Ok(())
    }

    fn compute(&mut self, snapshot: &mut Snapshot, shared: &Shared) -> Result<(), String> {
        if snapshot.memories().iter().any(|memory| memory.is_freed()) {
            return Err("a graph uses a buffer that was freed since its launch".to_owned());
        }
        if shared.options.padded {
            padding::check(snapshot, &shared.tally)?;
        }
        let mut graph = snapshot.graph();
        // SAFETY:
        // - the graph lives, with its tensors, until the end of this function;
        // - every tensor's bytes are in memory that the snapshot holds.
        let status = unsafe { sys::ggml_backend_graph_compute(self.cpu.as_ptr(), &raw mut graph) };
        count(&shared.tally.graphs);
        match status {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            other => Err(format!("the CPU backend failed with status {other}")),
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_backend_dev_init`, freed once.
        unsafe { sys::ggml_backend_free(self.cpu.as_ptr()) };
    }
}

/// Where the bytes of a range really are.
fn place(range: &Range) -> Result<*mut u8, String> {
    if range.memory.is_freed() {
        return Err("a copy uses a buffer that was freed since it was queued".to_owned());
    }
    Ok(range.memory.pointer(range.offset))
}
