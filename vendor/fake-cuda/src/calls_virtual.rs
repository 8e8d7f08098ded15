//! Calls about reserved addresses and the memory mapped there.

use std::ffi::{c_int, c_ulonglong, c_void};

use crate::calls_device::give;
use crate::errors::{INVALID_VALUE, Status};
use crate::settings::settings;
use crate::state::{State, current, started, status};
use crate::virtual_memory::granule_bytes;

/// The begin of CUDA's description of created memory, as far as it is looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// 1: pinned.
    pub kind: c_int,
    /// 0: no other process gets it.
    pub handle_types: c_int,
    /// Where it lies.
    pub location: Location,
}

/// A place of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Location {
    /// 1: on a card.
    pub kind: c_int,
    /// Which one.
    pub card: c_int,
}

/// Who may do what.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Who.
    pub location: Location,
    /// 3: read and write.
    pub flags: c_int,
}

fn card_of(location: Location) -> Result<usize, Status> {
    let card = usize::try_from(location.card).map_err(|_| INVALID_VALUE)?;
    let is_there = location.kind == 1 && card < settings().devices;
    is_there.then_some(card).ok_or(INVALID_VALUE)
}

/// The unit of memory that is created and mapped.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAllocationGranularity(
    out: *mut usize,
    _properties: *const Properties,
    _option: c_int,
) -> Status {
    // SAFETY: the caller's promise.
    status(current().and_then(|_| unsafe { give(out, granule_bytes()) }))
}

/// Reserves addresses.
///
/// # Safety
/// - `out` is null or a place for the address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAddressReserve(
    out: *mut usize,
    bytes: usize,
    _alignment: usize,
    _wish: usize,
    _flags: c_ulonglong,
) -> Status {
    let reserve = || {
        let (state, _) = current()?;
        let address = state.memory().reserve_addresses(bytes)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, address) }
    };
    status(reserve())
}

/// Gives reserved addresses back.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemAddressFree(address: usize, bytes: usize) -> Status {
    status(current().and_then(|(state, _)| state.memory().free_addresses(address, bytes)))
}

/// Takes memory that has no address yet.
///
/// # Safety
/// - `out` is null or a place for the handle; `properties` is null or CUDA's description.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemCreate(
    out: *mut u64,
    bytes: usize,
    properties: *const Properties,
    _flags: c_ulonglong,
) -> Status {
    let create = || {
        let (state, _) = current()?;
        // SAFETY: the caller's promise.
        let properties = unsafe { properties.as_ref() }.ok_or(INVALID_VALUE)?;
        let handle = state
            .memory()
            .create(card_of(properties.location)?, bytes)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }
    };
    status(create())
}

/// Lets go of created memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemRelease(handle: u64) -> Status {
    status(current().and_then(|(state, _)| state.memory().release(handle)))
}

/// Maps created memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemMap(
    address: usize,
    bytes: usize,
    offset: usize,
    handle: u64,
    _flags: c_ulonglong,
) -> Status {
    let map = || {
        let (state, _) = current()?;
        // The real driver has no offset yet either.
        if offset != 0 {
            return Err(INVALID_VALUE);
        }
        state.memory().map(address, bytes, handle)
    };
    status(map())
}

/// Takes mappings away, when everything queued is done.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemUnmap(address: usize, bytes: usize) -> Status {
    let unmap = || {
        let (state, _) = current()?;
        state.synchronize()?;
        state.memory().unmap(address, bytes)
    };
    status(unmap())
}

/// Lets the card use mappings.
///
/// # Safety
/// - `access` is null or `count` of CUDA's descriptions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemSetAccess(
    address: usize,
    bytes: usize,
    access: *const Access,
    count: usize,
) -> Status {
    let set = || {
        let (state, _) = current()?;
        if access.is_null() || count != 1 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let access = unsafe { access.read() };
        card_of(access.location)?;
        if access.flags != 3 {
            return Err(INVALID_VALUE);
        }
        state.memory().set_access(address, bytes)
    };
    status(set())
}

/// Where a test that plays the card finds `bytes` bytes of mapped memory; null when not all
/// of them are. Not a function of CUDA's.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_mapped_address(address: usize, bytes: usize) -> *mut c_void {
    let memory = started().map(State::memory);
    let found = memory.filter(|memory| memory.pages.covers(address, bytes));
    found.map_or(std::ptr::null_mut(), |memory| memory.host(address).cast())
}

/// Bytes of memory that was created and not given back. Not a function of CUDA's.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_created_bytes() -> u64 {
    started().map_or(0, |state| state.memory().pages.created_bytes() as u64)
}
