//! Measuring as llama-bench does, over many budgets in one go.
//!
//! ```text
//!  cli::bench ──► Plan ──► case       all combinations of the lists, in order
//!                           │
//!                         runner ──► sessions    models, contexts, budgets
//!                           │  │
//!                           │  ├───► depth       what fills a context, from file to file
//!                           │  └───► journal     each run, as soon as it has ended
//!                           ▼
//!                         row ──► formats        md, csv, json, jsonl, sql
//!                           └───► curve ──► plot svg, png
//! ```
//!
//! A *round* runs each case once; rounds go there and back (A B C, C B A, ...), so that a
//! machine that grows slower tilts no ratio, and what stands at a turn need not be loaded
//! again. What a run measures is what llama-bench measures: a prompt in batches of `-b`
//! random tokens, or one token after the other, after a warm-up, at a depth of context that
//! was filled before the clock started.
//!
//! A case that cannot run is a row that says why. The sweep fails only when nothing ran.

mod arguments;
pub mod case;
mod curve;
mod depth;
mod formats;
mod journal;
mod output;
mod plot;
mod progress;
pub mod ranges;
mod row;
mod runner;
mod sessions;
mod statistics;

use std::path::PathBuf;
use std::time::Duration;

use self::arguments::Arguments;
use self::case::{Axes, Case, ModelName, Variant};
pub use self::formats::Format;
use self::output::Outputs;
use self::runner::Runner;
use crate::device::{self, Budget, Cold};
use crate::error::{Error, Result};
use crate::llama::{self, bench::Build, log};
use crate::session::demo::DemoModel;
use crate::session::signal;
use crate::telemetry::memory;
use crate::telemetry::pressure;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The lists; models and budgets are not in them yet.
    pub axes: Axes,
    /// The models, and where they are.
    pub models: Models,
    /// The budgets, each as it was given; empty: nothing is paged.
    pub budgets: Vec<(String, Budget)>,
    /// Who computes with cold weights in the paged cases; at least one.
    pub cold: Vec<Cold>,
    /// Whether unpaged runs are measured, too.
    pub stock: bool,
    /// How it is paged.
    pub paging: Paging,
    /// What holds for the whole process.
    pub process: Process,
    /// How the runs are made.
    pub runs: Runs,
    /// Where results go.
    pub results: Results,
}

/// The models of a sweep.
#[derive(Clone, Debug, Default)]
pub struct Models {
    /// Files.
    pub paths: Vec<String>,
    /// Repositories, with their files where those are given.
    pub repositories: Vec<(String, Option<String>)>,
    /// The token for these.
    pub token: Option<String>,
    /// No look at the network.
    pub offline: bool,
    /// The model inside this program.
    pub demo: bool,
}

/// How the paged cases are paged.
#[derive(Clone, Debug)]
pub struct Paging {
    /// `--dynamic-layers`
    pub weights: bool,
    /// `--paged-kv`
    pub kv: bool,
    /// `--async-prefetch`
    pub prefetch: bool,
    /// `--prefetch-threads`
    pub prefetch_threads: usize,
    /// `--prefetch-depth`
    pub prefetch_depth: u32,
    /// `--pin-layers`
    pub pinned_layers: Vec<u32>,
    /// `--kv-page-size`
    pub kv_page_tokens: u32,
    /// `--spill-dir`
    pub spill_folder: Option<PathBuf>,
}

/// What holds for the whole process.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// `--numa`; empty: llama.cpp does nothing about it.
    pub numa: String,
    /// `--prio`
    pub priority: i32,
    /// `--verbose`
    pub verbose: bool,
}

/// How the runs are made.
#[derive(Clone, Debug)]
pub struct Runs {
    /// `--repetitions`
    pub repetitions: u32,
    /// `--delay`
    pub delay: Duration,
    /// Not `--no-warmup`.
    pub warm_up: bool,
    /// `--progress`
    pub progress: bool,
    /// `--resume`
    pub journal: Option<PathBuf>,
    /// `--depth-dir`
    pub depth_folder: Option<PathBuf>,
}

/// Where results go.
#[derive(Clone, Debug)]
pub struct Results {
    /// `--output`
    pub stdout: Option<Format>,
    /// `--output-err`
    pub stderr: Option<Format>,
    /// `--output-file`
    pub file: Option<(PathBuf, Format)>,
    /// `--plot`
    pub plot: Option<PathBuf>,
}

/// Does the sweep.
///
/// # Errors
/// What is wrong with the command line; `Interrupted`, after what was measured has been
/// printed; why the first case could not run, when none could.
pub fn run(mut plan: Plan) -> Result<()> {
    let arguments = Arguments::new(plan.process.clone())?;
    let demo = plan.models.demo.then(DemoModel::new).transpose()?;
    plan.axes.model = models(&plan.models, demo.as_ref(), &arguments)?;
    let settings = arguments
        .parse(&arguments.process_words(&plan.axes.model[0].path))?
        .settings()?;
    let threads_default = settings.n_threads;
    if plan.axes.n_threads.is_empty() {
        plan.axes.n_threads.push(threads_default);
    }
    let mut cases = cases(&plan)?;
    fix_budgets(&mut cases, &plan, &arguments)?;
    check(&cases, &plan, &arguments)?;
    let mut outputs = Outputs::new(&plan, threads_default, Build::ask()?)?;
    if !llama::bench::set_priority(plan.process.priority) {
        return Err(Error::Failed(format!(
            "the system does not allow the priority {}; see --prio",
            plan.process.priority
        )));
    }
    llama::start_backend(settings.numa);
    let mut runner = Runner::new(&plan, &arguments, cases, outputs.build())?;
    signal::generation_begins();
    let ended = runner.run(&mut outputs);
    log::stop();
    let results = runner.results();
    outputs.finish(&results)?;
    if let Err(Error::Interrupted { .. }) = ended {
        outputs.say(&runner.where_it_stopped());
    }
    ended?;
    results.verdict()
}

