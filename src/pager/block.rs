#![allow(unsafe_code, reason = "an inner buffer describes memory by address")]
//! A piece of the arena: resident tensors of one group, or the ring.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::StatesIn;
use super::engine::{Source, Target};
use super::engine_device::cuda_link::{CudaLink, context_of};
use super::memory::HostMemory;
use super::storage::BLOCK_BYTES;
use crate::cuda::{self, Mapping};
use crate::ggml::{BufferOwner, DeviceBuffer, HostBuffer, InnerDevice, RawBuffer};

/// Whose memory the arena is made of.
#[derive(Clone, Debug)]
pub enum Arena {
    /// The machine's: the processor computes.
    Host,
    /// The inner device's own, and how it maps memory where it is told to, if it does.
    Device(InnerDevice, Option<Mapping>),
}

/// Resident tensors of a group that are smaller than this share one block.
const OWN_BLOCK_BYTES: usize = 1 << 20;
/// The same in CUDA's memory, which gives small blocks from few large ones. Others count
/// allocations, and have few.
const OWN_BLOCK_BYTES_OF_CUDA: usize = 4 << 10;
/// What a kernel may read of a state behind the last row that is in use: it reads rows of
/// quantised elements in steps of 512, at most 2 KiB.
const READ_AHEAD_BYTES: usize = 4096;
/// A state of fewer granules takes all of its memory at once.
const GRANULES_MIN: usize = 2;

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
    /// Addresses of the inner device's; there is memory from the start on, as far as it is in
    /// use.
    Growing(Arc<DeviceBuffer>, Arc<cuda::Range>),
}

impl Arena {
    /// The memory on which a device computes.
    pub fn of(device: InnerDevice) -> Self {
        match device.is_host() {
            true => Self::Host,
            false => Self::Device(device, mapping_of(device)),
        }
    }

    /// Alignment of tensors in it, in bytes, for the device that computes on it; `direct`:
    /// when files are read past the page cache.
    pub fn alignment(&self, device: InnerDevice, direct: bool) -> usize {
        match self {
            Self::Host if direct => BLOCK_BYTES,
            Self::Host | Self::Device(..) => device.arena_alignment(),
        }
    }

    /// Where states live that are streamed: `folder` is asked where that is a disk.
    pub fn states_in(&self, folder: impl FnOnce() -> PathBuf) -> StatesIn {
        match self {
            Self::Host => StatesIn::Folder(folder()),
            Self::Device(..) => StatesIn::Memory,
        }
    }

    /// Whether files are read right into it: a weight lies in its blocks as in its file.
    /// A copy over a link goes anywhere, and a device wants its own alignment.
    pub fn is_read_into(&self) -> bool {
        matches!(self, Self::Host)
    }

    /// Whether the memory of a part of a block is given back.
    pub fn gives_back_parts(&self) -> bool {
        matches!(self, Self::Host)
    }

    /// Whether the device reads padding behind a tensor's own bytes.
    pub fn has_padding(&self) -> bool {
        matches!(self, Self::Device(..))
    }

    /// Whether the device's addresses are offsets in its buffers, which are not negative
    /// (ggml-vulkan's are).
    pub fn counts_from_base(&self) -> bool {
        matches!(self, Self::Device(device, _) if !CudaLink::is_for(*device))
    }

    /// Whether a tensor of `bytes` has a block to itself, and shares none.
    pub fn has_own_block(&self, bytes: usize) -> bool {
        match self {
            Self::Host | Self::Device(_, None) => bytes >= OWN_BLOCK_BYTES,
            Self::Device(_, Some(_)) => bytes >= OWN_BLOCK_BYTES_OF_CUDA,
        }
    }

    /// Bytes that a block of `bytes` to itself takes: CUDA gives what is not small in whole
    /// granules.
    pub fn own_block_bytes(&self, bytes: usize) -> usize {
        match self {
            Self::Device(_, Some(mapping)) if bytes >= OWN_BLOCK_BYTES => {
                bytes.next_multiple_of(mapping.granule_bytes())
            }
            Self::Host | Self::Device(..) => bytes,
        }
    }

