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
use crate::calibration::Run;
use crate::cli::size::show_bytes;
use crate::device::report::Reason;
use crate::device::{Budget, PagedDevice};
use crate::error::{Error, Result};
use crate::llama::bench::{Context, Model};
use crate::session::cold::Shares;
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
    /// Which cold weights the processor computes with, where a device computes.
    shares: Option<Shares>,
    key: Vec<String>,
    bytes: u64,
    budget_max: u64,
}

/// What tells the model and the context of a case from others.
struct Keys {
    model: Vec<String>,
    context: Vec<String>,
}

/// All that is loaded.
pub struct Sessions<'a> {
    arguments: &'a Arguments,
    paging: &'a Paging,
    cases: &'a [Case],
    /// Their keys, in the same order.
    keys: Vec<Keys>,
    loaded: Vec<Loaded>,
    /// Memory that was free before anything was loaded.
    free_bytes: u64,
}

impl<'a> Sessions<'a> {
    /// Nothing is loaded yet.
    pub fn new(plan: &'a Plan, arguments: &'a Arguments, cases: &'a [Case]) -> Self {
        let keys = |case: &Case| {
            let mut model = arguments.model_words(case);
            // Under paging, its layers are bounded when the device is made.
            let paged = case
                .is_paged()
                .then(|| format!("paged {}", case.n_gpu_layers));
            model.extend(paged);
            let mut context = arguments.context_words(case);
            context.push(format!("{} {}", case.n_depth, case.embeddings));
            Keys { model, context }
        };
        Self {
            arguments,
            paging: &plan.paging,
            cases,
            keys: cases.iter().map(keys).collect(),
            loaded: Vec::new(),
            free_bytes: free_bytes(arguments, cases),
        }
    }

    /// Tokens that the context of the case at `index` has room for: those of the largest
    /// case that may share it.
    fn context_tokens(&self, index: usize) -> i32 {
        let own = &self.keys[index];
        let fellows = self
            .cases
            .iter()
            .zip(&self.keys)
            .filter(|(_, keys)| keys.model == own.model && keys.context == own.context);
        let tokens = fellows.map(|(case, _)| case.tokens()).max().unwrap_or(0);
        self.cases[index].n_depth.saturating_add(tokens)
    }

