//! The cards' memory.
//!
//! ```text
//!  addresses given out   | never readable: nobody but the driver may follow them        |
//!  the driver's view     | guard, allocation, guard | nothing | guard, allocation, ...  |
//! ```
//! Both are reservations of the same size; an address has one place in each. Addresses are
//! not used twice, so an old one is found out.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::calls_nvml::OTHER_BYTES;
use crate::errors::{INVALID_VALUE, OUT_OF_MEMORY, Status};
use crate::report::violation;
use crate::settings::settings;
use crate::virtual_memory::Virtual;

/// Size of the address space of all cards together, in bytes.
const SPACE_BYTES: usize = 1 << 38;

/// Bytes before and after each allocation that nobody may write.
pub const GUARD_BYTES: usize = 512;

const GUARD: u8 = 0xC7;

/// What is in memory that was not written yet.
pub const UNWRITTEN: u8 = 0xA5;

const PAGE: usize = 4096;

/// One `cuMemAlloc`.
#[derive(Debug)]
struct Allocation {
    bytes: usize,
    card: usize,
    /// Its pages with the guards, counted from the begin of the address space.
    pages: Range<usize>,
}

/// All cards' memory.
#[derive(Debug)]
pub struct Memory {
    given_out: usize,
    view: usize,
    next: usize,
    used: Vec<usize>,
    peak: Vec<usize>,
    live: BTreeMap<usize, Allocation>,
    freed: BTreeMap<usize, usize>,
    /// Reserved addresses, and what is mapped there.
    pub pages: Virtual,
}

impl Memory {
    /// Nothing allocated yet.
    ///
    /// # Errors
    /// When there is not enough address space.
    pub fn new() -> Result<Self, Status> {
        Ok(Self {
            given_out: reserve(SPACE_BYTES)?,
            view: reserve(SPACE_BYTES)?,
            next: PAGE,
            used: vec![0; settings().devices],
            peak: vec![0; settings().devices],
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            pages: Virtual::default(),
        })
    }

    /// Where the driver sees the byte at `address`.
    pub fn host(&self, address: usize) -> *mut u8 {
        (self.view + (address - self.given_out)) as *mut u8
    }

    /// Free and total bytes of a card.
    pub fn bytes_free_and_total(&self, card: usize) -> (usize, usize) {
        let total = settings().memory_bytes;
        let others = settings().others as usize * OTHER_BYTES;
        (total - self.used[card] - others, total)
    }

    /// Bytes of a card that this process takes.
    pub fn used_bytes(&self, card: usize) -> usize {
        self.used[card]
    }

    /// The most that it took since this was last asked.
    pub fn take_peak(&mut self, card: usize) -> usize {
        std::mem::replace(&mut self.peak[card], self.used[card])
    }

    /// Takes bytes of a card.
    ///
    /// # Errors
    /// When it is full.
    pub fn take(&mut self, card: usize, bytes: usize) -> Result<(), Status> {
        if bytes > self.bytes_free_and_total(card).0 {
            return Err(OUT_OF_MEMORY);
        }
        self.used[card] += bytes;
        self.peak[card] = self.peak[card].max(self.used[card]);
        Ok(())
    }

    /// Gives bytes of a card back.
    pub fn give_back(&mut self, card: usize, bytes: usize) {
        self.used[card] -= bytes;
    }

    /// Addresses that were never given out before.
    ///
    /// # Errors
    /// When there are no more.
    pub fn addresses(&mut self, bytes: usize, alignment: usize) -> Result<usize, Status> {
        let start = (self.given_out + self.next).next_multiple_of(alignment);
        let end = start.checked_add(bytes).ok_or(OUT_OF_MEMORY)?;
        // A page between two, which belongs to nobody.
        let next = (end - self.given_out).next_multiple_of(PAGE) + PAGE;
        if next > SPACE_BYTES {
            return Err(OUT_OF_MEMORY);
        }
        self.next = next;
        Ok(start)
    }

