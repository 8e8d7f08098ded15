#![allow(
    unsafe_code,
    reason = "memory that copy workers and the inner backend share"
)]
//! Memory of the arena and of the backing store for states.

use std::io;
use std::ops::Range;

use memmap2::{MmapMut, MmapOptions, MmapRaw};

use super::storage::BLOCK_BYTES;

/// Zeroed host memory, shared by address between the pager, the copy workers and the
/// inner backend. Who may touch which bytes when is the pager's schedule: a range is
/// written by one copy in flight, or read and written by one segment, never both
/// (invariant 3).
#[derive(Debug)]
pub struct HostMemory {
    pages: Pages,
    bytes: usize,
}

#[derive(Debug)]
enum Pages {
    /// A mapping of ours.
    Map(MmapRaw),
    /// Memory that a device copies from while others compute, and what frees it.
    Pinned {
        address: *mut u8,
        _owner: Box<dyn Owner>,
    },
}

/// What memory belongs to that is not ours: it is freed when this is dropped.
pub trait Owner: std::fmt::Debug + Send + Sync {}

impl<T: std::fmt::Debug + Send + Sync> Owner for T {}

// SAFETY: the memory is owned and lives until drop, on whichever thread.
unsafe impl Send for HostMemory {}

// SAFETY:
// - the mapping is owned and lives until drop, on whichever thread;
// - all access goes through raw pointers whose exclusivity the schedule guarantees
//   (invariant 3), as it would have to for device memory.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Reserves `bytes` of zeroed memory; pages are committed when first written. The
    /// mapping is made of whole blocks of direct I/O, so that the last one can be read.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mapped = bytes.max(1).checked_next_multiple_of(BLOCK_BYTES);
        let map = MmapMut::map_anon(mapped.ok_or(io::ErrorKind::OutOfMemory)?)?;
        #[cfg(target_os = "linux")]
        if bytes >= 2 << 20 {
            // Large pages save a tenth of the time of a matrix product. Advice only:
            // a kernel without them refuses, and nothing is lost.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self {
            pages: Pages::Map(map.into()),
            bytes,
        })
    }

    /// Memory that somebody else gave, from which a device copies while others compute.
    ///
    /// # Safety
    /// - `address` is valid for reads and writes of `bytes` bytes until `owner` is dropped,
    ///   and nobody else uses them.
    pub unsafe fn pinned(address: *mut u8, bytes: usize, owner: impl Owner + 'static) -> Self {
        Self {
            pages: Pages::Pinned {
                address,
                _owner: Box::new(owner),
            },
            bytes,
        }
    }

    /// Whether a device copies from and to it while others compute.
    pub fn is_pinned(&self) -> bool {
        matches!(self.pages, Pages::Pinned { .. })
    }

    /// Reserves `bytes` of zeroed memory of which only a part may ever be used: small pages,
    /// and no promise by the system that all of it can be had.
    ///
    /// # Errors
    /// When the address space is exhausted.
    pub fn sparse(bytes: usize) -> io::Result<Self> {
        let map = MmapOptions::new()
            .len(bytes.max(1))
            .no_reserve_swap()
            .map_anon()?;
        let memory = Self {
            pages: Pages::Map(map.into()),
            bytes,
        };
        memory.take_small_pages();
        Ok(memory)
    }

    /// From now on memory comes in small pages, so that no more is taken than is used.
    pub fn take_small_pages(&self) {
        #[cfg(target_os = "linux")]
        if let Pages::Map(map) = &self.pages {
            // Advice only: a kernel without large pages refuses, and nothing is lost.
            let _ = map.advise(memmap2::Advice::NoHugePage);
        }
    }

    /// Keeps all of it in memory, until it is dropped or unlocked.
    ///
    /// # Errors
    /// When the system's limit does not allow it.
    pub fn lock(&self) -> Result<(), region::Error> {
        let guard = region::lock(self.address(0), self.bytes.max(1))?;
        // Unmapping unlocks, and a guard would only find nothing there any more.
        std::mem::forget(guard);
        Ok(())
    }

    /// Lets the system take pages again, and give them back one by one.
    pub fn unlock(&self) {
        // What was not locked is no failure.
        let _ = region::unlock(self.address(0), self.bytes.max(1));
    }

    /// Gives the memory of a range back to the system; its whole pages are zero afterwards,
    /// what is left of other pages at both ends is filled with zero.
    ///
    /// # Safety
    /// - nobody else reads or writes that range meanwhile.
    pub unsafe fn release(&self, range: Range<usize>) {
        let page = region::page::size();
        let first = range.start.next_multiple_of(page).min(range.end);
        let last = (range.end / page * page).max(first);
        for edge in [range.start..first, last..range.end] {
            // SAFETY: nobody else touches the range: the caller's promise.
            unsafe { self.fill(edge, 0) };
        }
        if first < last && !self.discard(first..last) {
            // SAFETY: as above.
            unsafe { self.fill(first..last, 0) };
        }
    }

    /// Has the system take whole pages away; whether it does that here.
    #[cfg(target_os = "linux")]
    fn discard(&self, pages: Range<usize>) -> bool {
        if self.is_pinned() {
            return false;
        }
        // SAFETY:
        // - the pages are inside our private anonymous mapping, and read as zero
        //   afterwards;
        // - nobody else touches them: `release`'s caller's promise.
        unsafe {
            libc::madvise(
                self.address(pages.start).cast(),
                pages.len(),
                libc::MADV_DONTNEED,
            ) == 0
        }
    }

    /// Has the system take whole pages away; whether it does that here.
    #[cfg(not(target_os = "linux"))]
    fn discard(&self, _pages: Range<usize>) -> bool {
        false
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of the byte at `offset`.
    ///
    /// # Panics
    /// When `offset` is past the end.
    pub fn address(&self, offset: usize) -> *mut u8 {
        assert!(
            offset <= self.bytes,
            "offset {offset} of {} bytes",
            self.bytes
        );
        let base = match &self.pages {
            Pages::Map(map) => map.as_mut_ptr(),
            Pages::Pinned { address, .. } => *address,
        };
        base.wrapping_add(offset)
    }

    /// Copies `from` to `offset`.
    ///
    /// # Safety
    /// - `from` does not lie in this memory;
    /// - nobody else reads or writes that range meanwhile.
    pub unsafe fn write(&self, offset: usize, from: &[u8]) {
        assert!(from.len() <= self.bytes && offset <= self.bytes - from.len());
        // SAFETY:
        // - source and destination are valid for `from.len()` bytes: asserted above;
        // - they do not overlap, and nobody else touches the destination: the caller's
        //   promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.address(offset), from.len()) };
    }

    /// Copies from `offset` into `to`.
    ///
    /// # Safety
    /// - `to` does not lie in this memory;
    /// - nobody writes that range meanwhile.
    pub unsafe fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(to.len() <= self.bytes && offset <= self.bytes - to.len());
        // SAFETY:
        // - both are valid for `to.len()` bytes: asserted above;
        // - they do not overlap, and nobody writes the source: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(self.address(offset), to.as_mut_ptr(), to.len()) };
    }

    /// Copies `bytes` bytes at `from_offset` of `from`, which may be this memory, to
    /// `offset`.
    ///
    /// # Safety
    /// - nobody writes the source meanwhile, nobody else reads or writes the destination.
    pub unsafe fn copy(&self, offset: usize, from: &Self, from_offset: usize, bytes: usize) {
        assert!(bytes <= self.bytes && offset <= self.bytes - bytes);
        assert!(bytes <= from.bytes && from_offset <= from.bytes - bytes);
        let (to, from) = (self.address(offset), from.address(from_offset));
        // SAFETY:
        // - source and destination are valid for `bytes` bytes: asserted above;
        // - they may overlap; nobody else touches them: the caller's promise.
        unsafe { std::ptr::copy(from, to, bytes) };
    }

    /// Fills `range` with `value`.
    ///
    /// # Safety
    /// - nobody else reads or writes that range meanwhile.
    pub unsafe fn fill(&self, range: Range<usize>, value: u8) {
        assert!(range.start <= range.end && range.end <= self.bytes);
        // SAFETY:
        // - the range is inside the mapping: asserted above;
        // - nobody else touches it: the caller's promise.
        unsafe { std::ptr::write_bytes(self.address(range.start), value, range.len()) };
    }
}

/// Address space that nobody can read or write: the addresses llama.cpp is given for
/// paged tensors. Whatever was not translated faults (invariant 1).
pub struct Reservation {
    pages: region::Allocation,
    bytes: usize,
}

impl Reservation {
    /// Reserves `bytes` of address space; costs no memory.
    ///
    /// # Errors
    /// When the address space is exhausted.
    pub fn new(bytes: usize) -> Result<Self, region::Error> {
        let pages = region::alloc(bytes.max(1), region::Protection::NONE)?;
        Ok(Self { pages, bytes })
    }

    /// First address.
    pub fn base(&self) -> usize {
        self.pages.as_ptr::<u8>() as usize
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
