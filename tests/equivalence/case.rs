//! One case of the matrix: a model, what is paged under which budget, and llama.cpp's
//! settings.

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::sync::{Arc, Mutex, OnceLock};

use rpaged::device::report::Reason;
use rpaged::device::{Budget, Cold, Faults, PagedDevice, PagingConfig, Storage};

use crate::harness::{
    Cache, Flash, LlamaContext, LlamaModel, Logits, Placement, RunSpec, Step, difference,
    likeliest, run, run_paged, run_steps, stock,
};
use crate::models::Model;
use crate::models::random::Random;

/// What the device pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Paging {
    Weights,
    States,
    Both,
}

/// A budget, relative to what a model needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// The smallest legal one.
    Smallest,
    /// The smallest legal one and this part, in percent, of the way to everything that is paged.
    Percent(u64),
    /// More than the model and its states.
    Above,
}

/// How a device is set up, poison included.
pub fn config(model: Model, paging: Paging, budget: Budget) -> PagingConfig {
    PagingConfig {
        model: model.file().path.clone(),
        weights: paging != Paging::States,
        kv: paging != Paging::Weights,
        budget,
        prefetch: true,
        prefetch_threads: 2,
        prefetch_depth: 1,
        pinned_layers: Vec::new(),
        kv_page_tokens: 256,
        spill_folder: None,
        storage: Storage::Auto,
        lock: false,
        lazy_bytes_min: None,
        cold: Cold::Stream,
        inner: None,
        resident_layers_max: None,
        poison: true,
        faults: Faults::default(),
    }
}

/// More than any of the models and its states needs, in bytes.
pub const AMPLE_BYTES: u64 = 256 << 20;

/// The smallest legal budget for `spec`, and the one that keeps everything, in bytes, as
/// the device reports them under an ample one.
pub fn budgets(spec: &RunSpec, paging: Paging) -> (u64, u64) {
    type Known = Mutex<HashMap<(RunSpec, Paging), Arc<OnceLock<(u64, u64)>>>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let key = (spec.clone(), paging);
    let slot = Arc::clone(known.lock().unwrap().entry(key).or_default());
    *slot.get_or_init(|| {
        let ample = config(spec.model, paging, Budget::Bytes(AMPLE_BYTES));
        budgets_under(&ample, spec)
    })
}

/// The same under other settings, whose budget is ample.
pub fn budgets_under(ample: &PagingConfig, spec: &RunSpec) -> (u64, u64) {
    let device = PagedDevice::new(ample.clone()).unwrap();
    let model = LlamaModel::of(spec, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, spec).unwrap();
    // What is in use, and so the minimum, grows with the context.
    run_steps(&mut context, &spec.steps).unwrap();
    let report = device.report();
    assert!(report.minimum_bytes > 0, "no minimum for {spec:?}");
    assert!(
        report.minimum_bytes <= report.arena_bytes_used,
        "{report:?}"
    );
    (report.minimum_bytes, report.arena_bytes_used)
}

/// The smallest legal budget for `spec` in bytes.
pub fn minimum_budget(spec: &RunSpec, paging: Paging) -> u64 {
    budgets(spec, paging).0
}

/// One case.
#[derive(Clone)]
pub struct Case {
    pub spec: RunSpec,
    pub paging: Paging,
    pub size: Size,
    pub prefetch: bool,
    pub workers: usize,
}

/// Settings per axis of the matrix, in the order of [`Case::of`].
pub const AXES: [usize; 8] = [5, 2, 3, 3, 2, 3, 2, 2];

impl Case {
    /// The case whose settings have these indices.
    pub fn of(spec: &RunSpec, indices: &[usize]) -> Self {
        let mut spec = spec.clone();
        spec.ubatch = [1, 7, 512][indices[2]];
        spec.flash = [Flash::Auto, Flash::On, Flash::Off][indices[3]];
        spec.cache = [Cache::F16, Cache::Q8][indices[4]];
        spec.threads = [1, 2][indices[7]];
        let between = [25, 50, 75].map(Size::Percent);
        Self {
            spec,
            size: [
                Size::Smallest,
                between[0],
                between[1],
                between[2],
                Size::Above,
            ][indices[0]],
            prefetch: [true, false][indices[1]],
            paging: [Paging::Both, Paging::Weights, Paging::States][indices[5]],
            workers: [2, 1][indices[6]],
        }
    }

