//! The driver's own promises. One process, one card: each test has memory of its own.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::calls_device::{cuCtxSetCurrent, cuDevicePrimaryCtxRetain, cuInit};
use crate::calls_memory::*;
use crate::calls_stream::*;
use crate::calls_virtual::*;
use crate::errors::{INVALID_CONTEXT, INVALID_VALUE, NOT_READY, OUT_OF_MEMORY};
use crate::report::fake_cuda_report;
use crate::virtual_memory::granule_bytes;

/// Starts the driver, and makes its context the thread's. Violations are counted by all
/// tests together: one at a time.
fn start() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static ONCE: Once = Once::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ONCE.call_once(|| {
        let mut context = 0;
        assert_eq!(cuInit(0), 0);
        // SAFETY: a place for the handle.
        assert_eq!(unsafe { cuDevicePrimaryCtxRetain(&raw mut context, 0) }, 0);
    });
    assert_eq!(cuCtxSetCurrent(crate::state::context(0)), 0);
    alone
}

fn violations() -> u64 {
    // SAFETY: no text is asked for.
    unsafe { fake_cuda_report(std::ptr::null_mut(), 0) }
}

fn allocated(bytes: usize) -> usize {
    let mut address = 0;
    // SAFETY: a place for the address.
    assert_eq!(unsafe { cuMemAlloc_v2(&raw mut address, bytes) }, 0);
    address
}

fn read(address: usize, bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    let to = found.as_mut_ptr().cast();
    assert_eq!(cuMemcpyDtoH_v2(to, address, bytes), 0);
    found
}

fn stream(flags: u32) -> usize {
    let mut stream = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuStreamCreate(&raw mut stream, flags) }, 0);
    stream
}

#[test]
fn memory_has_a_limit_and_is_given_back() {
    let _alone = start();
    let free = || {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for the numbers.
        unsafe { cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        assert_eq!(total, 1 << 30);
        free
    };
    let before = free();
    let address = allocated(1000);
    assert_eq!(free(), before - 1000);
    let mut other = 0;
    // SAFETY: a place for the address.
    let refused = unsafe { cuMemAlloc_v2(&raw mut other, before) };
    assert_eq!(refused, OUT_OF_MEMORY);
    assert_eq!(cuMemFree_v2(address), 0);
    assert_eq!(free(), before);
}

#[test]
fn what_is_done_wrong_with_memory_is_found() {
    let _alone = start();
    let address = allocated(1000);
    let bytes = [1_u8; 1001];
    let from: *const c_void = bytes.as_ptr().cast();
    let before = violations();
    assert_eq!(cuMemcpyHtoD_v2(address, from, 1000), 0);
    assert_eq!(violations(), before, "that was right");
    assert_eq!(cuMemcpyHtoD_v2(address, from, 1001), INVALID_VALUE);
    assert_eq!(violations(), before + 1, "past the end");
    assert_eq!(cuMemcpyHtoD_v2(address - 1, from, 1), INVALID_VALUE);
    assert_eq!(violations(), before + 2, "before the begin");
    let behind = fake_cuda_host_address(address)
        .cast::<u8>()
        .wrapping_add(1000);
    // SAFETY: the guard is the driver's own memory.
    unsafe { behind.write(0) };
    assert_eq!(cuMemFree_v2(address), 0);
    assert_eq!(violations(), before + 3, "a guard was written");
    assert_eq!(cuMemFree_v2(address), INVALID_VALUE);
    assert_eq!(violations(), before + 4, "freed twice");
    assert_eq!(cuMemcpyHtoD_v2(address, from, 1), INVALID_VALUE);
    assert_eq!(violations(), before + 5, "used after it was freed");
    assert!(fake_cuda_host_address(address).is_null());
}

unsafe extern "C" fn wait_for_permission(argument: *mut c_void) {
    // SAFETY: a lock that outlives the stream's work.
    let permission = unsafe { &*argument.cast::<Mutex<()>>() };
    drop(permission.lock());
}

#[test]
fn a_wait_is_for_the_newest_recording_of_its_time() {
    let _alone = start();
    let (one, two) = (stream(1), stream(1));
    let mut event = 0;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuEventCreate(&raw mut event, 2) }, 0);
    assert_eq!(cuEventQuery(event), 0, "never recorded: it has come");
    let permission = Mutex::new(());
    let held = permission.lock().unwrap_or_else(PoisonError::into_inner);
    let argument = (&raw const permission).cast_mut().cast::<c_void>();
    // The wait is for what is recorded now, not for what comes behind the call.
    assert_eq!(cuEventRecord(event, one), 0);
    assert_eq!(cuStreamWaitEvent(two, event, 0), 0);
    // SAFETY: the lock outlives the call.
    let status = unsafe { cuLaunchHostFunc(one, Some(wait_for_permission), argument) };
    assert_eq!(status, 0);
    assert_eq!(cuEventRecord(event, one), 0);
    assert_eq!(cuStreamSynchronize(two), 0);
    assert_eq!(cuEventQuery(event), NOT_READY);
    // Now it is for the newer one.
    assert_eq!(cuStreamWaitEvent(two, event, 0), 0);
    assert_eq!(cuStreamQuery(two), NOT_READY);
    drop(held);
    assert_eq!(cuStreamSynchronize(two), 0);
    assert_eq!(cuEventSynchronize(event), 0);
    assert_eq!(cuEventDestroy_v2(event), 0);
    assert_eq!(cuStreamDestroy_v2(one), 0);
    assert_eq!(cuStreamDestroy_v2(two), 0);
}

