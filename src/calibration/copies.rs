//! Storage, memory and the link to a device, through the copy engine that a run uses.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::link_to;
use crate::error::{Error, Result};
use crate::ggml::{DeviceBuffer, InnerDevice};
use crate::pager::engine::{Copy, CopyEngine, Direction, Request, Source, Target, Ticket};
use crate::pager::engine_device::{DeviceEngine, Setup};
use crate::pager::engine_host::{Faults, HostEngine};
use crate::pager::memory::HostMemory;
use crate::pager::room::Room;
use crate::pager::storage::{Access, BLOCK_BYTES, StoreFile};

/// Bytes of one request: about a layer's share.
const REQUEST_BYTES: usize = 8 << 20;
/// Requests that have places in memory, as the ring has.
const PLACES: usize = 8;
/// A file with less than this share of its bytes on the disk is sparse.
const SPARSE: f64 = 0.9;

/// A copy engine at work on a file, over and over.
#[derive(Debug)]
pub struct Pump {
    // Before what it touches: it finishes what is in flight.
    engine: Box<dyn CopyEngine>,
    from: From,
    bytes: u64,
    to: To,
    next: u64,
    // Whether it has been through the whole file.
    wrapped: bool,
    in_flight: VecDeque<(Ticket, usize)>,
    place: usize,
}

#[derive(Debug)]
enum From {
    File(Arc<StoreFile>),
    Memory(Arc<HostMemory>),
}

#[derive(Debug)]
enum To {
    Memory(Arc<HostMemory>),
    Device(Arc<DeviceBuffer>),
}

/// Memory that a device is given bytes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pinned: copies overlap with what is computed.
    Pinned,
    /// Ordinary memory.
    Pageable,
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::Failed(format!("could not measure how fast copies are: {what}"))
}

impl Pump {
    /// One that reads the file at `path`; None when there is next to nothing to read.
    pub fn of_file(path: &Path, direct: bool, threads: u32) -> Result<Option<Self>> {
        let meta = std::fs::metadata(path).map_err(failed)?;
        if is_sparse(&meta) || meta.len() < BLOCK_BYTES as u64 {
            return Ok(None);
        }
        let access = match direct {
            true => Access::Direct,
            false => Access::Cached,
        };
        let file = StoreFile::open(path, access).map_err(failed)?;
        Self::in_memory(From::File(Arc::new(file)), meta.len(), threads).map(Some)
    }

    /// One that copies in memory.
    pub fn of_memory(threads: u32) -> Result<Self> {
        let bytes = REQUEST_BYTES * PLACES * 2;
        let memory = Arc::new(HostMemory::new(bytes).map_err(failed)?);
        let from = From::Memory(Arc::clone(&memory));
        let mut pump = Self::in_memory(from, bytes as u64, threads)?;
        pump.touch(&memory)?;
        Ok(pump)
    }

    /// One that copies into the memory of a device, by the means that a run has; None when
    /// there is no memory of that kind.
    pub fn to_device(device: InnerDevice, kind: Kind, threads: u32) -> Result<Option<Self>> {
        let bytes = REQUEST_BYTES * PLACES * 2;
        let threads = usize::try_from(threads).unwrap_or(1);
        let (engine, pinned) = engine_to(device, threads, bytes)?;
        let memory = match kind {
            Kind::Pinned => pinned,
            Kind::Pageable => Some(HostMemory::new(bytes).map_err(failed)?),
        };
        let Some(memory) = memory else {
            return Ok(None);
        };
        let from = Arc::new(memory);
        let to = DeviceBuffer::new(device, REQUEST_BYTES * PLACES).map_err(failed)?;
        let to = To::Device(Arc::new(to));
        let mut pump = Self::new(engine, From::Memory(Arc::clone(&from)), bytes as u64, to);
        pump.touch(&from)?;
        Ok(Some(pump))
    }

    fn in_memory(from: From, bytes: u64, threads: u32) -> Result<Self> {
        let threads = usize::try_from(threads).unwrap_or(1);
        let memory = HostMemory::new(REQUEST_BYTES * PLACES).map_err(failed)?;
        let engine = HostEngine::new(threads, Faults::default()).map_err(failed)?;
        let to = To::Memory(Arc::new(memory));
        Ok(Self::new(Box::new(engine), from, bytes, to))
    }

    fn new(engine: Box<dyn CopyEngine>, from: From, bytes: u64, to: To) -> Self {
        Self {
            engine,
            from,
            bytes,
            to,
            next: 0,
            wrapped: false,
            in_flight: VecDeque::new(),
            place: 0,
        }
    }

    /// Reads on from the start of the file, for as long or as much as `done` says, and from
    /// now on reads only that much of it, over and over.
    ///
    /// A pass reads what the pass before it read. Where something keeps it meanwhile (the
    /// page cache, or whatever stands behind a virtual machine's disk), a first reading
    /// says little: it was seen to be three times slower.
    pub fn warm(&mut self, done: impl FnMut(Duration, u64) -> bool) -> Result<()> {
        self.run(done)?;
        while !self.in_flight.is_empty() {
            self.finish_one()?;
        }
        if !self.wrapped {
            self.bytes = self.next;
        }
        self.next = 0;
        Ok(())
    }

