#![allow(
    unsafe_code,
    reason = "bytes are read and written where nobody else touches them"
)]
//! Access from outside a graph: the model's loader, session files, sequence copies,
//! clearing. Always sees, and makes, the newest bytes.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::block::Block;
use super::memory::HostMemory;
use super::state::Store;
use super::storage::StoreFile;
use super::{Backing, Pager, Place, TensorId};
use crate::error::{Error, Result};

/// Where the newest bytes of a tensor are.
enum Newest {
    /// In the arena, from this offset of a block on.
    Arena(Arc<Block>, usize),
    /// In host memory, from this offset on.
    Memory(Arc<HostMemory>, usize),
    /// In a file, from this offset on.
    File(Arc<StoreFile>, u64),
}

/// Bytes that are written at once when a range of a file is filled.
const FILL_BYTES: usize = 1 << 16;

impl Pager {
    /// Gives a tensor bytes, from `offset` on. Weights that are streamed or cached are not
    /// kept: the model's file has them.
    ///
    /// # Errors
    /// `Failed` when an earlier copy failed or the spill file cannot be written; `Memory`
    /// when no plan has room for what is in use now.
    pub fn write(&mut self, id: TensorId, offset: usize, bytes: &[u8]) -> Result<()> {
        let range = offset..offset + bytes.len();
        if !self.is_state(id) {
            self.tensor_mut(id).loaded = true;
            if self.is_streamed(id) || self.is_cached(id) {
                return Ok(());
            }
        }
        self.touch(id, &range)?;
        self.ring.invalidate(id);
        match self.newest(id)? {
            Newest::Arena(block, base) => block.write(base + offset, bytes),
            // SAFETY:
            // - the bytes are llama.cpp's, not the arena's or the store's;
            // - the engine is drained and no graph runs: `newest` and `&mut self`.
            Newest::Memory(memory, base) => unsafe { memory.write(base + offset, bytes) },
            Newest::File(file, base) => file
                .write_all_at(bytes, base + offset as u64)
                .map_err(|error| self.lose(&file, &error))?,
        }
        Ok(())
    }

    /// Fills a range of a tensor with a value.
    ///
    /// # Errors
    /// As for `write`; `Bug` when the tensor is a streamed or cached weight.
    pub fn fill(&mut self, id: TensorId, range: Range<usize>, value: u8) -> Result<()> {
        let state = self.tensor(id).state.as_ref();
        if value == 0 && state.is_some_and(|state| !state.is_written(&range)) {
            return Ok(());
        }
        if state.is_none() && (self.is_streamed(id) || self.is_cached(id)) {
            return Err(Error::Bug("a streamed weight cannot be filled".to_owned()));
        }
        self.touch(id, &range)?;
        self.ring.invalidate(id);
        match self.newest(id)? {
            Newest::Arena(block, base) => block.fill(base + range.start..base + range.end, value),
            Newest::Memory(memory, base) => {
                // SAFETY: as in `write`.
                unsafe { memory.fill(base + range.start..base + range.end, value) };
            }
            Newest::File(file, base) => {
                let piece = [value; FILL_BYTES];
                for start in range.clone().step_by(FILL_BYTES) {
                    let bytes = FILL_BYTES.min(range.end - start);
                    file.write_all_at(&piece[..bytes], base + start as u64)
                        .map_err(|error| self.lose(&file, &error))?;
                }
            }
        }
        Ok(())
    }

