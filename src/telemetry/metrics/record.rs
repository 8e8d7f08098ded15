//! The records, field by field, in the order in which they are written. What the fields
//! mean, and their units, is the format: see the module's documentation. A test holds the
//! two together.

use serde::Serialize;

use super::clock;
use crate::device::report::{Move, Reason, Report, Stalls, Traffic};
use crate::error::Error;
use crate::forecast::revision::{self, Cause, What};
use crate::planner::cold::Shares;
use crate::telemetry::pressure::{Action, Decision};

/// A record of any kind.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Record {
    /// See the format, as for all below.
    Token(TokenRecord),
    #[allow(missing_docs, reason = "see the format")]
    Plan(PlanRecord),
    #[allow(missing_docs, reason = "see the format")]
    Evict(MoveRecord),
    #[allow(missing_docs, reason = "see the format")]
    Load(MoveRecord),
    #[allow(missing_docs, reason = "see the format")]
    Pressure(PressureRecord),
    #[allow(missing_docs, reason = "see the format")]
    Share(ShareRecord),
    #[allow(missing_docs, reason = "see the format")]
    Error(ErrorRecord),
    #[allow(missing_docs, reason = "see the format")]
    Summary(Box<SummaryRecord>),
    #[allow(missing_docs, reason = "see the format")]
    Log(LogRecord),
}

impl Record {
    /// What stands in the field `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Plan(_) => "plan",
            Self::Evict(_) => "evict",
            Self::Load(_) => "load",
            Self::Pressure(_) => "pressure",
            Self::Share(_) => "share",
            Self::Error(_) => "error",
            Self::Summary(_) => "summary",
            Self::Log(_) => "log",
        }
    }

    /// The record as a line, with its end; as several lines when `pretty`.
    pub fn line(&self, pretty: bool) -> String {
        #[derive(Serialize)]
        struct Stamped<'a> {
            r#type: &'static str,
            timestamp: String,
            #[serde(flatten)]
            record: &'a Record,
        }
        let stamped = Stamped {
            r#type: self.kind(),
            timestamp: clock::timestamp(),
            record: self,
        };
        let text = if pretty {
            serde_json::to_string_pretty(&stamped)
        } else {
            serde_json::to_string(&stamped)
        };
        // Strings, numbers and truth values always have a JSON form.
        let mut text = text.unwrap_or_default();
        text.push('\n');
        text
    }
}