#[test]
fn a_blocking_stream_and_the_default_one_wait_for_each_other() {
    let _alone = start();
    let blocking = stream(0);
    let permission = Mutex::new(());
    let held = permission.lock().unwrap_or_else(PoisonError::into_inner);
    let argument = (&raw const permission).cast_mut().cast::<c_void>();
    // SAFETY: the lock outlives the call.
    unsafe { cuLaunchHostFunc(blocking, Some(wait_for_permission), argument) };
    let address = allocated(10);
    // A fill of the default stream: nobody waits for it, and it waits.
    assert_eq!(cuMemsetD8_v2(address, 7, 10), 0);
    assert_eq!(cuStreamQuery(0), NOT_READY);
    drop(held);
    assert_eq!(cuStreamSynchronize(0), 0);
    assert_eq!(read(address, 10), [7; 10]);
    assert_eq!(cuMemFree_v2(address), 0);
    assert_eq!(cuStreamDestroy_v2(blocking), 0);
}

#[test]
fn pages_are_mapped_used_and_unmapped() {
    let _alone = start();
    let before = violations();
    let properties = Properties {
        kind: 1,
        handle_types: 0,
        location: Location { kind: 1, card: 0 },
    };
    let access = Access {
        location: properties.location,
        flags: 3,
    };
    let mut granule = 0;
    // SAFETY: a place for the number.
    unsafe { cuMemGetAllocationGranularity(&raw mut granule, &raw const properties, 0) };
    assert_eq!(granule, granule_bytes());
    let mut base = 0;
    // SAFETY: a place for the address.
    let status = unsafe { cuMemAddressReserve(&raw mut base, 4 * granule, 0, 0, 0) };
    assert_eq!(status, 0);
    let mut handles = [0; 2];
    for (index, handle) in handles.iter_mut().enumerate() {
        // SAFETY: a place for the handle, and a description.
        let status = unsafe { cuMemCreate(handle, granule, &raw const properties, 0) };
        assert_eq!(status, 0);
        assert_eq!(cuMemMap(base + index * granule, granule, 0, *handle, 0), 0);
    }
    let occupied = cuMemMap(base, granule, 0, handles[1], 0);
    assert_eq!(occupied, INVALID_VALUE);
    // Mapped is not enough: the card may not use it yet.
    assert_eq!(cuMemsetD8_v2(base, 1, 1), INVALID_VALUE);
    assert_eq!(violations(), before + 1);
    // SAFETY: one description.
    let allowed = unsafe { cuMemSetAccess(base, 2 * granule, &raw const access, 1) };
    assert_eq!(allowed, 0);
    // Across two pieces of memory, as if it were one.
    assert_eq!(cuMemsetD8_v2(base + granule - 5, 9, 10), 0);
    assert_eq!(read(base + granule - 5, 10), [9; 10]);
    assert_eq!(cuMemsetD8_v2(base + 2 * granule - 5, 9, 10), INVALID_VALUE);
    assert_eq!(violations(), before + 2, "past what is mapped");
    // What was released stays as long as it is mapped.
    assert_eq!(cuMemRelease(handles[0]), 0);
    assert_eq!(read(base + granule - 5, 5), [9; 5]);
    assert_eq!(cuMemAddressFree(base, 4 * granule), INVALID_VALUE);
    assert_eq!(violations(), before + 3, "freed with memory mapped");
    assert_eq!(cuMemUnmap(base, 2 * granule), 0);
    assert_eq!(cuMemRelease(handles[1]), 0);
    assert_eq!(cuMemAddressFree(base, 4 * granule), 0);
}

#[test]
fn a_thread_without_a_context_is_refused() {
    let _alone = start();
    assert_eq!(cuCtxSetCurrent(0), 0);
    let mut address = 0;
    // SAFETY: a place for the address.
    let status = unsafe { cuMemAlloc_v2(&raw mut address, 10) };
    assert_eq!(status, INVALID_CONTEXT);
}

#[test]
fn pinned_memory_given_back_too_early_is_found() {
    let _alone = start();
    let stream = stream(1);
    let permission = Mutex::new(());
    let held = permission.lock().unwrap_or_else(PoisonError::into_inner);
    let argument = (&raw const permission).cast_mut().cast::<c_void>();
    let address = allocated(100);
    let memory = [3_u8; 100];
    let host = memory.as_ptr().cast_mut().cast::<c_void>();
    assert_eq!(cuMemHostRegister_v2(host, 100, 0), 0);
    // SAFETY: the lock outlives the call.
    unsafe { cuLaunchHostFunc(stream, Some(wait_for_permission), argument) };
    assert_eq!(cuMemcpyHtoDAsync_v2(address, host, 100, stream), 0);
    assert_eq!(
        cuMemcpyHtoDAsync_v2(address, host.wrapping_byte_add(50), 51, stream),
        INVALID_VALUE
    );
    let before = violations();
    assert_eq!(cuMemHostUnregister(host), 0);
    assert_eq!(violations(), before + 1);
    drop(held);
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(cuMemFree_v2(address), 0);
    assert_eq!(cuStreamDestroy_v2(stream), 0);
}
