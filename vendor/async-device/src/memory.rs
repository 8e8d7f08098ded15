//! Memory of the device: addresses that nothing is mapped at, canaries around the bytes.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ggml_sys as sys;

use crate::event::lock;

/// Alignment of tensors, in bytes.
pub const ALIGNMENT: usize = 256;
/// Bytes of a canary, before and behind a buffer.
const CANARY_BYTES: usize = 4096;
const CANARY: u8 = 0xC5;
/// What fresh and freed memory is full of: NaN in every floating-point type.
const POISON: u8 = 0xFF;
/// Where addresses begin: no processor maps anything there.
const FIRST_ADDRESS: usize = 0x0100_0000_0000_0000;
/// Addresses between two buffers.
const GAP_BYTES: usize = 1 << 20;

/// The memory of one buffer.
#[derive(Debug)]
pub struct Memory {
    // Address of the first byte, as the device counts.
    base: usize,
    bytes: usize,
    // Canary, bytes, canary.
    block: NonNull<u8>,
    layout: Layout,
    // What the CPU backend is told that the tensors lie in.
    described: NonNull<sys::ggml_backend_buffer>,
    // Address of ggml's buffer, once there is one.
    owner: AtomicUsize,
    freed: AtomicBool,
}

// SAFETY: the block is owned; the description is not tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: bytes are read and written through raw pointers, as a device's are: whoever uses
// the device orders that. What else there is, is atomic or never changes.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` bytes at `base`, poisoned; None when the system does not give them.
    fn new(base: usize, bytes: usize) -> Option<Self> {
        let whole = bytes.checked_add(2 * CANARY_BYTES)?;
        let layout = Layout::from_size_align(whole, CANARY_BYTES).ok()?;
        // SAFETY: the size is not zero: there are canaries.
        let block = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the block has that many bytes.
        unsafe { block.as_ptr().write_bytes(CANARY, whole) };
        // SAFETY: the bytes begin behind the first canary, within the block.
        let first = unsafe { block.as_ptr().add(CANARY_BYTES) };
        // SAFETY: the block has that many bytes between the canaries.
        unsafe { first.write_bytes(POISON, bytes) };
        // SAFETY: the memory is there as long as the description: both are freed in `drop`.
        let described = unsafe { sys::ggml_backend_cpu_buffer_from_ptr(first.cast(), bytes) };
        Some(Self {
            base,
            bytes,
            block,
            layout,
            described: NonNull::new(described)?,
            owner: AtomicUsize::new(0),
            freed: AtomicBool::new(false),
        })
    }

    /// Address of the first byte, as the device counts.
    pub fn base(&self) -> usize {
        self.base
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the byte at `offset` really is.
    ///
    /// # Panics
    /// When the offset does not lie in the memory, or just behind it.
    pub fn pointer(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes);
        // SAFETY: within the block, as was just looked at.
        unsafe { self.block.as_ptr().add(CANARY_BYTES + offset) }
    }

    /// Offset of `bytes` bytes at a device's address.
    ///
    /// # Errors
    /// A sentence, when they do not lie in the memory.
    pub fn offset_of(&self, address: usize, bytes: usize) -> Result<usize, String> {
        let offset = address.wrapping_sub(self.base);
        if offset <= self.bytes && bytes <= self.bytes - offset {
            return Ok(offset);
        }
        Err(format!(
            "{bytes} bytes at {address:#x} do not lie in the buffer of {} bytes at {:#x}",
            self.bytes, self.base
        ))
    }

    /// The CPU backend's description of it.
    pub fn described(&self) -> sys::ggml_backend_buffer_t {
        self.described.as_ptr()
    }

    /// Whether ggml's buffer at this address is the one over it.
    pub fn is_of(&self, buffer: sys::ggml_backend_buffer_t) -> bool {
        self.owner.load(Ordering::Relaxed) == buffer as usize
    }

    /// Notes ggml's buffer over it.
    pub fn set_owner(&self, buffer: sys::ggml_backend_buffer_t) {
        self.owner.store(buffer as usize, Ordering::Relaxed);
    }

    /// Whether it was freed: who finds that uses it too late.
    pub fn is_freed(&self) -> bool {
        self.freed.load(Ordering::Acquire)
    }

    /// Poisons it, for whoever still reads it.
    fn free(&self) {
        self.freed.store(true, Ordering::Release);
        // SAFETY: all of the bytes between the canaries.
        unsafe { self.pointer(0).write_bytes(POISON, self.bytes) };
    }

    /// A sentence when somebody wrote before or behind it.
    pub fn check_canaries(&self) -> Result<(), String> {
        for (at, what) in [(0, "before"), (CANARY_BYTES + self.bytes, "behind")] {
            // SAFETY: both canaries lie within the block.
            let start = unsafe { self.block.as_ptr().add(at) };
            // SAFETY: a canary has that many bytes, and nobody writes them on purpose.
            let canary = unsafe { std::slice::from_raw_parts(start, CANARY_BYTES) };
            if let Some(hit) = canary.iter().position(|byte| *byte != CANARY) {
                return Err(format!(
                    "a byte {what} the buffer of {} bytes was written (number {hit} of its canary)",
                    self.bytes
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_backend_cpu_buffer_from_ptr`, freed once; it owns no bytes.
        unsafe { sys::ggml_backend_buffer_free(self.described.as_ptr()) };
        // SAFETY: made by `alloc` with this layout, freed once.
        unsafe { dealloc(self.block.as_ptr(), self.layout) };
    }
}

/// All memory of a device that is not freed.
#[derive(Debug)]
pub struct Space {
    live: Mutex<BTreeMap<usize, Arc<Memory>>>,
    next: AtomicUsize,
    bytes_max: usize,
}

impl Space {
    /// No memory yet, of `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            live: Mutex::default(),
            // An address has no more alignment than was promised.
            next: AtomicUsize::new(FIRST_ADDRESS + ALIGNMENT),
            bytes_max,
        }
    }

    /// Memory for a buffer; None when there is not so much left.
    pub fn allocate(&self, bytes: usize) -> Option<Arc<Memory>> {
        let (used, _) = self.used();
        if bytes > self.bytes_max.saturating_sub(used) {
            return None;
        }
        let span = bytes.next_multiple_of(CANARY_BYTES) + GAP_BYTES;
        let base = self.next.fetch_add(span, Ordering::Relaxed);
        let memory = Arc::new(Memory::new(base, bytes)?);
        lock(&self.live).insert(base, Arc::clone(&memory));
        Some(memory)
    }

    /// Frees the memory of a buffer.
    ///
    /// # Errors
    /// A sentence, when it is still in use, or a canary was hit.
    pub fn free(&self, memory: Arc<Memory>) -> Result<(), String> {
        lock(&self.live).remove(&memory.base());
        memory.free();
        memory.check_canaries()?;
        match Arc::into_inner(memory) {
            Some(_) => Ok(()),
            None => Err("a buffer was freed while a stream had work for it".to_owned()),
        }
    }

    /// The memory that an address lies in.
    ///
    /// # Errors
    /// A sentence, when it lies in no live buffer.
    pub fn find(&self, address: usize) -> Result<Arc<Memory>, String> {
        let live = lock(&self.live);
        let below = live.range(..=address).next_back();
        below
            .filter(|(base, memory)| address - **base <= memory.bytes())
            .map(|(_, memory)| Arc::clone(memory))
            .ok_or_else(|| format!("{address:#x} lies in no live buffer of the device"))
    }

    /// The memory of ggml's buffer, when it is one of this device.
    pub fn of_buffer(&self, buffer: sys::ggml_backend_buffer_t) -> Option<Arc<Memory>> {
        let live = lock(&self.live);
        live.values().find(|memory| memory.is_of(buffer)).cloned()
    }

    /// Bytes in use, and bytes in all.
    pub fn used(&self) -> (usize, usize) {
        let used = lock(&self.live).values().map(|memory| memory.bytes()).sum();
        (used, self.bytes_max)
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        lock(&self.live).len()
    }

    /// Looks at all canaries.
    pub fn check_canaries(&self) -> Vec<String> {
        let live = lock(&self.live);
        let found = live.values().map(|memory| memory.check_canaries());
        found.filter_map(Result::err).collect()
    }
}
