//! A row of the results: a case, what was measured of it, and all fields that the formats
//! write. llama-bench's fields come first, in its order; ours follow.

use serde::{Deserialize, Serialize};

use super::Paging;
use super::case::{Case, Variant};
use super::statistics::{self, Spread, deviation, mean, outliers, spread};
use crate::cli::size::show_bytes;
use crate::llama::bench::Build;

/// One run, as it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Which round, from 0.
    pub round: u32,
    /// When it began, in UTC.
    pub time: String,
    /// How long it took, in nanoseconds.
    pub ns: u64,
    /// What the paged device said about it; zeroes without.
    pub paged: Counters,
}

/// What the paged device counted in a run, and its plan at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes copied into the arena.
    pub bytes_in: u64,
    /// Bytes written back from it.
    pub bytes_out: u64,
    /// Time the copies into the arena took, summed over threads, in seconds.
    pub copy_seconds: f64,
    /// Time the computation waited for copies, in seconds.
    pub stall_seconds: f64,
    /// Time the inner device computed, in seconds.
    pub compute_seconds: f64,
    /// The smallest budget that would have done.
    pub minimum_bytes: u64,
    /// Weights that stayed in the arena.
    pub resident_bytes: u64,
    /// Weights that travelled in each pass.
    pub streamed_bytes: u64,
    /// Bytes of cold weights that the processor computed with, beside a device.
    #[serde(default)]
    pub host_bytes: u64,
}

/// What the results say about a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Its kind, as llama.cpp describes it.
    pub model_type: String,
    /// Bytes of its tensors.
    pub model_size: u64,
    /// Numbers in its tensors.
    pub model_n_params: u64,
}

/// A case with what is known about it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The case.
    pub case: Case,
    /// Its model; None when it was never loaded.
    pub model: Option<ModelFacts>,
    /// Its runs, oldest first.
    pub samples: Vec<Sample>,
    /// Why it cannot run.
    pub failure: Option<String>,
    /// Speed by that of the unpaged runs of the same round.
    pub ratio: Option<Spread>,
    /// What the law says, in tokens per second.
    pub law_ts: Option<f64>,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// True or false.
    Truth,
    /// A whole number.
    Whole,
    /// A number.
    Real,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// True or false.
    Truth(bool),
    /// A whole number.
    Whole(i64),
    /// A number.
    Real(f64),
    /// There is none.
    Nothing,
}

/// llama-bench's fields in its order, and what each holds.
pub const THEIRS: [(&str, Kind); 42] = [
    ("build_commit", Kind::Text),
    ("build_number", Kind::Whole),
    ("cpu_info", Kind::Text),
    ("gpu_info", Kind::Text),
    ("backends", Kind::Text),
    ("model_filename", Kind::Text),
    ("model_type", Kind::Text),
    ("model_size", Kind::Whole),
    ("model_n_params", Kind::Whole),
    ("n_batch", Kind::Whole),
    ("n_ubatch", Kind::Whole),
    ("n_threads", Kind::Whole),
    ("cpu_mask", Kind::Text),
    ("cpu_strict", Kind::Truth),
    ("poll", Kind::Whole),
    ("type_k", Kind::Text),
    ("type_v", Kind::Text),
    ("n_gpu_layers", Kind::Whole),
    ("n_cpu_moe", Kind::Whole),
    ("split_mode", Kind::Text),
    ("main_gpu", Kind::Whole),
    ("no_kv_offload", Kind::Truth),
    ("flash_attn", Kind::Whole),
    ("devices", Kind::Text),
    ("tensor_split", Kind::Text),
    ("tensor_buft_overrides", Kind::Text),
    ("load_mode", Kind::Text),
    ("lazy_mode", Kind::Text),
    ("embeddings", Kind::Truth),
    ("no_op_offload", Kind::Whole),
    ("no_host", Kind::Truth),
    ("repack", Kind::Truth),
    ("fit_target", Kind::Whole),
    ("fit_min_ctx", Kind::Whole),
    ("n_prompt", Kind::Whole),
    ("n_gen", Kind::Whole),
    ("n_depth", Kind::Whole),
    ("test_time", Kind::Text),
    ("avg_ns", Kind::Whole),
    ("stddev_ns", Kind::Whole),
    ("avg_ts", Kind::Real),
    ("stddev_ts", Kind::Real),
];

