//! Buffer type and buffers. What copies here does so at once, whatever streams do.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use ggml_sys as sys;

use crate::device::shared_of_type;
use crate::guard::guard;
use crate::memory::{ALIGNMENT, Memory};
use crate::padding::padding_bytes;
use crate::shared::Shared;

const NAME: &CStr = c"ASYNC0";

struct Buffer {
    shared: Arc<Shared>,
    memory: Arc<Memory>,
}

pub const BUFFER_TYPE: sys::ggml_backend_buffer_type_i = sys::ggml_backend_buffer_type_i {
    get_name: Some(type_name),
    alloc_buffer: Some(allocate),
    alloc_buffer_n: None,
    get_alignment: Some(alignment),
    get_max_size: None,
    get_alloc_size: Some(alloc_size),
    get_alloc_size_n: None,
    is_host: Some(is_host),
};

/// Host buffers: the CPU's, but for their type.
pub const HOST_TYPE: sys::ggml_backend_buffer_type_i = sys::ggml_backend_buffer_type_i {
    get_name: Some(host_type_name),
    alloc_buffer: Some(allocate_host),
    alloc_buffer_n: None,
    get_alignment: Some(host_alignment),
    get_max_size: None,
    get_alloc_size: None,
    get_alloc_size_n: None,
    is_host: Some(is_host_indeed),
};

unsafe extern "C" fn host_type_name(_: sys::ggml_backend_buffer_type_t) -> *const c_char {
    c"ASYNC_Host".as_ptr()
}

unsafe extern "C" fn host_alignment(_: sys::ggml_backend_buffer_type_t) -> usize {
    // SAFETY: the CPU's buffer type is static.
    let cpu = unsafe { sys::ggml_backend_cpu_buffer_type() };
    // SAFETY: as above.
    unsafe { sys::ggml_backend_buft_get_alignment(cpu) }
}

unsafe extern "C" fn is_host_indeed(_: sys::ggml_backend_buffer_type_t) -> bool {
    true
}

unsafe extern "C" fn allocate_host(
    buffer_type: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: the CPU's buffer type is static.
    let cpu = unsafe { sys::ggml_backend_cpu_buffer_type() };
    // SAFETY: as above.
    let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(cpu, size) };
    // SAFETY: the buffer was made just now, if it was; nobody else knows it.
    if let Some(buffer) = unsafe { buffer.as_mut() } {
        buffer.buft = buffer_type;
    }
    buffer
}

const BUFFER: sys::ggml_backend_buffer_i = sys::ggml_backend_buffer_i {
    free_buffer: Some(free),
    get_base: Some(base),
    init_tensor: Some(init_tensor),
    memset_tensor: Some(memset_tensor),
    set_tensor: Some(set_tensor),
    get_tensor: Some(get_tensor),
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: Some(cpy_tensor),
    clear: Some(clear),
    reset: None,
};

unsafe extern "C" fn type_name(_: sys::ggml_backend_buffer_type_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn alignment(_: sys::ggml_backend_buffer_type_t) -> usize {
    ALIGNMENT
}

unsafe extern "C" fn is_host(_: sys::ggml_backend_buffer_type_t) -> bool {
    false
}

unsafe extern "C" fn alloc_size(
    buffer_type: sys::ggml_backend_buffer_type_t,
    tensor: *const sys::ggml_tensor,
) -> usize {
    // SAFETY: ours.
    let shared = unsafe { shared_of_type(buffer_type) };
    // SAFETY: ggml passes a live tensor.
    let own = unsafe { sys::ggml_nbytes(tensor) };
    if !shared.options.padded {
        return own;
    }
    // SAFETY: as above.
    own + padding_bytes(unsafe { &*tensor })
}

unsafe extern "C" fn allocate(
    buffer_type: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: ours.
    let shared = unsafe { shared_of_type(buffer_type) };
    guard(&shared, null_mut(), || {
        // A refusal is no mistake of the caller's.
        let Some(memory) = shared.space.allocate(size) else {
            return Ok(null_mut());
        };
        let context = Box::new(Buffer {
            shared: Arc::clone(&shared),
            memory: Arc::clone(&memory),
        });
        let context = Box::into_raw(context).cast::<c_void>();
        // SAFETY: type, slots and context fit each other.
        let buffer = unsafe { sys::ggml_backend_buffer_init(buffer_type, BUFFER, context, size) };
        memory.set_owner(buffer);
        Ok(buffer)
    })
}

/// Our context behind a buffer.
///
/// # Safety
/// - `buffer` was made by `allocate`, and is not freed during `'a`.
unsafe fn context_of<'a>(buffer: sys::ggml_backend_buffer_t) -> &'a Buffer {
    // SAFETY: the buffer is live.
    let context = unsafe { (*buffer).context };
    // SAFETY: `allocate` put a `Buffer` there.
    unsafe { &*context.cast::<Buffer>() }
}

unsafe extern "C" fn free(buffer: sys::ggml_backend_buffer_t) {
    // SAFETY: the buffer is live.
    let context = unsafe { (*buffer).context }.cast::<Buffer>();
    // SAFETY: made by `Box::into_raw` in `allocate`, freed once.
    let Buffer { shared, memory } = *unsafe { Box::from_raw(context) };
    guard(&shared, (), || shared.space.free(memory));
}

unsafe extern "C" fn base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: ours.
    unsafe { context_of(buffer) }.memory.base() as *mut c_void
}

