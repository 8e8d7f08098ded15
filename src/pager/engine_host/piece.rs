//! Pieces of copies that a thread does at a stretch: between memories, and from and to
//! files through the page cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::super::engine::{Copy, Source, Target};
use super::super::memory::HostMemory;
use super::super::storage::StoreFile;
use super::crew::{Event, Work};
use super::faults::{Fault, Script, pause};
use super::order::JobId;
use super::progress::{Kind, Progress};

/// A piece of a copy.
#[derive(Debug)]
pub struct Piece {
    pub job: JobId,
    pub kind: Option<Kind>,
    pub from: Source,
    pub to: Target,
    pub bytes: usize,
    pub script: Script,
}

impl Piece {
    /// The pieces of a copy, each of at most `piece_bytes` bytes; the first one follows
    /// `script`.
    pub fn cut(
        job: JobId,
        kind: Option<Kind>,
        copy: &Copy,
        piece_bytes: usize,
        mut script: Script,
    ) -> impl Iterator<Item = Self> {
        (0..copy.bytes).step_by(piece_bytes).map(move |start| Self {
            job,
            kind,
            from: source_from(&copy.from, start),
            to: target_from(&copy.to, start),
            bytes: piece_bytes.min(copy.bytes - start),
            script: std::mem::take(&mut script),
        })
    }

    /// A whole copy as one piece, for a thread that is no worker of an engine.
    pub fn whole(copy: &Copy, fault: Option<Fault>) -> Self {
        Self {
            job: JobId::default(),
            kind: None,
            from: copy.from.clone(),
            to: copy.to.clone(),
            bytes: copy.bytes,
            script: Script {
                pause: std::time::Duration::ZERO,
                fault,
            },
        }
    }

    /// Does the piece here and now. A panic is a failure like any other.
    pub fn transfer(&self, spare: &mut Vec<u8>, progress: &Progress) -> Result<(), String> {
        pause(self.script.pause);
        Fault::strike_worker(self.script.fault);
        let _busy = progress.busy(self.kind);
        catch_unwind(AssertUnwindSafe(|| self.transfer_unguarded(spare)))
            .unwrap_or_else(|_| Err("a copy worker panicked".to_owned()))
    }

    fn transfer_unguarded(&self, spare: &mut Vec<u8>) -> Result<(), String> {
        let (memory, offset) = match &self.to {
            Target::Memory { memory, offset } => (memory, *offset),
            Target::File { file, offset } => return self.write(file, *offset, spare),
            Target::Device { memory, offset } => {
                let bytes = self.gather(spare)?;
                // SAFETY: nobody else touches the destination until the ticket is done
                // (contract of `CopyEngine`).
                unsafe { memory.write(*offset, bytes) };
                return Ok(());
            }
        };
        match &self.from {
            Source::File {
                file,
                offset: start,
            } => {
                let to = bytes_of(memory, offset, self.bytes);
                self.read(file, to, *start)
            }
            Source::Memory {
                memory: from,
                offset: start,
            } => {
                // SAFETY:
                // - nobody else touches source or destination until the ticket is done
                //   (contract of `CopyEngine`), and other copies keep their order.
                unsafe { memory.copy(offset, from, *start, self.bytes) };
                Ok(())
            }
            Source::Device {
                memory: from,
                offset: start,
            } => {
                let to = bytes_of(memory, offset, self.bytes);
                // SAFETY: as above.
                unsafe { from.read(*start, to) };
                Ok(())
            }
            Source::Pattern(value) => {
                // SAFETY: as above.
                unsafe { memory.fill(offset..offset + self.bytes, *value) };
                Ok(())
            }
        }
    }

    fn read(&self, file: &StoreFile, to: &mut [u8], offset: u64) -> Result<(), String> {
        let outcome = match self.script.fault {
            Some(Fault::FailedRead) => Err(eio()),
            Some(Fault::ShortRead) => {
                let (first, second) = to.split_at_mut(to.len() / 2);
                let middle = offset + first.len() as u64;
                let begun = file.read_exact_at(first, offset);
                begun.and_then(|()| file.read_exact_at(second, middle))
            }
            _ => file.read_exact_at(to, offset),
        };
        outcome.map_err(|error| unreadable(file, self.bytes, offset, &error))
    }

