//! Addresses of a device's, of which memory is mapped as it comes into use.
//!
//! ```text
//!  reserved  |                                             |  costs no memory
//!  mapped    | grown at first | then this |                   whole granules, zeroed
//! ```

use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{
    CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationProp, CUmemAllocationType, CUmemGenericAllocationHandle, CUmemLocation,
    CUmemLocationType,
};

use super::Context;

/// `CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`, which had another name in older
/// versions.
const MAPS_MEMORY: c_int = 102;

/// A device that maps memory where it is told to.
#[derive(Clone, Debug)]
pub struct Mapping {
    context: Arc<Context>,
    granule_bytes: usize,
}

impl Mapping {
    /// For the device of `context`.
    ///
    /// # Errors
    /// A sentence, when it cannot do that.
    pub fn new(context: Arc<Context>) -> Result<Self, String> {
        if context.attribute(MAPS_MEMORY) == 0 {
            let name = context.name();
            return Err(format!("{name} maps no memory where it is told to"));
        }
        let properties = properties(&context);
        let option = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let mut granule_bytes = 0;
        // SAFETY: a place for the number, and a description.
        context.within("cuMemGetAllocationGranularity", |calls| unsafe {
            (calls.granularity)(&raw mut granule_bytes, &raw const properties, option)
        })?;
        if granule_bytes == 0 {
            return Err(format!("{} says no unit of memory", context.name()));
        }
        Ok(Self {
            context,
            granule_bytes,
        })
    }

    /// The unit in which memory is mapped, in bytes.
    pub fn granule_bytes(&self) -> usize {
        self.granule_bytes
    }

    /// Addresses for at least `bytes` bytes, without memory.
    ///
    /// # Errors
    /// A sentence, when there are no more.
    pub fn reserve(&self, bytes: usize) -> Result<Range, String> {
        let bytes = bytes.max(1).next_multiple_of(self.granule_bytes);
        let mut base = 0;
        // SAFETY: a place for the address; any alignment and any address will do.
        self.context.within("cuMemAddressReserve", |calls| unsafe {
            (calls.reserve)(&raw mut base, bytes, 0, 0, 0)
        })?;
        Ok(Range {
            mapping: self.clone(),
            base,
            bytes,
            pieces: Mutex::default(),
        })
    }
}

/// What created memory is like: the device's own.
fn properties(context: &Context) -> CUmemAllocationProp {
    // SAFETY: numbers, a null pointer, and enumerations that have a zero or are set below.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location(context);
    properties
}

fn location(context: &Context) -> CUmemLocation {
    CUmemLocation {
        type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
        id: context.ordinal(),
    }
}

/// Reserved addresses, and the memory mapped there from the first one on. Whoever drops this
/// or takes memory away sees to it that nothing that was queued uses it any more.
#[derive(Debug)]
pub struct Range {
    mapping: Mapping,
    base: CUdeviceptr,
    bytes: usize,
    // What is mapped, from the start on.
    pieces: Mutex<Vec<Piece>>,
}

/// Memory that was created and mapped at one stretch.
#[derive(Clone, Copy, Debug)]
struct Piece {
    handle: CUmemGenericAllocationHandle,
    bytes: usize,
}

impl Range {
    /// The first address.
    pub fn base(&self) -> usize {
        usize::try_from(self.base).expect("addresses are as wide as ours")
    }

    /// Bytes of memory that are mapped, from the start on.
    pub fn mapped_bytes(&self) -> usize {
        sum(&self.pieces())
    }

    /// Bytes of memory that `grow` to `bytes` would map: whole granules.
    pub fn missing_bytes(&self, bytes: usize) -> usize {
        self.end_of(bytes).saturating_sub(self.mapped_bytes())
    }

    /// Where the granules end that the first `bytes` bytes lie in.
    fn end_of(&self, bytes: usize) -> usize {
        let end = bytes.next_multiple_of(self.mapping.granule_bytes);
        end.min(self.bytes)
    }

