#![allow(unsafe_code, reason = "copies of a device are told of addresses")]
//! A link to a device of CUDA's: copies on a stream of their own, beside ggml's.
//!
//! ggml-cuda computes in the device's primary context, as CUDA's runtime does, and so do
//! we: its addresses (`cudaMalloc`) and events (`cudaEvent_t`) are the driver's.

use std::ops::Range;
use std::sync::Arc;

use super::super::memory::HostMemory;
use super::super::storage::BLOCK_BYTES;
use super::link::{Link, Pinning};
use crate::cuda::{self, Context, Stream};
use crate::ggml::{DeviceBuffer, Event, InnerDevice};

/// What ggml-cuda calls its devices, before the ordinal.
const DEVICE_PREFIX: &str = "CUDA";

/// Copies on a stream of the driver's.
#[derive(Debug)]
pub struct CudaLink {
    device: InnerDevice,
    /// Before the pinning: what is queued may use pinned memory.
    stream: Stream,
    pinning: Arc<CudaPinning>,
}

/// Pinned memory of a device of CUDA's.
#[derive(Debug)]
struct CudaPinning {
    context: Arc<Context>,
}

impl CudaLink {
    /// Whether a device is one of ggml-cuda's.
    pub fn is_for(device: InnerDevice) -> bool {
        device.name().starts_with(DEVICE_PREFIX)
    }

    /// A link to a device of ggml-cuda's.
    ///
    /// # Errors
    /// A sentence, when it is not CUDA's, there is no driver, or the device fails.
    pub fn new(device: InnerDevice) -> Result<Self, String> {
        let context = context_of(device)?;
        let pinning = Arc::new(CudaPinning {
            context: Arc::clone(&context),
        });
        let stream = Stream::new(context)?;
        Ok(Self {
            device,
            stream,
            pinning,
        })
    }
}

/// The context in which ggml-cuda computes on a device.
///
/// # Errors
/// As for [`CudaLink::new`].
pub fn context_of(device: InnerDevice) -> Result<Arc<Context>, String> {
    let name = device.name();
    let Some(ordinal) = name.strip_prefix(DEVICE_PREFIX) else {
        return Err(format!("'{name}' is no device of CUDA's"));
    };
    Context::new(&name, device.bus_id().as_deref(), ordinal.parse().ok())
}

/// CUDA's event behind one of ggml-cuda's.
fn event(event: &Event) -> cuda::Event {
    // SAFETY: the link's device is ggml-cuda's, which keeps its events there; who is
    // asked to wait for it or to record it keeps it alive.
    unsafe { cuda::Event::from_raw(event.handle()) }
}

impl Link for CudaLink {
    fn name(&self) -> String {
        format!("{} by the CUDA driver", self.stream.context().name())
    }

    fn device(&self) -> InnerDevice {
        self.device
    }

    fn another(&self) -> Result<Box<dyn Link>, String> {
        Ok(Box::new(Self {
            device: self.device,
            stream: Stream::new(Arc::clone(self.stream.context()))?,
            pinning: Arc::clone(&self.pinning),
        }))
    }

    fn pinning(&self) -> Arc<dyn Pinning> {
        Arc::clone(&self.pinning) as Arc<dyn Pinning>
    }

    unsafe fn copy_in(
        &mut self,
        to: &DeviceBuffer,
        offset: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), String> {
        let to = address(to, offset, bytes);
        // SAFETY: the caller's promise; the range lies in the buffer.
        unsafe { self.stream.copy_in(to, from, bytes) }
    }

    unsafe fn copy_out(
        &mut self,
        from: &DeviceBuffer,
        offset: usize,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), String> {
        let from = address(from, offset, bytes);
        // SAFETY: the caller's promise; the range lies in the buffer.
        unsafe { self.stream.copy_out(to, from, bytes) }
    }

    unsafe fn fill(
        &mut self,
        to: &DeviceBuffer,
        range: Range<usize>,
        value: u8,
    ) -> Result<(), String> {
        let start = address(to, range.start, range.len());
        // SAFETY: the caller's promise; the range lies in the buffer.
        unsafe { self.stream.fill(start, value, range.len()) }
    }

    fn record(&mut self, recorded: &Event) -> Result<(), String> {
        self.stream.record(event(recorded))
    }

    fn wait(&mut self, awaited: &Event) -> Result<(), String> {
        self.stream.wait(event(awaited))
    }

    fn synchronize(&mut self, awaited: &Event) -> Result<(), String> {
        self.stream.synchronize(event(awaited))
    }
}

/// The address of a range of a buffer, as the driver counts.
fn address(buffer: &DeviceBuffer, offset: usize, bytes: usize) -> usize {
    let size = buffer.bytes();
    assert!(
        bytes <= size && offset <= size - bytes,
        "{bytes} bytes at {offset} of {size}"
    );
    buffer.base() + offset
}

impl Pinning for CudaPinning {
    fn pinned(&self, bytes: usize) -> Result<HostMemory, String> {
        let pages = cuda::Pages::new(&self.context, bytes)?;
        let address = pages.address();
        if !(address as usize).is_multiple_of(BLOCK_BYTES) {
            return Err(format!(
                "the CUDA driver gave pinned memory at {address:p}, which no block of \
                 {BLOCK_BYTES} bytes begins at"
            ));
        }
        // SAFETY: the pages are as large, ours alone, and freed with their owner.
        Ok(unsafe { HostMemory::pinned(address, bytes, pages) })
    }
}