macro_rules! record {
    ($(#[$about:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Serialize)]
        #[allow(missing_docs, reason = "the format says what each field means")]
        pub struct $name { $(pub $field: $type,)* }
    };
}

record! {
    /// A generated token, or an interval of several.
    TokenRecord {
        token: i32,
        prompt_tokens: u64,
        generated_tokens: u64,
        gpu_layers_active: u32,
        cpu_layers_active: u32,
        layers_evicted: u64,
        layers_loaded: u64,
        kv_pages_gpu: u64,
        kv_pages_cpu: u64,
        kv_pages_evicted: u64,
        kv_pages_prefetched: u64,
        vram_used_mb: f64,
        vram_total_mb: f64,
        ram_used_mb: f64,
        gpu_memory_pressure: f64,
        cpu_memory_pressure: f64,
        tokens_per_sec: f64,
        avg_tokens_per_sec: f64,
        prefetch_pending: u64,
        prefetch_completed: u64,
        prefetch_failed: u64,
        bytes_storage: u64,
        bytes_link: u64,
        bytes_write_back: u64,
        stall_storage_ms: f64,
        stall_link_ms: f64,
        stall_write_back_ms: f64,
        compute_ms: f64,
        resident_bytes: u64,
        streamed_bytes: u64,
        seconds_per_token: f64,
        seconds_per_token_predicted: Option<f64>,
        drafted_tokens: u64,
        accepted_tokens: u64,
        host_bytes: u64,
        host_ms: f64,
    }
}

record! {
    /// A plan that took effect.
    PlanRecord {
        reason: &'static str,
        generated_tokens: u64,
        model_bytes: u64,
        budget_bytes: u64,
        minimum_bytes: u64,
        arena_bytes_used: u64,
        resident_bytes: u64,
        streamed_bytes: u64,
        kv_resident_bytes: u64,
        kv_streamed_bytes: u64,
        pass_bytes: u64,
        ring_bytes: u64,
        scratch_bytes: u64,
        driver_bytes: u64,
        draft_bytes: u64,
        resident_layers: u32,
        layers: u32,
        kv_pages_gpu: u64,
        kv_pages_cpu: u64,
        load_bytes: u64,
        load_seconds: f64,
        direct: bool,
        host_layers: u32,
        host_pass_bytes: u64,
        host_copy_bytes: u64,
    }
}

record! {
    /// What a change of the plan moved.
    MoveRecord {
        reason: &'static str,
        layer: Option<u32>,
        states: bool,
        bytes: u64,
    }
}

record! {
    /// A decision about scarce memory.
    PressureRecord {
        action: &'static str,
        used_bytes: u64,
        total_bytes: u64,
        threshold: f64,
        budget_before_bytes: u64,
        budget_after_bytes: u64,
        minimum_bytes: u64,
    }
}

record! {
    /// A decision about the cold weights.
    ShareRecord {
        event: &'static str,
        cause: Option<&'static str>,
        generated_tokens: u64,
        share_before: f64,
        share_after: f64,
        seconds_per_token_predicted: f64,
        seconds_per_token_observed: Option<f64>,
        seconds_per_token_stream: f64,
        seconds_per_token_processor: f64,
        seconds_per_token_static: f64,
    }
}

record! {
    /// What ended the run.
    ErrorRecord {
        sentence: String,
        exit_code: u8,
    }
}

record! {
    /// The end.
    SummaryRecord {
        version: &'static str,
        exit_reason: &'static str,
        exit_code: u8,
        prompt_tokens: u64,
        generated_tokens: u64,
        load_seconds: f64,
        prompt_seconds: f64,
        generation_seconds: f64,
        avg_tokens_per_sec: Option<f64>,
        seconds_per_token_median: Option<f64>,
        seconds_per_token_p90: Option<f64>,
        seconds_per_token_p99: Option<f64>,
        seconds_per_token_max: Option<f64>,
        drafted_tokens: u64,
        accepted_tokens: u64,
        plans: u64,
        pressure_decisions: u64,
        layers_evicted: u64,
        layers_loaded: u64,
        kv_pages_evicted: u64,
        kv_pages_prefetched: u64,
        prefetch_completed: u64,
        prefetch_failed: u64,
        bytes_storage: u64,
        bytes_link: u64,
        bytes_write_back: u64,
        stall_storage_ms: f64,
        stall_link_ms: f64,
        stall_write_back_ms: f64,
        compute_ms: f64,
        host_bytes: u64,
        host_ms: f64,
        link_memory: Option<&'static str>,
        link_bytes_per_second: Option<f64>,
        graphs: u64,
        vram_peak_mb: f64,
        ram_peak_mb: f64,
    }
}

record! {
    /// A line of the log.
    LogRecord {
        level: Option<&'static str>,
        text: String,
    }
}

/// The word for a reason.
pub fn reason_word(reason: Reason) -> &'static str {
    match reason {
        Reason::Weights => "weights",
        Reason::Context => "context",
        Reason::Growth => "growth",
        Reason::Driver => "driver",
        Reason::Budget => "budget",
        Reason::Pressure => "pressure",
        Reason::Calm => "calm",
    }
}

/// The word for memory that copies over a link come from.
pub fn memory_word(is_pinned: bool) -> &'static str {
    match is_pinned {
        true => "pinned",
        false => "ordinary",
    }
}

/// The word for how a run ended.
pub fn exit_word(error: Option<&Error>) -> &'static str {
    match error {
        None => "done",
        Some(Error::Failed(_)) => "failed",
        Some(Error::Usage(_)) => "usage",
        Some(Error::NotBuilt(_)) => "not built",
        Some(Error::Memory(_)) => "memory",
        Some(Error::Bug(_)) => "bug",
        Some(Error::Interrupted { .. }) => "interrupted",
        Some(Error::OutputClosed) => "output closed",
    }
}

impl PlanRecord {
    /// The plan that `report` shows.
    pub fn new(reason: &'static str, generated_tokens: u64, report: &Report) -> Self {
        Self {
            reason,
            generated_tokens,
            model_bytes: report.model_bytes,
            budget_bytes: report.budget_bytes,
            minimum_bytes: report.minimum_bytes,
            arena_bytes_used: report.arena_bytes_used,
            resident_bytes: report.resident_bytes,
            streamed_bytes: report.streamed_bytes,
            kv_resident_bytes: report.kv_resident_bytes,
            kv_streamed_bytes: report.kv_streamed_bytes,
            pass_bytes: report.pass_bytes,
            ring_bytes: report.ring_bytes,
            scratch_bytes: report.scratch_bytes,
            driver_bytes: report.driver_bytes,
            draft_bytes: report.draft_bytes,
            resident_layers: report.resident_layers,
            layers: report.layers,
            kv_pages_gpu: report.kv_pages.resident,
            kv_pages_cpu: report.kv_pages.stored,
            load_bytes: report.load_bytes,
            load_seconds: round(report.load_seconds, 1e9),
            direct: report.direct,
            host_layers: report.host_layers,
            host_pass_bytes: report.host_pass_bytes,
            host_copy_bytes: report.host_copy_bytes,
        }
    }
}

