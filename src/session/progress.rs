//! Progress bars on a terminal's standard error: one while the model loads, one for each
//! file that is downloaded. They vanish when they are done, when the run fails, and when a
//! signal ends it.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::signal;
use crate::llama::download::{self, State};

/// Columns of a bar, where there is room.
const BAR_MAX: usize = 40;
/// Columns for what stands beside it.
const LOADING: usize = 20;
const DOWNLOADING: usize = 54;
/// Letters of a file's name that are shown.
const NAME_MAX: usize = 24;

/// Whether a bar can be drawn: somebody sees it, and the terminal can move its cursor.
pub fn can_be_shown() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !dumb
}

/// The bar's columns, when `beside` columns are taken.
fn bar_columns(beside: usize) -> usize {
    let size = terminal_size::terminal_size_of(std::io::stderr());
    let columns = size.map_or(80, |(width, _)| usize::from(width.0));
    columns.saturating_sub(beside).min(BAR_MAX)
}

/// `before`, a bar, and `after`; on a terminal too narrow for that, `narrow`.
fn style(before: &str, after: &str, beside: usize, narrow: &str) -> ProgressStyle {
    let template = match bar_columns(beside) {
        0..4 => narrow.to_owned(),
        columns => format!("{before} [{{bar:{columns}}}] {after}"),
    };
    let style = ProgressStyle::with_template(&template);
    style
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// The bar of a model that is being loaded.
#[derive(Clone)]
pub struct Loading(ProgressBar);

impl Loading {
    /// Draws the bar.
    pub fn begin() -> Self {
        let bar = ProgressBar::new(1000);
        let (before, after) = ("loading", "{percent:>3} %");
        bar.set_style(style(before, after, LOADING, after));
        signal::set_bars(1);
        Self(bar)
    }

    /// Shows that this share of it is loaded, 0.0 to 1.0; at the end the bar is gone, so
    /// that what is logged from there on does not run into it.
    pub fn set(&self, share: f32) {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0.0 to 1.0, and a conversion from float saturates"
        )]
        self.0.set_position((share * 1000.0) as u64);
        if share >= 1.0 {
            self.end();
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.0.finish_and_clear();
        signal::set_bars(0);
    }
}

/// What is measured before the model is loaded, on a line of its own.
pub struct Measuring(Option<ProgressBar>);

impl Measuring {
    /// Shows nothing until something is measured, and nothing at all unless `shows`.
    pub fn new(shows: bool) -> Self {
        Self(shows.then(ProgressBar::new_spinner))
    }

    /// Shows what is measured.
    pub fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            signal::set_bars(1);
            bar.set_message(format!("measuring this machine: {what}"));
            bar.tick();
        }
    }

    /// Takes the line away.
    pub fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
            signal::set_bars(0);
        }
    }
}

/// Draws a bar for each file that is downloaded from now on.
pub fn show_downloads() {
    let all = MultiProgress::new();
    let bars: Mutex<HashMap<String, ProgressBar>> = Mutex::default();
    download::watch(Box::new(move |address, bytes, total, state| {
        let mut bars = bars.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state != State::GoesOn {
            if let Some(bar) = bars.remove(address) {
                bar.finish_and_clear();
            }
        } else {
            let bar = bars.entry(address.to_owned()).or_insert_with(|| {
                let bar = all.add(ProgressBar::new(total));
                let after = "{percent:>3} % of {total_bytes}, {bytes_per_sec}";
                let narrow = "{percent:>3} % {wide_msg}";
                bar.set_style(style("{msg}", after, DOWNLOADING, narrow));
                bar.set_message(name_of(address));
                bar
            });
            bar.set_length(total);
            let begins = bar.position() == 0;
            bar.set_position(bytes);
            if begins {
                // What was here already says nothing about the rate.
                bar.reset_eta();
            }
        }
        signal::set_bars(bars.len());
    }));
}

/// The file's name at the end of an address.
fn name_of(address: &str) -> String {
    let path = address.split(['?', '#']).next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut letters = name.chars();
    let short: String = letters.by_ref().take(NAME_MAX).collect();
    if letters.next().is_some() {
        format!("{short}...")
    } else {
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_by_the_end_of_its_address() {
        assert_eq!(name_of("http://a/b/c.gguf?download=true"), "c.gguf");
        let long = format!("http://a/{}.gguf", "x".repeat(60));
        assert_eq!(name_of(&long).chars().count(), NAME_MAX + 3);
        assert_eq!(name_of(""), "");
    }
}
