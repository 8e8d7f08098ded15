//! Models and contexts, kept from run to run as far as memory allows.
//!
//! Cases that differ only in what a context or a budget can change share a model: the
//! budget of a paged one changes between runs, its context when batches, types, threads or
//! depth change. A model paged and unpaged is in memory twice; so are several models. All
//! of them stay while what they need together fits what was free at the start; otherwise
//! the others go before one is loaded.

use super::arguments::{Arguments, paging_config};
use super::case::{Case, Variant};
use super::row::ModelFacts;
use super::{Paging, Plan};
use crate::cli::size::show_bytes;
use crate::device::PagedDevice;
use crate::device::report::Reason;
use crate::error::{Error, Result};
use crate::llama::bench::{Context, Model};
use crate::session::signal;
use crate::telemetry::memory::{self, share_of};

/// The share of the free memory that models may take before others have to go.
const SHARE: f64 = 0.85;

/// What a model takes beside its weights: context, scratch, the token embedding.
const MODEL_OVERHEAD_BYTES: u64 = 256 << 20;

/// What a context holds, so that it need not be filled again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Tokens.
    pub tokens: i32,
    /// First and last position, as the memory told them when it was filled.
    pub positions: (i32, i32),
}

/// A context with what is known about it.
pub struct Ready {
    /// The context.
    pub context: Context,
    /// What it holds.
    pub filled: Option<Filled>,
    /// The case that ran last on it.
    pub last: Option<Case>,
    key: Vec<String>,
}

/// A model that is loaded.
struct Loaded {
    /// Freed before the model.
    ready: Option<Ready>,
    model: std::rc::Rc<Model>,
    key: Vec<String>,
    bytes: u64,
    budget_max: u64,
}

/// All that is loaded.
pub struct Sessions<'a> {
    arguments: &'a Arguments,
    paging: &'a Paging,
    cases: &'a [Case],
    loaded: Vec<Loaded>,
    /// Memory that was free before anything was loaded.
    free_bytes: u64,
}

impl<'a> Sessions<'a> {
    /// Nothing is loaded yet.
    pub fn new(plan: &'a Plan, arguments: &'a Arguments, cases: &'a [Case]) -> Self {
        Self {
            arguments,
            paging: &plan.paging,
            cases,
            loaded: Vec::new(),
            free_bytes: memory::available_bytes(),
        }
    }

    /// What the model of `case` is loaded with.
    fn model_key(&self, case: &Case) -> Vec<String> {
        let mut key = self.arguments.model_words(case);
        // Under paging, its layers are bounded when the device is made.
        let paged = case
            .is_paged()
            .then(|| format!("paged {}", case.n_gpu_layers));
        key.extend(paged);
        key
    }

    /// Tokens that the context of `case` has room for: those of the largest case that may
    /// share it.
    fn context_tokens(&self, case: &Case) -> i32 {
        let (words, model) = (self.arguments.context_words(case), self.model_key(case));
        let fellows = self.cases.iter().filter(|other| {
            other.n_depth == case.n_depth
                && other.embeddings == case.embeddings
                && self.arguments.context_words(other) == words
                && self.model_key(other) == model
        });
        let tokens = fellows.map(Case::tokens).max().unwrap_or(0);
        case.n_depth.saturating_add(tokens)
    }

    /// The context for `case`, with its budget; the facts about its model.
    ///
    /// # Errors
    /// Why this case cannot run.
    pub fn ready(&mut self, case: &Case) -> Result<(&mut Ready, ModelFacts)> {
        let index = self.load(case)?;
        let n_ctx = self.context_tokens(case);
        let loaded = &mut self.loaded[index];
        let mut key = self.arguments.context_words(case);
        key.push(format!("{n_ctx} {} {}", case.n_depth, case.embeddings));
        if loaded.ready.as_ref().is_none_or(|ready| ready.key != key) {
            // Two contexts would share the budget.
            loaded.ready = None;
            if let Some(device) = loaded.model.device() {
                set_budget(device, loaded.budget_max)?;
            }
            let params = self.arguments.params(case)?;
            let mut context = Context::new(&loaded.model, &params, n_ctx, case.embeddings)?;
            context.set_abort(signal::abort);
            loaded.ready = Some(Ready {
                context,
                filled: None,
                last: None,
                key,
            });
        }
        if let (Some(device), Some(bytes)) = (loaded.model.device(), case.variant.budget_bytes()) {
            set_budget(device, bytes)?;
        }
        let facts = ModelFacts {
            model_type: loaded.model.description(),
            model_size: loaded.model.bytes(),
            model_n_params: loaded.model.parameter_count(),
        };
        let ready = loaded.ready.as_mut();
        let ready = ready.ok_or_else(|| Error::Bug("a context is gone".to_owned()))?;
        Ok((ready, facts))
    }

