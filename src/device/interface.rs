#![allow(
    unsafe_code,
    reason = "ggml's structs hold pointers to us, and we fill them in"
)]
//! The structs that make a device for ggml: registry, device, buffer type; and the
//! slots of the first two. A slot is guard, cast, call.

use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::sync::Arc;

use ggml_sys as sys;

use super::shared::Shared;
use super::{backend, buffer};
use crate::ggml::InnerDevice;

const NAME: &CStr = c"RPAGED0";

/// The three structs, at fixed addresses, each pointing to the shared state.
///
/// `Shared` owns this object, so the pointer back is plain; ggml calls only while the
/// device that owns `Shared` lives (contract of `PagedDevice`).
#[derive(Debug)]
pub struct Interface {
    registry: sys::ggml_backend_reg,
    device: sys::ggml_backend_device,
    buffer_type: sys::ggml_backend_buffer_type,
    description: CString,
    _pinned: PhantomPinned,
}

// SAFETY: the raw pointers in here lead to `Shared`, which is Sync, and to the structs
// themselves, which are not changed after they were made.
unsafe impl Send for Interface {}
// SAFETY: as above.
unsafe impl Sync for Interface {}

impl Interface {
    /// The structs for `shared`.
    pub fn new(shared: &Arc<Shared>) -> Pin<Box<Self>> {
        let context = Arc::as_ptr(shared).cast_mut().cast::<c_void>();
        let mut made = Box::new(Self {
            registry: sys::ggml_backend_reg {
                api_version: i32::try_from(sys::GGML_BACKEND_API_VERSION).unwrap_or(0),
                iface: REGISTRY,
                context,
            },
            device: sys::ggml_backend_device {
                iface: DEVICE,
                reg: std::ptr::null_mut(),
                context,
            },
            buffer_type: sys::ggml_backend_buffer_type {
                iface: buffer::BUFFER_TYPE,
                device: std::ptr::null_mut(),
                context,
            },
            description: description(shared.inner),
            _pinned: PhantomPinned,
        });
        made.device.reg = &raw mut made.registry;
        made.buffer_type.device = &raw mut made.device;
        Box::into_pin(made)
    }

    /// What the device says it is.
    pub fn description(&self) -> &CStr {
        &self.description
    }

    /// ggml's view of the device.
    pub fn device(&self) -> sys::ggml_backend_dev_t {
        (&raw const self.device).cast_mut()
    }

    /// ggml's view of the type of its buffers.
    pub fn buffer_type(&self) -> sys::ggml_backend_buffer_type_t {
        (&raw const self.buffer_type).cast_mut()
    }
}

/// What computes, for logs.
fn description(inner: InnerDevice) -> CString {
    let text = match inner.is_cpu() {
        true => "rpaged: paged memory over the CPU".to_owned(),
        false => {
            let (name, what) = (inner.name(), inner.description());
            format!("rpaged: paged memory over {name} ({what})")
        }
    };
    // The texts came from C, which ends them at their first NUL.
    CString::new(text).unwrap_or_default()
}

/// The shared state behind a device.
///
/// # Safety
/// - `device` is one of ours, and its `PagedDevice` lives for `'a`.
pub unsafe fn shared_of_device<'a>(device: sys::ggml_backend_dev_t) -> &'a Shared {
    // SAFETY: the device is live.
    let context = unsafe { (*device).context };
    // SAFETY: `Interface::new` put a pointer to `Shared` there, which lives as promised.
    unsafe { &*context.cast::<Shared>() }
}

const REGISTRY: sys::ggml_backend_reg_i = sys::ggml_backend_reg_i {
    get_name: Some(registry_name),
    get_device_count: Some(registry_device_count),
    get_device: Some(registry_device),
    get_proc_address: Some(registry_proc_address),
};

unsafe extern "C" fn registry_name(_: sys::ggml_backend_reg_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn registry_device_count(_: sys::ggml_backend_reg_t) -> usize {
    1
}

unsafe extern "C" fn registry_device(
    registry: sys::ggml_backend_reg_t,
    _index: usize,
) -> sys::ggml_backend_dev_t {
    // SAFETY: ggml passes the registry that we gave it.
    let context = unsafe { (*registry).context };
    // SAFETY: its context is `Shared`, which lives as long as the `PagedDevice`.
    let shared = unsafe { &*context.cast::<Shared>() };
    shared.device_ptr()
}

/// What llama.cpp asks a registry for beyond its slots: only functions that take *our*
/// backend may be given, so each is one of ours that passes the call on.
unsafe extern "C" fn registry_proc_address(
    registry: sys::ggml_backend_reg_t,
    name: *const c_char,
) -> *mut c_void {
    // SAFETY: ggml passes the registry that we gave it.
    let context = unsafe { (*registry).context };
    // SAFETY: its context is `Shared`, which lives as long as the `PagedDevice`.
    let shared = unsafe { &*context.cast::<Shared>() };
    // SAFETY: ggml passes a NUL-terminated name.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        // Threads are a CPU backend's.
        b"ggml_backend_set_n_threads" if shared.inner.is_cpu() || shared.computes_on_host() => {
            backend::set_n_threads as *mut c_void
        }
        b"ggml_backend_set_abort_callback" => backend::set_abort_callback as *mut c_void,
        _ => std::ptr::null_mut(),
    }
}

