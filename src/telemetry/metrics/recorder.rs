//! Makes records of what it is told: counts tokens, closes intervals, predicts. It knows
//! no clock and writes nothing.

use super::histogram::Histogram;
use super::record::{
    PlanRecord, PressureRecord, Record, ShareRecord, SummaryRecord, TokenRecord, between,
    exit_word, memory_word, mib, move_record, ms, reason_word, round,
};
use crate::device::Report;
use crate::device::report::Change;
use crate::error::Error;
use crate::forecast::revision;
use crate::llama::Token;
use crate::planner::cold::Shares;
use crate::telemetry::drafts::Drafts;
use crate::telemetry::memory::Process;
use crate::telemetry::prediction::{Passage, Rates};

/// The shortest time that a rate is taken of, in seconds.
const SHORTEST: f64 = 1e-9;

/// How things stand at the end of an interval.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The device's; None without paging.
    pub report: Option<Report>,
    /// The share of memory in use: the machine's or the control group's.
    pub memory_pressure: f64,
    /// What this process takes.
    pub process: Process,
    /// What drafting did; None without it.
    pub drafts: Option<Drafts>,
}

/// Makes the records of one run. Times are seconds since the program's start.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    /// Tokens of an interval; 0 as 1.
    interval: u32,
    prompt_tokens: u64,
    generated_tokens: u64,
    /// When the prompt began, and when the first and the last token were there.
    begun: Option<f64>,
    first_token: Option<f64>,
    last_token: f64,
    /// The interval that is open: since when, its tokens, the last of them.
    open_since: f64,
    open_tokens: u32,
    token: Token,
    /// The report at its beginning.
    before: Report,
    /// The last report of all.
    report: Report,
    /// What drafting had done at the interval's beginning.
    drafts: Drafts,
    rates: Rates,
    predicted: Option<f64>,
    /// Seconds of each token after the first.
    seconds: Histogram,
    plans: u64,
    pressure_decisions: u64,
    arena_bytes_peak: u64,
    process_bytes_peak: u64,
}

impl Recorder {
    /// Sets how many tokens an interval has.
    pub fn set_interval(&mut self, tokens: u32) {
        self.interval = tokens;
    }

    /// The model is loaded, a prompt of so many tokens is next.
    pub fn begin(&mut self, now: f64, prompt_tokens: u64, report: Option<Report>) {
        let report = report.unwrap_or_default();
        self.prompt_tokens = prompt_tokens;
        self.begun = Some(now);
        self.open_since = now;
        // Counters begin anew with the first graph; a warm-up was one.
        self.before = if report.graphs == 0 {
            Report::default()
        } else {
            report
        };
        self.rates = Rates::from_load(report.load_bytes, report.load_seconds);
        self.note(&report);
    }

    /// A token was generated; whether that ends an interval.
    pub fn token(&mut self, now: f64, token: Token) -> bool {
        if self.first_token.is_some() {
            self.seconds.add(now - self.last_token);
        } else {
            self.first_token = Some(now);
        }
        self.last_token = now;
        self.token = token;
        self.generated_tokens += 1;
        self.open_tokens += 1;
        self.open_tokens >= self.interval
    }

    /// Whether tokens were generated that no record tells of yet.
    pub fn is_open(&self) -> bool {
        self.open_tokens > 0
    }

    /// Closes the interval.
    pub fn close(&mut self, facts: &Facts) -> Record {
        let report = facts.report.unwrap_or_default();
        self.note(&report);
        self.process_bytes_peak = self.process_bytes_peak.max(facts.process.peak_bytes);
        let now = self.last_token;
        let seconds = (now - self.open_since).max(SHORTEST);
        let tokens = f64::from(self.open_tokens);
        let covers_prompt = self.generated_tokens == u64::from(self.open_tokens);
        let (traffic, stalls, compute_seconds) = between(&self.before, &report);
        let host_seconds = (report.host_seconds - self.before.host_seconds).max(0.0);
        let all_drafts = facts.drafts.unwrap_or_default();
        let drafts = all_drafts.since(&self.drafts);
        let record = TokenRecord {
            token: self.token,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated_tokens,
            gpu_layers_active: report.resident_layers,
            cpu_layers_active: report.layers.saturating_sub(report.resident_layers),
            layers_evicted: report.layers_evicted,
            layers_loaded: report.layers_loaded,
            kv_pages_gpu: report.kv_pages.resident,
            kv_pages_cpu: report.kv_pages.stored,
            kv_pages_evicted: report.kv_pages.evicted,
            kv_pages_prefetched: report.kv_pages.prefetched,
            vram_used_mb: mib(report.arena_bytes_used),
            vram_total_mb: mib(report.budget_bytes),
            ram_used_mb: mib(facts.process.resident_bytes),
            gpu_memory_pressure: share(report.arena_bytes_used, report.budget_bytes),
            cpu_memory_pressure: round(facts.memory_pressure, 1e4),
            tokens_per_sec: round(tokens / seconds, 1e3),
            avg_tokens_per_sec: round(self.average_rate().unwrap_or(tokens / seconds), 1e3),
            prefetch_pending: report.prefetches.pending,
            prefetch_completed: report.prefetches.completed,
            prefetch_failed: report.prefetches.failed,
            bytes_storage: traffic.storage_bytes,
            bytes_link: traffic.link_bytes,
            bytes_write_back: traffic.write_back_bytes,
            stall_storage_ms: ms(stalls.storage_seconds),
            stall_link_ms: ms(stalls.link_seconds),
            stall_write_back_ms: ms(stalls.write_back_seconds),
            compute_ms: ms(compute_seconds),
            resident_bytes: report.resident_bytes,
            streamed_bytes: report.streamed_bytes,
            seconds_per_token: round(seconds / tokens.max(1.0), 1e9),
            seconds_per_token_predicted: self.predicted.map(|seconds| round(seconds, 1e9)),
            drafted_tokens: drafts.drafted,
            accepted_tokens: drafts.accepted,
            host_bytes: report.host_bytes.saturating_sub(self.before.host_bytes),
            host_ms: ms(host_seconds),
        };
        if facts.report.is_some() {
            // A prompt is computed in batches: it says nothing about what a token takes.
            if !covers_prompt {
                self.rates.learn(&Passage {
                    tokens: self.open_tokens,
                    passes: facts
                        .drafts
                        .map_or(u64::from(self.open_tokens), |_| drafts.passes),
                    seconds,
                    bytes: traffic.bytes_in(),
                    copy_seconds: traffic.seconds_in(),
                    compute_seconds: compute_seconds + host_seconds + drafts.seconds,
                });
            }
            self.predicted = self.rates.predict(report.pass_bytes);
        }
        self.before = report;
        self.drafts = all_drafts;
        self.open_since = now;
        self.open_tokens = 0;
        Record::Token(record)
    }

