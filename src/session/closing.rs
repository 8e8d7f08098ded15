//! What closes a run: the three lines of the show of `--demo`; elsewhere one line, when
//! transfers bound the run, that says so and what would help.

use std::time::Instant;

use super::output;
use crate::calibration::Run;
use crate::calibration::observed::{self, Observed};
use crate::cli::Config;
use crate::cli::size::show_bytes;
use crate::device::{PagedDevice, Report};
use crate::error::Result;
use crate::llama::log;
use crate::telemetry::memory::{Level, Reader};
use crate::telemetry::pressure::{DriverIs, automatic_budget, automatic_device_budget};

/// What the lines are made of.
pub(super) struct Lines {
    /// The device's counters at the end.
    pub report: Report,
    /// Tokens generated.
    pub tokens: usize,
    /// Time from the prompt to the last token.
    pub seconds: f64,
}

/// Prints them to standard error, so that standard output holds the story alone.
pub(super) fn print(lines: &Lines) -> Result<()> {
    output::say(&text(lines));
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
fn text(lines: &Lines) -> String {
    let report = &lines.report;
    let moved = report.bytes_in() + report.bytes_out();
    let share = 100.0 * report.budget_bytes as f64 / report.model_bytes.max(1) as f64;
    let tokens_per_second = lines.tokens as f64 / lines.seconds.max(1e-9);
    let bytes_per_second = report.bytes_in() as f64 / report.traffic.seconds_in().max(1e-9);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive rate; a conversion from float saturates"
    )]
    let rate = show_bytes(bytes_per_second as u64);
    format!(
        "model:   {} in {} layers\n\
         memory:  {} for weights, KV cache and scratch ({share:.0} % of the model)\n\
         paged:   {} moved through that memory, {rate} per second; \
         {} tokens, {tokens_per_second:.0} per second\n",
        show_bytes(report.model_bytes),
        report.layers,
        show_bytes(report.budget_bytes),
        show_bytes(moved),
        lines.tokens,
    )
}

/// A run that waited for less than this share of its time was not bound by transfers.
const WAITED_SHARE_MIN: f64 = 0.2;
/// Fewer tokens say nothing.
const TOKENS_MIN: usize = 4;
/// Less than this speed-up is no advice.
const GAIN_MIN: f64 = 1.1;

/// Where a generation began: behind the prompt.
pub(super) struct Beginning {
    at: Instant,
    report: Report,
}

impl Beginning {
    /// This moment.
    pub fn new(report: Report) -> Self {
        Self {
            at: Instant::now(),
            report,
        }
    }
}

/// What this machine's rates can learn from a run: how fast its storage is.
pub(super) struct Lesson(Run);

impl Lesson {
    /// Of the run that `config` describes; None where it says nothing of the rate at which a
    /// model is read ahead into the machine's memory.
    pub fn new(config: &Config) -> Option<Self> {
        let paging = config.paging.as_ref().filter(|paging| paging.prefetch)?;
        Some(Self(Run::new(paging, &config.settings)))
    }

    /// Teaches it, if a generation of `tokens` tokens since `beginning` waited for storage.
    pub fn teach(&self, beginning: &Beginning, device: &PagedDevice, tokens: usize) {
        let seconds = beginning.at.elapsed().as_secs_f64();
        let (before, after) = (&beginning.report, device.report());
        let waited = after.stalls.storage_seconds - before.stalls.storage_seconds;
        // Single experts are small, spilled states lie elsewhere, and a GPU has other rates.
        let is_plain =
            after.expert_misses == 0 && after.kv_streamed_bytes == 0 && device.memory().is_none();
        if !is_plain || tokens < TOKENS_MIN || waited < WAITED_SHARE_MIN * seconds {
            return;
        }
        let machine = self.0.machine(device.is_direct());
        let seen = Observed {
            bytes: after.traffic.storage_bytes - before.traffic.storage_bytes,
            seconds: after.traffic.storage_seconds - before.traffic.storage_seconds,
        };
        // A run is none the worse for a cache that cannot be written.
        if let Err(error) = observed::note(&machine, seen) {
            log::debug(|| format!("{error}\n"));
        }
    }
}

/// How much more than the `used_bytes` of a budget another one would have that nobody named,
/// and that the governor would leave alone.
fn room_on_device(memory: Level, mem_pressure: f64, used_bytes: u64, driver: DriverIs) -> u64 {
    automatic_device_budget(memory, mem_pressure, used_bytes, driver).saturating_sub(used_bytes)
}

/// The sentence for a generation of `tokens` tokens since `beginning` that was bound by
/// transfers; None for any other. No more memory is recommended than the run's `mem_pressure`
/// leaves it.
pub(super) fn bound(
    beginning: &Beginning,
    device: &PagedDevice,
    tokens: usize,
    mem_pressure: f64,
) -> Option<String> {
    let seconds = beginning.at.elapsed().as_secs_f64();
    let report = &device.report();
    let used = report.arena_bytes_used;
    let available = match device.memory() {
        Some(memory) => room_on_device(memory, mem_pressure, used, device.driver_is()),
        None => automatic_budget(&Reader::new().read(), mem_pressure, used).saturating_sub(used),
    };
    sentence(&beginning.report, report, seconds, tokens, available)
}