    /// Allocates bytes of a card.
    ///
    /// # Errors
    /// When it is full, or for no bytes.
    pub fn allocate(&mut self, card: usize, bytes: usize) -> Result<usize, Status> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        self.take(card, bytes)?;
        let with_guards = (bytes.saturating_add(2 * GUARD_BYTES)).next_multiple_of(PAGE);
        let start = self.addresses(with_guards, PAGE)?;
        let address = start + GUARD_BYTES;
        self.open(start, with_guards)?;
        // SAFETY: the pages were opened just now.
        unsafe { self.host(start).write_bytes(GUARD, with_guards) };
        // SAFETY: as above; the allocation lies within them.
        unsafe { self.host(address).write_bytes(UNWRITTEN, bytes) };
        let first = start - self.given_out;
        let pages = first..first + with_guards;
        let allocation = Allocation { bytes, card, pages };
        self.live.insert(address, allocation);
        Ok(address)
    }

    fn open(&self, start: usize, bytes: usize) -> Result<(), Status> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: pages of the driver's own reservation.
        let status = unsafe { libc::mprotect(self.host(start).cast(), bytes, access) };
        if status == 0 {
            Ok(())
        } else {
            Err(OUT_OF_MEMORY)
        }
    }

    /// Frees an allocation; its guards must be as they were.
    ///
    /// # Errors
    /// When `address` is not the begin of one.
    pub fn free(&mut self, address: usize) -> Result<(), Status> {
        let Some(allocation) = self.live.remove(&address) else {
            let what = self.describe(address);
            violation(format!("free of {address:#x}, which is {what}"));
            return Err(INVALID_VALUE);
        };
        self.check_guards(address, &allocation);
        self.give_back(allocation.card, allocation.bytes);
        self.freed.insert(address, allocation.bytes);
        self.close(
            self.given_out + allocation.pages.start,
            allocation.pages.len(),
        );
        Ok(())
    }

    /// Takes the pages away from the driver's view.
    pub fn close(&self, start: usize, bytes: usize) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let place = self.host(start).cast();
        // SAFETY: pages of the driver's own reservation, which nobody uses any more.
        unsafe { libc::mmap(place, bytes, libc::PROT_NONE, flags, -1, 0) };
    }

    fn check_guards(&self, address: usize, allocation: &Allocation) {
        let first = self.given_out + allocation.pages.start;
        let end = self.given_out + allocation.pages.end;
        let after = address + allocation.bytes;
        for (guard, which) in [(first..address, "before"), (after..end, "after")] {
            // SAFETY: pages of a live allocation.
            let bytes = unsafe { std::slice::from_raw_parts(self.host(guard.start), guard.len()) };
            if let Some(at) = bytes.iter().position(|&byte| byte != GUARD) {
                let size = allocation.bytes;
                violation(format!(
                    "the guard {which} an allocation of {size} bytes was written, at its byte {at}"
                ));
            }
        }
    }

    fn describe(&self, address: usize) -> &'static str {
        let freed = self.freed.range(..=address).next_back();
        if freed.is_some_and(|(start, bytes)| address - start < *bytes) {
            "freed memory"
        } else {
            "no memory of a card"
        }
    }

    /// Whether a range lies in one allocation, or in mapped pages.
    ///
    /// # Errors
    /// A sentence, when it does not.
    pub fn check(&self, start: usize, bytes: usize) -> Result<(), String> {
        if let Some((first, allocation)) = self.live.range(..=start).next_back()
            && start - first < allocation.bytes
        {
            let size = allocation.bytes;
            return if bytes <= size - (start - first) {
                Ok(())
            } else {
                let offset = start - first;
                Err(format!(
                    "{bytes} bytes at offset {offset} are past the end of an allocation of {size}"
                ))
            };
        }
        if self.pages.covers(start, bytes) {
            return Ok(());
        }
        let what = self.describe(start);
        Err(format!("{bytes} bytes at {start:#x} are {what}"))
    }
}

/// Address space that cannot be read or written.
fn reserve(bytes: usize) -> Result<usize, Status> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping wherever there is room.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(OUT_OF_MEMORY);
    }
    Ok(start as usize)
}
