//! The three lines that close the show of `--demo`.

use super::output;
use crate::cli::size::show_bytes;
use crate::device::Report;
use crate::error::Result;

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
    let bytes_per_second = report.bytes_in() as f64
        / (report.traffic.storage_seconds + report.traffic.link_seconds).max(1e-9);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::report::Traffic;

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
