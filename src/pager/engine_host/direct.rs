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
use std::sync::{Arc, Mutex, PoisonError};

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
    // Where the blocks are read to if not in place, while the read is under way.
    buffer: Option<Buffer>,
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
                buffer: None,
                done: 0,
                patience: Patience::default(),
            })
        }))
    }

    fn lead(&self) -> usize {
        lead_of(self.offset)
    }

    fn covered_bytes(&self) -> usize {
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

    /// Takes what the read needs while it is under way.
    ///
    /// # Panics
    /// When more reads are under way than there are buffers.
    pub fn prepare(&mut self, buffers: &Arc<Buffers>) {
        if !self.in_place {
            assert!(
                self.covered_bytes() <= buffers.bytes,
                "a piece is too large"
            );
            self.buffer = Some(Buffer::take(buffers));
        }
    }

    /// Memory and offset that the first of the covered blocks is read to.
    fn destination(&self) -> (&HostMemory, usize) {
        match &self.buffer {
            Some(buffer) => (&buffer.all.memory, buffer.offset),
            // A block that begins before the destination is in the same mapping: that
            // begins at a block.
            None => (&self.memory, self.to - self.lead()),
        }
    }

    /// What is to be read next: where in the file, to which address, how many bytes.
    pub fn place(&self) -> (u64, *mut u8, usize) {
        let (memory, offset) = self.destination();
        let address = memory.address(offset).wrapping_add(self.done);
        let start = self.offset - self.lead() as u64 + self.done as u64;
        (start, address, self.covered_bytes() - self.done)
    }

    /// Takes the outcome of one attempt: how many bytes came. None: read on, into what
    /// `place` says now.
    pub fn advance(&mut self, outcome: io::Result<usize>) -> Option<End> {
        let count = match self.play(outcome) {
            Ok(count) => count,
            Err(error) => return self.advance_failed(&error),
        };
        self.patience = Patience::default();
        if self.done + count >= self.lead() + self.bytes {
            self.unload();
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
    fn play(&mut self, outcome: io::Result<usize>) -> io::Result<usize> {
        match self.script.fault.take() {
            None | Some(Fault::FullDisk | Fault::DeadWorker) => outcome,
            Some(Fault::FailedRead) => Err(eio()),
            Some(Fault::RefusedDirectRead) => Err(io::ErrorKind::InvalidInput.into()),
            Some(Fault::ShortRead) => {
                let count = outcome?;
                let (_, address, _) = self.place();
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
    fn unload(&self) {
        if let Some(buffer) = &self.buffer {
            let from = buffer.offset + self.lead();
            // SAFETY:
            // - nobody else touches the destination until the ticket is done (contract of
            //   `CopyEngine`), and other copies keep their order;
            // - the buffer is this read's alone.
            unsafe {
                self.memory
                    .copy(self.to, &buffer.all.memory, from, self.bytes)
            };
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

    /// What the coordinator is to know. The read is not under way any more.
    pub fn report(mut self, end: End) -> Event {
        self.buffer = None;
        match end {
            End::Done(outcome) => Event::Done(self.job, outcome),
            End::Cached { refused } => Event::Cached {
                read: self,
                refused,
            },
        }
    }

    /// Reads here and now.
    fn read_blocking(&mut self) -> End {
        loop {
            let (start, address, left) = self.place();
            // SAFETY:
            // - the blocks lie in one mapping, which `self` keeps alive;
            // - they are this read's alone: the rest of the blocks belongs to the copy,
            //   or they are the buffer's.
            let to = unsafe { std::slice::from_raw_parts_mut(address, left) };
            let Some(outcome) = self.file.read_blocks_at(to, start) else {
                return End::Cached { refused: false };
            };
            if let Some(end) = self.advance(outcome) {
                return end;
            }
        }
    }
}

impl Work for Read {
    type Spare = ();

    fn job(&self) -> JobId {
        self.job
    }

    fn perform(mut self, _spare: &mut (), progress: &Progress) -> Event {
        pause(self.script.pause);
        Fault::strike_worker(self.script.fault);
        let busy = progress.busy(self.kind);
        let end = self.read_blocking();
        drop(busy);
        self.report(end)
    }
}

/// Aligned memory for reads that are not in place. It is one mapping, so that it gets
/// large pages: with small ones a disk needs twice the time.
#[derive(Debug)]
pub struct Buffers {
    memory: HostMemory,
    bytes: usize,
    // Where free ones begin. The last one given back is taken first: memory that is not
    // needed at all stays untouched.
    free: Mutex<Vec<usize>>,
}

impl Buffers {
    /// `count` buffers of `bytes` bytes each, a multiple of `BLOCK_BYTES`.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub fn new(count: usize, bytes: usize) -> io::Result<Self> {
        Ok(Self {
            memory: HostMemory::new(count * bytes)?,
            bytes,
            free: Mutex::new((0..count).rev().map(|index| index * bytes).collect()),
        })
    }
}

/// One of the buffers, in use.
#[derive(Debug)]
struct Buffer {
    all: Arc<Buffers>,
    offset: usize,
}

impl Buffer {
    fn take(all: &Arc<Buffers>) -> Self {
        let mut free = all.free.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            offset: free
                .pop()
                .expect("there is a buffer for each read under way"),
            all: Arc::clone(all),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.all.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(self.offset);
    }
}

/// Bytes between the beginning of the block that `offset` lies in, and `offset`.
fn lead_of(offset: u64) -> usize {
    narrow(offset % BLOCK_BYTES as u64)
}

fn narrow(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a part of a copy fits the address space")
}
