//! Reads past the page cache: whole blocks from the file, straight into place where the
//! copy allows that, through an aligned buffer otherwise.
//!
//! ```text
//!  file    ├────block────┼────block────┼────block────┤
//!  asked          ├───────── bytes ──────────┤
//!  covered ├─────────────────────────────────────────┤   read with one request
//!          │lead ─┤
//! ```
//!
//! A read is in place when the memory before and after the asked bytes may be written
//! too (or there is none), and lies in its blocks like the file's.

use std::io;
use std::sync::Arc;

use super::super::engine::{Copy, Source, Target};
use super::super::memory::HostMemory;
use super::super::storage::{BLOCK_BYTES, Patience, StoreFile};
use super::crew::{Event, Work};
use super::faults::{Fault, Script, pause};
use super::order::JobId;
use super::piece::{Piece, eio, unreadable};
use super::progress::{Kind, Progress};

/// What a test's short read leaves where it brought nothing.
const NOT_READ: u8 = 0xA5;

/// A piece of a copy that is read past the page cache.
#[derive(Debug)]
pub struct Read {
    job: JobId,
    pub kind: Option<Kind>,
    pub script: Script,
    file: Arc<StoreFile>,
    offset: u64,
    memory: Arc<HostMemory>,
    to: usize,
    bytes: usize,
    in_place: bool,
    // Bytes of the covered blocks that have been read.
    done: usize,
    patience: Patience,
}

/// How the attempts to read a piece end.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It is done, well or not.
    Done(Result<(), String>),
    /// It is to be read through the page cache: the file system refused, or it is the end
    /// of the file and only that way tells whether enough of it is there.
    Cached {
        /// Whether the file system refused.
        refused: bool,
    },
}

impl Read {
    /// The pieces of a copy, each of at most `piece_bytes` covered bytes, a multiple of
    /// `BLOCK_BYTES`; None when it cannot be read past the page cache.
    pub fn cut(
        job: JobId,
        kind: Option<Kind>,
        copy: &Copy,
        piece_bytes: usize,
    ) -> Option<impl Iterator<Item = Self>> {
        let (Source::File { file, offset }, Target::Memory { memory, offset: to }) =
            (&copy.from, &copy.to)
        else {
            return None;
        };
        if !file.is_direct() {
            return None;
        }
        let (first, piece) = (*offset, piece_bytes as u64);
        let end = first + copy.bytes as u64;
        let congruent = lead_of(first) == memory.address(*to).addr() % BLOCK_BYTES;
        // Cuts lie at whole blocks: only the first and the last piece have a rest.
        let mut start = first;
        Some(std::iter::from_fn(move || {
            let blocks = start / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            let next = (blocks + piece).min(end);
            let range = start..next;
            start = next;
            let has_rest = lead_of(range.start) > 0 || lead_of(range.end) > 0;
            (!range.is_empty()).then(|| Self {
                job,
                kind,
                script: Script::default(),
                file: Arc::clone(file),
                offset: range.start,
                memory: Arc::clone(memory),
                to: to + narrow(range.start - first),
                bytes: narrow(range.end - range.start),
                in_place: congruent && (copy.whole_blocks || !has_rest),
                done: 0,
                patience: Patience::default(),
            })
        }))
    }

    fn lead(&self) -> usize {
        lead_of(self.offset)
    }

    /// Bytes of the blocks that the asked bytes lie in.
    pub fn covered_bytes(&self) -> usize {
        (self.lead() + self.bytes).next_multiple_of(BLOCK_BYTES)
    }

    /// The file to read from.
    #[cfg(target_os = "linux")]
    pub fn file(&self) -> &StoreFile {
        &self.file
    }

    /// The file, when it now is known to refuse, and was not before.
    pub fn refuse_direct(&self) -> Option<&StoreFile> {
        self.file.refuse_direct().then_some(&self.file)
    }

    /// What is to be read next: where in the file, to which address, how many bytes.
    /// `bounce` is as large as the largest piece, and begins at a block.
    pub fn place(&self, bounce: &HostMemory) -> (u64, *mut u8, usize) {
        let start = self.offset - self.lead() as u64 + self.done as u64;
        let left = self.covered_bytes() - self.done;
        let address = if self.in_place {
            // A block that begins before the destination is in the same mapping: that
            // begins at a block.
            self.memory
                .address(self.to - self.lead())
                .wrapping_add(self.done)
        } else {
            assert!(
                self.covered_bytes() <= bounce.bytes(),
                "the bounce buffer is too small"
            );
            bounce.address(self.done)
        };
        (start, address, left)
    }