    /// Forgets the context of `case`: after a failure nobody knows what it holds.
    pub fn forget(&mut self, case: &Case) {
        let key = self.model_key(case);
        for loaded in self.loaded.iter_mut().filter(|loaded| loaded.key == key) {
            loaded.ready = None;
        }
    }

    /// The index of the loaded model of `case`.
    fn load(&mut self, case: &Case) -> Result<usize> {
        let key = self.model_key(case);
        if let Some(index) = self.loaded.iter().position(|loaded| loaded.key == key) {
            return Ok(index);
        }
        let file_bytes = crate::llama::inspect(case.model.path.as_ref())?.tensor_bytes;
        let bytes = self.needs(case, file_bytes);
        self.check_free(case, file_bytes)?;
        let room = share_of(self.free_bytes, SHARE);
        while !self.loaded.is_empty() {
            let others = self.loaded.iter().map(|loaded| loaded.bytes);
            if others.sum::<u64>().saturating_add(bytes) <= room {
                break;
            }
            self.loaded.remove(0);
        }
        let own = case.variant.budget_bytes().unwrap_or(0);
        let most = self.budget_max(case, file_bytes);
        let (model, budget_max) = match self.load_with(case, most) {
            // A smaller one may do where the largest cannot be had.
            Err(Error::Memory(_)) if own < most => (self.load_with(case, own)?, own),
            result => (result?, most),
        };
        self.loaded.push(Loaded {
            ready: None,
            model,
            key,
            bytes,
            budget_max,
        });
        Ok(self.loaded.len() - 1)
    }

    fn load_with(&self, case: &Case, budget_bytes: u64) -> Result<std::rc::Rc<Model>> {
        let device = if case.is_paged() {
            let config = paging_config(case, self.paging, budget_bytes);
            Some(PagedDevice::new(config)?)
        } else {
            None
        };
        Model::load(self.arguments.params(case)?, device, &case.model.shown)
    }

    /// The largest budget of the cases that share the model of `case`, of those that fit
    /// the memory there is.
    fn budget_max(&self, case: &Case, file_bytes: u64) -> u64 {
        let key = self.model_key(case);
        let fellows = self
            .cases
            .iter()
            .filter(|other| self.model_key(other) == key);
        let fitting = fellows.filter(|other| self.check_free(other, file_bytes).is_ok());
        let budgets = fitting.filter_map(|other| other.variant.budget_bytes());
        budgets.max().or(case.variant.budget_bytes()).unwrap_or(0)
    }

    /// Memory that the model of `case` takes, about.
    fn needs(&self, case: &Case, file_bytes: u64) -> u64 {
        let weights = match &case.variant {
            // Repacked weights are a copy beside the file's pages.
            Variant::Stock if case.repack => file_bytes.saturating_mul(2),
            Variant::Stock => file_bytes,
            Variant::Paged { .. } => file_bytes.min(self.budget_max(case, file_bytes)),
        };
        weights.saturating_add(MODEL_OVERHEAD_BYTES)
    }

    /// Refuses a budget that the machine does not have: the system would end the process.
    fn check_free(&self, case: &Case, file_bytes: u64) -> Result<()> {
        let Some(budget) = case.variant.budget_bytes() else {
            return Ok(());
        };
        if budget.min(file_bytes) <= self.free_bytes {
            return Ok(());
        }
        Err(Error::Memory(format!(
            "a budget of {} is more than the {} of memory that were free; lower --vram-budgets",
            show_bytes(budget),
            show_bytes(self.free_bytes)
        )))
    }
}

fn set_budget(device: &PagedDevice, bytes: u64) -> Result<()> {
    if device.report().budget_bytes == bytes {
        return Ok(());
    }
    device.set_budget(bytes, Reason::Budget)
}
