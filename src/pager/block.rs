#![allow(unsafe_code, reason = "an inner buffer describes memory by address")]
//! A piece of the arena: resident tensors of one group, or the ring.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::StatesIn;
use super::engine::{Source, Target};
use super::memory::HostMemory;
use super::storage::BLOCK_BYTES;
use crate::ggml::{DeviceBuffer, HostBuffer, InnerDevice, RawBuffer};

/// Whose memory the arena is made of.
#[derive(Clone, Copy, Debug)]
pub enum Arena {
    /// The machine's: the processor computes.
    Host,
    /// The inner device's own.
    Device(InnerDevice),
}

/// Memory of the arena together with the inner buffer that describes it.
#[derive(Debug)]
pub enum Block {
    /// Of the machine's memory.
    Host {
        /// The description. Before the memory: it goes first.
        buffer: HostBuffer,
        /// The memory.
        memory: Arc<HostMemory>,
    },
    /// Of the inner device's.
    Device(Arc<DeviceBuffer>),
}

impl Arena {
    /// The memory on which a device computes.
    pub fn of(device: InnerDevice) -> Self {
        match device.is_host() {
            true => Self::Host,
            false => Self::Device(device),
        }
    }

    /// Alignment of tensors in it, in bytes, for the device that computes on it; `direct`:
    /// when files are read past the page cache.
    pub fn alignment(&self, device: InnerDevice, direct: bool) -> usize {
        match self {
            Self::Host if direct => BLOCK_BYTES,
            Self::Host | Self::Device(_) => device.arena_alignment(),
        }
    }

    /// Where states live that are streamed: `folder` is asked where that is a disk.
    pub fn states_in(&self, folder: impl FnOnce() -> PathBuf) -> StatesIn {
        match self {
            Self::Host => StatesIn::Folder(folder()),
            Self::Device(_) => StatesIn::Memory,
        }
    }

    /// Whether files are read right into it: a weight lies in its blocks as in its file.
    /// A copy over a link goes anywhere, and a device wants its own alignment.
    pub fn is_read_into(&self) -> bool {
        matches!(self, Self::Host)
    }

    /// Whether the device reads padding behind a tensor's own bytes.
    pub fn has_padding(&self) -> bool {
        matches!(self, Self::Device(_))
    }

    /// Whether a sparse block takes memory as it is written, and not all of it at once.
    pub fn is_sparse(&self) -> bool {
        matches!(self, Self::Host)
    }

    /// Takes `bytes` of zeroed memory.
    ///
    /// # Errors
    /// A sentence, when it is not given.
    pub fn block(&self, bytes: usize) -> Result<Block, String> {
        match self {
            Self::Host => Block::over(
                HostMemory::new(bytes).map_err(|error| no_memory(bytes, &error.to_string()))?,
            ),
            Self::Device(device) => of_device(*device, bytes),
        }
    }

    /// Takes address space for `bytes` of zeroed memory, which comes as it is written. A
    /// device gives all of it at once.
    ///
    /// # Errors
    /// A sentence, when it is not given.
    pub fn sparse_block(&self, bytes: usize) -> Result<Block, String> {
        match self {
            Self::Host => Block::over(
                HostMemory::sparse(bytes).map_err(|error| no_memory(bytes, &error.to_string()))?,
            ),
            Self::Device(device) => of_device(*device, bytes),
        }
    }
}

fn of_device(device: InnerDevice, bytes: usize) -> Result<Block, String> {
    let buffer = DeviceBuffer::new(device, bytes).map_err(|error| no_memory(bytes, &error))?;
    // SAFETY: the buffer was made just now: nobody else knows it.
    unsafe { buffer.fill(0, bytes, 0) };
    Ok(Block::Device(Arc::new(buffer)))
}

