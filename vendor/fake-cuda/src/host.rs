//! Host memory that copies need not be staged for: allocated here, or registered.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::errors::{
    ALREADY_REGISTERED, INVALID_VALUE, NOT_REGISTERED, NOT_SUPPORTED, OUT_OF_MEMORY, Status,
};
use crate::report::violation;
use crate::settings::{Registers, settings};

/// Flag of a registration that is never written.
pub const READ_ONLY: u32 = 8;

/// A range of pinned memory. Each queued copy holds a clone of `in_use`.
#[derive(Debug)]
struct Pinned {
    bytes: usize,
    /// Whose it is: freed by the driver, or unregistered only.
    is_ours: bool,
    is_read_only: bool,
    in_use: Arc<()>,
}

/// What a host range is to a copy.
#[derive(Debug)]
pub enum Kind {
    /// Pinned: the copy keeps this until it is done.
    Pinned(Arc<()>),
    /// Pageable.
    Pageable,
}

/// All pinned ranges, by address.
#[derive(Debug, Default)]
pub struct HostRanges {
    ranges: BTreeMap<usize, Pinned>,
    bytes: usize,
}

impl HostRanges {
    fn overlaps(&self, start: usize, bytes: usize) -> bool {
        let before = self.ranges.range(..start + bytes).next_back();
        before.is_some_and(|(first, range)| first + range.bytes > start)
    }

    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        let limit = settings().pinned_bytes;
        if bytes > limit - self.bytes.min(limit) {
            return Err(OUT_OF_MEMORY);
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Pinned memory of our own, filled with a pattern.
    ///
    /// # Errors
    /// When there is no more.
    pub fn allocate(&mut self, bytes: usize) -> Result<usize, Status> {
        let layout = layout(bytes).ok_or(INVALID_VALUE)?;
        self.take(bytes)?;
        // SAFETY: the layout is not empty.
        let address = unsafe { std::alloc::alloc(layout) };
        if address.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        // SAFETY: made just now, as long.
        unsafe { address.write_bytes(0xA5, bytes) };
        self.insert(address as usize, bytes, true, false);
        Ok(address as usize)
    }

    fn insert(&mut self, start: usize, bytes: usize, is_ours: bool, is_read_only: bool) {
        let in_use = Arc::new(());
        let range = Pinned {
            bytes,
            is_ours,
            is_read_only,
            in_use,
        };
        self.ranges.insert(start, range);
    }

    /// Pins memory of the program's.
    ///
    /// # Errors
    /// Where that is switched off, overlaps, or is too much.
    pub fn register(&mut self, start: usize, bytes: usize, flags: u32) -> Result<(), Status> {
        let is_read_only = flags & READ_ONLY != 0;
        let allowed = match settings().registers {
            Registers::ReadOnly => true,
            Registers::Writable => !is_read_only,
            Registers::Nothing => false,
        };
        if !allowed {
            return Err(NOT_SUPPORTED);
        }
        if start == 0 || bytes == 0 || start.checked_add(bytes).is_none() {
            return Err(INVALID_VALUE);
        }
        if self.overlaps(start, bytes) {
            return Err(ALREADY_REGISTERED);
        }
        self.take(bytes)?;
        self.insert(start, bytes, false, is_read_only);
        Ok(())
    }

    /// Ends a registration, or frees memory of ours.
    ///
    /// # Errors
    /// When there is none of this kind that begins at `start`.
    pub fn remove(&mut self, start: usize, is_ours: bool) -> Result<(), Status> {
        match self.ranges.get(&start) {
            Some(range) if range.is_ours == is_ours => {}
            _ if is_ours => return Err(INVALID_VALUE),
            _ => return Err(NOT_REGISTERED),
        }
        let Some(range) = self.ranges.remove(&start) else {
            return Err(INVALID_VALUE);
        };
        self.bytes -= range.bytes;
        if Arc::strong_count(&range.in_use) > 1 {
            let bytes = range.bytes;
            violation(format!(
                "{bytes} bytes of host memory at {start:#x} were given back before their copies \
                 were done"
            ));
        } else if let Some(layout) = layout(range.bytes).filter(|_| is_ours) {
            // SAFETY: allocated above with this layout; no queued copy uses it.
            unsafe { std::alloc::dealloc(start as *mut u8, layout) };
        }
        Ok(())
    }

    /// What a range is to a copy, which writes it or only reads it.
    ///
    /// # Errors
    /// When only a part of it lies in one pinned range: the driver wants all of it in one.
    pub fn kind(&self, start: usize, bytes: usize, is_written: bool) -> Result<Kind, Status> {
        let before = self.ranges.range(..=start).next_back();
        if let Some((first, range)) = before.filter(|(first, range)| *first + range.bytes > start) {
            if start + bytes > first + range.bytes {
                return Err(INVALID_VALUE);
            }
            if is_written && range.is_read_only {
                violation(format!(
                    "a copy writes host memory at {start:#x} that was registered as read-only"
                ));
            }
            return Ok(Kind::Pinned(Arc::clone(&range.in_use)));
        }
        if self.overlaps(start, bytes) {
            return Err(INVALID_VALUE);
        }
        Ok(Kind::Pageable)
    }
}

fn layout(bytes: usize) -> Option<std::alloc::Layout> {
    let layout = std::alloc::Layout::from_size_align(bytes, 4096).ok()?;
    (bytes > 0).then_some(layout)
}
