//! Metrics: JSON Lines on standard error (`--metrics`), in a file (`--metrics-file`), or
//! both.
//!
//! A record is one JSON object on one line (on several with `--metrics-pretty`), written
//! with one call, so that lines are whole whatever ends the run. All fields of a kind are
//! always there, in this order. Sizes whose names end in `_mb` are MiB, as users of this
//! family of tools know them; all other sizes are bytes. Sums begin with the first graph
//! that is computed: what loading moved is not in them. Without paging, what paging would
//! count is 0.
//!
//! A run replaces what the file holds. Where none begins, because something is wrong with the
//! command line, the records of that go behind earlier ones, and a file of another kind is left
//! as it is. A file that can no longer be written is given up with one warning, and the run
//! goes on.
//!
#![doc = include_str!("format.md")]

pub mod clock;
mod histogram;
mod record;
mod recorder;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

pub use clock::timestamp;
pub use record::{ErrorRecord, LogRecord, PressureRecord, Record, ShareRecord};
pub use recorder::{Facts, Recorder};

use super::memory::ProcessReader;
use crate::device::Report;
use crate::device::report::Change;
use crate::error::Error;
use crate::forecast::revision;
use crate::llama::Token;
use crate::planner::cold::Shares;

/// The format as text, for tests and for the README.
pub const FORMAT: &str = include_str!("format.md");

/// The metrics of this process. Off until a sink is added.
pub static RUN: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// How long the end of the process waits for a record that is being written.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go.
type Sink = Box<dyn Write + Send>;

/// Makes records and writes them.
pub struct Metrics {
    started: Instant,
    /// Microseconds that nobody generated in: the user was typing.
    waited_us: AtomicU64,
    /// Whether there is a sink, or was one.
    on: AtomicBool,
    /// Whether standard error is one.
    on_stderr: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stderr: Option<Sink>,
    /// The file, and its name.
    file: Option<(Sink, String)>,
    pretty: bool,
    recorder: Recorder,
    /// What went wrong with the file, until somebody asks.
    complaint: Option<String>,
    /// The summary was written: nothing follows.
    ended: bool,
}

impl State {
    fn write(&mut self, record: &Record) {
        if self.ended {
            return;
        }
        let line = record.line(self.pretty);
        // Nobody who could be told reads standard error any more.
        self.stderr
            .take_if(|stderr| stderr.write_all(line.as_bytes()).is_err());
        if matches!(record, Record::Log(_)) {
            return;
        }
        let Some((file, name)) = &mut self.file else {
            return;
        };
        if let Err(error) = file.write_all(line.as_bytes()) {
            self.complaint = Some(format!(
                "could not write metrics to '{name}': {error}; the run goes on without them"
            ));
            self.file = None;
        }
    }
}

impl Metrics {
    /// Metrics without a sink: nothing is written.
    #[allow(clippy::new_without_default, reason = "it takes the time")]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            waited_us: AtomicU64::new(0),
            on: AtomicBool::new(false),
            on_stderr: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Writes to standard error from now on; `sink` is the real one.
    pub fn add_stderr(&self, sink: Sink) {
        self.lock().stderr = Some(sink);
        self.on.store(true, Ordering::Relaxed);
        self.on_stderr.store(true, Ordering::Relaxed);
    }

    /// Writes to a file from now on; `name` is for messages.
    pub fn add_file(&self, sink: Sink, name: String) {
        self.lock().file = Some((sink, name));
        self.on.store(true, Ordering::Relaxed);
    }

    /// Indents objects, and has a token's record follow only each so many tokens.
    pub fn set_form(&self, pretty: bool, interval: u32) {
        let mut state = self.lock();
        state.pretty = pretty;
        state.recorder.set_interval(interval);
    }

    /// Whether records are asked for.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Whether standard error holds nothing but objects.
    pub fn is_on_stderr(&self) -> bool {
        self.on_stderr.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the process's end, when whoever holds the lock may be the one that failed.
    fn lock_soon(&self) -> Option<MutexGuard<'_, State>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(state)) => return Some(state.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Seconds since the start, without the time that the user took.
    fn now(&self) -> f64 {
        let waited = Duration::from_micros(self.waited_us.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(waited).as_secs_f64()
    }

    /// The user has typed for so long: no token took that time.
    pub fn waited(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.waited_us.fetch_add(us, Ordering::Relaxed);
    }

    /// The model is loaded, a prompt of so many tokens is next.
    pub fn begin(&self, prompt_tokens: usize, report: Option<Report>) {
        let now = self.now();
        let mut state = self.lock();
        state.recorder.begin(now, prompt_tokens as u64, report);
        if let Some(report) = report {
            let plan = state.recorder.start_plan(&report);
            state.write(&plan);
        }
    }

    /// A token was generated; `facts` are asked for when its record is due.
    pub fn token(&self, token: Token, facts: impl FnOnce() -> Facts) {
        let now = self.now();
        let is_due = self.lock().recorder.token(now, token);
        if is_due {
            self.close(&facts());
        }
    }

    fn close(&self, facts: &Facts) {
        let mut state = self.lock();
        let record = state.recorder.close(facts);
        state.write(&record);
    }

    /// Plans that took effect.
    pub fn changes(&self, changes: &[Change]) {
        let mut state = self.lock();
        for change in changes {
            for record in state.recorder.change(change) {
                state.write(&record);
            }
        }
    }

    /// A decision about scarce memory.
    pub fn pressure(&self, record: PressureRecord) {
        let mut state = self.lock();
        let record = state.recorder.pressure(record);
        state.write(&record);
    }

    /// A decision about the cold weights.
    pub fn share(&self, decision: &revision::Decision, shares: &Shares) {
        let mut state = self.lock();
        let record = state.recorder.share(decision, shares);
        state.write(&record);
    }

    /// The generation is over, one way or another: writes what is left of an interval.
    pub fn settle(&self, facts: &Facts) {
        if self.lock().recorder.is_open() {
            self.close(facts);
        }
        self.lock().recorder.settle(facts);
    }

    /// A line of the log, for standard error.
    pub fn log(&self, level: Option<&'static str>, text: String) {
        self.lock().write(&Record::Log(LogRecord { level, text }));
    }

    /// What ends the run.
    pub fn error(&self, sentence: &str, exit_code: u8) {
        let record = Record::Error(ErrorRecord {
            sentence: sentence.to_owned(),
            exit_code,
        });
        if let Some(mut state) = self.lock_soon() {
            state.write(&record);
        }
    }

    /// The end of the run: writes the summary. What comes later is not written.
    pub fn end(&self, error: Option<&Error>) {
        let process = ProcessReader::new().read();
        let now = self.now();
        if let Some(mut state) = self.lock_soon() {
            let summary = state.recorder.summary(now, error, process);
            state.write(&summary);
            state.ended = true;
        }
    }

    /// What went wrong with a sink since this was last asked, as a sentence.
    pub fn take_complaint(&self) -> Option<String> {
        self.lock().complaint.take()
    }
}

#[cfg(test)]
mod tests;
