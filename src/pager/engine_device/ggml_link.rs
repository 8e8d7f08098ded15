//! A link over any of ggml's devices: a second backend (stream) of the device.
//!
//! What ggml-vulkan does, and what follows from it here:
//! - Two backends of one device may be used from two threads: each has its command pools,
//!   and the queue that both submit to has a lock.
//! - Copies into the device may go through a transfer queue (on some GPUs, or asked for by
//!   GGML_VK_ASYNC_USE_TRANSFER_QUEUE), those out of it never do. What one does is ordered
//!   after the other only by an event: `turn`. Without that queue copies and computations
//!   take turns on one queue and hardly overlap.
//! - What is queued begins only with the next recording.
//! - Copies from memory that is not pinned wait for everything that was queued.
//! - Recording an event again makes a new one inside, and keeps the old one until somebody
//!   blocks for the event: each is blocked for before it is recorded again. That resets
//!   the old ones, for which no stream may wait any more: who has a stream wait for an
//!   event holds it until that is over.
//! - Blocking for an event also takes the command buffer back in which it was recorded: only
//!   the thread that uses the recording backend may block for it.

use std::ops::Range;
use std::sync::Arc;

use super::super::memory::HostMemory;
use super::super::storage::BLOCK_BYTES;
use super::link::{Link, Pinning};
use crate::ggml::{DeviceBuffer, Event, InnerBackend, InnerDevice};

/// Patterns are copied from memory of this size.
const PATTERN_BYTES: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub struct GgmlLink {
    // First: nothing touches the patterns once it is gone.
    backend: InnerBackend,
    device: InnerDevice,
    turn: Event,
    facing: Facing,
    patterns: Vec<(u8, HostMemory)>,
    pinning: Arc<GgmlPinning>,
}

/// Which way the last copies went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Facing {
    Nowhere,
    In,
    Out,
}

impl GgmlLink {
    /// A link to `device`.
    ///
    /// # Errors
    /// A sentence, when the device gives no further backend or no event.
    pub fn new(device: InnerDevice) -> Result<Self, String> {
        Ok(Self {
            backend: device.backend()?,
            device,
            turn: Event::new(device)?,
            facing: Facing::Nowhere,
            patterns: Vec::new(),
            pinning: Arc::new(GgmlPinning(device)),
        })
    }

    /// Has copies in this direction come after those in the other.
    fn face(&mut self, facing: Facing) {
        if self.facing == facing {
            return;
        }
        if self.facing != Facing::Nowhere {
            // Everything of before is done when it comes: it is recorded anew each time.
            self.turn.synchronize();
            self.backend.record(&self.turn);
            self.backend.wait(&self.turn);
        }
        self.facing = facing;
    }

    /// Which of the patterns has this value; made when it is asked for the first time.
    fn pattern(&mut self, value: u8) -> Result<usize, String> {
        let known = self.patterns.iter().position(|(known, _)| *known == value);
        if let Some(index) = known {
            return Ok(index);
        }
        let pinned = self.pinning.pinned(PATTERN_BYTES);
        let memory = pinned.or_else(|_| {
            HostMemory::new(PATTERN_BYTES)
                .map_err(|error| format!("could not get memory for a pattern ({error})"))
        })?;
        // SAFETY: the memory was taken just now: nobody else knows it.
        unsafe { memory.fill(0..PATTERN_BYTES, value) };
        self.patterns.push((value, memory));
        Ok(self.patterns.len() - 1)
    }
}

impl Link for GgmlLink {
    fn name(&self) -> String {
        format!(
            "{}, through a second backend of ggml's,",
            self.device.name()
        )
    }

    fn device(&self) -> InnerDevice {
        self.device
    }

    fn another(&self) -> Result<Box<dyn Link>, String> {
        Ok(Box::new(Self::new(self.device)?))
    }

    fn pinning(&self) -> Arc<dyn Pinning> {
        Arc::clone(&self.pinning) as Arc<dyn Pinning>
    }

    unsafe fn copy_in(
        &mut self,
        to: &DeviceBuffer,
        offset: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), String> {
        self.face(Facing::In);
        // SAFETY: the caller's promise.
        unsafe { self.backend.write(to, offset, from, bytes) };
        Ok(())
    }

    unsafe fn copy_out(
        &mut self,
        from: &DeviceBuffer,
        offset: usize,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), String> {
        self.face(Facing::Out);
        // SAFETY: the caller's promise.
        unsafe { self.backend.read(from, offset, to, bytes) };
        Ok(())
    }

    /// ggml has no filling of a stream: copies of a pattern keep the order.
    unsafe fn fill(
        &mut self,
        to: &DeviceBuffer,
        range: Range<usize>,
        value: u8,
    ) -> Result<(), String> {
        let index = self.pattern(value)?;
        self.face(Facing::In);
        for start in range.clone().step_by(PATTERN_BYTES) {
            let bytes = PATTERN_BYTES.min(range.end - start);
            let from = self.patterns[index].1.address(0);
            // SAFETY:
            // - the pattern is as large, is kept as long as the link, and never written;
            // - the rest is the caller's promise.
            unsafe { self.backend.write(to, start, from, bytes) };
        }
        Ok(())
    }

    fn record(&mut self, event: &Event) -> Result<(), String> {
        self.backend.record(event);
        Ok(())
    }

    fn wait(&mut self, event: &Event) -> Result<(), String> {
        self.backend.wait(event);
        Ok(())
    }

    fn synchronize(&mut self, event: &Event) -> Result<(), String> {
        event.synchronize();
        Ok(())
    }
}

impl Drop for GgmlLink {
    fn drop(&mut self) {
        self.backend.synchronize();
    }
}

/// Memory of the device's host buffer type.
#[derive(Debug)]
struct GgmlPinning(InnerDevice);

impl Pinning for GgmlPinning {
    fn pinned(&self, bytes: usize) -> Result<HostMemory, String> {
        // Buffers begin where their type likes.
        let buffer = DeviceBuffer::pinned(self.0, bytes + BLOCK_BYTES)?;
        let base = buffer.base().next_multiple_of(BLOCK_BYTES);
        // SAFETY: the memory is the host's, as large, and freed with the buffer.
        Ok(unsafe { HostMemory::pinned(base as *mut u8, bytes, buffer) })
    }
}