#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn sentence(
    before: &Report,
    after: &Report,
    seconds: f64,
    tokens: usize,
    available_bytes: u64,
) -> Option<String> {
    let waited = (after.stalls.seconds() - before.stalls.seconds()) / seconds.max(1e-9);
    let moved = after.bytes_in().saturating_sub(before.bytes_in());
    if tokens < TOKENS_MIN || waited < WAITED_SHARE_MIN || moved == 0 {
        return None;
    }
    let storage = after.traffic.storage_bytes - before.traffic.storage_bytes;
    let source = match (storage * 2 > moved, after.pinned) {
        (true, _) => "storage",
        (false, Some(true)) => "pinned memory",
        (false, _) => "memory",
    };
    let per_token = show_bytes(moved / tokens as u64);
    let rate = after.link_rate().map_or_else(String::new, |rate| {
        format!(", over the link at {:.3} GB/s", rate / 1e9)
    });
    let streamed = format!("streamed {per_token} per token from {source}{rate}");
    // The ring is of no use when nothing travels.
    // The processor computes with some of it, where it lies.
    let cold = after.streamed_bytes + after.kv_streamed_bytes;
    let travelling = cold.saturating_sub(after.host_pass_bytes);
    let missing = travelling.saturating_sub(after.ring_bytes);
    if missing == 0 {
        return None;
    }
    let more = missing.min(available_bytes);
    // Waiting shrinks with the bytes that are waited for.
    let gain = 1.0 / (1.0 - waited.min(0.99) * (more as f64 / missing as f64));
    if gain < GAIN_MIN {
        return Some(format!(
            "{streamed}, which took {:.0} % of the time; there is no memory left for more",
            waited * 100.0
        ));
    }
    Some(format!(
        "{streamed}; {} more for --vram-budget would make it {gain:.1} times as fast",
        show_bytes(more)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::report::{Stalls, Traffic};

    fn run(stalled: f64, travelling: u64) -> Report {
        Report {
            streamed_bytes: travelling,
            ring_bytes: 100 << 20,
            traffic: Traffic {
                storage_bytes: 10 * travelling,
                storage_seconds: 5.0,
                ..Traffic::default()
            },
            stalls: Stalls {
                storage_seconds: stalled,
                ..Stalls::default()
            },
            ..Report::default()
        }
    }

    #[test]
    fn a_run_that_waited_hears_what_would_help() {
        let (before, gib) = (Report::default(), 1u64 << 30);
        let said =
            |stalled, available| sentence(&before, &run(stalled, 800 << 20), 10.0, 10, available);
        let text = said(5.0, 8 * gib).unwrap();
        assert_eq!(
            text,
            "streamed 800 MiB per token from storage; 700 MiB more for --vram-budget would make \
             it 2.0 times as fast"
        );
        let half = said(5.0, 350 << 20).unwrap();
        assert!(
            half.contains("350 MiB more") && half.contains("1.3 times"),
            "{half}"
        );
        let none = said(5.0, 0).unwrap();
        assert!(none.contains("50 % of the time"), "{none}");
    }

    #[test]
    fn what_the_processor_computes_with_does_not_travel() {
        let mib = 1 << 20;
        let after = Report {
            streamed_bytes: 1500 * mib,
            host_pass_bytes: 700 * mib,
            ..run(5.0, 800 * mib)
        };
        let text = sentence(&Report::default(), &after, 10.0, 10, 8 << 30).unwrap();
        assert!(text.contains("700 MiB more for --vram-budget"), "{text}");
    }

    #[test]
    fn a_run_on_a_device_hears_how_fast_its_link_was() {
        let after = Report {
            pinned: Some(true),
            traffic: Traffic {
                link_bytes: 12_500_000_000,
                link_seconds: 0.5,
                ..Traffic::default()
            },
            ..run(5.0, 800 << 20)
        };
        let text = sentence(&Report::default(), &after, 10.0, 10, 8 << 30).unwrap();
        assert!(
            text.contains("from pinned memory, over the link at 25.000 GB/s"),
            "{text}"
        );
    }

    #[test]
    fn a_run_that_did_not_wait_hears_nothing() {
        let before = Report::default();
        let said = |stalled, travelling, tokens| {
            sentence(&before, &run(stalled, travelling), 10.0, tokens, 1 << 40)
        };
        assert_eq!(said(1.0, 800 << 20, 10), None, "it hardly waited");
        assert_eq!(said(5.0, 0, 10), None, "nothing travelled");
        assert_eq!(said(5.0, 800 << 20, 2), None, "too short");
    }

    #[test]
    fn no_more_memory_is_recommended_than_the_governor_leaves() {
        let gib = 1 << 30;
        let memory = Level {
            used_bytes: 60 * gib,
            total_bytes: 100 * gib,
        };
        // Ten are others', and a quarter is for what the driver takes.
        let room = |mem_pressure| room_on_device(memory, mem_pressure, 50 * gib, DriverIs::Beside);
        assert!(room(0.7).abs_diff(10 * gib - gib / 4) < 1024);
        assert!(room(0.65).abs_diff(5 * gib - gib / 4) < 1024);
        assert_eq!(room(0.5), 0);
    }

    #[test]
    fn a_newcomer_reads_sizes_and_speed() {
        let report = Report {
            model_bytes: 2_600_000,
            budget_bytes: 1_300_000,
            layers: 13,
            traffic: Traffic {
                storage_bytes: 150 << 20,
                storage_seconds: 0.1,
                ..Traffic::default()
            },
            ..Report::default()
        };
        let text = text(&Lines {
            report,
            tokens: 100,
            seconds: 0.5,
        });
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("2.48 MiB in 13 layers"), "{text}");
        assert!(text.contains("50 % of the model"), "{text}");
        assert!(text.contains("150 MiB moved"), "{text}");
        assert!(text.contains("200 per second"), "{text}");
    }
}
