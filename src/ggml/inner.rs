//! The inner device: the one that really computes. Here ggml's CPU device.

use std::ptr::NonNull;

use ggml_sys as sys;

/// A ggml device that computes what the paged device is given.
#[derive(Clone, Copy, Debug)]
pub struct InnerDevice(NonNull<sys::ggml_backend_device>);

// SAFETY: ggml's devices are static objects whose functions may be called from any
// thread.
unsafe impl Send for InnerDevice {}
// SAFETY: as above.
unsafe impl Sync for InnerDevice {}

impl InnerDevice {
    /// ggml's CPU device.
    ///
    /// # Errors
    /// When llama.cpp was built without its CPU backend.
    pub fn cpu() -> Result<Self, String> {
        // SAFETY: no preconditions.
        let raw = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(|| "llama.cpp has no CPU backend".to_owned())
    }

    /// The device, for calls into ggml.
    pub fn as_ptr(self) -> sys::ggml_backend_dev_t {
        self.0.as_ptr()
    }

    /// The type of its ordinary buffers.
    pub fn buffer_type(self) -> sys::ggml_backend_buffer_type_t {
        // SAFETY: the device is live.
        unsafe { sys::ggml_backend_dev_buffer_type(self.as_ptr()) }
    }

    /// Alignment of tensors in its buffers, in bytes.
    pub fn alignment(self) -> usize {
        // SAFETY: the buffer type is static.
        unsafe { sys::ggml_backend_buft_get_alignment(self.buffer_type()) }
    }

    /// Alignment of tensors in the arena, in bytes: the device's, and that of a cache line.
    pub fn arena_alignment(self) -> usize {
        self.alignment().max(64)
    }

    /// The bytes that the tensor takes in its buffers, padding included.
    pub fn alloc_bytes(self, tensor: super::Tensor<'_>) -> usize {
        // SAFETY: the buffer type is static, the tensor live.
        unsafe { sys::ggml_backend_buft_get_alloc_size(self.buffer_type(), tensor.as_ptr()) }
    }

    /// A new backend (stream) of the device.
    ///
    /// # Errors
    /// When the device cannot start one.
    pub fn backend(self) -> Result<InnerBackend, String> {
        // SAFETY: the device is live; no parameters.
        let raw = unsafe { sys::ggml_backend_dev_init(self.as_ptr(), std::ptr::null()) };
        NonNull::new(raw)
            .map(InnerBackend)
            .ok_or_else(|| "the inner device could not start a backend".to_owned())
    }
}

/// A backend (stream) of the inner device, owned.
#[derive(Debug)]
pub struct InnerBackend(NonNull<sys::ggml_backend>);

// SAFETY: a backend may move between threads; it is used by one at a time.
unsafe impl Send for InnerBackend {}

impl InnerBackend {
    /// The backend, for calls into ggml.
    pub fn as_ptr(&self) -> sys::ggml_backend_t {
        self.0.as_ptr()
    }

    /// Computes `graph` and waits for the end.
    ///
    /// # Safety
    /// - `graph` is a live graph whose tensors all have bytes where they point.
    pub unsafe fn compute(&mut self, graph: *mut sys::ggml_cgraph) -> sys::ggml_status {
        // SAFETY: the backend is live, the graph as promised.
        let status = unsafe { sys::ggml_backend_graph_compute_async(self.as_ptr(), graph) };
        self.synchronize();
        status
    }

    /// Waits for everything that was launched.
    pub fn synchronize(&mut self) {
        // SAFETY: the backend is live.
        unsafe { sys::ggml_backend_synchronize(self.as_ptr()) };
    }
}

impl Drop for InnerBackend {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_backend_dev_init`, freed once.
        unsafe { sys::ggml_backend_free(self.as_ptr()) };
    }
}

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
