//! NVIDIA's management library over the same cards. A test has it found by a link of that
//! library's name to the driver's: then they are one.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::calls_device::bus_address;
use crate::settings::{Listing, settings};
use crate::state::{State, started};

type Status = c_int;
const SUCCESS: Status = 0;
const INVALID_ARGUMENT: Status = 2;
const NOT_SUPPORTED: Status = 3;
const NOT_FOUND: Status = 6;
const INSUFFICIENT_SIZE: Status = 7;
const FUNCTION_NOT_FOUND: Status = 13;

/// What another process takes of each card, in bytes.
pub const OTHER_BYTES: usize = 1 << 20;
/// What a process of this machine's has more for a number than within its container.
const MACHINE: u32 = 1_000_000;
/// The number of the first other process.
const OTHERS: u32 = 2_000_000;

/// Starts the library.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Status {
    SUCCESS
}

/// The card at a place on the bus.
///
/// # Safety
/// - `text` is a C string, `out` a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    text: *const c_char,
    out: *mut usize,
) -> Status {
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    let text = text.to_string_lossy().to_lowercase();
    let Some(card) = (0..settings().devices).find(|card| bus_address(*card) == text) else {
        return NOT_FOUND;
    };
    // SAFETY: the caller's promise.
    unsafe { out.write(card + 1) };
    SUCCESS
}

/// All bytes of a card, those that are free, and those in use.
///
/// # Safety
/// - `out` is a place for three numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(handle: usize, out: *mut [u64; 3]) -> Status {
    let Some(card) = card_of(handle) else {
        return INVALID_ARGUMENT;
    };
    let total = settings().memory_bytes;
    let free = match started() {
        Some(state) => state.memory().bytes_free_and_total(card).0,
        None => total - settings().others as usize * OTHER_BYTES,
    };
    let bytes = [total, free, total - free].map(|bytes| bytes as u64);
    // SAFETY: the caller's promise.
    unsafe { out.write(bytes) };
    SUCCESS
}

fn card_of(handle: usize) -> Option<usize> {
    let card = handle.checked_sub(1)?;
    (card < settings().devices).then_some(card)
}

/// Who uses the card, and how much of it.
fn processes(card: usize) -> Vec<(u32, u64)> {
    let others = (0..settings().others).map(|index| (OTHERS + index, OTHER_BYTES as u64));
    let mut listed: Vec<(u32, u64)> = others.collect();
    let own = std::process::id();
    if settings().listing == Listing::Taken {
        listed.push((own, OTHER_BYTES as u64));
    }
    let is_active = |state: &&State| state.tables().retained[card] > 0;
    let Some(state) = started().filter(is_active) else {
        return listed;
    };
    let bytes = state.memory().used_bytes(card) as u64;
    match settings().listing {
        Listing::Own => listed.push((own, bytes)),
        Listing::Machine | Listing::Taken => listed.push((own + MACHINE, bytes)),
        Listing::Unknown => listed.push((own, u64::MAX)),
        Listing::Unlisted | Listing::Nothing => {}
    }
    listed
}

/// # Safety
/// - `count` is a place for a number, `out` one for as many entries as it says.
unsafe fn list(handle: usize, count: *mut c_uint, out: *mut c_void, words: usize) -> Status {
    let Some(card) = card_of(handle) else {
        return INVALID_ARGUMENT;
    };
    if settings().listing == Listing::Nothing {
        return NOT_SUPPORTED;
    }
    let listed = processes(card);
    // SAFETY: the caller's promise.
    let room = unsafe { count.read() } as usize;
    // SAFETY: as above.
    unsafe { count.write(listed.len() as c_uint) };
    if room < listed.len() {
        return INSUFFICIENT_SIZE;
    }
    for (index, (number, bytes)) in listed.into_iter().enumerate() {
        let mut entry = [0_u64; 4];
        entry[1] = bytes;
        let at = out.cast::<u64>().wrapping_add(index * words);
        // SAFETY: the caller's promise: the entry lies in the room.
        unsafe { at.copy_from_nonoverlapping(entry.as_ptr(), words) };
        // SAFETY: as above; the number is the first of it.
        unsafe { at.cast::<u32>().write(number) };
    }
    SUCCESS
}

macro_rules! lists {
    ($($name:ident = $version:pat => $words:expr;)*) => {
        $(
            /// Lists the processes on a card.
            ///
            /// # Safety
            /// - `count` is a place for a number, `out` one for as many entries.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name(
                handle: usize,
                count: *mut c_uint,
                out: *mut c_void,
            ) -> Status {
                match settings().nvml_version {
                    // SAFETY: the caller's promise.
                    $version => unsafe { list(handle, count, out, $words) },
                    _ => FUNCTION_NOT_FOUND,
                }
            }
        )*
    };
}

lists! {
    nvmlDeviceGetComputeRunningProcesses_v3 = 3 | 35 =>
        if settings().nvml_version == 35 { 4 } else { 3 };
    nvmlDeviceGetComputeRunningProcesses_v2 = 2 => 3;
    nvmlDeviceGetComputeRunningProcesses = 1 => 2;
}

/// Bytes of the first card that this process takes. Not a function of NVIDIA's.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_used_bytes() -> u64 {
    started().map_or(0, |state| state.memory().used_bytes(0) as u64)
}

/// The most that it ever took, since this was last asked. Not a function of NVIDIA's.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_peak_bytes() -> u64 {
    started().map_or(0, |state| state.memory().take_peak(0) as u64)
}
