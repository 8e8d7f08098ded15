//! The structs that make a device for ggml, and the slots of registry and device.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use ggml_sys as sys;

use crate::backend::{self, event_of};
use crate::buffer;
use crate::event::Event;
use crate::guard::guard;
use crate::shared::{Shared, count, discount};

const NAME: &CStr = c"ASYNC0";
const DESCRIPTION: &CStr = c"the CPU behind streams, for tests";

/// The structs, at fixed addresses, each pointing to the shared state, which owns
/// them.
#[derive(Debug)]
pub struct Interface {
    registry: sys::ggml_backend_reg,
    device: sys::ggml_backend_device,
    buffer_type: sys::ggml_backend_buffer_type,
    host_type: sys::ggml_backend_buffer_type,
    _pinned: PhantomPinned,
}

impl Interface {
    /// The structs for `shared`.
    pub fn new(shared: &Arc<Shared>) -> Pin<Box<Self>> {
        let context = Arc::as_ptr(shared).cast_mut().cast::<c_void>();
        let device = match shared.options.asynchronous {
            true => ASYNCHRONOUS,
            false => SYNCHRONOUS,
        };
        let mut made = Box::new(Self {
            registry: sys::ggml_backend_reg {
                api_version: i32::try_from(sys::GGML_BACKEND_API_VERSION).unwrap_or(0),
                iface: REGISTRY,
                context,
            },
            device: sys::ggml_backend_device {
                iface: device,
                reg: null_mut(),
                context,
            },
            buffer_type: sys::ggml_backend_buffer_type {
                iface: buffer::BUFFER_TYPE,
                device: null_mut(),
                context,
            },
            host_type: sys::ggml_backend_buffer_type {
                iface: buffer::HOST_TYPE,
                device: null_mut(),
                context,
            },
            _pinned: PhantomPinned,
        });
        made.device.reg = &raw mut made.registry;
        made.buffer_type.device = &raw mut made.device;
        made.host_type.device = &raw mut made.device;
        Box::into_pin(made)
    }

    /// ggml's view of the device.
    pub fn device(&self) -> sys::ggml_backend_dev_t {
        (&raw const self.device).cast_mut()
    }

    /// ggml's view of the type of its buffers.
    pub fn buffer_type(&self) -> sys::ggml_backend_buffer_type_t {
        (&raw const self.buffer_type).cast_mut()
    }

    /// ggml's view of the type of host buffers.
    pub fn host_type(&self) -> sys::ggml_backend_buffer_type_t {
        (&raw const self.host_type).cast_mut()
    }
}

/// The state that a context of ours points to.
///
/// # Safety
/// - the context is one that `Interface::new` gave, and its `AsyncDevice` lives.
unsafe fn shared_of(context: *mut c_void) -> Arc<Shared> {
    let shared = context.cast::<Shared>().cast_const();
    // SAFETY: it came from an `Arc`, of which the device still holds one.
    unsafe { Arc::increment_strong_count(shared) };
    // SAFETY: as above; the count was just taken.
    unsafe { Arc::from_raw(shared) }
}

/// The state behind a device.
///
/// # Safety
/// - `device` is one of ours, and its `AsyncDevice` lives.
pub unsafe fn shared_of_device(device: sys::ggml_backend_dev_t) -> Arc<Shared> {
    // SAFETY: the device is live.
    let context = unsafe { (*device).context };
    // SAFETY: ours.
    unsafe { shared_of(context) }
}

/// The state behind a buffer type.
///
/// # Safety
/// - `buffer_type` is one of ours, and its `AsyncDevice` lives.
pub unsafe fn shared_of_type(buffer_type: sys::ggml_backend_buffer_type_t) -> Arc<Shared> {
    // SAFETY: the type is live.
    let context = unsafe { (*buffer_type).context };
    // SAFETY: ours.
    unsafe { shared_of(context) }
}

const REGISTRY: sys::ggml_backend_reg_i = sys::ggml_backend_reg_i {
    get_name: Some(registry_name),
    get_device_count: Some(registry_device_count),
    get_device: Some(registry_device),
    get_proc_address: None,
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
    // SAFETY: ours.
    unsafe { shared_of(context) }.device_ptr()
}

