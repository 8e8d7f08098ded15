//! The thread that takes requests in order, has files read into memory from which the link
//! copies, and hands everything on to the queue.
//!
//! It runs ahead of the queue as far as there is room: reads of later requests are under
//! way while earlier ones cross the link.

use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, select};

use super::super::engine::{Copy, CopyEngine, Direction, Request, Source, Target, Ticket};
use super::super::engine_host::HostEngine;
use super::super::engine_host::faults::{Fault, Faults};
use super::super::engine_host::piece::{Piece, eio, misfit, source_from, target_from, unreadable};
use super::super::engine_host::progress::{Kind, Progress};
use super::super::memory::HostMemory;
use super::super::storage::{BLOCK_BYTES, StoreFile};
use super::kept::{Found, Kept};
use super::link::Pinning;
use super::outbox::Outbox;
use super::staging::{Gone, Part, Staging};
use super::step::Move;
use super::words;
use crate::ggml::DeviceBuffer;

/// What a reader is made from.
pub struct Parts {
    pub inbox: Receiver<(Ticket, Request)>,
    /// Says that a queue has ended before its time.
    pub ended: Receiver<()>,
    pub outbox: Outbox,
    pub host: HostEngine,
    pub staging: Staging,
    /// Staging for what comes out, where that has a stream of its own.
    pub staging_out: Option<Staging>,
    pub kept: Kept,
    pub pinning: Arc<dyn Pinning>,
    /// Reads that failed.
    pub failed_reads: Receiver<Ticket>,
    pub progress: Arc<Progress>,
    pub faults: Faults,
}

/// See the module's documentation.
pub struct Reader {
    parts: Parts,
    // Host memories that requests have named.
    touched: Vec<Weak<HostMemory>>,
    // Bytes on their way between files and memories of which neither is the device's.
    spare: Vec<u8>,
    notice: Notice,
}

/// What was said about the host's copy of what streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    Nothing,
    Kept,
    Staged,
}

/// Why a copy is not handed on.
enum Halt {
    Gone,
    Failed(String),
}

impl From<Gone> for Halt {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Where a copy of the device's memory begins.
struct Spot<'a> {
    memory: &'a Arc<DeviceBuffer>,
    offset: usize,
}

