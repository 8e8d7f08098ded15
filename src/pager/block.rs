#![allow(unsafe_code, reason = "an inner buffer describes memory by address")]
//! A piece of the arena: resident tensors of one group, or one ring slot.

use std::sync::Arc;

use super::memory::HostMemory;
use crate::ggml::HostBuffer;

/// Memory of the arena together with the inner buffer that describes it.
#[derive(Debug)]
pub struct Block {
    // Before the memory: the description goes first.
    buffer: HostBuffer,
    memory: Arc<HostMemory>,
}

impl Block {
    /// Takes `bytes` of zeroed memory.
    ///
    /// # Errors
    /// A sentence, when the system does not give the memory.
    pub fn new(bytes: usize) -> Result<Self, String> {
        let memory = HostMemory::new(bytes).map_err(|error| {
            format!("could not get {bytes} bytes for the arena ({error}); lower --vram-budget")
        })?;
        let memory = Arc::new(memory);
        // SAFETY:
        // - the memory is kept by this block and dropped after the buffer;
        // - mappings begin at a page, which is more than any alignment of ggml's.
        let buffer = unsafe { HostBuffer::over(memory.address(0), bytes) }?;
        Ok(Self { buffer, memory })
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// The inner buffer over it.
    pub fn buffer(&self) -> &HostBuffer {
        &self.buffer
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}