    /// The budget in bytes.
    pub fn budget_bytes(&self) -> u64 {
        let (minimum, everything) = budgets(&self.spec, self.paging);
        match self.size {
            Size::Smallest => minimum,
            Size::Percent(percent) => minimum + (everything - minimum) * percent / 100,
            Size::Above => AMPLE_BYTES,
        }
    }

    /// How the device is set up for this case.
    pub fn config(&self) -> PagingConfig {
        let budget = Budget::Bytes(self.budget_bytes());
        PagingConfig {
            prefetch: self.prefetch,
            prefetch_threads: self.workers,
            prefetch_depth: 1,
            pinned_layers: Vec::new(),
            kv_page_tokens: 256,
            spill_folder: None,
            storage: Storage::Auto,
            ..config(self.spec.model, self.paging, budget)
        }
    }

    /// Runs the case and tells what is wrong with it, if anything.
    pub fn check(&self) -> Option<String> {
        let expected = stock(&self.spec);
        match run_paged(&self.config(), &self.spec) {
            Ok(found) => difference(&expected, &found),
            Err(sentence) => Some(sentence),
        }
    }
}

impl Debug for Case {
    /// One line, without the steps.
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let spec = &self.spec;
        write!(
            formatter,
            "{:?} ubatch {} flash {:?} cache {:?} threads {} paging {:?} budget {:?} ({} bytes) \
             prefetch {} workers {}",
            spec.model,
            spec.ubatch,
            spec.flash,
            spec.cache,
            spec.threads,
            self.paging,
            self.size,
            self.budget_bytes(),
            self.prefetch,
            self.workers,
        )
    }
}

/// Runs all cases and panics with those that went wrong, the first few in full.
pub fn check_all(cases: impl IntoIterator<Item = Case>) {
    let (mut count, mut wrong) = (0, Vec::new());
    for case in cases {
        count += 1;
        if let Some(sentence) = case.check() {
            wrong.push(format!("{sentence}\n    in {case:?}"));
        }
    }
    let shown = wrong[..wrong.len().min(8)].join("\n  ");
    assert!(
        wrong.is_empty(),
        "{} of {count} cases are wrong:\n  {shown}",
        wrong.len()
    );
}

/// Runs `spec` stock twice: what the matrix relies on.
pub fn stock_repeats(spec: &RunSpec) -> Option<String> {
    difference(&stock(spec), &run(Placement::Stock, spec).unwrap())
}

/// Generates on `paged` as `spec` does after its prompt, each token under a budget drawn
/// between these two, in bytes. The changes that this made are left to be taken.
pub fn run_under_changing_budgets(
    paged: &PagedDevice,
    spec: &RunSpec,
    (minimum, everything): (u64, u64),
    random: &mut Random,
) -> Logits {
    let [prompt, generate] = &spec.steps[..] else {
        panic!("no prompt with tokens after it: {spec:?}")
    };
    let Step::Generate {
        sequence,
        position,
        count,
    } = *generate
    else {
        panic!("nothing is generated: {spec:?}")
    };
    let model = LlamaModel::load(&spec.model.file().path, Placement::Paged(paged)).unwrap();
    let mut context = LlamaContext::new(&model, spec).unwrap();
    let mut rows = run_steps(&mut context, std::slice::from_ref(prompt)).unwrap();
    paged.take_changes();
    for position in position..position + count {
        let part = u64::from(random.below(1000));
        let budget = minimum + (everything - minimum) * part / 1000;
        paged.set_budget(budget, Reason::Pressure).unwrap();
        let token = likeliest(rows.last().unwrap());
        let step = Step::feed(sequence, position, &[token]);
        rows.extend(run_steps(&mut context, &[step]).unwrap());
        let report = paged.report();
        assert!(report.arena_bytes_used <= budget, "{report:?} in {spec:?}");
    }
    rows
}

/// The steps of `spec` under three budgets, with and without prefetch, for all that can be
/// paged.
pub fn script_cases(spec: &RunSpec) -> Vec<Case> {
    let sizes = [Size::Smallest, Size::Percent(50), Size::Above];
    let mut cases = Vec::new();
    for size in sizes {
        for paging in [Paging::Both, Paging::States, Paging::Weights] {
            for prefetch in [true, false] {
                cases.push(Case {
                    spec: spec.clone(),
                    paging,
                    size,
                    prefetch,
                    workers: 2,
                });
            }
        }
    }
    cases
}

/// Runs all of [`script_cases`].
pub fn check_script(spec: &RunSpec) {
    check_all(script_cases(spec));
}