const DEVICE: sys::ggml_backend_device_i = sys::ggml_backend_device_i {
    get_name: Some(device_name),
    get_description: Some(device_description),
    get_memory: Some(device_memory),
    get_type: Some(device_type),
    get_props: Some(device_props),
    init_backend: Some(backend::init),
    get_buffer_type: Some(device_buffer_type),
    get_host_buffer_type: None,
    buffer_from_host_ptr: Some(device_buffer_from_host_ptr),
    supports_op: Some(device_supports_op),
    supports_buft: Some(device_supports_buft),
    offload_op: Some(device_offload_op),
    event_new: None,
    event_free: None,
    event_synchronize: None,
};

unsafe extern "C" fn device_name(_: sys::ggml_backend_dev_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn device_description(device: sys::ggml_backend_dev_t) -> *const c_char {
    // SAFETY: ours, see `shared_of_device`; the text lives as long as the device.
    unsafe { shared_of_device(device) }.description().as_ptr()
}

unsafe extern "C" fn device_memory(
    device: sys::ggml_backend_dev_t,
    free: *mut usize,
    total: *mut usize,
) {
    // SAFETY: ours, see `shared_of_device`.
    let shared = unsafe { shared_of_device(device) };
    // SAFETY: the inner device is live, both pointers are ggml's own.
    unsafe { sys::ggml_backend_dev_memory(shared.inner.as_ptr(), free, total) };
}

/// A GPU to llama.cpp, whatever computes: that is how it comes to lay all layers here.
unsafe extern "C" fn device_type(_: sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type {
    sys::GGML_BACKEND_DEVICE_TYPE_GPU
}

unsafe extern "C" fn device_props(
    device: sys::ggml_backend_dev_t,
    props: *mut sys::ggml_backend_dev_props,
) {
    let (mut memory_free, mut memory_total) = (0, 0);
    // SAFETY: ours; both pointers are to locals.
    unsafe { device_memory(device, &raw mut memory_free, &raw mut memory_total) };
    // SAFETY: ours.
    let shared = unsafe { shared_of_device(device) };
    // Weights that are paged do not lie in llama.cpp's own mapping, nor can those of every
    // device.
    let mappable = !shared.config.weights && shared.inner.props().caps.buffer_from_host_ptr;
    let filled = sys::ggml_backend_dev_props {
        name: NAME.as_ptr(),
        description: shared.description().as_ptr(),
        memory_free,
        memory_total,
        type_: sys::GGML_BACKEND_DEVICE_TYPE_GPU,
        device_id: std::ptr::null(),
        caps: sys::ggml_backend_dev_caps {
            async_: false,
            host_buffer: false,
            buffer_from_host_ptr: mappable,
            events: false,
            // What lies on the CPU may be mapped: rows that are read when they are needed.
            mmap_support: true,
        },
    };
    // SAFETY: ggml passes a struct to be filled in.
    unsafe { props.write(filled) };
}

unsafe extern "C" fn device_buffer_type(
    device: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: ours.
    unsafe { shared_of_device(device) }.buffer_type_ptr()
}

/// Weights that are not paged stay in llama.cpp's mapping, as on the inner device.
unsafe extern "C" fn device_buffer_from_host_ptr(
    device: sys::ggml_backend_dev_t,
    pointer: *mut c_void,
    size: usize,
    max_tensor_size: usize,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: ours.
    let inner = unsafe { shared_of_device(device) }.inner.as_ptr();
    // SAFETY: arguments are ggml's own, passed on unchanged.
    unsafe { sys::ggml_backend_dev_buffer_from_host_ptr(inner, pointer, size, max_tensor_size) }
}

unsafe extern "C" fn device_supports_op(
    device: sys::ggml_backend_dev_t,
    op: *const sys::ggml_tensor,
) -> bool {
    // SAFETY: ours.
    let inner = unsafe { shared_of_device(device) }.inner.as_ptr();
    // SAFETY: the tensor is ggml's own.
    unsafe { sys::ggml_backend_dev_supports_op(inner, op) }
}

/// Whether an operation on weights that the processor holds is worth copying them here.
unsafe extern "C" fn device_offload_op(
    device: sys::ggml_backend_dev_t,
    op: *const sys::ggml_tensor,
) -> bool {
    // SAFETY: ours.
    let inner = unsafe { shared_of_device(device) }.inner.as_ptr();
    // SAFETY: the tensor is ggml's own.
    unsafe { sys::ggml_backend_dev_offload_op(inner, op) }
}

unsafe extern "C" fn device_supports_buft(
    device: sys::ggml_backend_dev_t,
    buffer_type: sys::ggml_backend_buffer_type_t,
) -> bool {
    // SAFETY: ours.
    let shared = unsafe { shared_of_device(device) };
    if buffer_type == shared.buffer_type_ptr() {
        return true;
    }
    // SAFETY: the buffer type is ggml's own.
    unsafe { sys::ggml_backend_dev_supports_buft(shared.inner.as_ptr(), buffer_type) }
}
