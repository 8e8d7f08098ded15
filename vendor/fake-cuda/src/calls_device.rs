//! Calls about the driver, cards and contexts.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::errors::{INVALID_DEVICE, INVALID_VALUE, NOT_FOUND, SUCCESS, Status};
use crate::settings::{Registers, settings};
use crate::state::{self, context, current, current_context, driver, set_current, status};

/// Writes to a place of the program's.
///
/// # Errors
/// When it is null.
///
/// # Safety
/// - `out` is null or a place for a `T`.
pub unsafe fn give<T>(out: *mut T, value: T) -> Result<(), Status> {
    if out.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { out.write(value) };
    Ok(())
}

fn card(device: c_int) -> Result<usize, Status> {
    let card = usize::try_from(device).map_err(|_| INVALID_DEVICE)?;
    let is_there = card < settings().devices;
    is_there.then_some(card).ok_or(INVALID_DEVICE)
}

/// Where a card is on the bus.
pub fn bus_address(card: usize) -> String {
    format!("0000:{:02x}:00.0", card + 1)
}

/// Starts the driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    state::initialize()
}

/// The CUDA version the driver is of.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(out: *mut c_int) -> Status {
    // SAFETY: the caller's promise.
    status(unsafe { give(out, settings().version) })
}

/// The number of cards.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(out: *mut c_int) -> Status {
    let count = c_int::try_from(settings().devices).unwrap_or(c_int::MAX);
    // SAFETY: the caller's promise.
    status(driver().and_then(|_| unsafe { give(out, count) }))
}

/// The card of an ordinal.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(out: *mut c_int, ordinal: c_int) -> Status {
    let found = driver().and_then(|_| card(ordinal));
    // SAFETY: the caller's promise.
    status(found.and_then(|_| unsafe { give(out, ordinal) }))
}

unsafe fn give_text(out: *mut c_char, bytes: c_int, text: &str) -> Result<(), Status> {
    let room = usize::try_from(bytes).map_err(|_| INVALID_VALUE)?;
    if out.is_null() || room == 0 {
        return Err(INVALID_VALUE);
    }
    let fitting = text.len().min(room - 1);
    // SAFETY: the caller promises `bytes` bytes.
    unsafe {
        out.cast::<u8>()
            .copy_from_nonoverlapping(text.as_ptr(), fitting)
    };
    // SAFETY: as above; `fitting` is less than `bytes`.
    unsafe { out.wrapping_add(fitting).write(0) };
    Ok(())
}

/// A card's name.
///
/// # Safety
/// - `bytes` bytes can be written at `out`, or it is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(out: *mut c_char, bytes: c_int, device: c_int) -> Status {
    let found = driver().and_then(|_| card(device));
    // SAFETY: the caller's promise.
    status(found.and_then(|card| unsafe { give_text(out, bytes, &format!("Fake GPU {card}")) }))
}

/// A card's place on the bus.
///
/// # Safety
/// - `bytes` bytes can be written at `out`, or it is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(
    out: *mut c_char,
    bytes: c_int,
    device: c_int,
) -> Status {
    let found = driver().and_then(|_| card(device));
    // SAFETY: the caller's promise.
    status(found.and_then(|card| unsafe { give_text(out, bytes, &bus_address(card)) }))
}

/// The card at a place on the bus.
///
/// # Safety
/// - `out` is null or a place for the number; `text` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetByPCIBusId(out: *mut c_int, text: *const c_char) -> Status {
    if text.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .to_lowercase();
    let found = (0..settings().devices).find(|card| bus_address(*card) == text);
    let found = driver().and_then(|_| found.ok_or(INVALID_DEVICE));
    // SAFETY: the caller's promise.
    status(found.and_then(|card| unsafe { give(out, card as c_int) }))
}

/// A card's size in bytes.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(out: *mut usize, device: c_int) -> Status {
    let found = driver().and_then(|_| card(device));
    // SAFETY: the caller's promise.
    status(found.and_then(|_| unsafe { give(out, settings().memory_bytes) }))
}