/// What one move of a change is recorded as.
pub fn move_record(reason: Reason, moved: &Move) -> Record {
    let record = MoveRecord {
        reason: reason_word(reason),
        layer: moved.layer,
        states: moved.states,
        bytes: moved.bytes,
    };
    if moved.evicted {
        Record::Evict(record)
    } else {
        Record::Load(record)
    }
}

impl PressureRecord {
    /// A decision; `refused`: the device did not do it.
    pub fn new(decision: &Decision, refused: bool, threshold: f64, minimum_bytes: u64) -> Self {
        let action = match decision.action {
            _ if refused => "refused",
            Action::Shrink => "shrink",
            Action::Grow => "grow",
            Action::Exhausted => "exhausted",
        };
        let before = decision.before_bytes;
        Self {
            action,
            used_bytes: decision.level.used_bytes,
            total_bytes: decision.level.total_bytes,
            threshold,
            budget_before_bytes: before,
            budget_after_bytes: if refused {
                before
            } else {
                decision.after_bytes
            },
            minimum_bytes,
        }
    }
}

impl ShareRecord {
    /// A decision, and what was to choose from, when so many tokens were generated.
    pub fn new(generated_tokens: u64, decision: &revision::Decision, shares: &Shares) -> Self {
        let (event, cause) = match decision.what {
            What::Chosen => ("chosen", None),
            What::Revised(Cause::Processor) => ("revised", Some("processor")),
            What::Revised(Cause::Link) => ("revised", Some("link")),
            What::Revised(Cause::Device) => ("revised", Some("device")),
            What::Tried => ("tried", None),
            What::GivenUp => ("given_up", None),
            What::Kept => ("kept", None),
        };
        let seconds = |seconds: f64| round(seconds, 1e9);
        Self {
            event,
            cause,
            generated_tokens,
            share_before: round(decision.share_before, 1e4),
            share_after: round(decision.share_after, 1e4),
            seconds_per_token_predicted: seconds(decision.predicted_seconds),
            seconds_per_token_observed: decision.observed_seconds.map(seconds),
            seconds_per_token_stream: seconds(shares.stream_seconds),
            seconds_per_token_processor: seconds(shares.processor_seconds),
            seconds_per_token_static: seconds(shares.static_seconds),
        }
    }
}

/// Rounded to parts of which `parts` are one, so that no digits without meaning are
/// written; what is no number becomes 0.
pub fn round(value: f64, parts: f64) -> f64 {
    let rounded = (value * parts).round() / parts;
    if rounded.is_finite() { rounded } else { 0.0 }
}

/// Bytes as MiB with three digits behind the point.
#[allow(clippy::cast_precision_loss, reason = "rounded to three digits")]
pub fn mib(bytes: u64) -> f64 {
    round(bytes as f64 / (1024.0 * 1024.0), 1e3)
}

/// Seconds as milliseconds, to the microsecond.
pub fn ms(seconds: f64) -> f64 {
    round(seconds * 1e3, 1e3)
}

/// What moved and waited between two reports.
pub fn between(before: &Report, after: &Report) -> (Traffic, Stalls, f64) {
    let (old, new) = (&before.traffic, &after.traffic);
    let traffic = Traffic {
        storage_bytes: new.storage_bytes.saturating_sub(old.storage_bytes),
        link_bytes: new.link_bytes.saturating_sub(old.link_bytes),
        staged_bytes: new.staged_bytes.saturating_sub(old.staged_bytes),
        write_back_bytes: new.write_back_bytes.saturating_sub(old.write_back_bytes),
        storage_seconds: (new.storage_seconds - old.storage_seconds).max(0.0),
        link_seconds: (new.link_seconds - old.link_seconds).max(0.0),
        write_back_seconds: (new.write_back_seconds - old.write_back_seconds).max(0.0),
    };
    let (old, new) = (&before.stalls, &after.stalls);
    let stalls = Stalls {
        storage_seconds: (new.storage_seconds - old.storage_seconds).max(0.0),
        link_seconds: (new.link_seconds - old.link_seconds).max(0.0),
        write_back_seconds: (new.write_back_seconds - old.write_back_seconds).max(0.0),
    };
    let compute = (after.compute_seconds - before.compute_seconds).max(0.0);
    (traffic, stalls, compute)
}
