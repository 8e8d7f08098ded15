//! Which engine copies between the backing store and the arena, and what it cannot do.

use std::sync::Arc;

use super::PagingConfig;
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::pager::CopyMemory;
use crate::pager::engine::CopyEngine;
use crate::pager::engine_device::link::Link;
use crate::pager::engine_device::{CudaLink, DeviceEngine, GgmlLink, Setup};
use crate::pager::engine_host::HostEngine;
use crate::pager::room::Room;
use crate::telemetry::memory::{available_bytes, share_of};

/// How much of the memory that is available at the start may keep weights that are streamed
/// to a device: the rest is for the page cache, the KV cache and others.
const KEEP_SHARE: f64 = 0.5;

/// An engine, and what is to be said of it.
#[derive(Debug)]
pub struct Chosen {
    pub engine: Box<dyn CopyEngine>,
    /// Where copies of weights in host memory come from.
    pub copies: CopyMemory,
    /// What it cannot do, a sentence each.
    pub lacks: Vec<String>,
}

/// The engine for an arena of `inner`'s; where only notes are taken, one that copies nothing
/// there.
///
/// # Errors
/// `Failed` when a thread or memory is refused, or the device fails.
pub fn choose(inner: InnerDevice, config: &PagingConfig, takes_notes: bool) -> Result<Chosen> {
    let mut lacks: Vec<String> = waits_of(inner).into_iter().collect();
    let room = match config.faults.keep_bytes_max {
        Some(bytes) => bytes,
        None => share_of(available_bytes(), KEEP_SHARE),
    };
    let room = Arc::new(Room::new(room));
    if inner.is_host() || !inner.is_asynchronous() || takes_notes {
        return Ok(Chosen {
            engine: host_engine(config)?,
            copies: CopyMemory {
                room,
                pinning: None,
            },
            lacks,
        });
    }
    let link = link_to(inner, &mut lacks).map_err(Error::Failed)?;
    let copies = CopyMemory {
        room: Arc::clone(&room),
        pinning: Some(link.pinning()),
    };
    let setup = Setup {
        workers: config.prefetch_threads,
        faults: config.faults,
        keep: room,
    };
    let engine = DeviceEngine::new(link, setup).map_err(Error::Failed)?;
    Ok(Chosen {
        engine: Box::new(engine),
        copies,
        lacks,
    })
}

/// Why the device waits for copies, if it cannot have them come while it computes.
fn waits_of(inner: InnerDevice) -> Option<String> {
    if inner.is_host() || inner.is_asynchronous() {
        return None;
    }
    let lacks = match inner.props().caps.async_ {
        false => "no launches that return at once",
        true => "no events to wait for",
    };
    let name = inner.name();
    Some(format!(
        "copies to {name} do not overlap with what it computes: ggml has {lacks} for it"
    ))
}

fn host_engine(config: &PagingConfig) -> Result<Box<dyn CopyEngine>> {
    let engine = HostEngine::new(config.prefetch_threads, config.faults)
        .map_err(|error| Error::Failed(format!("could not start a copy thread ({error})")))?;
    Ok(Box::new(engine))
}

/// What copies to a device: its driver where we know that, else ggml.
fn link_to(
    inner: InnerDevice,
    lacks: &mut Vec<String>,
) -> std::result::Result<Box<dyn Link>, String> {
    if CudaLink::is_for(inner) {
        match CudaLink::new(inner) {
            Ok(link) => return Ok(Box::new(link)),
            Err(why) => lacks.push(format!("copies go through ggml: {why}")),
        }
    }
    Ok(Box::new(GgmlLink::new(inner)?))
}
