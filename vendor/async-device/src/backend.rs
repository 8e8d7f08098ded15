//! The backend: queues work on a stream, or does it at once.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ggml_sys as sys;

use crate::device::shared_of_device;
use crate::event::{Event, lock};
use crate::executor::{Executor, HostBytes, Range, Work};
use crate::guard::guard;
use crate::shared::{Shared, count, discount};
use crate::snapshot::Snapshot;
use crate::stream::Stream;

const NAME: &CStr = c"ASYNC0";

/// Identifies our backends to ggml: sixteen bytes drawn once.
static GUID: sys::ggml_guid = [
    0x1f, 0x84, 0xd3, 0x5a, 0x60, 0x2b, 0x4c, 0x97, 0xb8, 0x0e, 0x71, 0xc5, 0x3d, 0xea, 0x96, 0x42,
];

enum Mode {
    Queued(Stream),
    AtOnce(Mutex<Executor>),
}

struct Backend {
    shared: Arc<Shared>,
    mode: Mode,
}

const AT_ONCE: sys::ggml_backend_i = sys::ggml_backend_i {
    get_name: Some(name),
    free: Some(free),
    set_tensor_async: None,
    get_tensor_async: None,
    set_tensor_2d_async: None,
    get_tensor_2d_async: None,
    cpy_tensor_async: None,
    synchronize: None,
    graph_plan_create: None,
    graph_plan_free: None,
    graph_plan_update: None,
    graph_plan_compute: None,
    graph_compute: Some(graph_compute),
    event_record: None,
    event_wait: None,
    graph_optimize: None,
};

const QUEUED: sys::ggml_backend_i = sys::ggml_backend_i {
    set_tensor_async: Some(set_tensor_async),
    get_tensor_async: Some(get_tensor_async),
    cpy_tensor_async: Some(cpy_tensor_async),
    synchronize: Some(synchronize),
    event_record: Some(event_record),
    event_wait: Some(event_wait),
    ..AT_ONCE
};

/// Slot of the device: a new backend.
pub unsafe extern "C" fn init(
    device: sys::ggml_backend_dev_t,
    _params: *const c_char,
) -> sys::ggml_backend_t {
    // SAFETY: ours.
    let shared = unsafe { shared_of_device(device) };
    guard(&shared, null_mut(), || {
        let number = shared.tally.streams_made.fetch_add(1, Ordering::Relaxed);
        let executor = Executor::new(&shared, number)?;
        let (mode, iface) = if shared.options.asynchronous {
            let stream = Stream::new(Arc::clone(&shared), executor)?;
            (Mode::Queued(stream), QUEUED)
        } else {
            (Mode::AtOnce(Mutex::new(executor)), AT_ONCE)
        };
        count(&shared.tally.streams);
        let context = Box::new(Backend {
            shared: Arc::clone(&shared),
            mode,
        });
        Ok(Box::into_raw(Box::new(sys::ggml_backend {
            guid: (&raw const GUID).cast_mut(),
            iface,
            device,
            context: Box::into_raw(context).cast::<c_void>(),
        })))
    })
}

/// Our context behind a backend.
///
/// # Safety
/// - `backend` was made by `init`, and is not freed during `'a`.
unsafe fn context_of<'a>(backend: sys::ggml_backend_t) -> &'a Backend {
    // SAFETY: the backend is live.
    let context = unsafe { (*backend).context };
    // SAFETY: `init` put a `Backend` there.
    unsafe { &*context.cast::<Backend>() }
}

/// The event behind ggml's.
///
/// # Safety
/// - `event` was made by our device, and is not freed during `'a`.
pub unsafe fn event_of<'a>(event: sys::ggml_backend_event_t) -> &'a Event {
    // SAFETY: the event is live.
    let context = unsafe { (*event).context };
    // SAFETY: the device put an `Event` there.
    unsafe { &*context.cast::<Event>() }
}