/// The models with their files; what is elsewhere is downloaded.
fn models(
    models: &Models,
    demo: Option<&DemoModel>,
    arguments: &Arguments,
) -> Result<Vec<ModelName>> {
    let mut all = Vec::new();
    for path in &models.paths {
        all.push(ModelName {
            shown: path.clone(),
            path: path.clone(),
        });
    }
    for (repository, file) in &models.repositories {
        let mut words = vec!["-hf".to_owned(), repository.clone()];
        for (flag, value) in [("-hff", file), ("-hft", &models.token)] {
            words.extend(
                value
                    .iter()
                    .flat_map(|value| [flag.to_owned(), value.clone()]),
            );
        }
        words.extend(models.offline.then(|| "--offline".to_owned()));
        let path = arguments.parse(&words)?.model_path()?;
        let path = String::from_utf8_lossy(&path).into_owned();
        all.push(ModelName {
            shown: path.clone(),
            path,
        });
    }
    if let Some(demo) = demo {
        all.push(ModelName {
            shown: "demo".to_owned(),
            path: demo.path().to_string_lossy().into_owned(),
        });
    }
    if all.is_empty() {
        return Err(Error::Usage(
            "no model is given; name one with -m, -hf or --demo".to_owned(),
        ));
    }
    Ok(all)
}

/// Runs that a sweep may have; more would not end.
const RUNS_MAX: usize = 1_000_000;

fn cases(plan: &Plan) -> Result<Vec<Case>> {
    let mut axes = plan.axes.clone();
    // A budget changes between runs, who computes only with the model loaded anew.
    let of_budget = |cold: Cold, text: &str| Variant::Paged {
        budget: text.to_owned(),
        budget_bytes: 0,
        cold,
    };
    let budgets = || plan.budgets.iter().map(|(text, _)| text);
    let of_cold = |cold: &Cold| {
        budgets()
            .map(|text| of_budget(*cold, text))
            .collect::<Vec<_>>()
    };
    let paged = plan.cold.iter().flat_map(of_cold);
    let stock = (plan.stock || plan.budgets.is_empty()).then_some(Variant::Stock);
    axes.variant = stock.into_iter().chain(paged).collect();
    let cases = axes.cases().map_err(Error::Usage)?;
    let runs = cases.len() * plan.runs.repetitions as usize;
    if runs > RUNS_MAX {
        return Err(Error::Usage(format!(
            "these lists make {runs} runs, and {RUNS_MAX} are the most; lower -r or shorten one"
        )));
    }
    Ok(cases)
}

/// Replaces the budgets by bytes, once, so that all runs of a case have the same.
fn fix_budgets(cases: &mut [Case], plan: &Plan, arguments: &Arguments) -> Result<()> {
    let in_memory =
        pressure::automatic_budget(&memory::Reader::new().read(), pressure::THRESHOLD, 0);
    let mut sizes = std::collections::BTreeMap::new();
    for case in cases {
        let path = &case.model.path;
        if !sizes.contains_key(path) {
            sizes.insert(path.clone(), llama::inspect(path.as_ref())?.tensor_bytes);
        }
        let model_bytes = sizes[path];
        let device = match case.is_paged() {
            true => arguments.inner_device(case)?,
            false => None,
        };
        let Variant::Paged {
            budget,
            budget_bytes,
            ..
        } = &mut case.variant
        else {
            continue;
        };
        let given = plan.budgets.iter().find(|(text, _)| text == budget);
        let given = given.map_or(Budget::Auto, |(_, given)| *given);
        *budget_bytes = given.bytes(model_bytes, || {
            let device = device.filter(|device| !device.is_host());
            device.map_or(in_memory, device::automatic_budget_now)
        });
    }
    Ok(())
}

/// Refuses before the first run what could never work.
fn check(cases: &[Case], plan: &Plan, arguments: &Arguments) -> Result<()> {
    let mut checked = std::collections::BTreeSet::new();
    for case in cases {
        if case.is_paged()
            && let Some(sentence) = arguments::contradiction(case, &plan.paging)
        {
            return Err(Error::Usage(sentence));
        }
        let words = [arguments.model_words(case), arguments.context_words(case)].concat();
        if checked.insert(words) {
            arguments.params(case)?;
        }
    }
    if let Some(last) = plan.paging.pinned_layers.last() {
        for model in &plan.axes.model {
            let layers = llama::inspect(model.path.as_ref())?.layers;
            if *last >= layers {
                return Err(Error::Usage(format!(
                    "'{}' has {layers} layers, counted from 0: there is no layer '{last}' for \
                     --pin-layers",
                    model.shown
                )));
            }
        }
    }
    Ok(())
}
