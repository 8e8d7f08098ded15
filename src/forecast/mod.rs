//! What a run will be, before it is: where the plan has each tensor, how much memory that
//! takes, and how fast it goes. Only the model's header is read.
//!
//! ```text
//!  header ─► rehearsal (device) ─► Subject ─┬─► Outlook (pager, planner): what stays, by budget
//!                                           │
//!  this machine ─► calibration ─────────────┴─► planner::cost ─► Speed
//! ```

pub mod advice;
pub mod record;
pub mod revision;
mod speed;
pub mod table;
pub mod ubatch;

use crate::calibration::{Kinds, Run, Wanted};
use crate::cli::Config;
use crate::device::PagingConfig;
use crate::device::rehearsal::{Notes, Rehearsal};
use crate::error::{Error, Result};
use crate::ggml::workload::is_measurable;
use crate::llama::{self, Facts};
use crate::pager::outlook::Outlook;
use crate::planner::Placement;
use crate::session::demo::DemoModel;

pub(crate) use self::speed::NODES_BY_LAYER;
pub use self::speed::{Speed, Step, pass_bytes, shares, speed};

/// llama.cpp reads rows of the KV cache up to a multiple of this many.
const ROWS_PADDING: usize = 256;

/// A model with a context, as a run would have them, of which nothing is loaded.
pub struct Subject {
    /// The model's name for messages.
    pub name: String,
    /// The model's architecture.
    pub architecture: String,
    /// What llama.cpp says of model and context.
    pub facts: Facts,
    /// The tensors.
    pub notes: Notes,
    /// Experts that a token uses of a layer, and how many there are; (0, 0) without.
    pub experts: (u64, u64),
    /// How it would be paged.
    pub paging: PagingConfig,
    /// What names the machine whose rates it would go by.
    pub run: Run,
    rehearsal: Rehearsal,
    // The demo's model has no file but this.
    _demo: Option<DemoModel>,
}

impl Subject {
    /// Rehearses what `config` describes.
    ///
    /// # Errors
    /// `Usage` when nothing is paged, `Failed` when the model cannot be read.
    pub fn new(config: Config) -> Result<Self> {
        let paging = config.paging.ok_or_else(|| {
            Error::Usage("there is no plan without paging; add --dynamic-layers".to_owned())
        })?;
        let settings = config.settings;
        let rehearsal = Rehearsal::new(paging.clone())?;
        let architecture = match rehearsal.index().architecture() {
            "" => "unknown".to_owned(),
            name => name.to_owned(),
        };
        let experts = rehearsal.index().experts();
        let facts = llama::rehearse(config.params, &rehearsal, &config.model_name)?;
        Ok(Self {
            name: config.model_name,
            architecture,
            facts,
            notes: rehearsal.notes(),
            experts,
            run: Run::new(&paging, &settings),
            paging,
            rehearsal,
            _demo: config.demo,
        })
    }

    /// Bytes of all tensors in the model's files.
    pub fn model_bytes(&self) -> u64 {
        self.rehearsal.index().bytes()
    }

    /// Whether the model's files are read past the page cache.
    pub fn is_direct(&self) -> bool {
        self.rehearsal.device().is_direct()
    }

    /// The budget as asked for, in bytes.
    pub fn budget_bytes(&self) -> u64 {
        self.paging.budget.bytes(self.model_bytes(), || u64::MAX)
    }

    /// Bytes of the budget that llama.cpp computes with.
    pub fn scratch_bytes(&self) -> u64 {
        self.facts.device_compute_bytes
    }

    /// The KV cache and recurrent states, paged or not.
    pub fn states(&self) -> impl Iterator<Item = &crate::device::rehearsal::Matrix> {
        let paged = self.notes.paged.iter();
        let paged = paged.filter(|matrix| !matrix.name.contains(".weight"));
        let paged = paged.filter(|matrix| !matrix.name.contains(".bias"));
        paged.chain(&self.notes.inner)
    }

    /// Bytes that the budget covers beside the arena.
    pub fn outside_bytes(&self) -> u64 {
        self.scratch_bytes() + self.notes.inner_bytes + self.notes.unpaged_bytes
    }

    /// Rows of the KV cache that are read when it holds so many tokens.
    pub fn rows(&self, tokens: usize) -> usize {
        let most = usize::try_from(self.facts.n_ctx).unwrap_or(usize::MAX);
        tokens.max(1).next_multiple_of(ROWS_PADDING).min(most)
    }

