#![allow(
    unsafe_code,
    reason = "slots of ggml's backend, and launches of the inner one"
)]
//! The backend: computes a graph segment by segment on the inner backend, with the
//! tensors of each segment translated to where the pager has their bytes.

use std::ffi::{CStr, c_char, c_void};
use std::time::Instant;

use ggml_sys as sys;

use super::experts::Router;
use super::guard::guard;
use super::host::HostPlan;
use super::host::run::HostComputer;
use super::interface::shared_of_device;
use super::report::Reason;
use super::scan::Scan;
use super::schedule::{Nodes, Schedule, Segment, Shape, TooLarge};
use super::shared::{Paged, Shared};
use super::translate::{Translation, touches_of};
use crate::error::{Error, Result};
use crate::ggml::{Events, Fence, Graph, InnerBackend};
use crate::pager::{self, Pager};

const NAME: &CStr = c"RPAGED0";

/// Identifies our backends to ggml: sixteen bytes drawn once.
static GUID: sys::ggml_guid = [
    0x72, 0x70, 0x61, 0x67, 0x65, 0x64, 0x5a, 0x1d, 0x93, 0x4e, 0xc7, 0x08, 0xb1, 0x6f, 0x24, 0xea,
];

/// Said once when a state cannot be paged by rows.
const READS_ACROSS: &str = "without flash attention the values of the KV cache are read across \
                            their rows, so they are paged as a whole and not in pages; add -fa on";

/// What a backend keeps between graphs.
struct PagedBackend {
    shared: *const Shared,
    inner: InnerBackend,
    // What the copies wait for, on a device that computes by itself.
    events: Option<Events>,
    // Fences of this graph: what was recorded, and what was waited for.
    fences: Vec<Fence>,
    scan: Scan,
    schedule: Schedule,
    router: Router,
    translation: Translation,
    // What the processor computes of a graph, where the inner device is not the processor.
    host: Option<HostComputer>,
    host_plan: HostPlan,
    // llama.cpp's abort callback and its data, where the inner backend takes none.
    abort: Option<(AbortCallback, *mut c_void)>,
}

type AbortCallback = unsafe extern "C" fn(*mut c_void) -> bool;

const BACKEND: sys::ggml_backend_i = sys::ggml_backend_i {
    get_name: Some(backend_name),
    free: Some(backend_free),
    set_tensor_async: None,
    get_tensor_async: None,
    set_tensor_2d_async: None,
    get_tensor_2d_async: None,
    cpy_tensor_async: None,
    // Nothing is in flight after `graph_compute`.
    synchronize: None,
    graph_plan_create: None,
    graph_plan_free: None,
    graph_plan_update: None,
    graph_plan_compute: None,
    graph_compute: Some(backend_graph_compute),
    event_record: None,
    event_wait: None,
    graph_optimize: Some(backend_graph_optimize),
};

/// Slot of the device: a new backend.
pub unsafe extern "C" fn init(
    device: sys::ggml_backend_dev_t,
    _params: *const c_char,
) -> sys::ggml_backend_t {
    // SAFETY: ours.
    let shared = unsafe { shared_of_device(device) };
    guard(shared, std::ptr::null_mut(), |shared| {
        let context = Box::new(PagedBackend {
            shared: std::ptr::from_ref(shared),
            inner: shared.inner.backend().map_err(Error::Failed)?,
            events: shared
                .inner
                .is_asynchronous()
                .then(|| Events::new(shared.inner)),
            fences: Vec::new(),
            scan: Scan::default(),
            schedule: Schedule::default(),
            router: Router::default(),
            translation: Translation::default(),
            host: shared
                .computes_on_host()
                .then(HostComputer::new)
                .transpose()?,
            host_plan: HostPlan::default(),
            abort: None,
        });
        Ok(Box::into_raw(Box::new(sys::ggml_backend {
            guid: (&raw const GUID).cast_mut(),
            iface: BACKEND,
            device,
            context: Box::into_raw(context).cast::<c_void>(),
        })))
    })
}