impl Buffer {
    /// Where the bytes of a tensor really are, from `offset` on.
    fn place(
        &self,
        tensor: &sys::ggml_tensor,
        offset: usize,
        bytes: usize,
    ) -> Result<*mut u8, String> {
        let address = (tensor.data as usize).wrapping_add(offset);
        let platform = self.shared.platform.as_ref();
        match self.memory.offset_of(address, bytes) {
            Ok(offset) => Ok(self.memory.pointer(offset)),
            // As in ggml-cuda, only the tensor's address counts.
            Err(sentence) => platform
                .and_then(|platform| platform.mapped(address, bytes))
                .ok_or(sentence),
        }
    }
}

/// Clears the padding of weights and states, as ggml-cuda does.
unsafe extern "C" fn init_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
) -> sys::ggml_status {
    // SAFETY: ours.
    let context = unsafe { context_of(buffer) };
    // SAFETY: ggml passes a live tensor.
    let tensor = unsafe { &*tensor };
    // SAFETY: the buffer is live.
    let usage = unsafe { (*buffer).usage };
    let scratch = usage == sys::GGML_BACKEND_BUFFER_USAGE_COMPUTE;
    if !context.shared.options.padded || scratch || !tensor.view_src.is_null() {
        return sys::GGML_STATUS_SUCCESS;
    }
    guard(&context.shared, sys::GGML_STATUS_FAILED, || {
        let bytes = padding_bytes(tensor);
        // SAFETY: the tensor is live.
        let own = unsafe { sys::ggml_nbytes(tensor) };
        let at = context.place(tensor, own, bytes)?;
        // SAFETY: as many bytes lie in the memory.
        unsafe { at.write_bytes(0, bytes) };
        Ok(sys::GGML_STATUS_SUCCESS)
    })
}

unsafe extern "C" fn memset_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let context = unsafe { context_of(buffer) };
    guard(&context.shared, (), || {
        // SAFETY: ggml passes a live tensor.
        let at = context.place(unsafe { &*tensor }, offset, size)?;
        // SAFETY: as many bytes lie in the memory.
        unsafe { at.write_bytes(value, size) };
        Ok(())
    });
}

unsafe extern "C" fn set_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let context = unsafe { context_of(buffer) };
    guard(&context.shared, (), || {
        // SAFETY: ggml passes a live tensor.
        let at = context.place(unsafe { &*tensor }, offset, size)?;
        // SAFETY: both have that many bytes, one on the device, one on the host.
        unsafe { std::ptr::copy(data.cast(), at, size) };
        Ok(())
    });
}

unsafe extern "C" fn get_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let context = unsafe { context_of(buffer) };
    guard(&context.shared, (), || {
        // SAFETY: ggml passes a live tensor.
        let at = context.place(unsafe { &*tensor }, offset, size)?;
        // SAFETY: both have that many bytes, one on the device, one on the host.
        unsafe { std::ptr::copy(at, data.cast(), size) };
        Ok(())
    });
}

unsafe extern "C" fn cpy_tensor(
    buffer: sys::ggml_backend_buffer_t,
    source: *const sys::ggml_tensor,
    target: *mut sys::ggml_tensor,
) -> bool {
    // SAFETY: ours.
    let context = unsafe { context_of(buffer) };
    guard(&context.shared, false, || {
        // SAFETY: ggml passes live tensors of one layout.
        let source = unsafe { &*source };
        // SAFETY: as above.
        let bytes = unsafe { sys::ggml_nbytes(source) };
        let Ok(memory) = context.shared.space.find(source.data as usize) else {
            return Ok(false);
        };
        let from = memory.pointer(memory.offset_of(source.data as usize, bytes)?);
        // SAFETY: as above.
        let to = context.place(unsafe { &*target }, 0, bytes)?;
        // SAFETY: both have that many bytes, and may overlap.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(true)
    })
}

unsafe extern "C" fn clear(buffer: sys::ggml_backend_buffer_t, value: u8) {
    // SAFETY: ours.
    let context = unsafe { context_of(buffer) };
    let memory = &context.memory;
    // SAFETY: all of the memory's bytes.
    unsafe { memory.pointer(0).write_bytes(value, memory.bytes()) };
}