    /// Fills the whole tensor with a value. A state that becomes zero gives its pages back.
    ///
    /// # Errors
    /// As for `fill`.
    pub fn clear(&mut self, id: TensorId, value: u8) -> Result<()> {
        let bytes = self.tensor(id).spec.span_bytes;
        if value != 0 || !self.is_state(id) {
            return self.fill(id, 0..bytes, value);
        }
        let in_use = self
            .tensor(id)
            .state
            .as_ref()
            .map_or(0, super::State::bytes_in_use);
        if in_use == 0 {
            return Ok(());
        }
        self.drain()?;
        let tensor = self.tensor(id);
        let store = tensor.state.as_ref().and_then(|state| state.store.clone());
        match (&tensor.place, store) {
            (Place::Resident(block, offset), _) => block.release(*offset..offset + bytes),
            (_, Some(Store::File(file, base))) => file.release(base..base + in_use as u64),
            // SAFETY: the engine is drained and no graph runs.
            (_, Some(Store::Memory(memory))) => unsafe { memory.release(0..bytes) },
            (_, None) => {}
        }
        if let Some(state) = &mut self.tensor_mut(id).state {
            state.clear();
        }
        self.stale = true;
        self.ring.invalidate(id);
        let mut states = self
            .tensors
            .iter()
            .flatten()
            .filter_map(|tensor| tensor.state.as_ref());
        if states.all(|state| state.pages_written() == 0) {
            // Nothing is left of what was lost.
            self.lost = None;
        }
        Ok(())
    }

    /// After a write that failed half-way: nobody knows what the state holds.
    fn lose(&mut self, file: &StoreFile, error: &io::Error) -> Error {
        let error = spill_failed("write", file, error);
        self.lost = Some(error.to_string());
        error
    }

    /// Reads bytes of a tensor, from `offset` on.
    ///
    /// # Errors
    /// `Failed` when an earlier copy failed or a file cannot be read.
    pub fn read(&mut self, id: TensorId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let range = offset..offset + bytes.len();
        let state = self.tensor(id).state.as_ref();
        let mut bytes = bytes;
        if state.is_some() {
            self.check_states()?;
        }
        if let Some(state) = &self.tensor(id).state {
            // What is not in use is zero, and nowhere.
            let known = match state.is_written(&range) {
                true => state.bytes_in_use().clamp(offset, range.end) - offset,
                false => 0,
            };
            bytes[known..].fill(0);
            bytes = &mut bytes[..known];
        }
        match self.newest(id)? {
            Newest::Arena(block, base) => block.read(base + offset, bytes),
            // SAFETY: as in `write`.
            Newest::Memory(memory, base) => unsafe { memory.read(base + offset, bytes) },
            Newest::File(file, base) => file
                .read_exact_at(bytes, base + offset as u64)
                .map_err(|error| spill_failed("read", &file, &error))?,
        }
        Ok(())
    }

    /// Notes that a range of a state is about to be written, and makes room for it.
    fn touch(&mut self, id: TensorId, range: &Range<usize>) -> Result<()> {
        self.note_use(id, range.end);
        self.settle()?;
        // Not before: until now the store has nothing of a page that nobody had written.
        self.note_written(id, range);
        Ok(())
    }

    /// Where the newest bytes of a tensor are, once nothing is in flight.
    fn newest(&mut self, id: TensorId) -> Result<Newest> {
        self.drain()?;
        let newest = self.known(id)?;
        if let Newest::File(file, _) = &newest {
            file.check_unchanged().map_err(Error::Failed)?;
        }
        Ok(newest)
    }

    fn known(&self, id: TensorId) -> Result<Newest> {
        let tensor = self.tensor(id);
        if let Place::Resident(block, offset) = &tensor.place {
            return Ok(Newest::Arena(Arc::clone(block), *offset));
        }
        let store = tensor.state.as_ref().and_then(|state| state.store.clone());
        match (&tensor.spec.backing, store) {
            (Backing::Weight(at), _) => Ok(Newest::File(Arc::clone(&at.file), at.offset)),
            (_, Some(Store::Memory(memory))) => Ok(Newest::Memory(memory, 0)),
            (_, Some(Store::File(file, base))) => Ok(Newest::File(file, base)),
            (_, None) => Err(Error::Bug("a state without a store was used".to_owned())),
        }
    }
}

fn spill_failed(what: &str, file: &StoreFile, error: &io::Error) -> Error {
    Error::Failed(format!(
        "could not {what} '{}' ({error}); give another folder with --spill-dir",
        file.path().display()
    ))
}
