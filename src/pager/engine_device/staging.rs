//! Staging memory: what comes from files, and what goes into them, passes through it on
//! its way over the link.
//!
//! ```text
//!  place 0          place 1          place 2 ...
//!  [copies.....]    [copies...|free] [free....]      the reader fills one place after the
//!   uploading        filling                         other; a place is free again when
//!                                                    what the link copied has come
//! ```

use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::super::memory::HostMemory;
use super::super::storage::BLOCK_BYTES;

/// The queue has ended, and with it whoever would have done what is handed on.
#[derive(Debug)]
pub struct Gone;

/// A part of the staging memory: where it begins, and how many bytes it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub at: usize,
    pub bytes: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Staging {
    memory: Arc<HostMemory>,
    place_bytes: usize,
    free: Receiver<usize>,
    // The place that is being filled, and where its rest begins.
    current: Option<usize>,
    next: usize,
}

impl Staging {
    /// Staging in `memory`, of which places are free that `free` names.
    pub fn new(memory: &Arc<HostMemory>, place_bytes: usize, free: Receiver<usize>) -> Self {
        assert!(place_bytes.is_multiple_of(BLOCK_BYTES) && place_bytes >= 2 * BLOCK_BYTES);
        Self {
            memory: Arc::clone(memory),
            place_bytes,
            free,
            current: None,
            next: 0,
        }
    }

    /// All of it.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// Takes room for at most `bytes` bytes, more than none, that begin `lead` bytes after
    /// the start of a block; the blocks they lie in are theirs. Blocks until there is room,
    /// and tells `release` of places that are full.
    ///
    /// # Errors
    /// When the queue has ended.
    pub fn take(
        &mut self,
        bytes: usize,
        lead: usize,
        release: impl Fn(usize) -> Result<(), Gone>,
    ) -> Result<Part, Gone> {
        loop {
            if let Some(place) = self.current {
                let end = (place + 1) * self.place_bytes;
                let room = end.saturating_sub(self.next + lead);
                // What is nearly full is full: small pieces cost as much as large ones.
                if room >= bytes || room >= self.place_bytes / 4 {
                    let part = Part {
                        at: self.next + lead,
                        bytes: bytes.min(room),
                    };
                    self.next = (part.at + part.bytes).next_multiple_of(BLOCK_BYTES);
                    return Ok(part);
                }
                self.current = None;
                release(place)?;
            }
            let place = self.free.recv().map_err(|_| Gone)?;
            self.current = Some(place);
            self.next = place * self.place_bytes;
        }
    }
}
