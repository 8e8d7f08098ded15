//! A ggml device over the fake driver: memory and events as ggml-cuda's, and no backend.

use std::ffi::{CString, c_char, c_void};
use std::ptr::null_mut;

use ggml_sys as sys;
use rpaged::ggml::InnerDevice;

use super::driver::Driver;

/// What the slots find behind ggml's pointers.
struct Shared {
    driver: Driver,
    name: CString,
    bus_id: CString,
    buffer_type: sys::ggml_backend_buffer_type,
}

/// A device named `name`, at `bus_id`, whose memory is the driver's; it lives as long as the
/// process.
pub fn device(driver: Driver, name: &str, bus_id: &str) -> InnerDevice {
    let mut context = 0;
    // SAFETY: no preconditions.
    assert_eq!(unsafe { (driver.init)(0) }, 0);
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { (driver.retain)(&raw mut context, 0) }, 0);
    // SAFETY: held just now.
    assert_eq!(unsafe { (driver.set_current)(context) }, 0);
    let shared = Box::leak(Box::new(Shared {
        driver,
        name: CString::new(name).unwrap(),
        bus_id: CString::new(bus_id).unwrap(),
        buffer_type: sys::ggml_backend_buffer_type {
            iface: BUFFER_TYPE,
            device: null_mut(),
            context: null_mut(),
        },
    }));
    let context: *mut c_void = (&raw mut *shared).cast();
    let raw = Box::leak(Box::new(sys::ggml_backend_device {
        iface: DEVICE,
        reg: null_mut(),
        context,
    }));
    shared.buffer_type.context = context;
    shared.buffer_type.device = raw;
    // SAFETY: the device is leaked: it outlives everything.
    unsafe { InnerDevice::from_raw(raw) }.unwrap()
}

const DEVICE: sys::ggml_backend_device_i = sys::ggml_backend_device_i {
    get_name: Some(name),
    get_description: Some(name),
    get_memory: None,
    get_type: None,
    get_props: Some(props),
    init_backend: None,
    get_buffer_type: Some(buffer_type),
    get_host_buffer_type: None,
    buffer_from_host_ptr: None,
    supports_op: None,
    supports_buft: None,
    offload_op: None,
    event_new: Some(event_new),
    event_free: Some(event_free),
    event_synchronize: Some(event_synchronize),
};

const BUFFER_TYPE: sys::ggml_backend_buffer_type_i = sys::ggml_backend_buffer_type_i {
    get_name: Some(type_name),
    alloc_buffer: Some(allocate),
    alloc_buffer_n: None,
    get_alignment: Some(alignment),
    get_max_size: None,
    get_alloc_size: None,
    get_alloc_size_n: None,
    is_host: None,
};

const BUFFER: sys::ggml_backend_buffer_i = sys::ggml_backend_buffer_i {
    free_buffer: Some(free),
    get_base: Some(base),
    init_tensor: None,
    memset_tensor: Some(memset_tensor),
    set_tensor: None,
    get_tensor: None,
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: None,
    clear: None,
    reset: None,
};

/// # Safety
/// - `device` was made by `device`.
unsafe fn shared<'a>(device: sys::ggml_backend_dev_t) -> &'a Shared {
    // SAFETY: the device is leaked.
    let context = unsafe { (*device).context };
    // SAFETY: `device` put a leaked `Shared` there.
    unsafe { &*context.cast::<Shared>() }
}

unsafe extern "C" fn name(device: sys::ggml_backend_dev_t) -> *const c_char {
    // SAFETY: ours.
    unsafe { shared(device) }.name.as_ptr()
}

