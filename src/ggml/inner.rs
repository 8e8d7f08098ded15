//! The inner device: the one that really computes. ggml's CPU device, or any other.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;

use ggml_sys as sys;

use super::buffer::{RawBuffer, tensor_over};
use super::{DeviceBuffer, Event, Tensor};

/// A ggml device that computes what the paged device is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// The device behind ggml's pointer; None for null.
    ///
    /// # Safety
    /// - `raw` is null or a device of ggml's, or one that outlives whatever is made of it.
    pub unsafe fn from_raw(raw: sys::ggml_backend_dev_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// A device of a test's, which has it outlive whatever is made of it; None for null.
    #[cfg(test)]
    pub fn of_test(raw: sys::ggml_backend_dev_t) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// The device, for calls into ggml.
    pub fn as_ptr(self) -> sys::ggml_backend_dev_t {
        self.0.as_ptr()
    }

    /// Its place on the bus, e.g. `0000:01:00.0`, where ggml knows it.
    pub fn bus_id(self) -> Option<String> {
        let id = self.props().device_id;
        (!id.is_null()).then(|| text_at(id))
    }

    /// The type of host buffers from which it copies while others compute.
    ///
    /// # Errors
    /// A sentence, when it has none.
    pub(super) fn pinned_type(self) -> Result<sys::ggml_backend_buffer_type_t, String> {
        // SAFETY: the device is live.
        let kind = unsafe { sys::ggml_backend_dev_host_buffer_type(self.as_ptr()) };
        if kind.is_null() {
            return Err(format!("{} has no pinned memory", self.name()));
        }
        // SAFETY: the buffer type is static.
        let owner = unsafe { sys::ggml_backend_buft_get_device(kind) };
        // ggml pins for the first device of a kind. CUDA's others know such memory too,
        // Vulkan's do not.
        if owner != self.as_ptr() && self.name().starts_with("Vulkan") {
            return Err(format!("ggml pins no memory for {}", self.name()));
        }
        Ok(kind)
    }

    /// Whether it is ggml's CPU device.
    pub fn is_cpu(self) -> bool {
        self.props().type_ == sys::GGML_BACKEND_DEVICE_TYPE_CPU
    }

    /// Whether its memory is the machine's, though the processor may not follow addresses
    /// there: an integrated GPU, or one that the processor plays.
    pub fn shares_memory(self) -> bool {
        let played = ["llvmpipe", "SwiftShader"];
        let description = self.description();
        self.props().type_ == sys::GGML_BACKEND_DEVICE_TYPE_IGPU
            || played.iter().any(|name| description.contains(name))
    }

    /// Whether the processor may follow addresses in its buffers.
    pub fn is_host(self) -> bool {
        // SAFETY: the buffer type is static.
        unsafe { sys::ggml_backend_buft_is_host(self.buffer_type()) }
    }

    /// Its name, by which `--device` knows it, e.g. `Vulkan0`.
    pub fn name(self) -> String {
        // SAFETY: the device is live.
        text_at(unsafe { sys::ggml_backend_dev_name(self.as_ptr()) })
    }

    /// What it is, e.g. the name of a GPU.
    pub fn description(self) -> String {
        // SAFETY: the device is live.
        text_at(unsafe { sys::ggml_backend_dev_description(self.as_ptr()) })
    }

    /// Bytes of its memory that are free now, and all that there are; zeroes when it does
    /// not say.
    pub fn memory_bytes(self) -> (u64, u64) {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the device is live, the places are for one number each.
        unsafe { sys::ggml_backend_dev_memory(self.as_ptr(), &raw mut free, &raw mut total) };
        (free as u64, total as u64)
    }

    /// What it can do.
    pub fn props(self) -> sys::ggml_backend_dev_props {
        let mut props = std::mem::MaybeUninit::zeroed();
        // SAFETY: the device is live, the struct is there to be filled in.
        unsafe { sys::ggml_backend_dev_get_props(self.as_ptr(), props.as_mut_ptr()) };
        // SAFETY: zeroed before, so every field has a value: pointers, numbers and flags.
        unsafe { props.assume_init() }
    }

    /// Whether it launches without waiting, and has events to wait for.
    pub fn is_asynchronous(self) -> bool {
        let caps = self.props().caps;
        caps.async_ && caps.events
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

    /// Whether it can compute the node.
    pub fn supports(self, node: Tensor<'_>) -> bool {
        // SAFETY: the device and the node are live.
        unsafe { sys::ggml_backend_dev_supports_op(self.as_ptr(), node.as_ptr()) }
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
            .ok_or_else(|| "the device could not start a backend; see --device".to_owned())
    }
}

/// A device's text; they live as long as the device.
fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and ggml's texts end with NUL.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
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

    /// Has the backend put the nodes of `graph` in the order that it likes best.
    ///
    /// # Safety
    /// - `graph` is a live graph whose tensors have no places yet, `params` what ggml's
    ///   scheduler passes with it.
    pub unsafe fn optimize(
        &mut self,
        graph: *mut sys::ggml_cgraph,
        params: *mut sys::ggml_backend_graph_optimize_params,
    ) {
        // SAFETY: the backend is live.
        let slot = unsafe { (*self.as_ptr()).iface.graph_optimize };
        if let Some(optimize) = slot {
            // SAFETY: the backend's own slot; arguments as promised.
            unsafe { optimize(self.as_ptr(), graph, params) };
        }
    }

    /// Launches `graph`; the end may come later.
    ///
    /// # Safety
    /// - `graph` is a live graph whose tensors all have bytes where they point, until
    ///   `synchronize` or what waits for a later event.
    pub unsafe fn launch(&mut self, graph: *mut sys::ggml_cgraph) -> sys::ggml_status {
        // SAFETY: the backend is live, the graph as promised.
        unsafe { sys::ggml_backend_graph_compute_async(self.as_ptr(), graph) }
    }

    /// Computes `graph` and waits for the end.
    ///
    /// # Safety
    /// - `graph` is a live graph whose tensors all have bytes where they point.
    pub unsafe fn compute(&mut self, graph: *mut sys::ggml_cgraph) -> sys::ggml_status {
        // SAFETY: as promised.
        let status = unsafe { self.launch(graph) };
        self.synchronize();
        status
    }

    /// Queues a copy of `bytes` bytes to `offset` of `to`.
    ///
    /// # Safety
    /// Until everything that was queued so far is done:
    /// - `from` is valid for `bytes` bytes, and nobody writes them;
    /// - `to` lives, is of this device, and nobody else touches that range, but for what
    ///   this backend was told to wait for.
    pub unsafe fn write(
        &mut self,
        to: &DeviceBuffer,
        offset: usize,
        from: *const u8,
        bytes: usize,
    ) {
        if bytes == 0 {
            return;
        }
        let mut tensor = to.tensor(offset, bytes);
        // SAFETY: the tensor describes bytes of a live buffer; the rest is the caller's
        // promise.
        unsafe {
            let tensor = &raw mut tensor;
            sys::ggml_backend_tensor_set_async(self.as_ptr(), tensor, from.cast(), 0, bytes);
        }
    }

    /// Queues a copy of `bytes` bytes from `offset` of `from`.
    ///
    /// # Safety
    /// Until everything that was queued so far is done:
    /// - `to` is valid for `bytes` bytes, and nobody else touches them;
    /// - `from` lives, is of this device, and nobody writes that range, but for what this
    ///   backend was told to wait for.
    pub unsafe fn read(&mut self, from: &DeviceBuffer, offset: usize, to: *mut u8, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let tensor = from.tensor(offset, bytes);
        // SAFETY: the tensor describes bytes of a live buffer; the rest is the caller's
        // promise.
        unsafe {
            let tensor = &raw const tensor;
            sys::ggml_backend_tensor_get_async(self.as_ptr(), tensor, to.cast(), 0, bytes);
        }
    }

    /// Queues a copy of `bytes` bytes from `address`, which lies in `buffer`.
    ///
    /// # Safety
    /// As for `read`:
    /// - `to` is valid for `bytes` bytes, and nobody else touches them, until everything
    ///   that was queued so far is done;
    /// - the buffer is of this device and lives, and nobody writes the range, until then.
    pub unsafe fn read_at(
        &mut self,
        (address, buffer): (usize, RawBuffer),
        to: *mut u8,
        bytes: usize,
    ) {
        let tensor = tensor_over(buffer, address, bytes);
        // SAFETY: the tensor describes bytes of a live buffer; the rest is the caller's
        // promise.
        unsafe {
            let tensor = &raw const tensor;
            sys::ggml_backend_tensor_get_async(self.as_ptr(), tensor, to.cast(), 0, bytes);
        }
    }

    /// Queues a copy of `bytes` bytes to `address`, which lies in `buffer`.
    ///
    /// # Safety
    /// As for `write`:
    /// - `from` is valid for `bytes` bytes, and nobody writes them, until everything that
    ///   was queued so far is done;
    /// - the buffer is of this device and lives, and nobody else touches the range, until
    ///   then.
    pub unsafe fn write_at(
        &mut self,
        (address, buffer): (usize, RawBuffer),
        from: *const u8,
        bytes: usize,
    ) {
        let mut tensor = tensor_over(buffer, address, bytes);
        // SAFETY: the tensor describes bytes of a live buffer; the rest is the caller's
        // promise.
        unsafe {
            let tensor = &raw mut tensor;
            sys::ggml_backend_tensor_set_async(self.as_ptr(), tensor, from.cast(), 0, bytes);
        }
    }

    /// Has a CPU backend compute with `count` threads, those of `pool`; null: its own.
    ///
    /// # Safety
    /// - this is a CPU backend; the pool is null or lives as long as it is used.
    pub unsafe fn set_threads(&mut self, count: i32, pool: sys::ggml_threadpool_t) {
        // SAFETY: a live CPU backend, as promised.
        unsafe { sys::ggml_backend_cpu_set_n_threads(self.as_ptr(), count) };
        // SAFETY: as above.
        unsafe { sys::ggml_backend_cpu_set_threadpool(self.as_ptr(), pool) };
    }

    /// Has a CPU backend ask `callback`, before each node, whether to stop; None: nobody.
    ///
    /// # Safety
    /// - this is a CPU backend; the callback may be called with `data` whenever it computes.
    pub unsafe fn set_abort(&mut self, callback: sys::ggml_abort_callback, data: *mut c_void) {
        // SAFETY: a live CPU backend and a callback, as promised.
        unsafe { sys::ggml_backend_cpu_set_abort_callback(self.as_ptr(), callback, data) };
    }

    /// Has `event` come when everything that was launched so far is done.
    pub fn record(&mut self, event: &Event) {
        // SAFETY: both are live, and of one device.
        unsafe { sys::ggml_backend_event_record(event.as_ptr(), self.as_ptr()) };
    }

    /// Has whatever is launched from now on wait for `event`.
    pub fn wait(&mut self, event: &Event) {
        // SAFETY: both are live, and of one device.
        unsafe { sys::ggml_backend_event_wait(self.as_ptr(), event.as_ptr()) };
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