impl Reader {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            touched: Vec::new(),
            spare: Vec::new(),
            notice: Notice::Nothing,
        }
    }

    /// Works until no more requests come, or a queue has ended.
    pub fn run(mut self) {
        loop {
            let next = select! {
                recv(self.parts.inbox) -> next => next,
                recv(self.parts.ended) -> _ => return,
            };
            let Ok((ticket, request)) = next else {
                let _ = self.parts.outbox.close();
                return;
            };
            if self.hand_on(ticket, request).is_err() {
                return;
            }
        }
    }

    /// Hands a move of a copy on that was announced.
    fn send(&self, step: Move) -> Result<(), Halt> {
        let direction = match &step {
            Move::Out { .. } => Direction::Out,
            _ => Direction::In,
        };
        Ok(self.parts.outbox.copy(direction, step)?)
    }

    fn hand_on(&mut self, ticket: Ticket, mut request: Request) -> Result<(), Gone> {
        let (direction, after) = (request.direction, request.after.take());
        self.parts.outbox.begin(ticket, direction, after);
        let mut bytes = [0; 3];
        let index = ticket.0 - 1;
        let mut failed = (self.parts.faults.fail_request == Some(index))
            .then(|| "a copy failed, as the copy engine was told to".to_owned());
        for copy in &request.copies {
            if failed.is_some() {
                break;
            }
            if let Some(kind) = Kind::of(request.direction, &copy.from) {
                // What comes from a file is counted where it is read, and on the link where
                // it crosses that.
                let is_read = kind == Kind::Storage && !matches!(copy.to, Target::Device { .. });
                let link = match (request.direction, kind) {
                    (Direction::In, _) => Kind::Link,
                    (Direction::Out, _) => Kind::WriteBack,
                };
                if !is_read {
                    bytes[link as usize] += copy.bytes as u64;
                }
            }
            match self.copy(copy, index, &mut bytes[Kind::Storage as usize]) {
                Ok(()) => {}
                Err(Halt::Failed(sentence)) => failed = Some(sentence),
                Err(Halt::Gone) => return Err(Gone),
            }
        }
        self.parts.outbox.end(request, failed, bytes)
    }

    /// Hands a copy on; adds to `read` what it reads from files.
    fn copy(&mut self, copy: &Copy, index: u64, read: &mut u64) -> Result<(), Halt> {
        if let Some(sentence) = misfit(copy) {
            return Err(Halt::Failed(sentence.to_owned()));
        }
        if copy.bytes == 0 {
            return Ok(());
        }
        let into_untouched = self.touch(copy);
        match (&copy.from, &copy.to) {
            (Source::Pattern(value), Target::Device { memory, offset }) => {
                let range = *offset..offset + copy.bytes;
                self.parts.outbox.announce(Direction::In, copy)?;
                self.send(Move::Fill(Arc::clone(memory), range, *value))
            }
            (Source::Device { memory, offset }, Target::Device { .. }) => self.within(
                copy,
                &Spot {
                    memory,
                    offset: *offset,
                },
            ),
            (Source::Device { memory, offset }, _) => self.out(
                copy,
                &Spot {
                    memory,
                    offset: *offset,
                },
            ),
            (
                Source::Memory {
                    memory: from,
                    offset: at,
                },
                Target::Device { memory, offset },
            ) => {
                let to = Spot {
                    memory,
                    offset: *offset,
                };
                self.bring_memory(copy, (from, *at), &to)
            }
            (
                Source::File {
                    file,
                    offset: start,
                },
                Target::Device { memory, offset },
            ) => {
                let to = Spot {
                    memory,
                    offset: *offset,
                };
                if self.parts.faults.failed_read == Some(index) {
                    let sentence = unreadable(file, copy.bytes, *start, &eio());
                    return Err(Halt::Failed(sentence));
                }
                self.bring_file(copy, (file, *start), &to, read)
            }
            (Source::File { .. }, Target::Memory { .. }) if into_untouched => {
                self.read_aside(copy, index, read)
            }
            _ => {
                self.copy_on_host(copy, index)?;
                if matches!(copy.from, Source::File { .. }) {
                    *read += copy.bytes as u64;
                }
                Ok(())
            }
        }
    }

    /// A copy of which neither side is the device's: when all before it are done.
    fn copy_on_host(&mut self, copy: &Copy, index: u64) -> Result<(), Halt> {
        self.parts.outbox.settle()?;
        if self.parts.outbox.has_failed() {
            // What it reads may be undefined, and so may what it writes.
            return Ok(());
        }
        if let Source::File { file, .. } = &copy.from {
            file.check_unchanged().map_err(Halt::Failed)?;
        }
        let fault = Fault::of_target(&self.parts.faults, index, &copy.to);
        let piece = Piece::whole(copy, fault);
        let outcome = piece.transfer(&mut self.spare, &self.parts.progress);
        outcome.map_err(Halt::Failed)
    }

    /// Notes the host memories that a copy touches; whether it goes into one that no copy
    /// before has touched.
    fn touch(&mut self, copy: &Copy) -> bool {
        if let Source::Memory { memory, .. } = &copy.from {
            self.is_untouched(memory);
        }
        match &copy.to {
            Target::Memory { memory, .. } => self.is_untouched(memory),
            Target::Device { .. } | Target::File { .. } => false,
        }
    }

    /// Whether no copy before has touched the memory; this one does.
    fn is_untouched(&mut self, memory: &Arc<HostMemory>) -> bool {
        let of = |known: &Weak<HostMemory>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(memory));
        if self.touched.iter().any(of) {
            return false;
        }
        self.touched.retain(|known| known.strong_count() > 0);
        self.touched.push(Arc::downgrade(memory));
        true
    }

    /// Has a file read into memory that nothing before has touched: what was queued need not
    /// be waited for.
    fn read_aside(&mut self, copy: &Copy, index: u64, read: &mut u64) -> Result<(), Halt> {
        let (
            Source::File {
                file,
                offset: start,
            },
            Target::Memory { memory, offset },
        ) = (&copy.from, &copy.to)
        else {
            return Ok(());
        };
        if self.parts.faults.failed_read == Some(index) {
            let sentence = unreadable(file, copy.bytes, *start, &eio());
            return Err(Halt::Failed(sentence));
        }
        self.parts.outbox.await_landings(copy)?;
        self.parts.outbox.announce(Direction::In, copy)?;
        let submitted = self.submit_read(Copy {
            from: copy.from.clone(),
            to: Target::Memory {
                memory: Arc::clone(memory),
                offset: *offset,
            },
            ..*copy
        })?;
        *read += copy.bytes as u64;
        self.send(Move::Read(submitted))
    }

    /// Whether the link copies from and to the memory itself. Where no memory is pinned,
    /// a detour gains nothing.
    fn is_direct(&self, memory: &HostMemory) -> bool {
        memory.is_pinned() || !self.parts.staging.memory().is_pinned()
    }

    fn bring_memory(
        &mut self,
        copy: &Copy,
        (from, at): (&Arc<HostMemory>, usize),
        to: &Spot<'_>,
    ) -> Result<(), Halt> {
        let is_direct = self.is_direct(from);
        if !is_direct {
            self.parts.outbox.await_landings(copy)?;
        }
        self.parts.outbox.announce(Direction::In, copy)?;
        if is_direct {
            return self.send(Move::In {
                from: Arc::clone(from),
                at,
                to: Arc::clone(to.memory),
                offset: to.offset,
                bytes: copy.bytes,
                read: None,
            });
        }
        self.staged(&copy.from, copy.bytes, to)
    }

    /// Hands on a copy from a file: from what is kept of it, as far as it is.
    fn bring_file(
        &mut self,
        copy: &Copy,
        (file, start): (&Arc<StoreFile>, u64),
        to: &Spot<'_>,
        read: &mut u64,
    ) -> Result<(), Halt> {
        self.parts.outbox.await_landings(copy)?;
        self.parts.outbox.announce(Direction::In, copy)?;
        while let Ok(ticket) = self.parts.failed_reads.try_recv() {
            self.parts.kept.forget(ticket);
            // No step behind this one is about what it was to bring.
            self.parts.outbox.forget(ticket)?;
        }
        let mut done = 0;
        while done < copy.bytes {
            let offset = start + done as u64;
            let to = Spot {
                memory: to.memory,
                offset: to.offset + done,
            };
            let found = self.parts.kept.find(file, offset, copy.bytes - done);
            let extent = match found {
                Found::Kept(extent) => extent,
                Found::Absent(bytes) => match self.keep(file, offset, bytes)? {
                    Some(extent) => {
                        *read += extent.bytes as u64;
                        extent
                    }
                    None => {
                        self.staged(&source_from(&copy.from, done), bytes, &to)?;
                        *read += bytes as u64;
                        done += bytes;
                        continue;
                    }
                },
            };
            done += extent.bytes;
            self.send(Move::In {
                from: extent.memory,
                at: extent.at,
                to: Arc::clone(to.memory),
                offset: to.offset,
                bytes: extent.bytes,
                read: Some(extent.read),
            })?;
        }
        Ok(())
    }

    /// Has bytes of a file read that are kept from now on; None when there is no room.
    fn keep(
        &mut self,
        file: &Arc<StoreFile>,
        offset: u64,
        bytes: usize,
    ) -> Result<Option<super::kept::Extent>, Halt> {
        if !file.is_model() {
            return Ok(None);
        }
        let is_pinned = self.parts.staging.memory().is_pinned();
        let pinning = &self.parts.pinning;
        let memory = |bytes| match is_pinned {
            true => pinning.pinned(bytes),
            false => HostMemory::new(bytes).map_err(|error| error.to_string()),
        };
        let room = self.parts.kept.room(offset, bytes, memory);
        let room = room.unwrap_or_else(|why| {
            self.note(words::not_kept(&why), Notice::Staged);
            None
        });
        let Some(mut extent) = room else {
            self.say_staged();
            return Ok(None);
        };
        extent.read = self.read_into(
            Source::File {
                file: Arc::clone(file),
                offset,
            },
            (&extent.memory, extent.at),
            extent.bytes,
        )?;
        self.parts.kept.add(file, offset, extent.clone());
        self.say_kept(is_pinned);
        Ok(Some(extent))
    }

    fn say_kept(&mut self, is_pinned: bool) {
        if self.notice == Notice::Nothing {
            self.note(
                words::kept(self.parts.kept.limit_bytes(), is_pinned),
                Notice::Kept,
            );
        }
    }

    fn say_staged(&mut self) {
        if self.notice != Notice::Staged {
            self.note(words::staged(self.parts.kept.limit_bytes()), Notice::Staged);
        }
    }

    fn note(&mut self, sentence: String, notice: Notice) {
        self.notice = notice;
        self.parts.progress.lock().notices.push(sentence);
    }

    /// Hands on a copy whose bytes pass through the staging memory.
    fn staged(&mut self, from: &Source, bytes: usize, to: &Spot<'_>) -> Result<(), Halt> {
        let lead = match from {
            Source::File { offset, .. } => lead_of(*offset),
            _ => 0,
        };
        let mut done = 0;
        while done < bytes {
            // The places between two pieces are whole blocks of the file.
            let lead = (lead + done) % BLOCK_BYTES;
            let part = self.take(Direction::In, bytes - done, lead)?;
            let memory = Arc::clone(self.parts.staging.memory());
            let read = self.read_into(source_from(from, done), (&memory, part.at), part.bytes)?;
            self.send(Move::In {
                from: memory,
                at: part.at,
                to: Arc::clone(to.memory),
                offset: to.offset + done,
                bytes: part.bytes,
                read: Some(read),
            })?;
            done += part.bytes;
        }
        Ok(())
    }

    /// Has bytes brought to `at` of a memory that is ours, with the blocks they lie in.
    fn read_into(
        &mut self,
        from: Source,
        (memory, at): (&Arc<HostMemory>, usize),
        bytes: usize,
    ) -> Result<Ticket, Halt> {
        self.submit_read(Copy {
            from,
            to: Target::Memory {
                memory: Arc::clone(memory),
                offset: at,
            },
            bytes,
            whole_blocks: true,
        })
    }

    fn submit_read(&mut self, copy: Copy) -> Result<Ticket, Halt> {
        let mut copies = self.parts.host.recycled();
        copies.push(copy);
        let request = Request {
            direction: Direction::In,
            copies,
            after: None,
        };
        let submitted = self.parts.host.submit(request);
        submitted.map_err(|(sentence, _refused)| Halt::Failed(sentence))
    }

    /// Takes room in the staging memory.
    fn take(&mut self, direction: Direction, bytes: usize, lead: usize) -> Result<Part, Gone> {
        let Parts {
            staging,
            staging_out,
            outbox,
            ..
        } = &mut self.parts;
        match (direction, staging_out) {
            (Direction::Out, Some(staging)) => {
                staging.take(bytes, lead, |place| outbox.release(Direction::Out, place))
            }
            _ => staging.take(bytes, lead, |place| outbox.release(Direction::In, place)),
        }
    }

    /// Hands on a copy out of the device's memory.
    fn out(&mut self, copy: &Copy, from: &Spot<'_>) -> Result<(), Halt> {
        self.parts.outbox.announce(Direction::Out, copy)?;
        if let Target::Memory { memory, offset } = &copy.to
            && self.is_direct(memory)
        {
            return self.send(Move::Out {
                from: Arc::clone(from.memory),
                offset: from.offset,
                to: Arc::clone(memory),
                at: *offset,
                bytes: copy.bytes,
                landing: None,
            });
        }
        let mut done = 0;
        while done < copy.bytes {
            let part = self.take(Direction::Out, copy.bytes - done, 0)?;
            self.send(Move::Out {
                from: Arc::clone(from.memory),
                offset: from.offset + done,
                to: Arc::clone(self.parts.staging.memory()),
                at: part.at,
                bytes: part.bytes,
                landing: Some(target_from(&copy.to, done)),
            })?;
            done += part.bytes;
        }
        Ok(())
    }

    /// Hands on a copy from the device's memory to the device's memory: out, and in again.
    fn within(&mut self, copy: &Copy, from: &Spot<'_>) -> Result<(), Halt> {
        let Target::Device { memory: to, offset } = &copy.to else {
            return Ok(());
        };
        // As `memmove` does it: what is still to be read is not written before.
        let backwards = Arc::ptr_eq(from.memory, to) && *offset > from.offset;
        self.parts.outbox.announce_both(copy)?;
        let mut done = 0;
        while done < copy.bytes {
            let part = self.take(Direction::In, copy.bytes - done, 0)?;
            let memory = Arc::clone(self.parts.staging.memory());
            let start = match backwards {
                true => copy.bytes - done - part.bytes,
                false => done,
            };
            self.send(Move::Out {
                from: Arc::clone(from.memory),
                offset: from.offset + start,
                to: Arc::clone(&memory),
                at: part.at,
                bytes: part.bytes,
                landing: None,
            })?;
            self.parts.outbox.turn()?;
            self.send(Move::In {
                from: memory,
                at: part.at,
                to: Arc::clone(to),
                offset: offset + start,
                bytes: part.bytes,
                read: None,
            })?;
            done += part.bytes;
        }
        self.parts.outbox.note_both(copy);
        Ok(())
    }
}

/// Where a byte of a file lies in its block.
fn lead_of(offset: u64) -> usize {
    usize::try_from(offset % BLOCK_BYTES as u64).expect("less than a block")
}