/// What a card can do.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    out: *mut c_int,
    attribute: c_int,
    device: c_int,
) -> Status {
    let registers = settings().registers;
    let value = |card: usize| match attribute {
        33 => card as c_int + 1,
        40 => 2,
        41 => 1,
        102 => c_int::from(settings().granule_bytes > 0),
        75 => 9,
        99 => c_int::from(registers != Registers::Nothing),
        113 => c_int::from(registers == Registers::ReadOnly),
        _ => 0,
    };
    let found = driver().and_then(|_| card(device));
    // SAFETY: the caller's promise.
    status(found.and_then(|card| unsafe { give(out, value(card)) }))
}

/// Holds a card's primary context.
///
/// # Safety
/// - `out` is null or a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(out: *mut usize, device: c_int) -> Status {
    let retain = || {
        let (state, card) = (driver()?, card(device)?);
        let mut tables = state.tables();
        if tables.retained[card] == 0 {
            state.memory().take(card, settings().context_bytes)?;
        }
        // SAFETY: the caller's promise.
        unsafe { give(out, context(card)) }?;
        tables.retained[card] += 1;
        Ok(())
    };
    status(retain())
}

/// Lets go of a card's primary context.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    let release = || {
        let (state, card) = (driver()?, card(device)?);
        let mut tables = state.tables();
        let fewer = tables.retained[card].checked_sub(1);
        tables.retained[card] = fewer.ok_or(crate::errors::INVALID_CONTEXT)?;
        if fewer == Some(0) {
            state.memory().give_back(card, settings().context_bytes);
        }
        Ok(())
    };
    status(release())
}

/// Flags of a card's primary context, and whether it is held.
///
/// # Safety
/// - both are null or places for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: *mut c_uint,
    is_active: *mut c_int,
) -> Status {
    let tell = || {
        let (state, card) = (driver()?, card(device)?);
        let is_held = state.tables().retained[card] > 0;
        // SAFETY: the caller's promise.
        unsafe { give(flags, 0) }?;
        // SAFETY: as above.
        unsafe { give(is_active, c_int::from(is_held)) }
    };
    status(tell())
}

/// Makes a context the thread's.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> Status {
    status(driver().map(|_| set_current(context)))
}

/// The thread's context.
///
/// # Safety
/// - `out` is null or a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(out: *mut usize) -> Status {
    // SAFETY: the caller's promise.
    status(driver().and_then(|_| unsafe { give(out, current_context()) }))
}

/// The card of the thread's context.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(out: *mut c_int) -> Status {
    // SAFETY: the caller's promise.
    status(current().and_then(|(_, card)| unsafe { give(out, card as c_int) }))
}

/// Waits for everything.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Status {
    status(current().and_then(|(state, _)| state.synchronize()))
}

/// The least and the greatest priority of streams.
///
/// # Safety
/// - both are null or places for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(
    least: *mut c_int,
    greatest: *mut c_int,
) -> Status {
    let give_both = || {
        current()?;
        // SAFETY: the caller's promise.
        unsafe { give(least, 0) }?;
        // SAFETY: as above.
        unsafe { give(greatest, -5) }
    };
    status(give_both())
}

/// The address of a function of this driver, by the name without version.
///
/// # Safety
/// - `name` is a C string, `out` a place for a pointer, `found` null or a place for a
///   number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    out: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    found: *mut c_int,
) -> Status {
    if name.is_null() || out.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let address = symbol(&format!("{name}_v2\0")).or_else(|| symbol(&format!("{name}\0")));
    // SAFETY: the caller's promise.
    unsafe { out.write(address.unwrap_or(std::ptr::null_mut())) };
    if !found.is_null() {
        // SAFETY: the caller's promise.
        unsafe { found.write(c_int::from(address.is_none())) };
    }
    if address.is_some() {
        SUCCESS
    } else {
        NOT_FOUND
    }
}

fn symbol(name: &str) -> Option<*mut c_void> {
    let name = CStr::from_bytes_with_nul(name.as_bytes()).ok()?;
    let here = cuInit as *const c_void;
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: an address of this library, and a place for what is told about it.
    let found = unsafe { libc::dladdr(here, info.as_mut_ptr()) };
    // SAFETY: zeroed before, and numbers and pointers only.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD;
    // SAFETY: the path that the loader itself gave.
    let library = unsafe { libc::dlopen(info.dli_fname, flags) };
    if library.is_null() {
        return None;
    }
    // SAFETY: a loaded library and a C string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}