/// Our fields, behind theirs.
pub const OURS: [(&str, Kind); 23] = [
    ("rpaged_version", Kind::Text),
    ("paging", Kind::Text),
    ("vram_budget", Kind::Text),
    ("cold", Kind::Text),
    ("budget_bytes", Kind::Whole),
    ("minimum_bytes", Kind::Whole),
    ("resident_bytes", Kind::Whole),
    ("streamed_bytes", Kind::Whole),
    ("repetitions", Kind::Whole),
    ("median_ns", Kind::Whole),
    ("mad_ns", Kind::Whole),
    ("median_ts", Kind::Real),
    ("mad_ts", Kind::Real),
    ("outliers", Kind::Whole),
    ("ratio_to_stock", Kind::Real),
    ("ratio_mad", Kind::Real),
    ("bytes_per_token", Kind::Whole),
    ("host_bytes_per_token", Kind::Whole),
    ("copy_bytes_per_sec", Kind::Whole),
    ("stall_ms", Kind::Real),
    ("compute_ms", Kind::Real),
    ("law_ts", Kind::Real),
    ("note", Kind::Text),
];

#[allow(
    clippy::cast_possible_truncation,
    reason = "nanoseconds and bytes; a conversion from float saturates"
)]
fn whole(value: f64) -> Value {
    Value::Whole(value.round() as i64)
}

