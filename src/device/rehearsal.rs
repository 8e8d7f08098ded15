//! A device that is only asked what it would take: llama.cpp makes a model and a context
//! without memory, and asks each buffer type how large a buffer for which tensors would
//! be. Ours takes notes, in the words in which it would plan.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::buffer::{self, Kind};
use super::outside;
use super::shared::Shared;
use super::{PagedDevice, PagingConfig};
use crate::error::Result;
use crate::ggml::Tensor;
use crate::pager::model_index::ModelIndex;
use crate::pager::outlook::Outlook;

/// What a tensor is to the computation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Its name.
    pub name: String,
    /// ggml's number of its element type.
    pub kind: u32,
    /// Elements of a row.
    pub columns: u64,
    /// Rows of one slice.
    pub rows: u64,
    /// Slices: experts, where it is made of them.
    pub slices: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// What was noted.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// The tensors that would be paged, in the pager's order.
    pub paged: Vec<Matrix>,
    /// The weights that llama.cpp would keep in its mapping of the files.
    pub mapped: Vec<Matrix>,
    /// Other tensors (a KV cache that is not paged) that would lie beside the arena, inside
    /// the budget; and the bytes that they would take.
    pub inner: Vec<Matrix>,
    /// See `inner`.
    pub inner_bytes: u64,
    /// Bytes of the weights that llama.cpp keeps to itself though weights are paged.
    pub unpaged_bytes: u64,
}

/// The notes of a device; None when it is a real one.
#[derive(Debug, Default)]
pub struct Notebook(Option<Mutex<Notes>>);

impl Notebook {
    /// One that is written into.
    pub fn open() -> Self {
        Self(Some(Mutex::default()))
    }

    /// Whether the device only takes notes.
    pub fn is_open(&self) -> bool {
        self.0.is_some()
    }

    fn notes(&self) -> Option<MutexGuard<'_, Notes>> {
        let notes = self.0.as_ref()?;
        Some(notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn matrix(tensor: Tensor<'_>) -> Matrix {
    let extent = |dim| u64::try_from(tensor.extent(dim)).unwrap_or(0);
    Matrix {
        name: tensor.name(),
        kind: tensor.element_type(),
        columns: extent(0),
        rows: extent(1),
        slices: extent(2) * extent(3),
        bytes: tensor.span_bytes() as u64,
    }
}

/// Notes tensors that a buffer would be made for.
pub fn note(shared: &Shared, tensors: &[Tensor<'_>]) -> Result<()> {
    let Some(mut notes) = shared.notebook.notes() else {
        return Ok(());
    };
    let matrices = tensors.iter().map(|tensor| matrix(*tensor));
    let kind = buffer::kind_of(shared, tensors)?;
    match kind {
        Kind::Inner => {
            let known = |tensor: &Tensor<'_>| shared.index.find(&tensor.name()).is_some();
            if tensors.iter().any(known) {
                notes.mapped.extend(matrices);
            } else {
                let sizes = buffer::arena_sizes(shared, tensors);
                notes.inner_bytes += sizes.iter().sum::<usize>() as u64;
                notes.inner.extend(matrices);
            }
            return Ok(());
        }
        Kind::Weights => notes.unpaged_bytes += outside::unpaged_bytes(shared, tensors),
        Kind::States => {}
    }
    notes.paged.extend(matrices);
    let sizes = buffer::arena_sizes(shared, tensors);
    let specs = tensors.iter().zip(sizes);
    let specs = specs.map(|(tensor, bytes)| buffer::spec_of(shared, &kind, *tensor, bytes));
    shared.paged().pager.note(specs.collect::<Result<_>>()?);
    Ok(())
}

/// A device that only takes notes. It must outlive the model and context that are made
/// with it, as every paged device.
#[derive(Debug)]
pub struct Rehearsal {
    device: PagedDevice,
}

impl Rehearsal {
    /// Reads the model's header.
    ///
    /// # Errors
    /// As `PagedDevice::new`.
    pub fn new(config: PagingConfig) -> Result<Self> {
        let device = PagedDevice::with_notebook(config, Notebook::open())?;
        Ok(Self { device })
    }

    /// The device.
    pub fn device(&self) -> &PagedDevice {
        &self.device
    }

    /// What was noted.
    pub fn notes(&self) -> Notes {
        let notes = self.device.shared.notebook.notes();
        notes.map(|notes| notes.clone()).unwrap_or_default()
    }

    /// The model's tensors, and what its header says of it.
    pub fn index(&self) -> &ModelIndex {
        &self.device.shared.index
    }

    /// Says how many tokens the context holds; `whole_values`: the values of the KV cache
    /// are read across all rows there are.
    pub fn imagine_context(&self, tokens: usize, whole_values: bool) {
        let page_tokens = self.device.shared.config.kv_page_tokens as usize;
        let mut paged = self.device.shared.paged();
        paged.pager.imagine_context(tokens, page_tokens, |role| {
            whole_values && role == "cache_v"
        });
    }

    /// What the plan would be; `outside_bytes`: what the budget covers beside the arena.
    ///
    /// # Errors
    /// `Memory` when no plan fits.
    pub fn outlook(&self, budget_bytes: u64, outside_bytes: u64) -> Result<Outlook> {
        let mut paged = self.device.shared.paged();
        paged.pager.outlook(budget_bytes, outside_bytes)
    }

    /// The smallest budget that would do, in bytes.
    pub fn minimum_bytes(&self, outside_bytes: u64) -> u64 {
        let mut paged = self.device.shared.paged();
        match paged.pager.outlook(u64::MAX, outside_bytes) {
            Ok(outlook) => outlook.minimum_bytes,
            Err(_) => paged.pager.least_bytes(),
        }
    }
}
