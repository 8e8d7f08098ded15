//! What came of it: medians and their spread, the law, and whether the bars are met.

use super::options::Options;
use super::rig::measure::{Speeds, median_and_mad};
use super::runs::{Run, same_text};

/// The least ratio to stock's decode speed, by the memory in percent of the model.
const DECODE_BARS: [(u64, f64); 2] = [(60, 1.9), (85, 4.0)];

/// What a token may take beyond the law.
const LAW_EXCESS_MAX: f64 = 1.15;

/// What the process may take beyond its budget.
const EXCESS_BYTES_MAX: u64 = 64 << 20;

/// The means of one round, there and back.
pub struct Round {
    pub stock: Speeds,
    pub ours: Speeds,
    /// Bytes per second that the storage gives.
    pub storage_rate: f64,
    /// Seconds per token with everything in memory.
    pub compute_seconds: f64,
    /// Weight bytes that travel for each token.
    pub streamed_bytes: u64,
    pub runs_of_ours: [Run; 2],
    pub runs_of_stock: [Run; 2],
    pub resident: Run,
}

/// All rounds with one size of memory.
pub struct Size {
    pub share: u64,
    pub limit_bytes: u64,
    pub budget_bytes: u64,
    /// Weight bytes beyond the budget: a plan that had no need of anything else in it
    /// would stream as much.
    pub beyond_bytes: u64,
    pub rounds: Vec<Round>,
}

/// The least seconds that a token takes: the slower of storage and computation.
pub fn law(streamed_bytes: u64, storage_rate: f64, compute_seconds: f64) -> f64 {
    (streamed_bytes as f64 / storage_rate).max(compute_seconds)
}

impl Round {
    fn law_seconds(&self) -> f64 {
        law(self.streamed_bytes, self.storage_rate, self.compute_seconds)
    }
}

impl Size {
    /// Median and MAD of `value` over the rounds.
    fn spread(&self, value: impl Fn(&Round) -> f64) -> Spread {
        let values: Vec<f64> = self.rounds.iter().map(value).collect();
        Spread::of(&values)
    }

    fn decode_ratio(&self) -> Spread {
        self.spread(|round| round.ours.decode / round.stock.decode)
    }

    fn prefill_ratio(&self) -> Spread {
        self.spread(|round| round.ours.prefill / round.stock.prefill)
    }

    /// Our time for a token, in times the law's.
    fn law_excess(&self) -> Spread {
        self.spread(|round| 1.0 / (round.ours.decode * round.law_seconds()))
    }

    fn peak_bytes(&self) -> u64 {
        let runs = self.rounds.iter().flat_map(|round| &round.runs_of_ours);
        runs.map(|run| run.peak_bytes).max().unwrap_or(0)
    }

    fn group_peak_bytes(&self) -> Option<u64> {
        let runs = self.rounds.iter().flat_map(|round| &round.runs_of_ours);
        runs.filter_map(|run| run.group_peak_bytes).max()
    }

    fn is_same_text(&self) -> bool {
        same_text(self.rounds.iter().flat_map(|round| {
            let resident = std::iter::once(&round.resident);
            let runs = round.runs_of_ours.iter().chain(&round.runs_of_stock);
            runs.chain(resident)
        }))
    }
}

/// A median and its spread (MAD).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub mad: f64,
}

impl Spread {
    /// Of `values`.
    pub fn of(values: &[f64]) -> Self {
        let (median, mad) = median_and_mad(values);
        Self { median, mad }
    }

    /// With `digits` behind the point.
    pub fn show(self, digits: usize) -> String {
        format!("{:.digits$} ± {:.digits$}", self.median, self.mad)
    }

    /// The sentence about a bar that is a lower bound.
    pub fn at_least(self, bar: f64) -> String {
        self.verdict("at least", bar, self.median >= bar)
    }

    /// The sentence about a bar that is an upper bound.
    pub fn at_most(self, bar: f64) -> String {
        self.verdict("at most", bar, self.median <= bar)
    }

    fn verdict(self, bound: &str, bar: f64, is_met: bool) -> String {
        let near = (self.median - bar).abs() <= self.mad;
        format!(
            "{} (bar: {bound} {bar}): {}{}",
            self.show(3),
            if is_met { "met" } else { "missed" },
            if near { ", within its spread" } else { "" }
        )
    }
}

