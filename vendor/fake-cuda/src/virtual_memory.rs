//! Reserved addresses, physical memory, and what is mapped where.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::errors::{INVALID_VALUE, OUT_OF_MEMORY, Status};
use crate::memory::{Memory, UNWRITTEN};
use crate::report::violation;
use crate::settings::settings;

/// Unit in which memory is created and mapped, in bytes.
pub fn granule_bytes() -> usize {
    settings().granule_bytes
}

#[derive(Debug)]
struct Physical {
    file: File,
    bytes: usize,
    card: usize,
    is_released: bool,
    mapped: usize,
}

#[derive(Debug)]
struct Mapping {
    bytes: usize,
    handle: u64,
    is_accessible: bool,
}

/// What is reserved, created and mapped.
#[derive(Debug, Default)]
pub struct Virtual {
    reserved: BTreeMap<usize, usize>,
    physical: BTreeMap<u64, Physical>,
    mapped: BTreeMap<usize, Mapping>,
    handles: u64,
    creations: u64,
    reservations: u64,
}

fn is_whole(value: usize) -> bool {
    value > 0 && granule_bytes() > 0 && value.is_multiple_of(granule_bytes())
}

impl Virtual {
    /// Whether all of a range is mapped and may be used.
    pub fn covers(&self, start: usize, bytes: usize) -> bool {
        let mut at = start;
        while at < start + bytes {
            match self.mapped.range(..=at).next_back() {
                Some((first, mapping)) if at - first < mapping.bytes && mapping.is_accessible => {
                    at = first + mapping.bytes;
                }
                _ => return false,
            }
        }
        true
    }

    /// Bytes of memory that was created and not given back.
    pub fn created_bytes(&self) -> usize {
        self.physical.values().map(|physical| physical.bytes).sum()
    }

    fn is_reserved(&self, start: usize, bytes: usize) -> bool {
        let before = self.reserved.range(..=start).next_back();
        before.is_some_and(|(first, size)| start + bytes <= first + size)
    }

    fn is_mapped_in(&self, start: usize, bytes: usize) -> bool {
        let before = self.mapped.range(..start + bytes).next_back();
        before.is_some_and(|(first, mapping)| first + mapping.bytes > start)
    }

    fn drop_if_unused(&mut self, handle: u64) -> Option<(usize, usize)> {
        let physical = self.physical.get(&handle)?;
        if !physical.is_released || physical.mapped > 0 {
            return None;
        }
        let gone = (physical.card, physical.bytes);
        self.physical.remove(&handle);
        Some(gone)
    }
}

impl Memory {
    /// Reserves addresses.
    ///
    /// # Errors
    /// When the size is not whole granules, or there are no more.
    pub fn reserve_addresses(&mut self, bytes: usize) -> Result<usize, Status> {
        if !is_whole(bytes) {
            return Err(INVALID_VALUE);
        }
        self.pages.reservations += 1;
        if settings().fail_reserve.contains(&self.pages.reservations) {
            return Err(OUT_OF_MEMORY);
        }
        let start = self.addresses(bytes, granule_bytes())?;
        self.pages.reserved.insert(start, bytes);
        Ok(start)
    }

    /// Gives reserved addresses back.
    ///
    /// # Errors
    /// When they were not reserved so, or something is mapped there.
    pub fn free_addresses(&mut self, start: usize, bytes: usize) -> Result<(), Status> {
        if self.pages.reserved.get(&start) != Some(&bytes) {
            return Err(INVALID_VALUE);
        }
        if self.pages.is_mapped_in(start, bytes) {
            violation(format!(
                "addresses at {start:#x} were freed with memory mapped there"
            ));
            return Err(INVALID_VALUE);
        }
        self.pages.reserved.remove(&start);
        Ok(())
    }

