//! Calls about streams and events.

use std::ffi::{c_int, c_uint, c_void};

use crate::calls_device::give;
use crate::errors::{INVALID_HANDLE, INVALID_VALUE, NOT_READY, Status};
use crate::event::Event;
use crate::state::{current, status};
use crate::stream::{HostFunction, Stream, Work};

const NON_BLOCKING: c_uint = 1;

const WITHOUT_TIME: c_uint = 2;

/// Starts a stream.
///
/// # Safety
/// - `out` is null or a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    out: *mut usize,
    flags: c_uint,
    _priority: c_int,
) -> Status {
    let create = || {
        let (state, _) = current()?;
        let mut tables = state.tables();
        let handle = tables.handle();
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }?;
        let stream = Stream::start(flags & NON_BLOCKING == 0, handle as u64);
        tables.streams.insert(handle, stream);
        Ok(())
    };
    status(create())
}

/// Starts a stream of ordinary priority.
///
/// # Safety
/// - `out` is null or a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(out: *mut usize, flags: c_uint) -> Status {
    // SAFETY: the caller's promise.
    unsafe { cuStreamCreateWithPriority(out, flags, 0) }
}

/// Ends a stream when what is queued is done; does not wait for that.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> Status {
    let destroy = || {
        let (state, _) = current()?;
        let stream = state.tables().streams.remove(&stream);
        stream.ok_or(INVALID_HANDLE)?.close();
        Ok(())
    };
    status(destroy())
}

/// Waits for what is queued.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> Status {
    let synchronize = || {
        let (state, _) = current()?;
        let (stream, after) = state.tables().stream(stream)?;
        for point in after {
            point.wait();
        }
        stream.tail().wait();
        state.lost()
    };
    status(synchronize())
}

/// Whether what is queued is done.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: usize) -> Status {
    let query = || {
        let (state, _) = current()?;
        let (stream, _) = state.tables().stream(stream)?;
        if stream.tail().is_done() {
            state.lost()
        } else {
            Err(NOT_READY)
        }
    };
    status(query())
}

/// Has what is queued from now on wait for the newest recording of an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> Status {
    let wait = || {
        let (state, _) = current()?;
        let tables = state.tables();
        let (stream, mut after) = tables.stream(stream)?;
        let event = tables.events.get(&event).ok_or(INVALID_HANDLE)?;
        if let Some(point) = event.point() {
            after.push(point);
            stream.push(after, Work::Nothing);
        }
        Ok(())
    };
    status(wait())
}

/// Calls a function when what is queued is done; never, when the card is lost.
///
/// # Safety
/// - `function` may be called with `argument` from another thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: usize,
    function: Option<HostFunction>,
    argument: *mut c_void,
) -> Status {
    let launch = || {
        let (state, card) = current()?;
        let function = function.ok_or(INVALID_VALUE)?;
        state.count_launch(card);
        let (stream, after) = state.tables().stream(stream)?;
        stream.push(after, Work::Call(function, argument as usize));
        Ok(())
    };
    status(launch())
}

/// A new event.
///
/// # Safety
/// - `out` is null or a place for the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(out: *mut usize, flags: c_uint) -> Status {
    let create = || {
        let (state, _) = current()?;
        let mut tables = state.tables();
        let handle = tables.handle();
        // SAFETY: the caller's promise.
        unsafe { give(out, handle) }?;
        let event = Event::new(flags & WITHOUT_TIME == 0);
        tables.events.insert(handle, event);
        Ok(())
    };
    status(create())
}

/// Ends an event; those that wait for it go on waiting.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> Status {
    let destroy = || {
        let (state, _) = current()?;
        let event = state.tables().events.remove(&event);
        event.map(|_| ()).ok_or(INVALID_HANDLE)
    };
    status(destroy())
}

/// Records an event at the end of a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> Status {
    let record = || {
        let (state, _) = current()?;
        let mut tables = state.tables();
        let (stream, after) = tables.stream(stream)?;
        let event = tables.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        event.record(&stream, after);
        Ok(())
    };
    status(record())
}

/// Whether an event has come.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: usize) -> Status {
    let query = || {
        let (state, _) = current()?;
        let point = state
            .tables()
            .events
            .get(&event)
            .ok_or(INVALID_HANDLE)?
            .point();
        let is_done = point.is_none_or(|point| point.is_done());
        if is_done {
            state.lost()
        } else {
            Err(NOT_READY)
        }
    };
    status(query())
}

/// Waits for an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> Status {
    let synchronize = || {
        let (state, _) = current()?;
        let point = state
            .tables()
            .events
            .get(&event)
            .ok_or(INVALID_HANDLE)?
            .point();
        if let Some(point) = point {
            point.wait();
        }
        state.lost()
    };
    status(synchronize())
}

/// The time between two events, in milliseconds.
///
/// # Safety
/// - `out` is null or a place for the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(out: *mut f32, start: usize, end: usize) -> Status {
    let elapsed = || {
        let (state, _) = current()?;
        let tables = state.tables();
        let event = |handle| tables.events.get(&handle).ok_or(INVALID_HANDLE);
        let (start, end) = (event(start)?, event(end)?);
        if !start.is_timed || !end.is_timed || start.point().is_none() || end.point().is_none() {
            return Err(INVALID_HANDLE);
        }
        let (start, end) = (start.time().ok_or(NOT_READY)?, end.time().ok_or(NOT_READY)?);
        // SAFETY: the caller's promise.
        unsafe { give(out, end.duration_since(start).as_secs_f32() * 1000.0) }
    };
    status(elapsed())
}