    /// The plan as it is when the generation begins.
    pub fn start_plan(&mut self, report: &Report) -> Record {
        self.plan("start", report)
    }

    /// A change of the plan, and what it moved.
    pub fn change(&mut self, change: &Change) -> Vec<Record> {
        let plan = self.plan(reason_word(change.reason), &change.report);
        let moves = change.moves.iter();
        let moves = moves.map(|moved| move_record(change.reason, moved));
        std::iter::once(plan).chain(moves).collect()
    }

    fn plan(&mut self, reason: &'static str, report: &Report) -> Record {
        self.plans += 1;
        self.note(report);
        Record::Plan(PlanRecord::new(reason, self.generated_tokens, report))
    }

    /// A decision about scarce memory.
    pub fn pressure(&mut self, record: PressureRecord) -> Record {
        self.pressure_decisions += 1;
        Record::Pressure(record)
    }

    /// A decision about the cold weights.
    pub fn share(&self, decision: &revision::Decision, shares: &Shares) -> Record {
        Record::Share(ShareRecord::new(self.generated_tokens, decision, shares))
    }

    /// How things stand at the end, so that the summary is complete.
    pub fn settle(&mut self, facts: &Facts) {
        self.note(&facts.report.unwrap_or_default());
        self.drafts = facts.drafts.unwrap_or_default();
        self.process_bytes_peak = self.process_bytes_peak.max(facts.process.peak_bytes);
    }

    /// The end of the run; `process` as it is then.
    pub fn summary(&self, now: f64, error: Option<&Error>, process: Process) -> Record {
        let (report, traffic, stalls) = (&self.report, &self.report.traffic, &self.report.stalls);
        let begun = self.begun.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let seconds = |share| self.seconds.quantile(share).map(|time| round(time, 1e9));
        Record::Summary(Box::new(SummaryRecord {
            version: env!("CARGO_PKG_VERSION"),
            exit_reason: exit_word(error),
            exit_code: error.map_or(0, Error::exit_code),
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated_tokens,
            load_seconds: round(begun, 1e6),
            prompt_seconds: round(first - begun, 1e6),
            generation_seconds: round((self.last_token - first).max(0.0), 1e6),
            avg_tokens_per_sec: self.average_rate().map(|rate| round(rate, 1e3)),
            seconds_per_token_median: seconds(0.5),
            seconds_per_token_p90: seconds(0.9),
            seconds_per_token_p99: seconds(0.99),
            seconds_per_token_max: self.seconds.longest().map(|time| round(time, 1e9)),
            drafted_tokens: self.drafts.drafted,
            accepted_tokens: self.drafts.accepted,
            plans: self.plans,
            pressure_decisions: self.pressure_decisions,
            layers_evicted: report.layers_evicted,
            layers_loaded: report.layers_loaded,
            kv_pages_evicted: report.kv_pages.evicted,
            kv_pages_prefetched: report.kv_pages.prefetched,
            prefetch_completed: report.prefetches.completed,
            prefetch_failed: report.prefetches.failed,
            bytes_storage: traffic.storage_bytes,
            bytes_link: traffic.link_bytes,
            bytes_write_back: traffic.write_back_bytes,
            stall_storage_ms: ms(stalls.storage_seconds),
            stall_link_ms: ms(stalls.link_seconds),
            stall_write_back_ms: ms(stalls.write_back_seconds),
            compute_ms: ms(report.compute_seconds),
            host_bytes: report.host_bytes,
            host_ms: ms(report.host_seconds),
            link_memory: report.pinned.map(memory_word),
            link_bytes_per_second: report.link_rate().map(|rate| round(rate, 1.0)),
            graphs: report.graphs,
            vram_peak_mb: mib(self.arena_bytes_peak),
            ram_peak_mb: mib(self.process_bytes_peak.max(process.peak_bytes)),
        }))
    }

    /// Generated tokens after the first by time since; None when there are none.
    fn average_rate(&self) -> Option<f64> {
        let more = self
            .generated_tokens
            .checked_sub(1)
            .filter(|more| *more > 0)?;
        let seconds = (self.last_token - self.first_token?).max(SHORTEST);
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let more = more as f64;
        Some(more / seconds)
    }

    fn note(&mut self, report: &Report) {
        self.report = *report;
        self.arena_bytes_peak = self.arena_bytes_peak.max(report.arena_bytes_used);
    }
}

/// `part` of `whole`; 0 of nothing.
#[allow(clippy::cast_precision_loss, reason = "rounded to four digits")]
fn share(part: u64, whole: u64) -> f64 {
    round(part as f64 / whole.max(1) as f64, 1e4)
}