    /// Takes memory of a card that has no address yet.
    ///
    /// # Errors
    /// When the size is not whole granules, or the card is full.
    pub fn create(&mut self, card: usize, bytes: usize) -> Result<u64, Status> {
        if !is_whole(bytes) {
            return Err(INVALID_VALUE);
        }
        self.pages.creations += 1;
        if settings().fail_create.contains(&self.pages.creations) {
            return Err(OUT_OF_MEMORY);
        }
        self.take(card, bytes)?;
        // SAFETY: the name is a C string.
        let raw = unsafe { libc::memfd_create(c"fake-cuda".as_ptr(), libc::MFD_CLOEXEC) };
        if raw < 0 {
            return Err(OUT_OF_MEMORY);
        }
        // SAFETY: opened just now, owned by nobody else.
        let file = unsafe { File::from_raw_fd(raw) };
        file.set_len(bytes as u64).map_err(|_| OUT_OF_MEMORY)?;
        self.pages.handles += 1;
        let physical = Physical {
            file,
            bytes,
            card,
            is_released: false,
            mapped: 0,
        };
        self.pages.physical.insert(self.pages.handles, physical);
        Ok(self.pages.handles)
    }

    /// Lets go of created memory; it stays as long as it is mapped.
    ///
    /// # Errors
    /// When there is none of this handle.
    pub fn release(&mut self, handle: u64) -> Result<(), Status> {
        let physical = self.pages.physical.get_mut(&handle).ok_or(INVALID_VALUE)?;
        if physical.is_released {
            violation(format!("memory of handle {handle} was released twice"));
            return Err(INVALID_VALUE);
        }
        physical.is_released = true;
        if let Some((card, bytes)) = self.pages.drop_if_unused(handle) {
            self.give_back(card, bytes);
        }
        Ok(())
    }

    /// Maps all of created memory at `start`; it cannot be used yet.
    ///
    /// # Errors
    /// When the addresses are not reserved or not free, or the sizes differ.
    pub fn map(&mut self, start: usize, bytes: usize, handle: u64) -> Result<(), Status> {
        let pages = &mut self.pages;
        let is_free = pages.is_reserved(start, bytes) && !pages.is_mapped_in(start, bytes);
        let physical = pages.physical.get_mut(&handle).ok_or(INVALID_VALUE)?;
        if !is_free || physical.bytes != bytes || !start.is_multiple_of(granule_bytes()) {
            return Err(INVALID_VALUE);
        }
        physical.mapped += 1;
        let descriptor = physical.file.as_raw_fd();
        let mapping = Mapping {
            bytes,
            handle,
            is_accessible: false,
        };
        pages.mapped.insert(start, mapping);
        let place = self.host(start).cast();
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: pages of the driver's own reservation, which nobody uses.
        let mapped = unsafe { libc::mmap(place, bytes, access, flags, descriptor, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(OUT_OF_MEMORY);
        }
        // SAFETY: mapped just now, and known to nobody.
        unsafe { self.host(start).write_bytes(UNWRITTEN, bytes) };
        Ok(())
    }

    /// Takes whole mappings in a range away.
    ///
    /// # Errors
    /// When the range is not made of whole mappings.
    pub fn unmap(&mut self, start: usize, bytes: usize) -> Result<(), Status> {
        let starts = self.whole_mappings(start, bytes)?;
        self.close(start, bytes);
        for first in starts {
            let Some(mapping) = self.pages.mapped.remove(&first) else {
                continue;
            };
            if let Some(physical) = self.pages.physical.get_mut(&mapping.handle) {
                physical.mapped -= 1;
            }
            if let Some((card, bytes)) = self.pages.drop_if_unused(mapping.handle) {
                self.give_back(card, bytes);
            }
        }
        Ok(())
    }

    /// Lets the card use whole mappings in a range.
    ///
    /// # Errors
    /// When the range is not made of whole mappings.
    pub fn set_access(&mut self, start: usize, bytes: usize) -> Result<(), Status> {
        for first in self.whole_mappings(start, bytes)? {
            if let Some(mapping) = self.pages.mapped.get_mut(&first) {
                mapping.is_accessible = true;
            }
        }
        Ok(())
    }

    fn whole_mappings(&self, start: usize, bytes: usize) -> Result<Vec<usize>, Status> {
        let mut starts = Vec::new();
        let mut at = start;
        while at < start + bytes {
            let mapping = self.pages.mapped.get(&at).ok_or(INVALID_VALUE)?;
            starts.push(at);
            at += mapping.bytes;
        }
        if at == start + bytes && bytes > 0 {
            Ok(starts)
        } else {
            Err(INVALID_VALUE)
        }
    }
}
