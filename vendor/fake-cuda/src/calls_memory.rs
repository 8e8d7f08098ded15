//! Calls about memory and copies.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::AtomicU64;

use crate::calls_device::give;
use crate::errors::{INVALID_VALUE, Status};
use crate::host::Kind;
use crate::report::{COUNTS, count};
use crate::state::{State, current, status};
use crate::stream::{HostSide, Point, Work};

/// Allocates memory of the current card.
///
/// # Safety
/// - `out` is null or a place for the address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(out: *mut usize, bytes: usize) -> Status {
    let allocate = || {
        let (state, card) = current()?;
        let address = state.memory().allocate(card, bytes)?;
        // SAFETY: the caller's promise.
        unsafe { give(out, address) }
    };
    status(allocate())
}

/// Frees memory, when everything queued is done.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: usize) -> Status {
    let free = || {
        let (state, _) = current()?;
        state.synchronize()?;
        state.memory().free(address)
    };
    status(free())
}

/// Free and total bytes of the current card.
///
/// # Safety
/// - both are null or places for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    let give_both = || {
        let (state, card) = current()?;
        let bytes = state.memory().bytes_free_and_total(card);
        // SAFETY: the caller's promise.
        unsafe { give(free, bytes.0) }?;
        // SAFETY: as above.
        unsafe { give(total, bytes.1) }
    };
    status(give_both())
}

/// Allocates pinned host memory.
///
/// # Safety
/// - `out` is null or a place for the address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(
    out: *mut *mut c_void,
    bytes: usize,
    _flags: c_uint,
) -> Status {
    let allocate = || {
        let (state, _) = current()?;
        let address = state.host().allocate(bytes)?;
        count(&COUNTS.allocated);
        // SAFETY: the caller's promise.
        unsafe { give(out, address as *mut c_void) }
    };
    status(allocate())
}

/// Frees pinned host memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: *mut c_void) -> Status {
    status(current().and_then(|(state, _)| state.host().remove(address as usize, true)))
}

/// Pins memory of the program's.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostRegister_v2(
    address: *mut c_void,
    bytes: usize,
    flags: c_uint,
) -> Status {
    let register = || {
        let (state, _) = current()?;
        state.host().register(address as usize, bytes, flags)?;
        count(&COUNTS.registered);
        Ok(())
    };
    status(register())
}

/// Lets memory of the program's be pageable again.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(address: *mut c_void) -> Status {
    status(current().and_then(|(state, _)| state.host().remove(address as usize, false)))
}

fn queue(state: &State, stream: usize, work: Work) -> Result<Point, Status> {
    let (stream, after) = state.tables().stream(stream)?;
    Ok(stream.push(after, work))
}

/// The addresses must be a card's when the copy is queued, too: the driver looks.
fn is_on_card(state: &State, address: usize, bytes: usize) -> Result<(), Status> {
    let checked = state.memory().check(address, bytes);
    checked.map_err(|sentence| {
        crate::report::violation(format!("a copy is asked for that cannot be: {sentence}"));
        INVALID_VALUE
    })
}

fn counted(kind: &Kind, is_synchronous: bool) -> &'static AtomicU64 {
    match kind {
        _ if is_synchronous => &COUNTS.synchronous,
        Kind::Pinned(_) => &COUNTS.pinned,
        Kind::Pageable => &COUNTS.pageable,
    }
}

fn to_card(to: usize, from: usize, bytes: usize, stream: Option<usize>) -> Result<(), Status> {
    let (state, _) = current()?;
    if bytes == 0 {
        return Ok(());
    }
    is_on_card(state, to, bytes)?;
    let kind = state.host().kind(from, bytes, false)?;
    count(counted(&kind, stream.is_none()));
    let is_pinned = matches!(kind, Kind::Pinned(_));
    let side = match kind {
        Kind::Pinned(in_use) => HostSide::Pinned(from, in_use),
        Kind::Pageable => {
            // SAFETY: the program promises that many bytes.
            let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
            HostSide::Snapshot(bytes.to_vec())
        }
    };
    let point = queue(state, stream.unwrap_or(0), Work::ToDevice(to, side, bytes))?;
    // From pageable memory not even this call waits for the card: only for a copy of its
    // own.
    if stream.is_none() && is_pinned {
        point.wait();
        state.lost()?;
    }
    Ok(())
}

fn to_host(to: usize, from: usize, bytes: usize, stream: Option<usize>) -> Result<(), Status> {
    let (state, _) = current()?;
    if bytes == 0 {
        return Ok(());
    }
    is_on_card(state, from, bytes)?;
    let kind = state.host().kind(to, bytes, true)?;
    count(counted(&kind, stream.is_none()));
    let waits = stream.is_none() || matches!(kind, Kind::Pageable);
    let side = match kind {
        Kind::Pinned(in_use) => HostSide::Pinned(to, in_use),
        Kind::Pageable => HostSide::Waited(to),
    };
    let point = queue(state, stream.unwrap_or(0), Work::ToHost(side, from, bytes))?;
    if waits {
        point.wait();
        state.lost()?;
    }
    Ok(())
}

fn within(to: usize, from: usize, bytes: usize, stream: usize) -> Result<(), Status> {
    let (state, _) = current()?;
    if bytes == 0 {
        return Ok(());
    }
    is_on_card(state, to, bytes)?;
    is_on_card(state, from, bytes)?;
    count(&COUNTS.within);
    queue(state, stream, Work::Within(to, from, bytes)).map(|_| ())
}

fn fill(to: usize, value: u8, bytes: usize, stream: usize) -> Result<(), Status> {
    let (state, _) = current()?;
    if bytes == 0 {
        return Ok(());
    }
    is_on_card(state, to, bytes)?;
    queue(state, stream, Work::Fill(to, value, bytes)).map(|_| ())
}

/// Copies host memory to a card.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(to: usize, from: *const c_void, bytes: usize) -> Status {
    status(to_card(to, from as usize, bytes, None))
}

/// Copies host memory to a card, in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(
    to: usize,
    from: *const c_void,
    bytes: usize,
    stream: usize,
) -> Status {
    status(to_card(to, from as usize, bytes, Some(stream)))
}

/// Copies a card's memory to the host.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: usize, bytes: usize) -> Status {
    status(to_host(to as usize, from, bytes, None))
}

/// Copies a card's memory to the host, in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: usize,
    bytes: usize,
    stream: usize,
) -> Status {
    status(to_host(to as usize, from, bytes, Some(stream)))
}

/// Copies within a card. The program does not wait for it, as with a real one.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(to: usize, from: usize, bytes: usize) -> Status {
    status(within(to, from, bytes, 0))
}

/// Copies within a card, in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(
    to: usize,
    from: usize,
    bytes: usize,
    stream: usize,
) -> Status {
    status(within(to, from, bytes, stream))
}

/// Fills a card's memory. The program does not wait for it, as with a real one.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(to: usize, value: u8, bytes: usize) -> Status {
    status(fill(to, value, bytes, 0))
}

/// Fills a card's memory, in a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: usize, value: u8, bytes: usize, stream: usize) -> Status {
    status(fill(to, value, bytes, stream))
}

/// Where a test that plays the card finds the byte at `address`; null outside of its
/// memory. Not a function of CUDA's.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_host_address(address: usize) -> *mut c_void {
    let state = crate::state::started();
    let memory = state.map(State::memory);
    let found = memory.filter(|memory| memory.check(address, 1).is_ok());
    found.map_or(std::ptr::null_mut(), |memory| memory.host(address).cast())
}