    /// Bytes that a state takes when the first `in_use` of its `bytes` are in use.
    pub fn state_bytes(&self, bytes: usize, in_use: usize, alignment: usize) -> usize {
        match self {
            Self::Host => in_use.next_multiple_of(alignment),
            Self::Device(_, mapping) => match mapping.as_ref().filter(|it| is_worth(it, bytes)) {
                None => self.own_block_bytes(bytes),
                Some(mapping) => {
                    mapped_bytes(in_use, bytes).next_multiple_of(mapping.granule_bytes())
                }
            },
        }
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
            Self::Device(device, _) => of_device(*device, bytes),
        }
    }

    /// Takes address space for `bytes` of zeroed memory, which comes as it is written, or
    /// when [`Block::grow`] says so. A device that does not map memory where it is told to
    /// gives all of it at once. None when it does, and has no addresses: nothing is taken
    /// then.
    ///
    /// # Errors
    /// A sentence, when it is not given.
    pub fn sparse_block(&self, bytes: usize) -> Result<Option<Block>, String> {
        match self {
            Self::Host => {
                let memory = HostMemory::sparse(bytes);
                let memory = memory.map_err(|error| no_memory(bytes, &error.to_string()))?;
                Block::over(memory).map(Some)
            }
            Self::Device(device, mapping) => {
                match mapping.as_ref().filter(|it| is_worth(it, bytes)) {
                    Some(mapping) => Ok(growing(*device, mapping, bytes)),
                    None => of_device(*device, bytes).map(Some),
                }
            }
        }
    }
}

/// How a device maps memory where it is told to; None when it does not.
fn mapping_of(device: InnerDevice) -> Option<Mapping> {
    let is_cuda = CudaLink::is_for(device);
    let context = is_cuda.then(|| context_of(device).ok()).flatten()?;
    Mapping::new(context).ok()
}

fn is_worth(mapping: &Mapping, bytes: usize) -> bool {
    bytes >= GRANULES_MIN * mapping.granule_bytes()
}

/// Bytes that there must be memory for when the first `in_use` of `bytes` are in use.
fn mapped_bytes(in_use: usize, bytes: usize) -> usize {
    match in_use {
        0 => 0,
        _ => (in_use + READ_AHEAD_BYTES).min(bytes),
    }
}

