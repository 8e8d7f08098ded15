//! The runs: rounds over all cases, there and back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Plan;
use super::arguments::Arguments;
use super::case::Case;
use super::curve;
use super::depth;
use super::journal::{Journal, Sweep};
use super::output::Outputs;
use super::progress::Progress;
use super::row::{Counters, ModelFacts, Row, Sample, set_ratios};
use super::sessions::{Ready, Sessions};
use crate::device::PagedDevice;
use crate::device::report::Report;
use crate::error::{Error, Result};
use crate::llama::bench::Build;
use crate::llama::{self, Decoded, Token};
use crate::session::signal;
use crate::telemetry::metrics::clock;

/// What is known about a case.
#[derive(Default)]
struct Known {
    model: Option<ModelFacts>,
    samples: Vec<Sample>,
    failure: Option<Error>,
}

/// Runs the cases of a sweep.
pub struct Runner<'a> {
    plan: &'a Plan,
    arguments: &'a Arguments,
    cases: Vec<Case>,
    known: Vec<Known>,
    /// What the headers of the models say, for cases that never load theirs.
    headers: BTreeMap<String, ModelFacts>,
    journal: Option<Journal>,
}

/// What a sweep has measured.
pub struct Results {
    /// A row for each case.
    pub rows: Vec<Row>,
    /// Why the first case cannot run, when none did.
    failure: Option<Error>,
}

impl Results {
    /// Success, unless nothing ran.
    ///
    /// # Errors
    /// Why the first case could not run, when none could.
    pub fn verdict(self) -> Result<()> {
        match self.failure {
            Some(failure) if self.rows.iter().all(|row| row.samples.is_empty()) => Err(failure),
            _ => Ok(()),
        }
    }
}

impl<'a> Runner<'a> {
    /// Reads what the journal holds, if there is one.
    ///
    /// # Errors
    /// What is wrong with the journal.
    pub fn new(
        plan: &'a Plan,
        arguments: &'a Arguments,
        cases: Vec<Case>,
        build: &Build,
    ) -> Result<Self> {
        let mut known: Vec<Known> = cases.iter().map(|_| Known::default()).collect();
        let mut headers = BTreeMap::new();
        for case in &cases {
            if !headers.contains_key(&case.model.shown) {
                let file = llama::inspect(case.model.path.as_ref())?;
                let facts = ModelFacts {
                    model_type: file.architecture,
                    model_size: file.tensor_bytes,
                    model_n_params: 0,
                };
                headers.insert(case.model.shown.clone(), facts);
            }
        }
        let mut journal = None;
        if let Some(path) = &plan.runs.journal {
            let sweep = Sweep::new(&cases, &plan.paging, &plan.runs, build)?;
            let (opened, runs) = Journal::open(path, &sweep)?;
            for (case, sample, facts) in runs {
                known[case].model = Some(facts);
                let samples = &mut known[case].samples;
                samples.retain(|before| before.round != sample.round);
                samples.push(sample);
            }
            journal = Some(opened);
        }
        Ok(Self {
            plan,
            arguments,
            cases,
            known,
            headers,
            journal,
        })
    }

    /// Runs what is not measured yet.
    ///
    /// # Errors
    /// `Interrupted`, or what makes further runs senseless.
    pub fn run(&mut self, outputs: &mut Outputs) -> Result<()> {
        let (plan, arguments) = (self.plan, self.arguments);
        let cases = self.cases.clone();
        let mut sessions = Sessions::new(plan, arguments, &cases);
        let todo = self.todo();
        let mut progress = Progress::new(&todo, plan.runs.progress);
        for (round, index) in todo {
            if self.known[index].failure.is_some() {
                progress.skip();
                continue;
            }
            let case = &cases[index];
            progress.begins(index, &format!("{} {}", case.test(), case.model.shown));
            let started = Instant::now();
            let ended = self.measure(&mut sessions, index, round, &mut progress);
            progress.ended(index, started.elapsed());
            match ended {
                Ok((sample, facts)) => {
                    if let Some(journal) = &mut self.journal {
                        journal.add(index, &sample, &facts)?;
                    }
                    self.known[index].samples.push(sample);
                    self.known[index].model = Some(facts);
                }
                Err(error @ (Error::Interrupted { .. } | Error::Bug(_))) => return Err(error),
                Err(error) => {
                    sessions.forget(index);
                    self.known[index].failure = Some(error);
                }
            }
            outputs.save(|| self.rows())?;
        }
        Ok(())
    }