/// Our context behind a backend.
///
/// # Safety
/// - `backend` was made by `init` and not freed, and no other reference is in use.
unsafe fn context_of<'a>(backend: sys::ggml_backend_t) -> &'a mut PagedBackend {
    // SAFETY: the backend is live.
    let context = unsafe { (*backend).context };
    // SAFETY: `init` put a `PagedBackend` there; ggml uses a backend from one thread.
    unsafe { &mut *context.cast::<PagedBackend>() }
}

unsafe extern "C" fn backend_name(_: sys::ggml_backend_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn backend_free(backend: sys::ggml_backend_t) {
    // SAFETY: ours.
    let context = std::ptr::from_mut(unsafe { context_of(backend) });
    // SAFETY: made by `Box::into_raw` in `init`, freed once.
    drop(unsafe { Box::from_raw(context) });
    // SAFETY: the struct itself was made by `Box::into_raw` in `init`.
    drop(unsafe { Box::from_raw(backend) });
}

/// llama.cpp's thread count, passed on to the CPU backend that computes, the inner one or
/// that of host segments, with the pool that has as many threads.
pub unsafe extern "C" fn set_n_threads(backend: sys::ggml_backend_t, count: i32) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    // SAFETY: `Shared` outlives all backends (contract of `PagedDevice`).
    let shared = unsafe { &*context.shared };
    let pool = shared.threadpool(count);
    if shared.inner.is_cpu() {
        // SAFETY: the inner backend is a CPU backend; the pool was attached for as long.
        unsafe { context.inner.set_threads(count, pool) };
    }
    if let Some(host) = &mut context.host {
        // SAFETY: as above.
        unsafe { host.set_threads(count, pool) };
    }
}

/// llama.cpp's abort callback, passed on to the CPU backend that computes, the inner one or
/// that of host segments; other backends take none, and it is asked between segments.
pub unsafe extern "C" fn set_abort_callback(
    backend: sys::ggml_backend_t,
    callback: sys::ggml_abort_callback,
    data: *mut c_void,
) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    // SAFETY: `Shared` outlives all backends (contract of `PagedDevice`).
    let shared = unsafe { &*context.shared };
    if shared.inner.is_cpu() {
        // SAFETY: the inner backend is a CPU backend; callback and data are ggml's own.
        unsafe { context.inner.set_abort(callback, data) };
    } else {
        context.abort = callback.map(|callback| (callback, data));
    }
    if let Some(host) = &mut context.host {
        // SAFETY: as above.
        unsafe { host.set_abort(callback, data) };
    }
}

/// Has the inner backend order the nodes as it would in llama.cpp, before they get places.
unsafe extern "C" fn backend_graph_optimize(
    backend: sys::ggml_backend_t,
    graph: *mut sys::ggml_cgraph,
    params: *mut sys::ggml_backend_graph_optimize_params,
) {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    // SAFETY: graph and parameters are ggml's own, lent for this call.
    unsafe { context.inner.optimize(graph, params) };
}

unsafe extern "C" fn backend_graph_compute(
    backend: sys::ggml_backend_t,
    graph: *mut sys::ggml_cgraph,
) -> sys::ggml_status {
    // SAFETY: ours.
    let context = unsafe { context_of(backend) };
    // SAFETY: `Shared` outlives all backends (contract of `PagedDevice`).
    let shared = unsafe { &*context.shared };
    // SAFETY: ggml passes a live graph, lent for this call.
    let graph = unsafe { Graph::from_raw(graph) };
    guard(shared, sys::GGML_STATUS_FAILED, |shared| {
        let Some(graph) = graph else {
            return Ok(sys::GGML_STATUS_FAILED);
        };
        let mut paged = shared.paged();
        shared.begin_graph(&mut paged.pager);
        let outcome = context.compute(graph, &mut paged, shared);
        paged.pager.unpin();
        outcome
    })
}

