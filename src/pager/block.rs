#![allow(unsafe_code, reason = "an inner buffer describes memory by address")]
//! A piece of the arena: resident tensors of one group, or one ring slot.

use std::ops::Range;
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
        let memory = HostMemory::new(bytes).map_err(|error| no_memory(bytes, &error))?;
        Self::over(memory)
    }

    /// Takes address space for `bytes` of zeroed memory, which comes as it is written.
    ///
    /// # Errors
    /// A sentence, when the system does not give the address space.
    pub fn sparse(bytes: usize) -> Result<Self, String> {
        let memory = HostMemory::sparse(bytes).map_err(|error| no_memory(bytes, &error))?;
        Self::over(memory)
    }

    fn over(memory: HostMemory) -> Result<Self, String> {
        let memory = Arc::new(memory);
        // SAFETY:
        // - the memory is kept by this block and dropped after the buffer;
        // - mappings begin at a page, which is more than any alignment of ggml's.
        let buffer = unsafe { HostBuffer::over(memory.address(0), memory.bytes()) }?;
        Ok(Self { buffer, memory })
    }

    /// Gives the memory of a range back to the system; it is zero afterwards. Only while
    /// nothing is in flight and nothing computes.
    pub fn release(&self, range: Range<usize>) {
        // SAFETY: nobody else touches the range: the caller drained the engine.
        unsafe { self.memory.release(range) };
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

fn no_memory(bytes: usize, error: &std::io::Error) -> String {
    let mib = bytes.div_ceil(1 << 20);
    format!("could not get {mib} MiB for the arena ({error}); lower --vram-budget")
}