fn bytes(value: u64) -> Value {
    Value::Whole(i64::try_from(value).unwrap_or(i64::MAX))
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn or_nothing<T>(value: Option<T>, of: impl FnOnce(T) -> Value) -> Value {
    value.map_or(Value::Nothing, of)
}

impl Row {
    /// How long the runs took, in nanoseconds.
    #[allow(clippy::cast_precision_loss, reason = "shorter than a hundred days")]
    pub fn times(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.ns as f64).collect()
    }

    /// Their speeds, in tokens per second.
    pub fn speeds(&self) -> Vec<f64> {
        let tokens = f64::from(self.case.tokens());
        self.times().iter().map(|ns| 1e9 * tokens / ns).collect()
    }

    /// Bytes that a token had copied into the arena: the median of the runs.
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    pub fn bytes_per_token(&self) -> Option<f64> {
        let tokens = f64::from(self.case.tokens());
        let of = |sample: &Sample| sample.paged.bytes_in as f64 / tokens;
        statistics::median(&self.samples.iter().map(of).collect::<Vec<_>>())
    }

    /// The rate of the copies, in bytes per second; None when nothing was copied. Threads
    /// that copy side by side count their seconds each; together they are not slower than
    /// the clock says.
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    pub fn copy_rate(&self) -> Option<f64> {
        let rate = |sample: &Sample| {
            let seconds = sample.paged.copy_seconds.min(sample.ns as f64 / 1e9);
            let bytes = sample.paged.bytes_in as f64;
            (bytes > 0.0 && seconds > 0.0).then(|| bytes / seconds)
        };
        statistics::median(&self.samples.iter().filter_map(rate).collect::<Vec<_>>())
    }

    /// Median of what `of` takes from the device's counters.
    fn counted(&self, of: impl Fn(&Counters) -> f64) -> Option<f64> {
        let values: Vec<f64> = self
            .samples
            .iter()
            .map(|sample| of(&sample.paged))
            .collect();
        statistics::median(&values)
    }

    /// Seconds the inner device computed for a token.
    pub fn compute_per_token(&self) -> Option<f64> {
        let tokens = f64::from(self.case.tokens());
        self.counted(|paged| paged.compute_seconds / tokens)
    }

    /// Why it cannot run, or which runs are far from the others.
    pub fn note(&self) -> String {
        if let Some(failure) = &self.failure {
            return failure.clone();
        }
        let times = self.times();
        let middle = statistics::median(&times).unwrap_or(1.0);
        let far = outliers(&times);
        let far = far.iter().map(|index| {
            let (round, times) = (self.samples[*index].round + 1, times[*index] / middle);
            format!("run {round} took {times:.2} times the median")
        });
        far.collect::<Vec<_>>().join(", ")
    }

    /// The budget for people: as it was given, and its bytes where that was no size.
    pub fn budget_text(&self) -> String {
        match &self.case.variant {
            Variant::Stock => "stock".to_owned(),
            Variant::Paged {
                budget,
                budget_bytes,
                ..
            } => format!("{budget} ({})", show_bytes(*budget_bytes)),
        }
    }

    /// The values of llama-bench's fields.
    pub fn their_values(&self, build: &Build) -> Vec<Value> {
        let case = &self.case;
        let model = self.model.clone().unwrap_or_default();
        let number = |value: i32| Value::Whole(value.into());
        let (times, speeds) = (self.times(), self.speeds());
        let measured = |value: Value| {
            if times.is_empty() {
                Value::Nothing
            } else {
                value
            }
        };
        let time = self.samples.first().map(|sample| sample.time.clone());
        vec![
            text(&build.commit),
            number(build.number),
            text(&build.cpus),
            text(&build.gpus),
            text(&build.backends),
            text(&case.model.shown),
            text(model.model_type),
            bytes(model.model_size),
            bytes(model.model_n_params),
            number(case.n_batch),
            number(case.n_ubatch),
            number(case.n_threads),
            text(&case.cpu_mask),
            Value::Truth(case.cpu_strict),
            number(case.poll),
            text(&case.type_k),
            text(&case.type_v),
            number(case.n_gpu_layers),
            number(case.n_cpu_moe),
            text(&case.split_mode),
            number(case.main_gpu),
            Value::Truth(case.no_kv_offload),
            number(case.flash_attn),
            text(&case.devices),
            text(&case.tensor_split),
            text(&case.overrides),
            text(&case.load_mode),
            text(&case.lazy_mode),
            Value::Truth(case.embeddings),
            number(case.no_op_offload.into()),
            Value::Truth(case.no_host),
            Value::Truth(case.repack),
            number(0),
            number(0),
            number(case.n_prompt),
            number(case.n_gen),
            number(case.n_depth),
            text(time.unwrap_or_default()),
            measured(whole(mean(&times))),
            measured(whole(deviation(&times))),
            measured(Value::Real(mean(&speeds))),
            measured(Value::Real(deviation(&speeds))),
        ]
    }

    /// The values of our fields.
    pub fn our_values(&self, paging: &Paging) -> Vec<Value> {
        let (times, speeds) = (spread(&self.times()), spread(&self.speeds()));
        let last = self.samples.last().filter(|_| self.case.is_paged());
        let plan = |of: fn(&Counters) -> u64| or_nothing(last, |sample| bytes(of(&sample.paged)));
        let paged = |value: Option<f64>| value.filter(|_| self.case.is_paged());
        let milliseconds = |of: fn(&Counters) -> f64| {
            or_nothing(paged(self.counted(|paged| of(paged) * 1e3)), Value::Real)
        };
        let (kind, budget) = match &self.case.variant {
            Variant::Stock => ("none", Value::Nothing),
            Variant::Paged { budget, .. } => (paging.words(), text(budget)),
        };
        let cold = self.case.variant.cold().filter(|_| paging.weights);
        let tokens = f64::from(self.case.tokens());
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let by_host = self.counted(|paged| paged.host_bytes as f64 / tokens);
        vec![
            text(env!("CARGO_PKG_VERSION")),
            text(kind),
            budget,
            or_nothing(cold, |cold| text(cold.word())),
            or_nothing(self.case.variant.budget_bytes(), bytes),
            plan(|paged| paged.minimum_bytes),
            plan(|paged| paged.resident_bytes),
            plan(|paged| paged.streamed_bytes),
            Value::Whole(i64::try_from(self.samples.len()).unwrap_or(i64::MAX)),
            or_nothing(times, |times| whole(times.median)),
            or_nothing(times, |times| whole(times.mad)),
            or_nothing(speeds, |speeds| Value::Real(speeds.median)),
            or_nothing(speeds, |speeds| Value::Real(speeds.mad)),
            Value::Whole(i64::try_from(outliers(&self.times()).len()).unwrap_or(i64::MAX)),
            or_nothing(self.ratio, |ratio| Value::Real(ratio.median)),
            or_nothing(self.ratio, |ratio| Value::Real(ratio.mad)),
            or_nothing(paged(self.bytes_per_token()), whole),
            or_nothing(paged(by_host), whole),
            or_nothing(paged(self.copy_rate()), whole),
            milliseconds(|paged| paged.stall_seconds),
            milliseconds(|paged| paged.compute_seconds),
            or_nothing(self.law_ts, Value::Real),
            text(self.note()),
        ]
    }
}

impl Paging {
    /// What is paged, in a word.
    pub fn words(&self) -> &'static str {
        match (self.weights, self.kv) {
            (true, true) => "weights+kv",
            (true, false) => "weights",
            (false, true) => "kv",
            (false, false) => "none",
        }
    }
}

/// The speed of each paged case by that of the unpaged runs of the same round: medians.
pub fn set_ratios(rows: &mut [Row]) {
    let stock: Vec<Row> = rows
        .iter()
        .filter(|row| !row.case.is_paged())
        .cloned()
        .collect();
    for row in rows.iter_mut().filter(|row| row.case.is_paged()) {
        let wanted = row.case.on(Variant::Stock);
        let Some(stock) = stock.iter().find(|stock| stock.case == wanted) else {
            continue;
        };
        let mut ratios = Vec::new();
        for (sample, time) in row.samples.iter().zip(row.times()) {
            let at = stock
                .samples
                .iter()
                .position(|other| other.round == sample.round);
            ratios.extend(at.map(|at| stock.times()[at] / time));
        }
        row.ratio = spread(&ratios);
    }
}