    /// The context for the case at `index`, with its budget; what chooses the processor's share
    /// of the cold weights, if anything does; the facts about its model.
    ///
    /// # Errors
    /// Why this case cannot run.
    pub fn ready(&mut self, index: usize) -> Result<(&mut Ready, Option<&mut Shares>, ModelFacts)> {
        let case = &self.cases[index];
        let at = self.load(index)?;
        let n_ctx = self.context_tokens(index);
        let key = &self.keys[index].context;
        let loaded = &mut self.loaded[at];
        if loaded.ready.as_ref().is_none_or(|ready| ready.key != *key) {
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
                key: key.clone(),
            });
        }
        if let (Some(device), Some(bytes)) = (loaded.model.device(), case.variant.budget_bytes()) {
            set_budget(device, bytes)?;
            // Nothing is revised here: all repetitions are of one plan.
            if let Some(shares) = &mut loaded.shares {
                shares.begin_anew(device);
            }
        }
        let facts = ModelFacts {
            model_type: loaded.model.description(),
            model_size: loaded.model.bytes(),
            model_n_params: loaded.model.parameter_count(),
        };
        let ready = loaded.ready.as_mut();
        let ready = ready.ok_or_else(|| Error::Bug("a context is gone".to_owned()))?;
        Ok((ready, loaded.shares.as_mut(), facts))
    }

    /// Forgets the context of the case at `index`: after a failure nobody knows what it
    /// holds.
    pub fn forget(&mut self, index: usize) {
        let key = &self.keys[index].model;
        for loaded in self.loaded.iter_mut().filter(|loaded| loaded.key == *key) {
            loaded.ready = None;
        }
    }

    /// The place of the loaded model of the case at `index`.
    fn load(&mut self, index: usize) -> Result<usize> {
        let (case, key) = (&self.cases[index], self.keys[index].model.clone());
        if let Some(at) = self.loaded.iter().position(|loaded| loaded.key == key) {
            return Ok(at);
        }
        let file_bytes = crate::llama::inspect(case.model.path.as_ref())?.tensor_bytes;
        let most = self.budget_max(index, file_bytes);
        let bytes = needs(case, file_bytes, most);
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
        let least = Budget::Bytes(self.budget_min(index));
        let ((model, shares), budget_max) = match self.load_with(case, most, least) {
            // A smaller one may do where the largest cannot be had.
            Err(Error::Memory(_)) if own < most => (self.load_with(case, own, least)?, own),
            result => (result?, most),
        };
        self.loaded.push(Loaded {
            ready: None,
            model,
            shares,
            key,
            bytes,
            budget_max,
        });
        Ok(self.loaded.len() - 1)
    }

    fn load_with(
        &self,
        case: &Case,
        budget_bytes: u64,
        least: Budget,
    ) -> Result<(std::rc::Rc<Model>, Option<Shares>)> {
        let mut shares = None;
        let device = if case.is_paged() {
            let inner = self.arguments.inner_device(case)?;
            let config = paging_config(case, self.paging, inner, budget_bytes);
            let run = Run::with_threads(&config, (case.n_threads, case.n_threads));
            shares = Shares::of_run(&config, &run, least, false);
            Some(PagedDevice::new(config)?)
        } else {
            None
        };
        let model = Model::load(self.arguments.params(case)?, device, &case.model.shown)?;
        Ok((model, shares))
    }

    /// The largest budget of the cases that share the model of the one at `index`, of those
    /// that fit the memory there is.
    fn budget_max(&self, index: usize, file_bytes: u64) -> u64 {
        let key = &self.keys[index].model;
        let fellows = self.cases.iter().zip(&self.keys);
        let fellows = fellows
            .filter(|(_, keys)| keys.model == *key)
            .map(|(case, _)| case);
        let fitting = fellows.filter(|case| self.check_free(case, file_bytes).is_ok());
        let budgets = fitting.filter_map(|case| case.variant.budget_bytes());
        budgets.max().unwrap_or(0)
    }

    /// The smallest budget of the cases that share the model of the one at `index`.
    fn budget_min(&self, index: usize) -> u64 {
        let key = &self.keys[index].model;
        let fellows = self.cases.iter().zip(&self.keys);
        let fellows = fellows.filter(|(_, keys)| keys.model == *key);
        let budgets = fellows.filter_map(|(case, _)| case.variant.budget_bytes());
        budgets.min().unwrap_or(0)
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

/// Free memory: that of the device below the paged cases, where it has its own, else the
/// machine's.
fn free_bytes(arguments: &Arguments, cases: &[Case]) -> u64 {
    let mut paged = cases.iter().filter(|case| case.is_paged());
    let device = paged.find_map(|case| arguments.inner_device(case).ok().flatten());
    match device.filter(|device| !device.is_host()) {
        Some(device) => memory::Level::of_device(device).available_bytes(),
        None => memory::available_bytes(),
    }
}

/// Memory that the model of `case` takes, about; `most`: the largest budget for it.
fn needs(case: &Case, file_bytes: u64, most: u64) -> u64 {
    let weights = match &case.variant {
        // Repacked weights are a copy beside the file's pages.
        Variant::Stock if case.repack => file_bytes.saturating_mul(2),
        Variant::Stock => file_bytes,
        Variant::Paged { .. } => file_bytes.min(most),
    };
    weights.saturating_add(MODEL_OVERHEAD_BYTES)
}

fn set_budget(device: &PagedDevice, bytes: u64) -> Result<()> {
    if device.report().budget_bytes == bytes {
        return Ok(());
    }
    device.set_budget(bytes, Reason::Budget)
}