    /// What is not measured yet, in order: round and case.
    fn todo(&self) -> Vec<(u32, usize)> {
        let mut todo = Vec::new();
        for round in 0..self.plan.runs.repetitions {
            let mut missing: Vec<usize> = (0..self.cases.len()).collect();
            missing.retain(|index| {
                let mut samples = self.known[*index].samples.iter();
                samples.all(|sample| sample.round != round)
            });
            if round % 2 == 1 {
                missing.reverse();
            }
            todo.extend(missing.into_iter().map(|index| (round, index)));
        }
        todo
    }

    fn measure(
        &self,
        sessions: &mut Sessions<'_>,
        index: usize,
        round: u32,
        progress: &mut Progress,
    ) -> Result<(Sample, ModelFacts)> {
        let (runs, case) = (&self.plan.runs, &self.cases[index]);
        let (ready, shares, facts) = sessions.ready(index)?;
        pause(runs.delay)?;
        let mut tokens = Tokens::new(ready, round);
        if runs.warm_up {
            progress.says("warmup run");
            warm_up(ready, case, &mut tokens)?;
        }
        let folder = runs.depth_folder.as_deref();
        if depth::is_missing(ready, case) && !depth::read(ready, case, folder)? {
            progress.says("depth run");
            depth::begin(ready);
            prompt(ready, case.n_depth, case.n_batch, &mut tokens)?;
            depth::keep(ready, case, folder)?;
        }
        // What fills the context may have made more cold.
        if let (Some(shares), Some(device)) = (shares, ready.context.model().device()) {
            shares.begin_anew(device);
        }
        progress.says(&format!("run {}/{}", round + 1, runs.repetitions));
        let time = clock::timestamp_seconds();
        let before = ready.context.model().device().map(PagedDevice::report);
        let started = Instant::now();
        prompt(ready, case.n_prompt, case.n_batch, &mut tokens)?;
        generate(ready, case.n_gen, &mut tokens)?;
        let elapsed = started.elapsed();
        let after = ready.context.model().device().map(PagedDevice::report);
        depth::empty(ready, case);
        ready.last = Some(case.clone());
        let sample = Sample {
            round,
            time,
            ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            paged: counted(before, after),
        };
        Ok((sample, facts))
    }

    /// A row for each case.
    pub fn rows(&self) -> Vec<Row> {
        let facts = |case: &Case| {
            // A model that was loaded for one case is known to all.
            let mut all = self.cases.iter().zip(&self.known);
            let found =
                all.find(|(other, known)| other.model == case.model && known.model.is_some());
            let loaded = found.and_then(|(_, known)| known.model.clone());
            loaded.or_else(|| self.headers.get(&case.model.shown).cloned())
        };
        let row = |(case, known): (&Case, &Known)| Row {
            case: case.clone(),
            model: facts(case),
            samples: known.samples.clone(),
            failure: known.failure.as_ref().map(ToString::to_string),
            ratio: None,
            law_ts: None,
        };
        let mut rows: Vec<Row> = self.cases.iter().zip(&self.known).map(row).collect();
        set_ratios(&mut rows);
        curve::set_law(&mut rows);
        rows
    }

    /// All that was measured; the failures move out.
    pub fn results(&mut self) -> Results {
        let rows = self.rows();
        let failures = self.known.iter_mut().map(|known| known.failure.take());
        let failure = failures.flatten().next();
        Results { rows, failure }
    }

    /// How far it came, and how to go on.
    pub fn where_it_stopped(&self) -> String {
        let done: usize = self.known.iter().map(|known| known.samples.len()).sum();
        let all = self.cases.len() * self.plan.runs.repetitions as usize;
        let how = match &self.plan.runs.journal {
            Some(path) => format!("the same command goes on where '{}' ends", path.display()),
            None => "with --resume FILE it could go on from here".to_owned(),
        };
        format!("interrupted after {done} of {all} runs; {how}")
    }
}

