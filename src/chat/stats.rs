//! How it goes: the line after an answer, and what `/stats` shows.

use super::answer::Timings;
use crate::cli::size::show_bytes;
use crate::device::Report;

/// Where the context and the memory stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub held_tokens: usize,
    pub context_tokens: usize,
    /// The paged device's report, if there is one.
    pub report: Option<Report>,
    /// Memory of this process, in bytes.
    pub process_bytes: u64,
}

/// Sums over all answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub answers: usize,
    timings: Timings,
    last: Timings,
}

impl Totals {
    pub fn add(&mut self, timings: &Timings) {
        self.answers += 1;
        self.timings.read_tokens += timings.read_tokens;
        self.timings.read_seconds += timings.read_seconds;
        self.timings.tokens += timings.tokens;
        self.timings.seconds += timings.seconds;
        self.last = *timings;
    }
}

/// The line after an answer.
pub(super) fn line(timings: &Timings, at: &Standing) -> String {
    let memory = match &at.report {
        Some(report) => format!(
            "memory {} of {}",
            show_bytes(report.arena_bytes_used),
            show_bytes(report.budget_bytes)
        ),
        None => format!("memory {}", show_bytes(at.process_bytes)),
    };
    format!(
        "{} · context {} of {} · {memory}",
        rate(timings),
        at.held_tokens,
        at.context_tokens
    )
}

/// The speed of an answer; one token has none.
fn rate(timings: &Timings) -> String {
    match per_second(timings.tokens.saturating_sub(1), timings.seconds) {
        Some(rate) => format!("{rate} tokens/s"),
        None => "- tokens/s".to_owned(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
fn per_second(count: usize, seconds: f64) -> Option<String> {
    if count == 0 || seconds <= 0.0 {
        return None;
    }
    let rate = count as f64 / seconds;
    let digits = if rate >= 100.0 {
        0
    } else {
        usize::from(rate < 10.0) + 1
    };
    Some(format!("{rate:.digits$}"))
}

/// What `/stats` shows.
pub(super) fn details(totals: &Totals, messages: usize, at: &Standing) -> String {
    let speed = |count: usize, seconds: f64| match per_second(count, seconds) {
        Some(rate) => format!(", {rate} per second"),
        None => String::new(),
    };
    let answers = |timings: &Timings, count: usize| {
        format!(
            "{} tokens read{}; {} generated{}",
            timings.read_tokens,
            speed(timings.read_tokens, timings.read_seconds),
            timings.tokens,
            speed(timings.tokens.saturating_sub(count), timings.seconds),
        )
    };
    let mut text = format!(
        "conversation: {messages} messages\n\
         context:      {} of {} tokens\n\
         last answer:  {}\n\
         all {:<4}      {}\n\
         process:      {}\n",
        at.held_tokens,
        at.context_tokens,
        answers(&totals.last, 1),
        format!("{}:", totals.answers),
        answers(&totals.timings, totals.answers),
        show_bytes(at.process_bytes),
    );
    if let Some(report) = &at.report {
        text.push_str(&paged(report));
    }
    text
}

fn paged(report: &Report) -> String {
    let pages = &report.kv_pages;
    format!(
        "budget:       {} of {} in use, {} at least\n\
         weights:      {} stay, {} travel for each token\n\
         layers:       {} of {} stay as a whole\n\
         KV cache:     {} stay in {} pages, {} travel in {}\n\
         moved:        {} in, {} out\n",
        show_bytes(report.arena_bytes_used),
        show_bytes(report.budget_bytes),
        show_bytes(report.minimum_bytes),
        show_bytes(report.resident_bytes),
        show_bytes(report.streamed_bytes),
        report.resident_layers,
        report.layers,
        show_bytes(report.kv_resident_bytes),
        pages.resident,
        show_bytes(report.kv_streamed_bytes),
        pages.stored,
        show_bytes(report.bytes_in()),
        show_bytes(report.bytes_out()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Standing = Standing {
        held_tokens: 45,
        context_tokens: 256,
        report: None,
        process_bytes: 3 << 20,
    };

    #[test]
    fn the_line_says_speed_context_and_memory() {
        let timings = Timings {
            tokens: 21,
            seconds: 2.0,
            ..Timings::default()
        };
        let expected = "10.0 tokens/s · context 45 of 256 · memory 3.00 MiB";
        assert_eq!(line(&timings, &AT), expected);
        let report = Report {
            arena_bytes_used: 1 << 20,
            budget_bytes: 2 << 20,
            ..Report::default()
        };
        let at = Standing {
            report: Some(report),
            ..AT
        };
        let one = Timings {
            tokens: 1,
            ..Timings::default()
        };
        let expected = "- tokens/s · context 45 of 256 · memory 1.00 MiB of 2.00 MiB";
        assert_eq!(line(&one, &at), expected);
        assert!(details(&Totals::default(), 2, &at).contains("budget:"));
    }

    #[test]
    fn details_sum_up() {
        let mut totals = Totals::default();
        for tokens in [3, 5] {
            totals.add(&Timings {
                tokens,
                seconds: 1.0,
                read_tokens: 10,
                read_seconds: 0.1,
            });
        }
        let text = details(&totals, 4, &AT);
        assert!(text.contains("all 2:"), "{text}");
        assert!(text.contains("20 tokens read, 100 per second"), "{text}");
        assert!(text.contains("8 generated, 3.00 per second"), "{text}");
    }
}
