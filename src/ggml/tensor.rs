//! A tensor of llama.cpp's, lent to us for the time of a callback.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::NonNull;

use ggml_sys as sys;

use super::InnerDevice;

/// A tensor that llama.cpp owns. Cheap to copy; never outlives the callback that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor<'a> {
    raw: NonNull<sys::ggml_tensor>,
    lent: PhantomData<&'a sys::ggml_tensor>,
}

impl<'a> Tensor<'a> {
    /// The tensor at `raw`; None for a null pointer.
    ///
    /// # Safety
    /// - `raw` is null or points to a tensor that lives for `'a`;
    /// - nobody else changes the tensor during `'a`.
    pub unsafe fn from_raw(raw: *mut sys::ggml_tensor) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self {
            raw,
            lent: PhantomData,
        })
    }

    /// The pointer, for calls into ggml.
    pub fn as_ptr(self) -> *mut sys::ggml_tensor {
        self.raw.as_ptr()
    }

    fn get(self) -> &'a sys::ggml_tensor {
        // SAFETY: live and unchanged for `'a`, as promised to `from_raw`; our own writes
        // (`relocate`) happen while no such reference is held.
        unsafe { self.raw.as_ref() }
    }

    /// The tensor's name, up to its first NUL.
    pub fn name(self) -> String {
        // SAFETY: ggml keeps names NUL-terminated inside their array.
        let name = unsafe { CStr::from_ptr(self.get().name.as_ptr()) };
        name.to_string_lossy().into_owned()
    }

    /// The address of its data, as llama.cpp knows it; 0 when unset.
    pub fn address(self) -> usize {
        self.get().data as usize
    }

    /// The buffer it lies in; may be null.
    pub fn buffer(self) -> sys::ggml_backend_buffer_t {
        self.get().buffer
    }

    /// Whether the processor may follow its address.
    pub fn is_in_host_memory(self) -> bool {
        // SAFETY: a tensor's buffer lives as long as the tensor has its address.
        !self.buffer().is_null() && unsafe { sys::ggml_backend_buffer_is_host(self.buffer()) }
    }

    /// Whether it lies in an ordinary buffer of the device.
    pub fn is_in_memory_of(self, device: InnerDevice) -> bool {
        if self.buffer().is_null() {
            return false;
        }
        // SAFETY: as in `is_in_host_memory`.
        let kind = unsafe { sys::ggml_backend_buffer_get_type(self.buffer()) };
        kind == device.buffer_type()
    }

    /// Bytes from its first to behind its last element, strides included.
    pub fn span_bytes(self) -> usize {
        // SAFETY: the tensor is live.
        unsafe { sys::ggml_nbytes(self.as_ptr()) }
    }

    /// Whether bytes of something else lie between its rows, or between the rows' rows: it
    /// is a view across another tensor's rows. (The outermost dimension is left out: there
    /// lie the caches of other sequences.)
    pub fn has_gaps(self) -> bool {
        // SAFETY: no preconditions beyond a valid type, which a tensor has.
        let row = unsafe { sys::ggml_row_size(self.element_type(), self.extent(0)) };
        let dense = self.extent(0) * self.extent(1) * self.extent(2);
        // SAFETY: as above.
        let dense = unsafe { sys::ggml_row_size(self.element_type(), dense) };
        let steps = (1..3).map(|dim| {
            let count = usize::try_from(self.extent(dim)).unwrap_or(1).max(1);
            (count - 1) * self.stride(dim)
        });
        steps.sum::<usize>() + row > dense
    }

    /// Whether somebody reads it when its graph has been computed.
    pub fn is_output(self) -> bool {
        let flags = u32::try_from(self.get().flags).unwrap_or(u32::MAX);
        flags & sys::GGML_TENSOR_FLAG_OUTPUT != 0
    }

    /// The operation that computes it.
    pub fn op(self) -> sys::ggml_op {
        self.get().op
    }

    /// Its element type.
    pub fn element_type(self) -> sys::ggml_type {
        self.get().type_
    }

    /// Whether its elements come in blocks of a common scale.
    pub fn is_quantised(self) -> bool {
        // SAFETY: no preconditions beyond a valid type, which a tensor has.
        unsafe { sys::ggml_is_quantized(self.element_type()) }
    }

    /// Bytes of as many elements of its type, which are whole blocks.
    pub fn bytes_of_elements(self, count: i64) -> usize {
        // SAFETY: as above.
        unsafe { sys::ggml_row_size(self.element_type(), count) }
    }

    /// Elements along dimension `dim`.
    pub fn extent(self, dim: usize) -> i64 {
        self.get().ne[dim]
    }

    /// Bytes from one element to the next along dimension `dim`.
    pub fn stride(self, dim: usize) -> usize {
        self.get().nb[dim]
    }

    /// Source `index` of its operation.
    pub fn source(self, index: usize) -> Option<Self> {
        let raw = *self.get().src.get(index)?;
        // SAFETY: sources live as long as the graph that holds the tensor.
        unsafe { Self::from_raw(raw) }
    }

    /// The sources of its operation.
    pub fn sources(self) -> impl Iterator<Item = Self> {
        (0..sys::GGML_MAX_SRC as usize).filter_map(move |index| self.source(index))
    }

    /// The tensor that it is a view of.
    pub fn view_source(self) -> Option<Self> {
        // SAFETY: as for `source`.
        unsafe { Self::from_raw(self.get().view_src) }
    }

    /// Whether it has no elements.
    pub fn is_empty(self) -> bool {
        self.get().ne.contains(&0)
    }

    /// Whether its operation computes nothing and only names bytes of another tensor.
    pub fn is_only_a_view(self) -> bool {
        matches!(
            self.op(),
            sys::GGML_OP_NONE
                | sys::GGML_OP_VIEW
                | sys::GGML_OP_RESHAPE
                | sys::GGML_OP_PERMUTE
                | sys::GGML_OP_TRANSPOSE
        )
    }

    /// Whether a norm begins here.
    pub fn is_norm(self) -> bool {
        matches!(
            self.op(),
            sys::GGML_OP_NORM
                | sys::GGML_OP_RMS_NORM
                | sys::GGML_OP_GROUP_NORM
                | sys::GGML_OP_L2_NORM
        )
    }

    /// Points the tensor somewhere else; gives back where it was.
    ///
    /// # Safety
    /// - `address` holds the tensor's bytes and lies in `buffer` for as long as anything
    ///   reads the tensor there;
    /// - nobody else uses the tensor meanwhile.
    pub unsafe fn relocate(
        self,
        address: usize,
        buffer: sys::ggml_backend_buffer_t,
    ) -> (usize, sys::ggml_backend_buffer_t) {
        let raw = self.as_ptr();
        let old = (self.address(), self.buffer());
        // SAFETY: the tensor is live and ours alone, as promised.
        unsafe { (*raw).data = address as *mut std::ffi::c_void };
        // SAFETY: as above.
        unsafe { (*raw).buffer = buffer };
        old
    }
}