/// Addresses for `bytes` bytes without memory; None when they cannot be had.
fn growing(device: InnerDevice, mapping: &Mapping, bytes: usize) -> Option<Block> {
    let range = Arc::new(mapping.reserve(bytes).ok()?);
    let owner = Arc::clone(&range) as Arc<dyn BufferOwner>;
    // SAFETY: the range is as long, and what of it is touched was grown before.
    let buffer = unsafe { DeviceBuffer::over(device, range.base(), bytes, owner) };
    Some(Block::Growing(Arc::new(buffer.ok()?), range))
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
    /// afterwards. Memory that grew goes as a whole. Only while nothing is in flight and
    /// nothing computes.
    pub fn release(&self, range: Range<usize>) {
        match self {
            // SAFETY: nobody else touches the range: the caller drained the engine.
            Self::Host { memory, .. } => unsafe { memory.release(range) },
            // SAFETY: as above.
            Self::Device(memory) => unsafe { memory.fill(range.start, range.len(), 0) },
            Self::Growing(_, memory) => {
                assert_eq!(range.start, 0, "a state has its addresses to itself");
                memory.clear();
            }
        }
    }

    /// Sees to it that there is zeroed memory for the first `in_use` bytes, if it does not
    /// come by itself.
    ///
    /// # Errors
    /// A sentence, when the device has no more; all is as before then.
    pub fn grow(&self, in_use: usize) -> Result<(), String> {
        match self {
            Self::Host { .. } | Self::Device(_) => Ok(()),
            Self::Growing(buffer, memory) => memory.grow(mapped_bytes(in_use, buffer.bytes())),
        }
    }

    /// Whether it has all of its memory at once.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Device(_))
    }

    /// Bytes of memory that have come so far where it comes as [`Block::grow`] says; 0 where
    /// it does not.
    pub fn mapped_bytes(&self) -> usize {
        match self {
            Self::Host { .. } | Self::Device(_) => 0,
            Self::Growing(_, memory) => memory.mapped_bytes(),
        }
    }

    /// Bytes that `grow` would take.
    pub fn missing_bytes(&self, in_use: usize) -> usize {
        match self {
            Self::Host { .. } | Self::Device(_) => 0,
            Self::Growing(buffer, memory) => {
                memory.missing_bytes(mapped_bytes(in_use, buffer.bytes()))
            }
        }
    }

    /// Copies `from` to `offset`. Only while nothing is in flight and nothing computes.
    pub fn write(&self, offset: usize, from: &[u8]) {
        match self {
            // SAFETY: the bytes are the caller's, not the arena's; the engine is drained.
            Self::Host { memory, .. } => unsafe { memory.write(offset, from) },
            // SAFETY: as above.
            Self::Device(memory) | Self::Growing(memory, _) => unsafe {
                memory.write(offset, from)
            },
        }
    }

    /// Copies from `offset` into `to`. Only while nothing is in flight and nothing computes.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        match self {
            // SAFETY: the bytes are the caller's, not the arena's; the engine is drained.
            Self::Host { memory, .. } => unsafe { memory.read(offset, to) },
            // SAFETY: as above.
            Self::Device(memory) | Self::Growing(memory, _) => unsafe { memory.read(offset, to) },
        }
    }

    /// Fills a range. Only while nothing is in flight and nothing computes.
    pub fn fill(&self, range: Range<usize>, value: u8) {
        match self {
            // SAFETY: nobody else touches the range: the caller drained the engine.
            Self::Host { memory, .. } => unsafe { memory.fill(range, value) },
            // SAFETY: as above.
            Self::Device(memory) | Self::Growing(memory, _) => unsafe {
                memory.fill(range.start, range.len(), value)
            },
        }
    }

    /// The machine's memory, where it is of that.
    pub fn host(&self) -> Option<&HostMemory> {
        match self {
            Self::Host { memory, .. } => Some(memory),
            Self::Device(_) | Self::Growing(..) => None,
        }
    }

    /// The bytes from `offset` on, as a copy reads them.
    pub fn source(&self, offset: usize) -> Source {
        match self {
            Self::Host { memory, .. } => Source::Memory {
                memory: Arc::clone(memory),
                offset,
            },
            Self::Device(memory) | Self::Growing(memory, _) => Source::Device {
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
            Self::Device(memory) | Self::Growing(memory, _) => Target::Device {
                memory: Arc::clone(memory),
                offset,
            },
        }
    }

    /// Address of the byte at `offset`, as the inner device counts.
    pub fn address(&self, offset: usize) -> usize {
        match self {
            Self::Host { memory, .. } => memory.address(offset) as usize,
            Self::Device(memory) | Self::Growing(memory, _) => memory.base() + offset,
        }
    }

    /// The inner buffer over it, for calls into ggml.
    pub fn buffer(&self) -> RawBuffer {
        match self {
            Self::Host { buffer, .. } => buffer.as_ptr(),
            Self::Device(memory) | Self::Growing(memory, _) => memory.as_ptr(),
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host { memory, .. } => memory.bytes(),
            Self::Device(memory) | Self::Growing(memory, _) => memory.bytes(),
        }
    }
}

fn no_memory(bytes: usize, why: &str) -> String {
    let mib = bytes.div_ceil(1 << 20);
    format!("could not get {mib} MiB for the arena ({why}); lower --vram-budget")
}