impl PagedBackend {
    fn compute(
        &mut self,
        graph: Graph<'_>,
        paged: &mut Paged,
        shared: &Shared,
    ) -> Result<sys::ggml_status> {
        paged.pager.check_states()?;
        self.prepare(graph, paged, shared)?;
        let prefetch = shared.config.prefetch;
        if self.schedule.has_late_needs() {
            paged.pager.begin_step();
        }
        let missed_bytes = paged.pager.missed_bytes();
        let launched = self.run_segments(graph, paged, prefetch);
        paged.compute_seconds += paged.pager.watch_what_is_underway();
        let start = Instant::now();
        // Whatever happened, nothing is in flight afterwards.
        self.inner.synchronize();
        paged.compute_seconds += start.elapsed().as_secs_f64();
        paged.pager.note_launched(None);
        self.fences.clear();
        let status = launched?;
        if status != sys::GGML_STATUS_SUCCESS {
            return Ok(status);
        }
        if let Some(last) = self.schedule.segments().last().filter(|_| prefetch) {
            // The last segment may have held the place that the next pass begins with.
            paged.pager.prefetch(self.schedule.upcoming(last))?;
        }
        paged.pass_bytes += paged.pager.missed_bytes() - missed_bytes;
        Ok(sys::GGML_STATUS_SUCCESS)
    }

    /// Whether llama.cpp wants the computation to end, on a device that does not ask itself.
    fn is_to_stop(&self) -> bool {
        let Some((callback, data)) = self.abort else {
            return false;
        };
        // SAFETY: llama.cpp's own callback with its own data, as ggml's backends call it.
        unsafe { callback(data) }
    }

    /// Launches the segments, one after the other, until one is refused.
    fn run_segments(
        &mut self,
        graph: Graph<'_>,
        paged: &mut Paged,
        prefetch: bool,
    ) -> Result<sys::ggml_status> {
        for index in 0..self.schedule.segments().len() {
            if self.is_to_stop() {
                return Ok(sys::GGML_STATUS_ABORTED);
            }
            let status = match self.schedule.segments()[index].host {
                None => self.run_segment(graph, index, paged, prefetch)?,
                Some(host) => self.run_host_segment(graph, (index, host), paged, prefetch)?,
            };
            if status != sys::GGML_STATUS_SUCCESS {
                return Ok(status);
            }
        }
        Ok(sys::GGML_STATUS_SUCCESS)
    }

    /// Scans and schedules the graph. What it uses may ask for another plan, and that for
    /// another schedule.
    fn prepare(&mut self, graph: Graph<'_>, paged: &mut Paged, shared: &Shared) -> Result<()> {
        shared.cover_driver(paged)?;
        self.scan.rebuild(graph, paged);
        if paged.pager.settle()? {
            shared.note_change(Reason::Growth, paged);
            self.scan.rebuild(graph, paged);
        }
        self.plan_host(graph, paged, shared);
        if self.scan.reads_across && shared.config.kv {
            shared.note_once(READS_ACROSS);
        }
        if let Err(too_large) = self.schedule(graph, &paged.pager) {
            paged.pager.need_ring(too_large.bytes)?;
            shared.note_change(Reason::Growth, paged);
            self.scan.rebuild(graph, paged);
            self.plan_host(graph, paged, shared);
            self.schedule(graph, &paged.pager)
                .map_err(|too_large| pager::ring_too_small(too_large.bytes))?;
        }
        if let Some(host) = &mut self.host {
            host.prepare(&self.host_plan)?;
        }
        for (id, range) in &self.scan.written_in_place {
            paged.pager.note_written(*id, range);
        }
        let moving = self.schedule.moving();
        paged.pass_bytes = moving.map(|need| paged.pager.bytes_moved(need)).sum();
        paged.host_pass_bytes = self.host_plan.weight_bytes();
        Ok(())
    }

    /// Finds what the processor computes of the graph that was scanned.
    fn plan_host(&mut self, graph: Graph<'_>, paged: &mut Paged, shared: &Shared) {
        if let Some(host) = &self.host {
            let devices = host.devices(shared.inner);
            self.host_plan.rebuild(graph, paged, &self.scan, devices);
        }
    }

