//! Host memory from and to which copies overlap with everything else.
//!
//! It is taken from the driver, and memory that is there already is not registered with it:
//! what streams is read once, past the page cache, into memory from here. Copies from that
//! are as fast as from a registered mapping of the model, and do not fault when the file is
//! cut while they run.

use std::ffi::c_void;
use std::sync::Arc;

use super::Context;

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
        let call = format!("cuMemHostAlloc of {} MiB", bytes.div_ceil(1 << 20));
        // SAFETY: a place for the address. No flags: not write-combined.
        context.within(&call, |calls| unsafe {
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
