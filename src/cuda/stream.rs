//! A stream that copies.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUstream, CUstream_flags};

use super::Context;

/// A stream of a device's, which waits for no other unless it is told to.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: CUDA ties streams to no thread.
unsafe impl Send for Stream {}

/// An event of CUDA's that somebody else owns.
#[derive(Clone, Copy, Debug)]
pub struct Event(CUevent);

impl Event {
    /// The event behind a handle (`CUevent`, which is a `cudaEvent_t`).
    ///
    /// # Safety
    /// - `handle` is an event of the device on whose stream this is used, and lives as
    ///   long as that goes on.
    pub unsafe fn from_raw(handle: *mut c_void) -> Self {
        Self(handle.cast())
    }
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// A sentence, when the device gives none.
    pub fn new(context: Arc<Context>) -> Result<Self, String> {
        let mut raw = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a place for the handle.
        let create =
            |calls: &super::driver::Calls| unsafe { (calls.create_stream)(&raw mut raw, flags) };
        context.within("cuStreamCreate", create)?;
        Ok(Self { context, raw })
    }

    /// Where it is.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Queues a copy to the device; from pageable memory it has been read on return.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    ///
    /// # Safety
    /// - `from` is valid for `bytes` bytes until the copy is done;
    /// - `to` is as many bytes of the device, and nobody else touches them meanwhile.
    pub unsafe fn copy_in(&self, to: usize, from: *const u8, bytes: usize) -> Result<(), String> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        self.context.within("cuMemcpyHtoDAsync", |calls| unsafe {
            (calls.copy_in)(to as CUdeviceptr, from.cast(), bytes, self.raw)
        })
    }

    /// Queues a copy from the device; to pageable memory it is done on return.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    ///
    /// # Safety
    /// - `to` is valid for `bytes` bytes until the copy is done, and nobody else touches
    ///   them meanwhile;
    /// - `from` is as many bytes of the device, which nobody writes meanwhile.
    pub unsafe fn copy_out(&self, to: *mut u8, from: usize, bytes: usize) -> Result<(), String> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        self.context.within("cuMemcpyDtoHAsync", |calls| unsafe {
            (calls.copy_out)(to.cast(), from as CUdeviceptr, bytes, self.raw)
        })
    }

    /// Queues that bytes of the device become `value`.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    ///
    /// # Safety
    /// - `to` is `bytes` bytes of the device, which nobody else touches until it is done.
    pub unsafe fn fill(&self, to: usize, value: u8, bytes: usize) -> Result<(), String> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        self.context.within("cuMemsetD8Async", |calls| unsafe {
            (calls.fill)(to as CUdeviceptr, value, bytes, self.raw)
        })
    }

    /// Records an event behind what is queued.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    pub fn record(&self, event: Event) -> Result<(), String> {
        // SAFETY: a live event of this device.
        self.context.within("cuEventRecord", |calls| unsafe {
            (calls.record_event)(event.0, self.raw)
        })
    }

    /// Has what is queued from now on wait for the newest recording of an event.
    ///
    /// # Errors
    /// A sentence, when the device fails.
    pub fn wait(&self, event: Event) -> Result<(), String> {
        // SAFETY: a live event of this device.
        self.context.within("cuStreamWaitEvent", |calls| unsafe {
            (calls.wait_event)(self.raw, event.0, 0)
        })
    }

    /// Blocks until an event has come.
    ///
    /// # Errors
    /// A sentence, when the device fails, or did meanwhile.
    pub fn synchronize(&self, event: Event) -> Result<(), String> {
        // SAFETY: a live event of this device.
        self.context.within("cuEventSynchronize", |calls| unsafe {
            (calls.synchronize_event)(event.0)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is live. On a lost device nothing is done any more.
        let _ = self.context.within("cuStreamSynchronize", |calls| unsafe {
            (calls.synchronize_stream)(self.raw)
        });
        // SAFETY: made by `cuStreamCreate`, ended once.
        let _ = self.context.within("cuStreamDestroy", |calls| unsafe {
            (calls.destroy_stream)(self.raw)
        });
    }
}