    fn pieces(&self) -> MutexGuard<'_, Vec<Piece>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps zeroed memory behind what is mapped, until there is some for the first `bytes`
    /// bytes; what was there stays as it is.
    ///
    /// # Errors
    /// A sentence, when the device has no more: then it is as before.
    pub fn grow(&self, bytes: usize) -> Result<(), String> {
        let mut pieces = self.pieces();
        let start = sum(&pieces);
        let end = self.end_of(bytes);
        if end <= start {
            return Ok(());
        }
        let piece = self.create(end - start)?;
        if let Err(error) = self.map(piece, start) {
            self.release(piece);
            return Err(error);
        }
        if let Err(error) = self.prepare(piece, start) {
            self.unmap(piece, start);
            self.release(piece);
            return Err(error);
        }
        pieces.push(piece);
        Ok(())
    }

    /// Takes all memory away; the addresses stay.
    pub fn clear(&self) {
        let mut pieces = self.pieces();
        let mut end = sum(&pieces);
        while let Some(piece) = pieces.pop() {
            end -= piece.bytes;
            self.unmap(piece, end);
            self.release(piece);
        }
    }

    fn context(&self) -> &Context {
        &self.mapping.context
    }

    fn create(&self, bytes: usize) -> Result<Piece, String> {
        let properties = properties(self.context());
        let mut handle = 0;
        let call = format!("cuMemCreate of {} MiB", bytes.div_ceil(1 << 20));
        // SAFETY: a place for the handle, and a description.
        self.context().within(&call, |calls| unsafe {
            (calls.create)(&raw mut handle, bytes, &raw const properties, 0)
        })?;
        Ok(Piece { handle, bytes })
    }

    /// The address at `offset`.
    fn at(&self, offset: usize) -> CUdeviceptr {
        self.base + offset as CUdeviceptr
    }

    fn map(&self, piece: Piece, start: usize) -> Result<(), String> {
        // SAFETY: reserved addresses with nothing mapped, and memory that was created.
        self.context().within("cuMemMap", |calls| unsafe {
            (calls.map)(self.at(start), piece.bytes, 0, piece.handle, 0)
        })
    }

    /// Lets the device use the piece, and fills it with zero.
    fn prepare(&self, piece: Piece, start: usize) -> Result<(), String> {
        let access = CUmemAccessDesc {
            location: location(self.context()),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: a whole mapping, and one description.
        self.context().within("cuMemSetAccess", |calls| unsafe {
            (calls.set_access)(self.at(start), piece.bytes, &raw const access, 1)
        })?;
        let stream = std::ptr::null_mut();
        // SAFETY: memory that nobody knows yet, on the default stream.
        self.context().within("cuMemsetD8Async", |calls| unsafe {
            (calls.fill)(self.at(start), 0, piece.bytes, stream)
        })?;
        // Others wait for no stream of ours.
        // SAFETY: the default stream.
        self.context()
            .within("cuStreamSynchronize", |calls| unsafe {
                (calls.synchronize_stream)(stream)
            })
    }

    // What these two say is nobody's business: nothing more can be done about it.

    fn unmap(&self, piece: Piece, start: usize) {
        // SAFETY: a whole mapping, which nothing queued uses: the contract.
        let _ = self.context().within("cuMemUnmap", |calls| unsafe {
            (calls.unmap)(self.at(start), piece.bytes)
        });
    }

    fn release(&self, piece: Piece) {
        // SAFETY: created by `create`, let go of once.
        let _ = self.context().within("cuMemRelease", |calls| unsafe {
            (calls.release_memory)(piece.handle)
        });
    }
}

fn sum(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.bytes).sum()
}

impl Drop for Range {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: reserved by `reserve`, with nothing mapped any more.
        let _ = self.context().within("cuMemAddressFree", |calls| unsafe {
            (calls.free_addresses)(self.base, self.bytes)
        });
    }
}