    /// The plan for a budget when the context holds so many tokens.
    ///
    /// # Errors
    /// `Memory` when there is none.
    pub fn outlook(&self, budget_bytes: u64, tokens: usize) -> Result<Outlook> {
        self.imagine(tokens);
        self.rehearsal.outlook(budget_bytes, self.outside_bytes())
    }

    /// The smallest budget that does when the context holds so many tokens, in bytes.
    pub fn minimum_bytes(&self, tokens: usize) -> u64 {
        self.imagine(tokens);
        self.rehearsal.minimum_bytes(self.outside_bytes())
    }

    /// The smallest budget with which everything stays, in bytes.
    pub fn whole_bytes(&self, tokens: usize) -> u64 {
        let outlook = self.outlook(u64::MAX, tokens);
        outlook.map_or(u64::MAX, |outlook| outlook.used_bytes())
    }

    fn imagine(&self, tokens: usize) {
        let whole_values = !self.facts.flash_attention;
        self.rehearsal
            .imagine_context(self.rows(tokens), whole_values);
    }

    /// What has to be measured for a forecast.
    pub fn wanted(&self) -> Wanted {
        let mut all = Kinds::default();
        for matrix in self.matrices().filter(|matrix| matrix.rows > 1) {
            all.add(matrix.kind, matrix.bytes);
        }
        let mut kinds = all.most_first();
        // Small vectors that are no matrices have types too.
        kinds.retain(|(kind, _)| is_measurable(*kind));
        Wanted {
            machine: self.run.machine(self.is_direct()),
            model: self.paging.model.clone(),
            kinds: kinds.into_iter().map(|(kind, _)| kind).collect(),
            ubatch: Some(self.batch_tokens()),
            head: self.facts.n_embd / self.facts.n_head.max(1),
            device: self.run.device(),
        }
    }

    /// Tokens of a full batch.
    pub fn batch_tokens(&self) -> u32 {
        self.facts.n_ubatch.min(self.facts.n_ctx).max(1)
    }

    /// The weights that are computed with: paged ones, and those in llama.cpp's mapping.
    pub fn matrices(&self) -> impl Iterator<Item = &crate::device::rehearsal::Matrix> {
        let paged = self.notes.paged.iter();
        let weights = paged.filter(|matrix| matrix.name.contains(".weight"));
        weights.chain(self.notes.mapped.iter().filter(|matrix| {
            // The table of embeddings is looked up; as an output it is listed once more.
            matrix.name.contains(".weight") && matrix.name != "token_embd.weight"
        }))
    }
}

/// Memory by kind, in bytes, as a plan would have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Weights that stay.
    pub weights_bytes: u64,
    /// KV cache and recurrent states that stay, or are not paged.
    pub states_bytes: u64,
    /// What streamed tensors take turns in.
    pub ring_bytes: u64,
    /// The cache of single experts.
    pub experts_bytes: u64,
    /// What llama.cpp computes with.
    pub scratch_bytes: u64,
    /// What the driver of the device that computes takes, as far as that was measured, and
    /// what more of it is to be expected.
    pub driver_bytes: u64,
    /// The token embedding, and other weights that llama.cpp keeps to itself.
    pub unpaged_bytes: u64,
    /// All of these: what of the budget is in use.
    pub used_bytes: u64,
    /// What llama.cpp takes beside the budget, on the CPU: staging of inputs and outputs.
    pub beside_bytes: u64,
}

/// Memory by kind of one plan.
pub fn memory(subject: &Subject, outlook: &Outlook) -> Memory {
    let resident = |state: bool| {
        outlook.sum(Placement::Resident, |tensor| {
            if tensor.state == state {
                tensor.arena_bytes
            } else {
                0
            }
        })
    };
    Memory {
        weights_bytes: resident(false),
        states_bytes: resident(true) + subject.notes.inner_bytes,
        ring_bytes: outlook.ring_bytes,
        experts_bytes: outlook.cache_bytes,
        scratch_bytes: subject.scratch_bytes(),
        driver_bytes: outlook.driver_bytes,
        unpaged_bytes: subject.notes.unpaged_bytes,
        used_bytes: outlook.used_bytes(),
        beside_bytes: subject.facts.host_compute_bytes + subject.facts.host_context_bytes,
    }
}

#[cfg(test)]
pub(crate) mod tests;