    /// Takes the outcome of one attempt: how many bytes came. None: read on, into what
    /// `place` says now.
    pub fn advance(&mut self, outcome: io::Result<usize>, bounce: &HostMemory) -> Option<End> {
        let count = match self.play(outcome, bounce) {
            Ok(count) => count,
            Err(error) => return self.advance_failed(&error),
        };
        self.patience = Patience::default();
        if self.done + count >= self.lead() + self.bytes {
            self.unload(bounce);
            return Some(End::Done(Ok(())));
        }
        let blocks = (self.done + count) / BLOCK_BYTES * BLOCK_BYTES;
        let progressed = blocks > self.done;
        self.done = blocks;
        (!progressed).then_some(End::Cached { refused: false })
    }

    fn advance_failed(&mut self, error: &io::Error) -> Option<End> {
        if self.patience.bears(error) {
            return None;
        }
        match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
                Some(End::Cached { refused: true })
            }
            _ => {
                let sentence = unreadable(&self.file, self.bytes, self.offset, error);
                Some(End::Done(Err(sentence)))
            }
        }
    }

    /// Puts what a test wants in the place of what happened, once.
    fn play(&mut self, outcome: io::Result<usize>, bounce: &HostMemory) -> io::Result<usize> {
        match self.script.fault.take() {
            None | Some(Fault::FullDisk | Fault::DeadWorker) => outcome,
            Some(Fault::FailedRead) => Err(eio()),
            Some(Fault::RefusedDirectRead) => Err(io::ErrorKind::InvalidInput.into()),
            Some(Fault::ShortRead) => {
                let count = outcome?;
                let (_, address, _) = self.place(bounce);
                // Not at a whole block.
                let short = count / 3 * 2;
                let address = address.wrapping_add(short);
                // SAFETY:
                // - the read has just written these bytes, and nobody else uses them yet.
                unsafe { address.write_bytes(NOT_READ, count - short) };
                Ok(short)
            }
        }
    }

    /// Copies what was asked for to its place.
    fn unload(&self, bounce: &HostMemory) {
        if !self.in_place {
            // SAFETY:
            // - nobody else touches the destination until the ticket is done (contract of
            //   `CopyEngine`), and other copies keep their order;
            // - the buffer is this read's alone.
            unsafe { self.memory.copy(self.to, bounce, self.lead(), self.bytes) };
        }
    }

    /// The same bytes, through the page cache.
    pub fn into_cached(self) -> Piece {
        Piece {
            job: self.job,
            kind: self.kind,
            from: Source::File {
                file: self.file,
                offset: self.offset,
            },
            to: Target::Memory {
                memory: self.memory,
                offset: self.to,
            },
            bytes: self.bytes,
            script: Script::default(),
        }
    }

    /// What the coordinator is to know.
    pub fn report(self, end: End) -> Event {
        match end {
            End::Done(outcome) => Event::Done(self.job, outcome),
            End::Cached { refused } => Event::Cached {
                read: self,
                refused,
            },
        }
    }

    /// Reads here and now.
    fn read_blocking(&mut self, bounce: &HostMemory) -> End {
        loop {
            let (start, address, left) = self.place(bounce);
            // SAFETY:
            // - the blocks lie in one mapping, which `self` or the caller keeps alive;
            // - they are this read's alone: the rest of the blocks belongs to the copy,
            //   or they are the bounce buffer's.
            let to = unsafe { std::slice::from_raw_parts_mut(address, left) };
            let Some(outcome) = self.file.read_blocks_at(to, start) else {
                return End::Cached { refused: false };
            };
            if let Some(end) = self.advance(outcome, bounce) {
                return end;
            }
        }
    }
}

impl Work for Read {
    // The bounce buffer, once it was needed.
    type Spare = Option<HostMemory>;

    fn job(&self) -> JobId {
        self.job
    }

    fn perform(mut self, spare: &mut Option<HostMemory>, progress: &Progress) -> Event {
        pause(self.script.pause);
        Fault::strike_worker(self.script.fault);
        let busy = progress.busy(self.kind);
        let bounce = match bounce(spare, self.covered_bytes()) {
            Ok(bounce) => bounce,
            Err(sentence) => return Event::Done(self.job, Err(sentence)),
        };
        let end = self.read_blocking(bounce);
        drop(busy);
        self.report(end)
    }
}

/// The bounce buffer in `spare`, of at least `bytes` bytes.
pub fn bounce(spare: &mut Option<HostMemory>, bytes: usize) -> Result<&HostMemory, String> {
    if spare.as_ref().is_none_or(|bounce| bounce.bytes() < bytes) {
        let memory = HostMemory::new(bytes)
            .map_err(|error| format!("could not get {bytes} bytes to read into ({error})"))?;
        *spare = Some(memory);
    }
    Ok(spare.as_ref().expect("made above"))
}

/// Bytes between the beginning of the block that `offset` lies in, and `offset`.
fn lead_of(offset: u64) -> usize {
    narrow(offset % BLOCK_BYTES as u64)
}

fn narrow(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a part of a copy fits the address space")
}