/// Prints the table in Markdown, and a line for each bar.
pub fn print(options: &Options, model_bytes: u64, sizes: &[Size], loaded: &Run) {
    println!(
        "\nmodel of {} MiB, {} threads, prompt of {} tokens, {} generated, {} rounds; \
         tokens/s as median ± MAD\n",
        model_bytes >> 20,
        options.threads,
        options.prompt_tokens,
        options.decode_tokens,
        options.rounds
    );
    println!(
        "| memory | decode: stock | ours | ours / stock | law | ours / law \
         | prefill: stock | ours | ours / stock | peak of the process | of its group - limit |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for size in sizes {
        println!(
            "| {} %, {} MiB | {} | {} | {} | {} | {} | {} | {} | {} | {} MiB | {} |",
            size.share,
            size.limit_bytes >> 20,
            size.spread(|round| round.stock.decode).show(3),
            size.spread(|round| round.ours.decode).show(3),
            size.decode_ratio().show(3),
            size.spread(|round| 1.0 / round.law_seconds()).show(3),
            size.spread(|round| round.ours.decode * round.law_seconds())
                .show(3),
            size.spread(|round| round.stock.prefill).show(2),
            size.spread(|round| round.ours.prefill).show(2),
            size.prefill_ratio().show(3),
            size.peak_bytes() >> 20,
            group_peak(size),
        );
    }
    let outcome = match loaded.speeds {
        None => "killed".to_owned(),
        Some(speeds) => format!("{:.3}", speeds.decode),
    };
    println!(
        "| {} %, stock with `--load-mode none` | {outcome} | | | | | | | | | |\n",
        options.shares[0]
    );
    for size in sizes {
        print_verdict(options, size);
    }
    if options.smoke {
        println!("a smoke run: everything ran, and no number means anything");
    }
}

fn group_peak(size: &Size) -> String {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    size.group_peak_bytes().map_or_else(
        || "unknown".to_owned(),
        |peak| format!("{:.1} MiB", mebibytes(peak) - mebibytes(size.limit_bytes)),
    )
}

fn print_verdict(options: &Options, size: &Size) {
    println!(
        "{} %: {} MiB of weights beyond the budget, {} MiB streamed per token{}; storage \
         {} GB/s, everything resident {} ms",
        size.share,
        size.beyond_bytes >> 20,
        size.spread(|round| (round.streamed_bytes >> 20) as f64)
            .median,
        if options.metrics { "" } else { " (estimated)" },
        size.spread(|round| round.storage_rate / 1e9).show(2),
        size.spread(|round| round.compute_seconds * 1e3).show(1),
    );
    let bar = DECODE_BARS.iter().find(|(share, _)| *share == size.share);
    if let Some((_, bar)) = bar {
        println!("  decode / stock {}", size.decode_ratio().at_least(*bar));
    }
    println!(
        "  seconds per token / law {}",
        size.law_excess().at_most(LAW_EXCESS_MAX)
    );
    println!("  prefill / stock {}", size.prefill_ratio().at_least(1.0));
    let (peak, most) = (size.peak_bytes(), size.budget_bytes + EXCESS_BYTES_MAX);
    println!(
        "  peak of the process {} MiB (bar: at most {} MiB, the budget and 64): {}",
        peak >> 20,
        most >> 20,
        if peak <= most { "met" } else { "missed" }
    );
    println!(
        "  the text of all runs is {}",
        if size.is_same_text() {
            "the same"
        } else {
            "NOT the same"
        }
    );
}

/// This file's arithmetic on known values.
pub fn check_arithmetic() {
    assert_eq!(law(700, 1000.0, 0.1), 0.7);
    assert_eq!(law(10, 1000.0, 0.1), 0.1);
    let spread = Spread::of(&[2.0, 2.1, 1.8]);
    assert!(spread.at_least(1.95).ends_with(": met, within its spread"));
    assert!(spread.at_least(3.0).ends_with(": missed"));
    assert!(spread.at_most(3.0).ends_with(": met"));
}
