//! Models and contexts, kept from run to run as far as memory allows.
//!
//! Cases that differ only in what a context or a budget can change share a model: the
//! budget of a paged one changes between runs, its context when batches, types, threads or
//! depth change. A model paged and unpaged is in memory twice; so are several models. All
//! of them stay while what they need together fits what was free at the start, in the memory
//! that they lie in: the machine's, or a device's own; otherwise the others there go before
//! one is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use super::arguments::{Arguments, paging_config};
use super::case::{Case, Variant};
use super::row::ModelFacts;
use super::{Paging, Plan};
use crate::calibration::Run;
use crate::cli::size::show_bytes;
use crate::device::report::Reason;
use crate::device::{self, Budget, PagedDevice};
use crate::error::{Error, Result};
use crate::ggml::InnerDevice;
use crate::llama::bench::{Context, Model};
use crate::session::cold::{Ahead, Shares};
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
    /// The device in whose memory it lies; None: the machine's.
    place: Option<InnerDevice>,
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
    /// The device in whose memory the model lies; None: the machine's.
    place: Option<InnerDevice>,
}

/// Memory of a device, or of the machine, that was free before anything was loaded.
struct Free {
    place: Option<InnerDevice>,
    bytes: u64,
}

/// All that is loaded.
pub struct Sessions<'a> {
    arguments: &'a Arguments,
    paging: &'a Paging,
    cases: &'a [Case],
    /// Their keys, in the same order.
    keys: Vec<Keys>,
    loaded: Vec<Loaded>,
    free: Vec<Free>,
    /// What devices had to say so far.
    said: BTreeSet<String>,
}

