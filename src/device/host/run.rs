#![allow(
    unsafe_code,
    reason = "computes nodes of llama.cpp's graph on the processor"
)]
//! Computes host segments.

use std::ffi::c_void;

use ggml_sys as sys;

use super::{Devices, Home, HostPlan, HostSegment, Part};
use crate::device::translate::Translation;
use crate::error::{Error, Result};
use crate::ggml::{Graph, InnerBackend, InnerDevice};
use crate::pager::Pager;
use crate::pager::block::Block;
use crate::pager::memory::HostMemory;

/// What computes host segments: the processor, with memory for what it reads and computes.
#[derive(Debug)]
pub struct HostComputer {
    cpu: InnerDevice,
    backend: InnerBackend,
    scratch: Option<Block>,
    translation: Translation,
}

impl HostComputer {
    /// Starts a backend of the processor.
    ///
    /// # Errors
    /// `Failed` when that cannot be.
    pub fn new() -> Result<Self> {
        let cpu = InnerDevice::cpu().map_err(Error::Failed)?;
        Ok(Self {
            cpu,
            backend: cpu.backend().map_err(Error::Failed)?,
            scratch: None,
            translation: Translation::default(),
        })
    }

    /// Who computes.
    pub fn devices(&self, inner: InnerDevice) -> Devices {
        Devices {
            inner,
            cpu: self.cpu,
        }
    }

    /// Computes with `count` threads, those of `pool`; null: its own.
    ///
    /// # Safety
    /// - the pool is null or lives as long as it is used.
    pub unsafe fn set_threads(&mut self, count: i32, pool: sys::ggml_threadpool_t) {
        // SAFETY: a CPU backend; the pool as promised.
        unsafe { self.backend.set_threads(count, pool) };
    }

    /// Has computations ask `callback` now and then whether to stop; None: nobody.
    ///
    /// # Safety
    /// - the callback may be called with `data` as long as this computes.
    pub unsafe fn set_abort(&mut self, callback: sys::ggml_abort_callback, data: *mut c_void) {
        // SAFETY: a CPU backend; the callback as promised.
        unsafe { self.backend.set_abort(callback, data) };
    }

    /// Takes the memory that a plan needs. Only while nothing is in flight.
    ///
    /// # Errors
    /// `Memory` when it is not given.
    pub fn prepare(&mut self, plan: &HostPlan) -> Result<()> {
        let known = self.scratch.as_ref().map_or(0, Block::bytes);
        if plan.scratch_bytes > known {
            self.scratch = None;
            let memory = HostMemory::new(plan.scratch_bytes);
            let block = memory
                .map_err(|error| error.to_string())
                .and_then(Block::over);
            self.scratch = Some(block.map_err(|why| {
                let mib = plan.scratch_bytes.div_ceil(1 << 20);
                Error::Memory(format!(
                    "could not get {mib} MiB for what the processor computes ({why}); free some, \
                     or add --cold stream"
                ))
            })?);
        }
        Ok(())
    }

    /// Copies what the segment reads from the device's memory to the scratch memory, when
    /// the device has computed it: it has nothing to do when this returns.
    pub fn read_inputs(&self, plan: &HostPlan, of: &HostSegment, device: &mut InnerBackend) {
        for item in plan.items(of) {
            let (Part::Input(address, buffer), Home::Scratch(at)) = (item.part, item.home) else {
                continue;
            };
            let Some(scratch) = self.scratch.as_ref().and_then(Block::host) else {
                continue;
            };
            let to = scratch.address(at);
            // SAFETY:
            // - the scratch memory is as large as the plan wants it (`prepare`), and nobody
            //   else touches it: between two host segments the device computes something, for
            //   which what was copied from there had to arrive;
            // - the tensor lies there, and whoever computes it was launched before.
            unsafe { device.read_at((address, buffer), to, item.bytes) };
        }
        device.synchronize();
    }

    /// Computes the segment's nodes, on weights that are in their copies.
    pub fn compute(
        &mut self,
        graph: Graph<'_>,
        plan: &HostPlan,
        of: &HostSegment,
        pager: &Pager,
    ) -> sys::ggml_status {
        let Some(scratch) = &self.scratch else {
            return sys::GGML_STATUS_FAILED;
        };
        for item in plan.items(of) {
            let place = match item.home {
                Home::Scratch(at) => (scratch.address(at), scratch.buffer()),
                Home::Copy(id, offset) => {
                    let (address, buffer) = pager.locate_copy(id);
                    (address + offset, buffer)
                }
                Home::There => continue,
            };
            // SAFETY:
            // - tensors of the graph at hand, ours during the launch;
            // - their bytes are there, or will be when their node is computed.
            unsafe { self.translation.point(item.raw, place) };
        }
        let mut part = graph.part(&of.nodes);
        // SAFETY: the graph is live, and all that its nodes read and write is in host memory.
        let status = unsafe { self.backend.compute(&raw mut part) };
        self.translation.restore();
        status
    }

    /// Copies what others read of the results to where they expect it.
    pub fn write_results(
        &self,
        graph: Graph<'_>,
        plan: &HostPlan,
        of: &HostSegment,
        device: &mut InnerBackend,
    ) {
        let Some(scratch) = self.scratch.as_ref().and_then(Block::host) else {
            return;
        };
        // In the order of the nodes: a later one may have the place of an earlier one.
        for item in plan.items(of) {
            let (Part::Result { is_read: true }, Home::Scratch(at)) = (item.part, item.home) else {
                continue;
            };
            let Some(result) = graph.tensor_at(item.raw, &of.nodes) else {
                continue;
            };
            let to = (result.address(), result.buffer());
            let from = scratch.address(at).cast_const();
            // SAFETY:
            // - the scratch memory is not written before the device has nothing to do;
            // - the tensor's place is its own, and the device has nothing to do now.
            unsafe { device.write_at(to, from, item.bytes) };
        }
    }
}