const SYNCHRONOUS: sys::ggml_backend_device_i = sys::ggml_backend_device_i {
    get_name: Some(device_name),
    get_description: Some(device_description),
    get_memory: Some(device_memory),
    get_type: Some(device_type),
    get_props: Some(device_props),
    init_backend: Some(backend::init),
    get_buffer_type: Some(device_buffer_type),
    get_host_buffer_type: Some(device_host_buffer_type),
    buffer_from_host_ptr: None,
    supports_op: Some(device_supports_op),
    supports_buft: Some(device_supports_buft),
    offload_op: None,
    event_new: None,
    event_free: None,
    event_synchronize: None,
};

const ASYNCHRONOUS: sys::ggml_backend_device_i = sys::ggml_backend_device_i {
    event_new: Some(event_new),
    event_free: Some(event_free),
    event_synchronize: Some(event_synchronize),
    ..SYNCHRONOUS
};

unsafe extern "C" fn device_name(_: sys::ggml_backend_dev_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn device_description(_: sys::ggml_backend_dev_t) -> *const c_char {
    DESCRIPTION.as_ptr()
}

unsafe extern "C" fn device_memory(
    device: sys::ggml_backend_dev_t,
    free: *mut usize,
    total: *mut usize,
) {
    // SAFETY: ours.
    let (used, all) = unsafe { shared_of_device(device) }.space.used();
    // SAFETY: ggml passes two numbers to be filled in.
    unsafe { free.write(all - used) };
    // SAFETY: as above.
    unsafe { total.write(all) };
}

/// A GPU to llama.cpp: that is how it comes to lay all layers here.
unsafe extern "C" fn device_type(_: sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type {
    sys::GGML_BACKEND_DEVICE_TYPE_GPU
}

unsafe extern "C" fn device_props(
    device: sys::ggml_backend_dev_t,
    props: *mut sys::ggml_backend_dev_props,
) {
    // SAFETY: ours.
    let shared = unsafe { shared_of_device(device) };
    let (used, all) = shared.space.used();
    let filled = sys::ggml_backend_dev_props {
        name: NAME.as_ptr(),
        description: DESCRIPTION.as_ptr(),
        memory_free: all - used,
        memory_total: all,
        type_: sys::GGML_BACKEND_DEVICE_TYPE_GPU,
        device_id: null(),
        caps: sys::ggml_backend_dev_caps {
            async_: shared.options.asynchronous,
            host_buffer: shared.options.pinned,
            buffer_from_host_ptr: false,
            events: shared.options.asynchronous,
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

unsafe extern "C" fn device_host_buffer_type(
    device: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: ours.
    let kind = unsafe { shared_of_device(device) }.host_type_ptr();
    kind.unwrap_or(null_mut())
}

unsafe extern "C" fn device_supports_op(
    device: sys::ggml_backend_dev_t,
    op: *const sys::ggml_tensor,
) -> bool {
    // SAFETY: ours.
    let cpu = unsafe { shared_of_device(device) }.cpu();
    // SAFETY: the tensor is ggml's own.
    unsafe { sys::ggml_backend_dev_supports_op(cpu, op) }
}

unsafe extern "C" fn device_supports_buft(
    device: sys::ggml_backend_dev_t,
    buffer_type: sys::ggml_backend_buffer_type_t,
) -> bool {
    // SAFETY: ours.
    buffer_type == unsafe { shared_of_device(device) }.buffer_type_ptr()
}

unsafe extern "C" fn event_new(device: sys::ggml_backend_dev_t) -> sys::ggml_backend_event_t {
    // SAFETY: ours.
    count(&unsafe { shared_of_device(device) }.tally.events);
    Box::into_raw(Box::new(sys::ggml_backend_event {
        device,
        context: Box::into_raw(Box::new(Event::default())).cast::<c_void>(),
    }))
}

unsafe extern "C" fn event_free(device: sys::ggml_backend_dev_t, event: sys::ggml_backend_event_t) {
    // SAFETY: the event is live.
    let context = unsafe { (*event).context }.cast::<Event>();
    // SAFETY: made by `Box::into_raw` in `event_new`, freed once; who waits for a recording
    // of it has that recording.
    drop(unsafe { Box::from_raw(context) });
    // SAFETY: so was the struct itself.
    drop(unsafe { Box::from_raw(event) });
    // SAFETY: ours.
    discount(&unsafe { shared_of_device(device) }.tally.events);
}

unsafe extern "C" fn event_synchronize(
    device: sys::ggml_backend_dev_t,
    event: sys::ggml_backend_event_t,
) {
    // SAFETY: ours.
    let shared = unsafe { shared_of_device(device) };
    guard(&shared, (), || {
        // SAFETY: ours.
        if let Some(recording) = unsafe { event_of(event) }.newest() {
            recording.wait();
        }
        Ok(())
    });
}