    /// The bytes of the source, in `spare` when they are not in host memory.
    fn gather<'a>(&'a self, spare: &'a mut Vec<u8>) -> Result<&'a [u8], String> {
        match &self.from {
            Source::Memory { memory, offset } => Ok(bytes_of(memory, *offset, self.bytes)),
            Source::Pattern(value) => {
                spare.clear();
                spare.resize(self.bytes, *value);
                Ok(spare)
            }
            Source::File { file, offset } => {
                spare.resize(self.bytes, 0);
                self.read(file, spare, *offset)?;
                Ok(spare)
            }
            Source::Device { memory, offset } => {
                spare.resize(self.bytes, 0);
                // SAFETY: nobody writes the source until the ticket is done (contract of
                // `CopyEngine`).
                unsafe { memory.read(*offset, spare) };
                Ok(spare)
            }
        }
    }

    fn write(&self, file: &StoreFile, offset: u64, spare: &mut Vec<u8>) -> Result<(), String> {
        let from = self.gather(spare)?;
        let outcome = match self.script.fault {
            Some(Fault::FullDisk) => Err(std::io::ErrorKind::StorageFull.into()),
            _ => file.write_all_at(from, offset),
        };
        outcome.map_err(|error| {
            format!(
                "could not write {} bytes at offset {offset} of {} ({error}); \
                 make room there, or see --spill-dir",
                self.bytes,
                file.name()
            )
        })
    }
}

impl Work for Piece {
    // Bytes on their way from a file to a file.
    type Spare = Vec<u8>;

    fn job(&self) -> JobId {
        self.job
    }

    fn perform(self, spare: &mut Vec<u8>, progress: &Progress) -> Event {
        let outcome = self.transfer(spare, progress);
        Event::Done(self.job, outcome)
    }
}

/// The failure of a read.
pub fn unreadable(file: &StoreFile, bytes: usize, offset: u64, error: &std::io::Error) -> String {
    format!(
        "could not read {bytes} bytes at offset {offset} of {} ({error}){}",
        file.name(),
        file.advice()
    )
}

/// The error of a device that cannot read.
pub fn eio() -> std::io::Error {
    #[cfg(unix)]
    let error = std::io::Error::from_raw_os_error(libc::EIO);
    #[cfg(not(unix))]
    let error = std::io::ErrorKind::Other.into();
    error
}

/// Why `copy` cannot be done at all: it reaches past the end of a memory.
pub fn misfit(copy: &Copy) -> Option<&'static str> {
    let leaves = |bytes: usize, offset: usize| {
        let end = offset.checked_add(copy.bytes);
        end.is_none_or(|end| end > bytes)
    };
    let leaves_source = match &copy.from {
        Source::Memory { memory, offset } => leaves(memory.bytes(), *offset),
        Source::Device { memory, offset } => leaves(memory.bytes(), *offset),
        Source::File { .. } | Source::Pattern(_) => false,
    };
    let leaves_target = match &copy.to {
        Target::Memory { memory, offset } => leaves(memory.bytes(), *offset),
        Target::Device { memory, offset } => leaves(memory.bytes(), *offset),
        Target::File { .. } => false,
    };
    match (leaves_source, leaves_target) {
        (true, _) => Some("a copy begins or ends outside of its source"),
        (_, true) => Some("a copy begins or ends outside of its destination"),
        _ => None,
    }
}

/// The source of what is left of a copy after `start` bytes.
pub fn source_from(from: &Source, start: usize) -> Source {
    match from {
        Source::File { file, offset } => Source::File {
            file: Arc::clone(file),
            offset: offset + start as u64,
        },
        Source::Memory { memory, offset } => Source::Memory {
            memory: Arc::clone(memory),
            offset: offset + start,
        },
        Source::Device { memory, offset } => Source::Device {
            memory: Arc::clone(memory),
            offset: offset + start,
        },
        Source::Pattern(value) => Source::Pattern(*value),
    }
}

/// The destination of what is left of a copy after `start` bytes.
pub fn target_from(to: &Target, start: usize) -> Target {
    match to {
        Target::Memory { memory, offset } => Target::Memory {
            memory: Arc::clone(memory),
            offset: offset + start,
        },
        Target::Device { memory, offset } => Target::Device {
            memory: Arc::clone(memory),
            offset: offset + start,
        },
        Target::File { file, offset } => Target::File {
            file: Arc::clone(file),
            offset: offset + start as u64,
        },
    }
}

/// Bytes of a memory that a copy reads or writes.
#[expect(
    clippy::mut_from_ref,
    reason = "the memory is shared by address; the order of copies says who may write"
)]
fn bytes_of(memory: &HostMemory, offset: usize, bytes: usize) -> &mut [u8] {
    assert!(bytes <= memory.bytes() && offset <= memory.bytes() - bytes);
    // SAFETY:
    // - the range is inside its mapping (asserted), which the copy keeps alive;
    // - nobody else touches it until the ticket is done (contract of `CopyEngine`), and
    //   other copies keep their order.
    unsafe { std::slice::from_raw_parts_mut(memory.address(offset), bytes) }
}
