//! Where states live while they are streamed: a place in the spill file, or host memory.

use std::sync::Arc;

use super::limits::mib;
use super::memory::HostMemory;
use super::replan::Halt;
use super::state::Store;
use super::storage::{BLOCK_BYTES, StoreFile};
use super::{Pager, StatesIn, TensorId};
use crate::planner::Placement;

impl Pager {
    /// Sees to it that each state that is or will be streamed has a store with room for
    /// what is in use.
    ///
    /// # Errors
    /// `Refused` when one cannot be had; that state is stuck in the arena from now on, and
    /// what was reserved for others that are still there is given back.
    pub(super) fn reserve_stores(
        &mut self,
        wanted: &[(TensorId, Placement)],
    ) -> std::result::Result<(), Halt> {
        let is_state = |id: TensorId| self.tensor(id).state.is_some();
        let streamed: Vec<TensorId> = wanted
            .iter()
            .filter(|(id, to)| *to == Placement::Streamed && is_state(*id))
            .map(|(id, _)| *id)
            .collect();
        for (index, id) in streamed.iter().enumerate() {
            if let Err(sentence) = self.reserve_store(*id) {
                self.set_stuck(*id, Some(sentence));
                for reserved in &streamed[..index] {
                    if !self.is_streamed(*reserved) {
                        self.release_store(*reserved);
                    }
                }
                return Err(Halt::Refused);
            }
        }
        Ok(())
    }

    /// Notes why a state cannot leave the arena, or that nothing is known against it.
    pub(super) fn set_stuck(&mut self, id: TensorId, why: Option<String>) {
        if let Some(state) = &mut self.tensor_mut(id).state {
            state.stuck = why;
        }
    }

    /// Has every state try the store again: a budget was changed, or disk space freed.
    pub(super) fn forget_stuck(&mut self) {
        let tensors = self.tensors.iter_mut().flatten();
        for state in tensors.filter_map(|tensor| tensor.state.as_mut()) {
            state.stuck = None;
        }
    }

    /// Why a state is stuck in the arena, if any is.
    pub(super) fn stuck_reason(&self) -> Option<&str> {
        let mut tensors = self.tensors.iter().flatten();
        tensors.find_map(|tensor| tensor.state.as_ref()?.stuck.as_deref())
    }

    fn reserve_store(&mut self, id: TensorId) -> std::result::Result<(), String> {
        let bytes = self.tensor(id).spec.span_bytes;
        let store = match self.tensor(id).state.as_ref().and_then(|s| s.store.clone()) {
            Some(store) => store,
            None => self.new_store(bytes)?,
        };
        let state = self.tensor_mut(id).state.as_mut();
        let state = state.expect("only states have stores");
        if let Store::File(file, base) = &store {
            let end = base + state.bytes_in_use() as u64;
            file.reserve(*base..end)
                .map_err(|error| spill_full(file, end - base, &error))?;
        }
        state.store = Some(store);
        Ok(())
    }

    fn new_store(&mut self, bytes: usize) -> std::result::Result<Store, String> {
        match &self.config.states_in {
            StatesIn::Memory => HostMemory::sparse(bytes)
                .map(|memory| Store::Memory(Arc::new(memory)))
                .map_err(|error| {
                    format!("could not get memory for the KV cache ({error}); lower -c")
                }),
            StatesIn::Folder(folder) => {
                if self.spill.is_none() {
                    let made = StoreFile::spill(folder).map_err(|error| {
                        let folder = folder.display();
                        format!(
                            "could not make a spill file for the KV cache in '{folder}' ({error}); \
                             give another folder with --spill-dir"
                        )
                    })?;
                    self.spill = Some((Arc::new(made), 0));
                }
                let (file, end) = self.spill.as_mut().expect("it was made above");
                let base = *end;
                *end += (bytes as u64).next_multiple_of(BLOCK_BYTES as u64);
                Ok(Store::File(Arc::clone(file), base))
            }
        }
    }

    /// A resident state needs no store.
    pub(super) fn release_store(&mut self, id: TensorId) {
        let tensor = self.tensor_mut(id);
        let bytes = tensor.spec.span_bytes as u64;
        let Some(state) = &mut tensor.state else {
            return;
        };
        match &state.store {
            // Its place in the file stays its own.
            Some(Store::File(file, base)) => file.release(*base..base + bytes),
            Some(Store::Memory(_)) => state.store = None,
            None => {}
        }
    }
}

fn spill_full(file: &StoreFile, bytes: u64, error: &std::io::Error) -> String {
    format!(
        "no room for {} of KV cache in the spill file in '{}' ({error}); give another folder with \
         --spill-dir, raise --vram-budget or lower -c",
        mib(bytes),
        file.path().display()
    )
}
