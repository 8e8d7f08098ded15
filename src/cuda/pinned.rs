//! Host memory from and to which copies overlap with everything else.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{CU_MEMHOSTREGISTER_READ_ONLY, CUdevice_attribute};

use super::Context;

/// The most that is registered at once, in bytes: some drivers refuse more.
const CHUNK_BYTES: usize = 4 << 30;

/// A call, with how much it is asked for.
fn call_of(call: &str, bytes: usize) -> String {
    format!("{call} of {} MiB", bytes.div_ceil(1 << 20))
}

/// Pinned memory, freed when this is dropped. Nothing that was queued may use it then.
#[derive(Debug)]
pub struct Pages {
    context: Arc<Context>,
    address: *mut c_void,
}

// SAFETY: memory of the host's, which CUDA ties to no thread.
unsafe impl Send for Pages {}
// SAFETY: as above; nothing here touches it.
unsafe impl Sync for Pages {}

impl Pages {
    /// Takes `bytes` bytes, which can be read back as fast as any other memory.
    ///
    /// # Errors
    /// A sentence, when the system gives no more.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, String> {
        let mut address = std::ptr::null_mut();
        // SAFETY: a place for the address. No flags: not write-combined.
        context.within(&call_of("cuMemHostAlloc", bytes), |calls| unsafe {
            (calls.allocate_host)(&raw mut address, bytes.max(1), 0)
        })?;
        Ok(Self {
            context: Arc::clone(context),
            address,
        })
    }

    /// Its first byte.
    pub fn address(&self) -> *mut u8 {
        self.address.cast()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: made by `cuMemHostAlloc`, freed once, not in use: `Pages`' contract.
        let _ = self.context.within("cuMemFreeHost", |calls| unsafe {
            (calls.free_host)(self.address)
        });
    }
}

/// What copies do with a range of host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// They read it; it may be a mapping that nobody can write.
    Read,
    /// They read and write it.
    ReadAndWrite,
}

/// Memory that is there already, pinned until this is dropped. Nothing that was queued may
/// use it then.
#[derive(Debug)]
pub struct Registration {
    context: Arc<Context>,
    chunks: Vec<Range<usize>>,
}

impl Registration {
    /// Pins a range.
    ///
    /// # Errors
    /// A sentence, when the system or the driver does not do that.
    ///
    /// # Safety
    /// - the range is mapped until the registration is dropped.
    pub unsafe fn new(
        context: &Arc<Context>,
        range: Range<usize>,
        uses: Uses,
    ) -> Result<Self, String> {
        // SAFETY: the caller's promise.
        unsafe { Self::in_chunks(context, range, uses, CHUNK_BYTES) }
    }

    /// As `new`, at most `chunk_bytes` at once.
    ///
    /// # Errors
    /// As for `new`.
    ///
    /// # Safety
    /// - as for `new`.
    pub unsafe fn in_chunks(
        context: &Arc<Context>,
        range: Range<usize>,
        uses: Uses,
        chunk_bytes: usize,
    ) -> Result<Self, String> {
        let supported = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED;
        let flags = match uses {
            Uses::Read if context.has(supported) => CU_MEMHOSTREGISTER_READ_ONLY,
            _ => 0,
        };
        let mut registered = Self {
            context: Arc::clone(context),
            chunks: Vec::new(),
        };
        for start in range.clone().step_by(chunk_bytes) {
            let chunk = start..range.end.min(start.saturating_add(chunk_bytes));
            // SAFETY: mapped, the caller's promise.
            context.within(&call_of("cuMemHostRegister", range.len()), |calls| unsafe {
                (calls.register_host)(chunk.start as *mut c_void, chunk.len(), flags)
            })?;
            context.registered().insert(chunk.start, chunk.end);
            registered.chunks.push(chunk);
        }
        Ok(registered)
    }

    /// How many pieces it is of.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            self.context.registered().remove(&chunk.start);
            // SAFETY: registered by `new`, not in use: the contract.
            let _ = self.context.within("cuMemHostUnregister", |calls| unsafe {
                (calls.unregister_host)(chunk.start as *mut c_void)
            });
        }
    }
}
