//! The host's copy of what streams: bytes of the model's files that were read once, in
//! memory from which the link copies.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::super::engine::Ticket;
use super::super::memory::HostMemory;
use super::super::room::{Part, Room};
use super::super::storage::{BLOCK_BYTES, StoreFile};

/// Memory is taken in pieces of this size: large enough that few copies are cut at their
/// ends, and pinning is seldom.
pub const SLAB_BYTES: usize = 64 << 20;

/// Bytes of a file that are kept, or will be when `read` is done.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Where they are.
    pub memory: Arc<HostMemory>,
    /// Where they begin in there.
    pub at: usize,
    /// How many there are.
    pub bytes: usize,
    /// The reader's request that brings them; they are undefined when it fails.
    pub read: Ticket,
}

/// What a search finds for the next bytes of a file.
#[derive(Debug)]
pub enum Found {
    /// These are kept.
    Kept(Extent),
    /// So many bytes are not.
    Absent(usize),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Kept {
    shared: Arc<Room>,
    // What was taken of that, and whether there is no more.
    taken: Vec<Part>,
    is_full: bool,
    slab_bytes: usize,
    // By file, which lives as long as its address names it.
    files: Vec<(Arc<StoreFile>, BTreeMap<u64, Extent>)>,
    slab: Option<Arc<HostMemory>>,
    // Where the rest of the slab begins.
    next: usize,
    // Whole blocks that a failed reading has left.
    left: Vec<(Arc<HostMemory>, Range<usize>)>,
}

impl Kept {
    /// Keeps as much as there is room for in `shared`, in memories of `slab_bytes`, a
    /// multiple of `BLOCK_BYTES`.
    pub fn new(shared: Arc<Room>, slab_bytes: usize) -> Self {
        assert!(slab_bytes.is_multiple_of(BLOCK_BYTES) && slab_bytes > 0);
        Self {
            shared,
            taken: Vec::new(),
            is_full: false,
            slab_bytes,
            files: Vec::new(),
            slab: None,
            next: 0,
            left: Vec::new(),
        }
    }

    /// What it was made for.
    pub fn limit_bytes(&self) -> u64 {
        self.shared.limit_bytes()
    }

    /// What is known of the next `bytes` bytes of `file` from `offset` on, more than none.
    pub fn find(&self, file: &Arc<StoreFile>, offset: u64, bytes: usize) -> Found {
        let known = self
            .files
            .iter()
            .find(|(known, _)| Arc::ptr_eq(known, file));
        let Some((_, extents)) = known else {
            return Found::Absent(bytes);
        };
        if let Some((start, extent)) = extents.range(..=offset).next_back() {
            let skipped = offset - start;
            if skipped < extent.bytes as u64 {
                let skipped = usize::try_from(skipped).expect("less than the extent has");
                return Found::Kept(Extent {
                    at: extent.at + skipped,
                    bytes: bytes.min(extent.bytes - skipped),
                    ..extent.clone()
                });
            }
        }
        let next = extents.range(offset..).next();
        let gap = next.map_or(bytes, |(start, _)| {
            usize::try_from(start - offset).map_or(bytes, |gap| gap.min(bytes))
        });
        Found::Absent(gap)
    }

    /// Takes room for bytes of `file` from `offset` on, which are not kept: at most
    /// `bytes`, that lie in their blocks like in the file and have these to themselves.
    /// None when there is no more; `memory` is asked for more.
    ///
    /// # Errors
    /// What `memory` says; nothing more is kept then.
    pub fn room(
        &mut self,
        offset: u64,
        bytes: usize,
        memory: impl FnOnce(usize) -> Result<HostMemory, String>,
    ) -> Result<Option<Extent>, String> {
        let lead = usize::try_from(offset % BLOCK_BYTES as u64).expect("less than a block");
        if let Some(extent) = self.room_left(lead, bytes) {
            return Ok(Some(extent));
        }
        let room = |slab: &Arc<HostMemory>, next: usize| slab.bytes().saturating_sub(next + lead);
        let fits = self
            .slab
            .as_ref()
            .is_some_and(|slab| room(slab, self.next) > 0);
        if !fits {
            let wanted = self.slab_bytes as u64;
            let part = match self.is_full {
                true => None,
                false => self.shared.take(wanted),
            };
            // Others may give room back, so that there may be some the next time.
            let Some(part) = part else {
                return Ok(None);
            };
            let taken = memory(self.slab_bytes).inspect_err(|_| self.is_full = true)?;
            self.taken.push(part);
            self.slab = Some(Arc::new(taken));
            self.next = 0;
        }
        let Some(slab) = &self.slab else {
            return Ok(None);
        };
        let extent = Extent {
            at: self.next + lead,
            bytes: bytes.min(room(slab, self.next)),
            memory: Arc::clone(slab),
            read: Ticket(0),
        };
        self.next = (extent.at + extent.bytes).next_multiple_of(BLOCK_BYTES);
        Ok(Some(extent))
    }

    /// Room that a failed reading has left.
    fn room_left(&mut self, lead: usize, bytes: usize) -> Option<Extent> {
        let (memory, mut blocks) = self.left.pop()?;
        let extent = Extent {
            at: blocks.start + lead,
            bytes: bytes.min(blocks.len() - lead),
            memory: Arc::clone(&memory),
            read: Ticket(0),
        };
        blocks.start = (extent.at + extent.bytes).next_multiple_of(BLOCK_BYTES);
        if !blocks.is_empty() {
            self.left.push((memory, blocks));
        }
        Some(extent)
    }

    /// Keeps `extent`, which `room` gave for `offset`, once its reading is under way.
    pub fn add(&mut self, file: &Arc<StoreFile>, offset: u64, extent: Extent) {
        let known = self
            .files
            .iter()
            .position(|(known, _)| Arc::ptr_eq(known, file));
        let index = known.unwrap_or_else(|| {
            self.files.push((Arc::clone(file), BTreeMap::new()));
            self.files.len() - 1
        });
        self.files[index].1.insert(offset, extent);
    }

    /// Forgets what a reading was to bring that failed: there is room again.
    pub fn forget(&mut self, read: Ticket) {
        let left = &mut self.left;
        for (_, extents) in &mut self.files {
            extents.retain(|_, extent| {
                let has_failed = extent.read == read;
                if has_failed {
                    let start = extent.at / BLOCK_BYTES * BLOCK_BYTES;
                    let end = (extent.at + extent.bytes).next_multiple_of(BLOCK_BYTES);
                    left.push((Arc::clone(&extent.memory), start..end));
                }
                !has_failed
            });
        }
    }
}
