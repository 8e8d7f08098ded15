#![allow(
    unsafe_code,
    reason = "bytes are read and written where nobody else touches them"
)]
//! Access from outside a graph: the model's loader, session files, sequence copies,
//! clearing. Always sees, and makes, the newest bytes.

use std::ops::Range;
use std::sync::Arc;

use super::memory::HostMemory;
use super::{Backing, Pager, Place, TensorId};
use crate::error::{Error, Result};

impl Pager {
    /// Gives a tensor bytes, from `offset` on. Weights that are streamed are not kept:
    /// the model's file has them.
    ///
    /// # Errors
    /// `Failed` when an earlier copy failed.
    pub fn write(&mut self, id: TensorId, offset: usize, bytes: &[u8]) -> Result<()> {
        if let Some((memory, base)) = self.newest(id)? {
            // SAFETY:
            // - the bytes are llama.cpp's, not the arena's or the store's;
            // - the engine is drained and no graph runs: `newest` and `&mut self`.
            unsafe { memory.write(base + offset, bytes) };
        }
        let tensor = self.tensor_mut(id);
        tensor.loaded = true;
        tensor.untouched = false;
        self.slots.iter_mut().for_each(|slot| slot.invalidate(id));
        Ok(())
    }

    /// Fills a range of a tensor with a value.
    ///
    /// # Errors
    /// `Failed` when an earlier copy failed, or the tensor is a streamed weight.
    pub fn fill(&mut self, id: TensorId, range: Range<usize>, value: u8) -> Result<()> {
        let tensor = self.tensor_mut(id);
        if value == 0 && tensor.untouched && tensor.spec.backing.is_state() {
            return Ok(());
        }
        tensor.untouched = false;
        let Some((memory, base)) = self.newest(id)? else {
            return Err(Error::Bug("a streamed weight cannot be filled".to_owned()));
        };
        // SAFETY: as in `write`.
        unsafe { memory.fill(base + range.start..base + range.end, value) };
        self.slots.iter_mut().for_each(|slot| slot.invalidate(id));
        Ok(())
    }

    /// Fills the whole tensor with a value.
    ///
    /// # Errors
    /// As for `fill`.
    pub fn clear(&mut self, id: TensorId, value: u8) -> Result<()> {
        let bytes = self.tensor(id).spec.span_bytes;
        self.fill(id, 0..bytes, value)
    }

    /// Reads bytes of a tensor, from `offset` on.
    ///
    /// # Errors
    /// `Failed` when an earlier copy failed or the model's file cannot be read.
    pub fn read(&mut self, id: TensorId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        if let Some((memory, base)) = self.newest(id)? {
            // SAFETY: as in `write`.
            unsafe { memory.read(base + offset, bytes) };
            return Ok(());
        }
        match &self.tensor(id).spec.backing {
            Backing::Weight(location) => location
                .file
                .read_exact_at(bytes, location.offset + offset as u64)
                .map_err(|error| {
                    let path = location.file.path().display();
                    Error::Failed(format!("could not read weights of '{path}' ({error})"))
                }),
            Backing::State(..) => Err(Error::Bug("a state without memory was read".to_owned())),
        }
    }

    /// Where the newest bytes of a tensor are, once nothing is in flight; None when
    /// that is the model's file.
    fn newest(&mut self, id: TensorId) -> Result<Option<(Arc<HostMemory>, usize)>> {
        self.drain()?;
        let tensor = self.tensor(id);
        Ok(match (&tensor.place, &tensor.spec.backing) {
            (Place::Resident(block, offset), _) => Some((Arc::clone(block.memory()), *offset)),
            (_, Backing::State(memory, base)) => Some((Arc::clone(memory), *base)),
            (_, Backing::Weight(_)) => None,
        })
    }
}