impl<'a> Sessions<'a> {
    /// Nothing is loaded yet.
    pub fn new(plan: &'a Plan, arguments: &'a Arguments, cases: &'a [Case]) -> Self {
        let mut places = BTreeMap::new();
        let mut keys = |case: &Case| {
            let mut model = arguments.model_words(case);
            // Under paging, both are settled when the device is made.
            let paged = case.variant.cold();
            let paged = paged.map(|cold| format!("paged {} {}", case.n_gpu_layers, cold.word()));
            model.extend(paged);
            let mut context = arguments.context_words(case);
            context.push(format!("{} {}", case.n_depth, case.embeddings));
            // The parser is asked once for all cases of a model.
            let place = *places.entry(model.clone()).or_insert_with(|| {
                if !case.is_paged() && case.n_gpu_layers == 0 {
                    // Whatever devices there are, all of it stays with the processor.
                    return None;
                }
                // What is wrong with its devices is told when it is loaded.
                let device = arguments.inner_device(case).ok().flatten();
                device.filter(|device| !device.is_host())
            });
            Keys {
                model,
                context,
                place,
            }
        };
        let keys: Vec<Keys> = cases.iter().map(&mut keys).collect();
        Self {
            arguments,
            paging: &plan.paging,
            cases,
            free: free(&keys),
            keys,
            loaded: Vec::new(),
            said: BTreeSet::new(),
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
        let place = self.keys[index].place;
        self.part_from_stock(place, case.is_paged());
        let bytes = needs(case, place, file_bytes, most);
        self.check_free(index, file_bytes)?;
        let room = share_of(self.free_bytes(place), SHARE);
        while let Some(first) = self.loaded.iter().position(|other| other.place == place) {
            let others = self.loaded.iter().filter(|other| other.place == place);
            let others: u64 = others.map(|loaded| loaded.bytes).sum();
            if others.saturating_add(bytes) <= room {
                break;
            }
            self.loaded.remove(first);
        }
        let own = case.variant.budget_bytes().unwrap_or(0);
        let ahead = self.ahead(index);
        let ((model, shares), budget_max) = match self.load_with(case, most, ahead) {
            // A smaller one may do where the largest cannot be had.
            Err(Error::Memory(_)) if own < most => (self.load_with(case, own, ahead)?, own),
            result => (result?, most),
        };
        let notices = model.device().map(PagedDevice::take_notices);
        for sentence in notices.into_iter().flatten() {
            if self.said.insert(sentence.clone()) {
                // The log is llama.cpp's, and silent without -v.
                drop(writeln!(std::io::stderr(), "{sentence}"));
            }
        }
        self.loaded.push(Loaded {
            ready: None,
            model,
            place,
            shares,
            key,
            bytes,
            budget_max,
        });
        Ok(self.loaded.len() - 1)
    }

    /// Where what the driver takes of a device is measured, what is held there has to be known:
    /// models that are paged lie beside such only.
    fn part_from_stock(&mut self, place: Option<InnerDevice>, is_paged: bool) {
        if !place.is_some_and(device::covers_driver) {
            return;
        }
        self.loaded
            .retain(|loaded| loaded.place != place || loaded.model.device().is_some() == is_paged);
    }

    fn load_with(
        &self,
        case: &Case,
        budget_bytes: u64,
        ahead: Ahead,
    ) -> Result<(std::rc::Rc<Model>, Option<Shares>)> {
        let mut shares = None;
        let device = if case.is_paged() {
            let inner = self.arguments.inner_device(case)?;
            let config = paging_config(case, self.paging, inner, budget_bytes);
            let run = Run::with_threads(&config, (case.n_threads, case.n_threads));
            shares = Shares::of_run(&config, &run, Some(ahead), false);
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
        let fellows = (0..self.cases.len()).filter(|other| self.keys[*other].model == *key);
        let fitting = fellows.filter(|other| self.check_free(*other, file_bytes).is_ok());
        let budgets = fitting.filter_map(|other| self.cases[other].variant.budget_bytes());
        budgets.max().unwrap_or(0)
    }

    /// The smallest budget and the longest context of the cases that share the model of the
    /// one at `index`.
    fn ahead(&self, index: usize) -> Ahead {
        let key = &self.keys[index].model;
        let fellows = || (0..self.cases.len()).filter(|other| self.keys[*other].model == *key);
        let budgets = fellows().filter_map(|other| self.cases[other].variant.budget_bytes());
        let tokens = fellows().map(|other| self.context_tokens(other)).max();
        Ahead {
            budget: Budget::Bytes(budgets.min().unwrap_or(0)),
            context_tokens: tokens.map_or(0, |tokens| u64::try_from(tokens).unwrap_or(0)),
        }
    }

    /// Refuses a budget that its memory does not have: the system would end the process.
    fn check_free(&self, index: usize, file_bytes: u64) -> Result<()> {
        let Some(budget) = self.cases[index].variant.budget_bytes() else {
            return Ok(());
        };
        let place = self.keys[index].place;
        let free = self.free_bytes(place);
        if budget.min(file_bytes) <= free {
            return Ok(());
        }
        let whose = place.map_or_else(String::new, |device| format!(" of {}", device.name()));
        Err(Error::Memory(format!(
            "a budget of {} is more than the {} of memory{whose} that were free; lower \
             --vram-budgets",
            show_bytes(budget),
            show_bytes(free)
        )))
    }

    /// What was free there before anything was loaded.
    fn free_bytes(&self, place: Option<InnerDevice>) -> u64 {
        let free = self.free.iter().find(|free| free.place == place);
        free.map_or(0, |free| free.bytes)
    }
}

/// The memory that is free in each of the places.
fn free(keys: &[Keys]) -> Vec<Free> {
    let mut all: Vec<Free> = Vec::new();
    for place in keys.iter().map(|keys| keys.place) {
        if !all.iter().any(|free| free.place == place) {
            let bytes = place.map_or_else(memory::available_bytes, |device| {
                memory::Level::of_device(device).available_bytes()
            });
            all.push(Free { place, bytes });
        }
    }
    all
}

/// Memory that the model of `case` takes at its place, about; `most`: the largest budget for
/// it.
fn needs(case: &Case, place: Option<InnerDevice>, file_bytes: u64, most: u64) -> u64 {
    let weights = match &case.variant {
        // Weights repacked for the processor are a copy beside the file's pages.
        Variant::Stock if case.repack && place.is_none() => file_bytes.saturating_mul(2),
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

#[cfg(test)]
mod tests {
    use async_device::{AsyncDevice, Options};

    use super::super::case::Axes;
    use super::*;
    use crate::bench::Process;

    fn paged(budget_bytes: u64) -> Case {
        Axes::of_test()
            .cases()
            .unwrap()
            .remove(0)
            .on(Variant::Paged {
                budget: String::new(),
                budget_bytes,
                cold: crate::device::Cold::Auto,
            })
    }

    #[test]
    fn each_case_is_bounded_by_the_memory_it_lies_in() {
        let device = AsyncDevice::new(Options {
            memory_bytes: 64 << 20,
            ..Options::default()
        });
        let device = device.unwrap();
        let place = InnerDevice::of_test(device.raw());
        let paging = Paging {
            weights: true,
            kv: true,
            prefetch: true,
            prefetch_threads: 1,
            prefetch_depth: 1,
            pinned_layers: Vec::new(),
            kv_page_tokens: 256,
            spill_folder: None,
        };
        let cases = [paged(96 << 20), paged(96 << 20), paged(32 << 20)];
        let keys = [None, place, place].map(|place| Keys {
            model: vec![format!("{place:?}")],
            context: Vec::new(),
            place,
        });
        let sessions = Sessions {
            arguments: &Arguments::new(Process::default()).unwrap(),
            paging: &paging,
            cases: &cases,
            free: free(&keys),
            keys: keys.into(),
            loaded: Vec::new(),
            said: BTreeSet::new(),
        };
        let file_bytes = 1 << 30;
        let refused = |index| sessions.check_free(index, file_bytes).err();
        assert!(refused(0).is_none() && refused(2).is_none());
        let sentence = refused(1).unwrap().to_string();
        for part in ["96.0 MiB", "64.0 MiB of memory of ASYNC0", "--vram-budgets"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        // What has no room in one memory is no largest budget there, whatever another has.
        assert_eq!(sessions.budget_max(0, file_bytes), 96 << 20);
        assert_eq!(sessions.budget_max(1, file_bytes), 32 << 20);
    }
}