impl Block {
    /// The machine's memory, with a description of it.
    ///
    /// # Errors
    /// A sentence, when ggml cannot describe it.
    pub fn over(memory: HostMemory) -> Result<Self, String> {
        let memory = Arc::new(memory);
        // SAFETY:
        // - the memory is kept by this block and dropped after the buffer;
        // - mappings begin at a page, which is more than any alignment of ggml's.
        let buffer = unsafe { HostBuffer::over(memory.address(0), memory.bytes()) }?;
        Ok(Self::Host { buffer, memory })
    }

    /// Gives the memory of a range back to the system, where it is the system's; it is zero
    /// afterwards. Only while nothing is in flight and nothing computes.
    pub fn release(&self, range: Range<usize>) {
        match self {
            // SAFETY: nobody else touches the range: the caller drained the engine.
            Self::Host { memory, .. } => unsafe { memory.release(range) },
            // SAFETY: as above.
            Self::Device(memory) => unsafe { memory.fill(range.start, range.len(), 0) },
        }
    }

    /// Copies `from` to `offset`. Only while nothing is in flight and nothing computes.
    pub fn write(&self, offset: usize, from: &[u8]) {
        match self {
            // SAFETY: the bytes are the caller's, not the arena's; the engine is drained.
            Self::Host { memory, .. } => unsafe { memory.write(offset, from) },
            // SAFETY: as above.
            Self::Device(memory) => unsafe { memory.write(offset, from) },
        }
    }

    /// Copies from `offset` into `to`. Only while nothing is in flight and nothing computes.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        match self {
            // SAFETY: the bytes are the caller's, not the arena's; the engine is drained.
            Self::Host { memory, .. } => unsafe { memory.read(offset, to) },
            // SAFETY: as above.
            Self::Device(memory) => unsafe { memory.read(offset, to) },
        }
    }

    /// Fills a range. Only while nothing is in flight and nothing computes.
    pub fn fill(&self, range: Range<usize>, value: u8) {
        match self {
            // SAFETY: nobody else touches the range: the caller drained the engine.
            Self::Host { memory, .. } => unsafe { memory.fill(range, value) },
            // SAFETY: as above.
            Self::Device(memory) => unsafe { memory.fill(range.start, range.len(), value) },
        }
    }

    /// The machine's memory, where it is of that.
    pub fn host(&self) -> Option<&HostMemory> {
        match self {
            Self::Host { memory, .. } => Some(memory),
            Self::Device(_) => None,
        }
    }

    /// The bytes from `offset` on, as a copy reads them.
    pub fn source(&self, offset: usize) -> Source {
        match self {
            Self::Host { memory, .. } => Source::Memory {
                memory: Arc::clone(memory),
                offset,
            },
            Self::Device(memory) => Source::Device {
                memory: Arc::clone(memory),
                offset,
            },
        }
    }

    /// The bytes from `offset` on, as a copy writes them.
    pub fn target(&self, offset: usize) -> Target {
        match self {
            Self::Host { memory, .. } => Target::Memory {
                memory: Arc::clone(memory),
                offset,
            },
            Self::Device(memory) => Target::Device {
                memory: Arc::clone(memory),
                offset,
            },
        }
    }

    /// Address of the byte at `offset`, as the inner device counts.
    pub fn address(&self, offset: usize) -> usize {
        match self {
            Self::Host { memory, .. } => memory.address(offset) as usize,
            Self::Device(memory) => memory.base() + offset,
        }
    }

    /// The inner buffer over it, for calls into ggml.
    pub fn buffer(&self) -> RawBuffer {
        match self {
            Self::Host { buffer, .. } => buffer.as_ptr(),
            Self::Device(memory) => memory.as_ptr(),
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host { memory, .. } => memory.bytes(),
            Self::Device(memory) => memory.bytes(),
        }
    }
}

fn no_memory(bytes: usize, why: &str) -> String {
    let mib = bytes.div_ceil(1 << 20);
    format!("could not get {mib} MiB for the arena ({why}); lower --vram-budget")
}
