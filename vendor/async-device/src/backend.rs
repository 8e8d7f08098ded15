//! The backend: queues work on a stream, or does it at once.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ggml_sys as sys;

use crate::captures::{Captures, Launch};
use crate::device::shared_of_device;
use crate::driven::Driven;
use crate::event::{Event, Waiter, lock};
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
    Queued {
        main: Stream,
        // For copies into the device, where they have one of their own.
        copies: Option<Stream>,
    },
    Driven(Driven),
    AtOnce(Mutex<Executor>),
}

struct Backend {
    shared: Arc<Shared>,
    mode: Mode,
    captures: Mutex<Captures>,
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
        let (mode, iface) = if let Some(platform) = &shared.platform {
            let (platform, executor) = (Arc::clone(platform), executor(&shared)?);
            let stream = Driven::new(platform, Arc::clone(&shared), executor)?;
            (Mode::Driven(stream), QUEUED)
        } else if shared.options.asynchronous {
            let copies = shared.options.loose.then(|| stream(&shared)).transpose()?;
            let main = stream(&shared)?;
            (Mode::Queued { main, copies }, QUEUED)
        } else {
            (Mode::AtOnce(Mutex::new(executor(&shared)?)), AT_ONCE)
        };
        count(&shared.tally.streams);
        let context = Box::new(Backend {
            shared: Arc::clone(&shared),
            mode,
            captures: Mutex::default(),
        });
        Ok(Box::into_raw(Box::new(sys::ggml_backend {
            guid: (&raw const GUID).cast_mut(),
            iface,
            device,
            context: Box::into_raw(context).cast::<c_void>(),
        })))
    })
}

fn executor(shared: &Shared) -> Result<Executor, String> {
    let number = shared.tally.streams_made.fetch_add(1, Ordering::Relaxed);
    Executor::new(shared, number)
}

fn stream(shared: &Arc<Shared>) -> Result<Stream, String> {
    Stream::new(Arc::clone(shared), executor(shared)?)
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
/// - `event` was made by our device, and is not freed yet.
pub unsafe fn event_of(event: sys::ggml_backend_event_t) -> Arc<Event> {
    // SAFETY: the event is live.
    let context = unsafe { (*event).context }.cast::<Event>().cast_const();
    // SAFETY: the device put an `Arc` there, which is still counted.
    unsafe { Arc::increment_strong_count(context) };
    // SAFETY: as above; the count was just taken.
    unsafe { Arc::from_raw(context) }
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
        context.submit(Work::Graph(context.launch_of(graph)?))?;
        Ok(sys::GGML_STATUS_SUCCESS)
    })
}

impl Backend {
    /// Tells it from others.
    fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// What a launch of a live graph computes.
    fn launch_of(&self, graph: &sys::ggml_cgraph) -> Result<Launch, String> {
        let options = &self.shared.options;
        // SAFETY: as promised by who launches it.
        let copy = || unsafe { Snapshot::of(graph, &self.shared.space, options.loose) };
        match options.captures {
            true => lock(&self.captures).launch(graph, &self.shared.tally, copy),
            false => copy().map(Launch::of),
        }
    }

    fn submit(&self, work: Work) -> Result<(), String> {
        match &self.mode {
            Mode::Queued { main, copies } => {
                match (&work, copies) {
                    (Work::Write(..), Some(copies)) => copies.queue(work),
                    (Work::Graph(_), Some(copies)) => {
                        main.follow(copies);
                        main.queue(work);
                    }
                    _ => main.queue(work),
                }
                Ok(())
            }
            Mode::Driven(stream) => {
                stream.queue(work);
                Ok(())
            }
            Mode::AtOnce(executor) => lock(executor).run(work, &self.shared),
        }
    }

    /// The stream that says when all is done that was queued so far.
    fn joined(&self) -> Result<&Stream, String> {
        match &self.mode {
            Mode::Queued { main, copies } => {
                if let Some(copies) = copies {
                    main.follow(copies);
                }
                Ok(main)
            }
            Mode::Driven(_) | Mode::AtOnce(_) => {
                Err("a device without streams was asked for one".to_owned())
            }
        }
    }

    /// All streams.
    fn streams(&self) -> impl Iterator<Item = &Stream> {
        let (main, copies) = match &self.mode {
            Mode::Queued { main, copies } => (Some(main), copies.as_ref()),
            Mode::Driven(_) | Mode::AtOnce(_) => (None, None),
        };
        main.into_iter().chain(copies)
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
        if to.shared.platform.is_some() {
            // ggml waits for both, and copies then.
            return Ok(false);
        }
        if !std::ptr::eq(from, to) {
            let event = Event::default();
            let recording = event.record(from.id());
            from.joined()?.record(Arc::clone(&recording));
            to.joined()?.wait(recording, Waiter::Other);
        }
        to.submit(Work::Copy(source, target))?;
        Ok(true)
    })
}

unsafe extern "C" fn synchronize(backend: sys::ggml_backend_t) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        match &context.mode {
            Mode::Driven(stream) => stream.synchronize(),
            _ => context.joined()?.synchronize(),
        }
        Ok(())
    });
}

unsafe extern "C" fn event_record(backend: sys::ggml_backend_t, event: sys::ggml_backend_event_t) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        if let Mode::Driven(stream) = &context.mode {
            // SAFETY: the event is live.
            stream.record(unsafe { (*event).context } as usize);
            return Ok(());
        }
        // SAFETY: ours, of the same device.
        let event = unsafe { event_of(event) };
        let is_waited_for = event.is_waited_for();
        context.joined()?.record(event.record(context.id()));
        match is_waited_for && context.shared.options.loose {
            true => Err("an event is recorded anew while another backend waits for it".to_owned()),
            false => Ok(()),
        }
    });
}

unsafe extern "C" fn event_wait(backend: sys::ggml_backend_t, event: sys::ggml_backend_event_t) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    guard(&context.shared, (), || {
        if let Mode::Driven(stream) = &context.mode {
            // SAFETY: the event is live.
            stream.wait(unsafe { (*event).context } as usize);
            return Ok(());
        }
        // SAFETY: ours, of the same device.
        if let Some(recording) = unsafe { event_of(event) }.newest() {
            let waiter = recording.waiter(context.id());
            for stream in context.streams() {
                stream.wait(Arc::clone(&recording), waiter);
            }
        }
        Ok(())
    });
}
