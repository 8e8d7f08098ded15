//! Buffers of the inner device: a description of host memory, or memory of the device's own.

use std::ptr::NonNull;
use std::sync::Arc;

use ggml_sys as sys;

use super::InnerDevice;

/// A buffer, for calls into ggml.
pub type RawBuffer = sys::ggml_backend_buffer_t;

/// An inner buffer over host memory that somebody else owns: what the `buffer` field of
/// a tensor points to while it is computed on.
#[derive(Debug)]
pub struct HostBuffer(NonNull<sys::ggml_backend_buffer>);

// SAFETY: a buffer is a description of memory; ggml does not tie it to a thread.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; nothing here changes it after it was made.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Describes `bytes` bytes at `address`.
    ///
    /// # Safety
    /// - the memory outlives the buffer;
    /// - `address` is aligned as ggml's CPU buffers are.
    pub unsafe fn over(address: *mut u8, bytes: usize) -> Result<Self, String> {
        // SAFETY: address and size as promised.
        let raw = unsafe { sys::ggml_backend_cpu_buffer_from_ptr(address.cast(), bytes) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(|| "ggml could not describe a buffer".to_owned())
    }

    /// The buffer, for calls into ggml.
    pub fn as_ptr(&self) -> sys::ggml_backend_buffer_t {
        self.0.as_ptr()
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_backend_cpu_buffer_from_ptr`, freed once; the memory
        // itself belongs to somebody else.
        unsafe { sys::ggml_backend_buffer_free(self.as_ptr()) };
    }
}

/// A buffer in the inner device's own memory, owned.
///
/// Its addresses may be real ones (CUDA) or promises (Vulkan counts from a made-up base):
/// nobody but the device may follow them.
#[derive(Debug)]
pub struct DeviceBuffer {
    raw: NonNull<sys::ggml_backend_buffer>,
    base: usize,
    bytes: usize,
    // Whose the memory is, where it is not the buffer's own.
    _owner: Option<Arc<dyn BufferOwner>>,
}

/// What memory belongs to that is not a buffer's own: it stays until this is dropped.
pub trait BufferOwner: std::fmt::Debug + Send + Sync {}

impl<T: std::fmt::Debug + Send + Sync> BufferOwner for T {}

// SAFETY: ggml does not tie a buffer to a thread.
unsafe impl Send for DeviceBuffer {}
// SAFETY: who may touch which bytes when is the pager's schedule, as for host memory.
unsafe impl Sync for DeviceBuffer {}

impl DeviceBuffer {
    /// Takes `bytes` of the memory of `device`; what is in there is undefined.
    ///
    /// # Errors
    /// A sentence, when the device does not give it.
    pub fn new(device: InnerDevice, bytes: usize) -> Result<Self, String> {
        Self::of_type(device.buffer_type(), bytes)
    }

    /// Describes `bytes` of the memory of `device` at `address`, which belong to `owner`. For
    /// ggml they lie in a buffer of the device's, a small one: a backend that computes with
    /// real addresses, such as ggml-cuda, looks at its type and at the tensor's address.
    ///
    /// # Errors
    /// A sentence, when the device gives no buffer.
    ///
    /// # Safety
    /// - until `owner` is dropped the device may use what of the range is touched.
    pub unsafe fn over(
        device: InnerDevice,
        address: usize,
        bytes: usize,
        owner: Arc<dyn BufferOwner>,
    ) -> Result<Self, String> {
        let small = Self::new(device, 1)?;
        let described = Self {
            raw: small.raw,
            base: address,
            bytes,
            _owner: Some(owner),
        };
        std::mem::forget(small);
        Ok(described)
    }

    /// Takes `bytes` of the host's memory from which the device copies while it computes.
    ///
    /// # Errors
    /// A sentence, when the device has none, or no more of it.
    pub fn pinned(device: InnerDevice, bytes: usize) -> Result<Self, String> {
        let kind = device.pinned_type()?;
        let buffer = Self::of_type(kind, bytes)?;
        // Ordinary memory is given where no more can be pinned.
        match buffer.buffer_type() == kind {
            true => Ok(buffer),
            false => Err("the driver pins no more of it".to_owned()),
        }
    }

    fn of_type(kind: sys::ggml_backend_buffer_type_t, bytes: usize) -> Result<Self, String> {
        // SAFETY: buffer types are static.
        let raw = unsafe { sys::ggml_backend_buft_alloc_buffer(kind, bytes.max(1)) };
        let raw = NonNull::new(raw).ok_or("the device does not give them")?;
        // SAFETY: the buffer was made just now.
        let base = unsafe { sys::ggml_backend_buffer_get_base(raw.as_ptr()) } as usize;
        Ok(Self {
            raw,
            base,
            bytes,
            _owner: None,
        })
    }

    /// The buffer, for calls into ggml.
    pub fn as_ptr(&self) -> sys::ggml_backend_buffer_t {
        self.raw.as_ptr()
    }

    /// The type that it is of, which may be another one than was asked for.
    fn buffer_type(&self) -> sys::ggml_backend_buffer_type_t {
        // SAFETY: the buffer is live.
        unsafe { sys::ggml_backend_buffer_get_type(self.as_ptr()) }
    }

    /// Address of its first byte, as the device counts.
    pub fn base(&self) -> usize {
        self.base
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A tensor of single bytes over `bytes` of it: what ggml's copies are told of.
    ///
    /// # Panics
    /// When the range does not lie in the buffer.
    pub fn tensor(&self, offset: usize, bytes: usize) -> sys::ggml_tensor {
        assert!(bytes <= self.bytes && offset <= self.bytes - bytes);
        tensor_over(self.as_ptr(), self.base + offset, bytes)
    }

    /// Copies `from` to `offset`, and waits for the end.
    ///
    /// # Safety
    /// - nobody else reads or writes that range meanwhile.
    pub unsafe fn write(&self, offset: usize, from: &[u8]) {
        if from.is_empty() {
            return;
        }
        let mut tensor = self.tensor(offset, from.len());
        // SAFETY: the tensor describes bytes of a live buffer, as many as `from` has.
        unsafe {
            sys::ggml_backend_tensor_set(&raw mut tensor, from.as_ptr().cast(), 0, from.len());
        }
    }

    /// Copies from `offset` into `to`, and waits for the end.
    ///
    /// # Safety
    /// - nobody writes that range meanwhile.
    pub unsafe fn read(&self, offset: usize, to: &mut [u8]) {
        if to.is_empty() {
            return;
        }
        let tensor = self.tensor(offset, to.len());
        // SAFETY: the tensor describes bytes of a live buffer, as many as `to` has.
        unsafe {
            sys::ggml_backend_tensor_get(&raw const tensor, to.as_mut_ptr().cast(), 0, to.len());
        }
    }

    /// Fills `bytes` bytes from `offset` on with `value`, and waits for the end.
    ///
    /// # Safety
    /// - nobody else reads or writes that range meanwhile.
    pub unsafe fn fill(&self, offset: usize, bytes: usize, value: u8) {
        if bytes == 0 {
            return;
        }
        let mut tensor = self.tensor(offset, bytes);
        // SAFETY: the tensor describes bytes of a live buffer.
        unsafe { sys::ggml_backend_tensor_memset(&raw mut tensor, value, 0, bytes) };
    }
}

/// A tensor of single bytes: `bytes` of them at `address`, which lies in `buffer`.
pub(super) fn tensor_over(buffer: RawBuffer, address: usize, bytes: usize) -> sys::ggml_tensor {
    let extent = i64::try_from(bytes).expect("a buffer is smaller than that");
    sys::ggml_tensor {
        type_: sys::GGML_TYPE_I8,
        buffer,
        ne: [extent, 1, 1, 1],
        nb: [1, bytes, bytes, bytes],
        op: sys::GGML_OP_NONE,
        op_params: [0; 16],
        flags: 0,
        src: [std::ptr::null_mut(); 10],
        view_src: std::ptr::null_mut(),
        view_offs: 0,
        data: address as *mut std::ffi::c_void,
        name: [0; 64],
        extra: std::ptr::null_mut(),
        padding: [0; 8],
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_backend_buft_alloc_buffer`, freed once.
        unsafe { sys::ggml_backend_buffer_free(self.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_device_are_written_filled_and_read() {
        let device = InnerDevice::cpu().unwrap();
        let buffer = DeviceBuffer::new(device, 100).unwrap();
        let mut read = [9; 7];
        // SAFETY: nobody else knows the buffer.
        unsafe { buffer.fill(0, 100, 1) };
        // SAFETY: as above.
        unsafe { buffer.write(10, &[2, 3, 4]) };
        // SAFETY: as above.
        unsafe { buffer.read(8, &mut read) };
        assert_eq!(read, [1, 1, 2, 3, 4, 1, 1]);
    }
}