unsafe extern "C" fn props(
    device: sys::ggml_backend_dev_t,
    props: *mut sys::ggml_backend_dev_props,
) {
    // SAFETY: ours.
    let shared = unsafe { shared(device) };
    let filled = sys::ggml_backend_dev_props {
        name: shared.name.as_ptr(),
        description: shared.name.as_ptr(),
        memory_free: 0,
        memory_total: 0,
        type_: sys::GGML_BACKEND_DEVICE_TYPE_GPU,
        device_id: shared.bus_id.as_ptr(),
        caps: sys::ggml_backend_dev_caps {
            async_: true,
            host_buffer: false,
            buffer_from_host_ptr: false,
            events: true,
            mmap_support: true,
        },
    };
    // SAFETY: ggml passes a struct to be filled in.
    unsafe { props.write(filled) };
}

unsafe extern "C" fn buffer_type(
    device: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: ours.
    (&raw const unsafe { shared(device) }.buffer_type).cast_mut()
}

unsafe extern "C" fn type_name(_: sys::ggml_backend_buffer_type_t) -> *const c_char {
    c"CUDA0".as_ptr()
}

unsafe extern "C" fn alignment(_: sys::ggml_backend_buffer_type_t) -> usize {
    128
}

unsafe extern "C" fn allocate(
    buffer_type: sys::ggml_backend_buffer_type_t,
    bytes: usize,
) -> sys::ggml_backend_buffer_t {
    // SAFETY: ggml passes the type that we gave it.
    let device = unsafe { (*buffer_type).device };
    // SAFETY: ours.
    let shared = unsafe { shared(device) };
    let mut address = 0;
    // SAFETY: a place for the address.
    if unsafe { (shared.driver.allocate)(&raw mut address, bytes) } != 0 {
        return null_mut();
    }
    let context = address as *mut c_void;
    // SAFETY: type, slots and context fit each other.
    unsafe { sys::ggml_backend_buffer_init(buffer_type, BUFFER, context, bytes) }
}

unsafe extern "C" fn free(buffer: sys::ggml_backend_buffer_t) {
    // SAFETY: the buffer is live.
    let address = unsafe { (*buffer).context } as usize;
    // Lost cards free nothing; what else goes wrong is recorded there.
    // SAFETY: allocated by the driver.
    unsafe { (Driver::load().free)(address) };
}

unsafe extern "C" fn memset_tensor(
    _: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    // SAFETY: ggml passes a live tensor.
    let address = unsafe { (*tensor).data } as usize + offset;
    // What goes wrong is recorded there.
    // SAFETY: no preconditions: the driver looks at the address.
    unsafe { (Driver::load().fill)(address, value, size) };
}

unsafe extern "C" fn base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: the buffer is live.
    unsafe { (*buffer).context }
}

unsafe extern "C" fn event_new(device: sys::ggml_backend_dev_t) -> sys::ggml_backend_event_t {
    // SAFETY: ours.
    let shared = unsafe { shared(device) };
    let mut event = 0_usize;
    // SAFETY: a place for the handle. Without time, as ggml-cuda makes them.
    if unsafe { (shared.driver.create_event)(&raw mut event, 2) } != 0 {
        return null_mut();
    }
    Box::into_raw(Box::new(sys::ggml_backend_event {
        device,
        context: event as *mut c_void,
    }))
}

unsafe extern "C" fn event_free(device: sys::ggml_backend_dev_t, event: sys::ggml_backend_event_t) {
    // SAFETY: made by `event_new`, freed once.
    let event = unsafe { Box::from_raw(event) };
    // SAFETY: ours.
    let shared = unsafe { shared(device) };
    // SAFETY: an event of the driver's.
    unsafe { (shared.driver.destroy_event)(event.context as usize) };
}

unsafe extern "C" fn event_synchronize(
    device: sys::ggml_backend_dev_t,
    event: sys::ggml_backend_event_t,
) {
    // SAFETY: ours.
    let shared = unsafe { shared(device) };
    // SAFETY: the event is live.
    let handle = unsafe { (*event).context } as usize;
    // SAFETY: an event of the driver's.
    unsafe { (shared.driver.synchronize_event)(handle) };
}