unsafe extern "C" fn name(_: sys::ggml_backend_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn free(backend: sys::ggml_backend_t) {
    // SAFETY: the backend is live.
    let context = unsafe { (*backend).context }.cast::<Backend>();
    // SAFETY: made by `Box::into_raw` in `init`, freed once.
    let context = unsafe { Box::from_raw(context) };
    // SAFETY: so was the struct itself.
    drop(unsafe { Box::from_raw(backend) });
    let shared = Arc::clone(&context.shared);
    guard(&shared, (), || {
        drop(context);
        Ok(())
    });
    discount(&shared.tally.streams);
}

unsafe extern "C" fn graph_compute(
    backend: sys::ggml_backend_t,
    graph: *mut sys::ggml_cgraph,
) -> sys::ggml_status {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, sys::GGML_STATUS_FAILED, || {
        // SAFETY: ggml passes a live graph, lent for this call.
        let graph = unsafe { &*graph };
        // SAFETY: as above.
        let snapshot = unsafe { Snapshot::of(graph, &context.shared.space) }?;
        context.submit(Work::Graph(snapshot))?;
        Ok(sys::GGML_STATUS_SUCCESS)
    })
}

impl Backend {
    fn submit(&self, work: Work) -> Result<(), String> {
        match &self.mode {
            Mode::Queued(stream) => {
                stream.queue(work);
                Ok(())
            }
            Mode::AtOnce(executor) => lock(executor).run(work, &self.shared),
        }
    }

    fn stream(&self) -> Result<&Stream, String> {
        match &self.mode {
            Mode::Queued(stream) => Ok(stream),
            Mode::AtOnce(_) => Err("a device without streams was asked for one".to_owned()),
        }
    }

    /// The bytes of a tensor, from `offset` on.
    fn range(&self, tensor: &sys::ggml_tensor, offset: usize, bytes: usize) -> Found {
        let address = (tensor.data as usize).wrapping_add(offset);
        let memory = self.shared.space.find(address)?;
        if !tensor.buffer.is_null() && !memory.is_of(tensor.buffer) {
            return Err(format!("{address:#x} is not in the tensor's buffer"));
        }
        let offset = memory.offset_of(address, bytes)?;
        Ok(Range {
            memory,
            offset,
            bytes,
        })
    }
}

type Found = Result<Range, String>;

unsafe extern "C" fn set_tensor_async(
    backend: sys::ggml_backend_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        // SAFETY: ggml passes a live tensor.
        let to = context.range(unsafe { &*tensor }, offset, size)?;
        let from = HostBytes(data.cast::<u8>().cast_mut());
        context.submit(Work::Write(to, from))
    });
}

unsafe extern "C" fn get_tensor_async(
    backend: sys::ggml_backend_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        // SAFETY: ggml passes a live tensor.
        let from = context.range(unsafe { &*tensor }, offset, size)?;
        context.submit(Work::Read(from, HostBytes(data.cast())))
    });
}

/// Copies on the stream of the target, once the source's has come so far.
unsafe extern "C" fn cpy_tensor_async(
    from: sys::ggml_backend_t,
    to: sys::ggml_backend_t,
    source: *const sys::ggml_tensor,
    target: *mut sys::ggml_tensor,
) -> bool {
    // SAFETY: backends are live.
    let ours = [from, to].map(|backend| unsafe { (*backend).guid } == (&raw const GUID).cast_mut());
    if ours != [true, true] {
        return false;
    }
    // SAFETY: both are ours.
    let [from, to] = [from, to].map(|backend| unsafe { context_of(backend) });
    guard(&to.shared, false, || {
        // SAFETY: ggml passes live tensors of one layout.
        let bytes = unsafe { sys::ggml_nbytes(source) };
        // SAFETY: as above.
        let source = from.range(unsafe { &*source }, 0, bytes)?;
        // SAFETY: as above.
        let target = to.range(unsafe { &*target }, 0, bytes)?;
        if !std::ptr::eq(from, to) {
            let event = Event::default();
            let recording = event.record();
            from.stream()?.record(Arc::clone(&recording));
            to.stream()?.wait(recording);
        }
        to.submit(Work::Copy(source, target))?;
        Ok(true)
    })
}

unsafe extern "C" fn synchronize(backend: sys::ggml_backend_t) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        context.stream()?.synchronize();
        Ok(())
    });
}

unsafe extern "C" fn event_record(backend: sys::ggml_backend_t, event: sys::ggml_backend_event_t) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        // SAFETY: ours, of the same device.
        let recording = unsafe { event_of(event) }.record();
        context.stream()?.record(recording);
        Ok(())
    });
}

unsafe extern "C" fn event_wait(backend: sys::ggml_backend_t, event: sys::ggml_backend_event_t) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        // SAFETY: ours, of the same device.
        if let Some(recording) = unsafe { event_of(event) }.newest() {
            context.stream()?.wait(recording);
        }
        Ok(())
    });
}