    /// Copies until `done` says so of the time and the bytes, with the ring always full;
    /// returns bytes per second.
    pub fn run(&mut self, mut done: impl FnMut(Duration, u64) -> bool) -> Result<f64> {
        while self.in_flight.len() < PLACES {
            self.submit()?;
        }
        // What starts up is not counted.
        self.finish_one()?;
        self.submit()?;
        let started = Instant::now();
        let mut copied = 0;
        loop {
            copied += self.finish_one()? as u64;
            self.submit()?;
            if done(started.elapsed(), copied) {
                break;
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let rate = copied as f64 / started.elapsed().as_secs_f64().max(1e-9);
        Ok(rate)
    }

    /// Writes all of `memory`: pages that nobody has written are all one, in a cache.
    fn touch(&mut self, memory: &Arc<HostMemory>) -> Result<()> {
        let copy = Copy {
            from: Source::Pattern(1),
            to: Target::Memory {
                memory: Arc::clone(memory),
                offset: 0,
            },
            bytes: memory.bytes(),
            whole_blocks: false,
        };
        let ticket = self.request(copy)?;
        self.engine.wait(ticket).map_err(failed)
    }

    fn finish_one(&mut self) -> Result<usize> {
        let Some((ticket, bytes)) = self.in_flight.pop_front() else {
            return Ok(0);
        };
        self.engine.wait(ticket).map_err(failed)?;
        Ok(bytes)
    }

    fn submit(&mut self) -> Result<()> {
        let left = self.bytes.saturating_sub(self.next);
        let bytes = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(REQUEST_BYTES);
        let from = match &self.from {
            From::File(file) => Source::File {
                file: Arc::clone(file),
                offset: self.next,
            },
            From::Memory(memory) => Source::Memory {
                memory: Arc::clone(memory),
                offset: usize::try_from(self.next).unwrap_or(0),
            },
        };
        let offset = self.place * REQUEST_BYTES;
        let to = match &self.to {
            To::Memory(memory) => Target::Memory {
                memory: Arc::clone(memory),
                offset,
            },
            To::Device(memory) => Target::Device {
                memory: Arc::clone(memory),
                offset,
            },
        };
        let copy = Copy {
            from,
            to,
            bytes,
            whole_blocks: true,
        };
        let ticket = self.request(copy)?;
        self.in_flight.push_back((ticket, bytes));
        self.place = (self.place + 1) % PLACES;
        self.next += bytes as u64;
        if self.next + BLOCK_BYTES as u64 > self.bytes {
            self.next = 0;
            self.wrapped = true;
        }
        Ok(())
    }

    fn request(&mut self, copy: Copy) -> Result<Ticket> {
        let request = Request {
            direction: Direction::In,
            copies: vec![copy],
            after: None,
        };
        let submitted = self.engine.submit(request);
        submitted.map_err(|(sentence, _)| failed(sentence))
    }
}

/// What copies to a device, and `bytes` of memory that it is fastest from, where there is any.
fn engine_to(
    device: InnerDevice,
    threads: usize,
    bytes: usize,
) -> Result<(Box<dyn CopyEngine>, Option<HostMemory>)> {
    if !device.is_asynchronous() {
        let engine = HostEngine::new(threads, Faults::default()).map_err(failed)?;
        return Ok((Box::new(engine), None));
    }
    // What it cannot do is said by the run that uses it.
    let link = link_to(device, &mut Vec::new()).map_err(failed)?;
    let pinned = link.pinning().pinned(bytes).ok();
    let setup = Setup {
        workers: threads,
        faults: Faults::default(),
        keep: Arc::new(Room::new(0)),
    };
    let engine = DeviceEngine::new(link, setup).map_err(failed)?;
    Ok((Box::new(engine), pinned))
}

#[cfg(unix)]
fn is_sparse(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    #[allow(clippy::cast_precision_loss, reason = "a share of a size")]
    let there = (meta.blocks() * 512) as f64 / (meta.len().max(1)) as f64;
    there < SPARSE
}

#[cfg(not(unix))]
fn is_sparse(_meta: &std::fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pump_goes_round_a_small_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7u8; 3 << 20]).unwrap();
        for direct in [false, true] {
            let mut pump = Pump::of_file(file.path(), direct, 2).unwrap().unwrap();
            pump.warm(|_, bytes| bytes > 0).unwrap();
            let rate = pump.run(|_, bytes| bytes > 40 << 20).unwrap();
            assert!(rate > 0.0);
        }
        let mut pump = Pump::of_memory(1).unwrap();
        assert!(pump.run(|_, bytes| bytes > 100 << 20).unwrap() > 0.0);
    }

    #[cfg(unix)]
    #[test]
    fn a_sparse_file_is_not_measured() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        assert!(Pump::of_file(file.path(), true, 1).unwrap().is_none());
    }
}