/// Random tokens, the same ones for all cases of a round.
struct Tokens {
    state: u64,
    vocabulary: u64,
    first: Option<Token>,
}

impl Tokens {
    fn new(ready: &Ready, round: u32) -> Self {
        let model = ready.context.model();
        Self {
            state: u64::from(round) + 1,
            vocabulary: u64::try_from(model.vocabulary()).unwrap_or(1).max(1),
            first: model.first_token(),
        }
    }

    fn random(&mut self) -> Token {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Token::try_from((mixed ^ (mixed >> 31)) % self.vocabulary).unwrap_or(0)
    }

    /// The token that begins a text.
    fn first(&mut self) -> Token {
        self.first.unwrap_or_else(|| self.random())
    }
}

fn interrupted() -> Result<()> {
    match signal::asked() {
        Some(signal) => Err(Error::Interrupted { signal }),
        None => Ok(()),
    }
}

fn pause(delay: Duration) -> Result<()> {
    let until = Instant::now() + delay;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        interrupted()?;
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    interrupted()
}

fn decode(ready: &mut Ready, tokens: &[Token]) -> Result<()> {
    interrupted()?;
    match ready.context.decode(tokens)? {
        Decoded::Done => Ok(()),
        Decoded::Aborted => Err(signal::interrupted()),
    }
}

/// As llama-bench reads a prompt: in batches, and without waiting between them.
fn prompt(ready: &mut Ready, count: i32, n_batch: i32, tokens: &mut Tokens) -> Result<()> {
    let (mut done, mut batch) = (0, Vec::new());
    while done < count {
        let size = (count - done).min(n_batch);
        batch.clear();
        batch.extend((0..size).map(|_| tokens.random()));
        if done == 0 {
            batch[0] = tokens.first();
        }
        decode(ready, &batch)?;
        done += size;
    }
    if count > 0 {
        ready.context.synchronize()?;
    }
    Ok(())
}

/// As llama-bench generates: one token after the other.
fn generate(ready: &mut Ready, count: i32, tokens: &mut Tokens) -> Result<()> {
    let mut token = tokens.first();
    for _ in 0..count {
        decode(ready, &[token])?;
        ready.context.synchronize()?;
        token = tokens.random();
    }
    Ok(())
}

/// A context that is new gets llama-bench's warm-up: all that will be measured of a prompt,
/// and a token. After another case or budget a token does: weights that stream are on
/// their way again. After the same case nothing has cooled.
fn warm_up(ready: &mut Ready, case: &Case, tokens: &mut Tokens) -> Result<()> {
    match &ready.last {
        Some(last) if last == case => {}
        Some(_) => {
            if ready.filled.is_none() {
                ready.context.clear();
            }
            generate(ready, 1, tokens)?;
            depth::empty(ready, case);
        }
        None => {
            ready.context.clear();
            ready.filled = None;
            prompt(ready, case.n_prompt, case.n_batch, tokens)?;
            if case.n_gen > 0 {
                ready.context.clear();
                generate(ready, 1, tokens)?;
            }
        }
    }
    Ok(())
}

/// What the device counted between two reports.
fn counted(before: Option<Report>, after: Option<Report>) -> Counters {
    let (Some(before), Some(after)) = (before, after) else {
        return Counters::default();
    };
    let copying = |report: &Report| report.traffic.seconds_in();
    Counters {
        bytes_in: after.bytes_in().saturating_sub(before.bytes_in()),
        bytes_out: after.bytes_out().saturating_sub(before.bytes_out()),
        copy_seconds: copying(&after) - copying(&before),
        stall_seconds: after.stalls.seconds() - before.stalls.seconds(),
        compute_seconds: after.compute_seconds - before.compute_seconds,
        minimum_bytes: after.minimum_bytes,
        resident_bytes: after.resident_bytes,
        streamed_bytes: after.streamed_bytes,
        host_bytes: after.host_bytes.saturating_sub(before.host_bytes),
    }
}