    fn schedule(&mut self, graph: Graph<'_>, pager: &Pager) -> std::result::Result<(), TooLarge> {
        let (ring_bytes, segment_bytes) = pager.ring_shape();
        let (cache_bytes, cache_segment_bytes) = pager.cache_shape();
        let shape = Shape {
            ring_bytes,
            segment_bytes,
            cache_bytes,
            cache_segment_bytes,
        };
        self.schedule.rebuild(
            Nodes {
                count: graph.node_count(),
                uses: &self.scan.uses,
                hosts: self.host_plan.nodes(),
            },
            shape,
            |id, range| pager.ring_bytes_of(id, range),
            |index| graph.is_seam(index),
        )
    }

    fn run_segment(
        &mut self,
        graph: Graph<'_>,
        index: usize,
        paged: &mut Paged,
        prefetch: bool,
    ) -> Result<sys::ggml_status> {
        let segment = &self.schedule.segments()[index];
        paged.pager.require(self.schedule.needs(segment))?;
        let schedule = &self.schedule;
        self.router
            .require(graph, schedule, segment, &mut paged.pager)?;
        if prefetch {
            fetch_ahead(schedule, segment, &mut paged.pager)?;
        }
        let arrivals = paged.pager.wait_ready(schedule.writes(segment))?;
        for arrival in arrivals.into_iter().flatten() {
            self.inner.wait(&arrival);
            self.fences.push(arrival);
        }

        // Before anything is translated: what fails in between would leave it so.
        let events = self.events.as_mut().map(Events::free);
        let fence = match events.transpose() {
            Ok(fence) => fence,
            // Where copies failed too, a device was lost: they say so.
            Err(sentence) => return paged.pager.drain().and(Err(Error::Failed(sentence))),
        };
        let touches = touches_of(&self.scan.touches, &segment.nodes);
        self.translation.follow(touches, &paged.pager);
        let start = Instant::now();
        // Without an identity, even where it is the whole graph: ggml-cuda would replay one
        // that it knows, with the addresses of its last launch.
        let mut part = graph.part(&segment.nodes);
        // SAFETY:
        // - the graph is live, every paged tensor in these nodes has been translated;
        // - a launch takes from the view, a local, what it needs.
        let status = unsafe { self.inner.launch(&raw mut part) };
        match fence {
            None => self.inner.synchronize(),
            Some(fence) => {
                self.inner.record(&fence);
                self.fences.push(Fence::clone(&fence));
                paged.pager.note_launched(Some(fence));
            }
        }
        paged.compute_seconds += start.elapsed().as_secs_f64();
        self.translation.restore();
        paged.pager.write_back(self.schedule.writes(segment))?;
        paged.pager.unpin();
        Ok(status)
    }

    /// Has the processor compute a segment, while the link fetches what comes after it.
    fn run_host_segment(
        &mut self,
        graph: Graph<'_>,
        (index, host_index): (usize, usize),
        paged: &mut Paged,
        prefetch: bool,
    ) -> Result<sys::ggml_status> {
        let Some(host) = &mut self.host else {
            return Err(Error::Bug("nobody computes a host segment".to_owned()));
        };
        let segment = &self.schedule.segments()[index];
        let plan = &self.host_plan;
        let of = &plan.segments()[host_index];
        paged.pager.require_copies(plan.weights(of))?;
        if prefetch {
            fetch_ahead(&self.schedule, segment, &mut paged.pager)?;
        }
        paged.compute_seconds += paged.pager.watch_what_is_underway();
        let start = Instant::now();
        host.read_inputs(plan, of, &mut self.inner);
        paged.compute_seconds += start.elapsed().as_secs_f64();
        paged.pager.wait_copies(plan.weights(of))?;
        let start = Instant::now();
        let status = host.compute(graph, plan, of, &paged.pager);
        if status == sys::GGML_STATUS_SUCCESS {
            host.write_results(graph, plan, of, &mut self.inner);
        }
        paged.host_seconds += start.elapsed().as_secs_f64();
        paged.host_bytes += of.weight_bytes;
        Ok(status)
    }
}

/// Has what is needed after a segment fetched, as far as there is room.
fn fetch_ahead(schedule: &Schedule, segment: &Segment, pager: &mut Pager) -> Result<()> {
    pager.prefetch(schedule.upcoming(segment))?;
    let of_cache = schedule.upcoming_of_cache(segment);
    pager.prefetch_ranges(of_cache.map(|need| (need.tensor, &need.range)))
}
