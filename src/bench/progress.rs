//! How far a sweep is: a bar on a terminal, or llama-bench's lines with `--progress`, or
//! nothing.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How far a sweep is.
pub struct Progress {
    /// None where standard error is no terminal, or where lines are asked for.
    bar: Option<ProgressBar>,
    /// Whether lines are asked for.
    lines: bool,
    /// The cases still to run, each as often as it will.
    left: Vec<usize>,
    /// How long a run of a case took: all of them, and how many.
    took: BTreeMap<usize, (Duration, u32)>,
    done: usize,
    name: String,
}

impl Progress {
    /// Before the first of the runs `todo` (round and case).
    pub fn new(todo: &[(u32, usize)], lines: bool) -> Self {
        let draws = !lines && std::io::stderr().is_terminal();
        let bar = draws.then(|| ProgressBar::new(todo.len() as u64));
        let style = "{bar:30} {pos} of {len} runs, {prefix}: {msg}";
        if let (Some(bar), Ok(style)) = (&bar, ProgressStyle::with_template(style)) {
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix("time left unknown");
        }
        Self {
            bar,
            lines,
            left: todo.iter().rev().map(|(_, case)| *case).collect(),
            took: BTreeMap::new(),
            done: 0,
            name: String::new(),
        }
    }

    /// A run of the case with this index begins.
    pub fn begins(&mut self, _case: usize, name: &str) {
        self.done += 1;
        name.clone_into(&mut self.name);
        self.says("starting");
    }

    /// What happens now.
    pub fn says(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}, {what}", self.name));
            bar.tick();
        }
        if self.lines {
            let all = self.done + self.left.len().saturating_sub(1);
            // That nobody may read it is no failure.
            drop(writeln!(
                std::io::stderr(),
                "rpaged-cli bench: run {}/{all}: {}: {what}",
                self.done,
                self.name
            ));
        }
    }

    /// The run of the case has ended, after so long.
    pub fn ended(&mut self, case: usize, time: Duration) {
        self.left.pop();
        let (sum, count) = self.took.entry(case).or_default();
        *sum += time;
        *count += 1;
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_prefix(show_left(self.time_left()));
        }
    }

    /// A run is left out.
    pub fn skip(&mut self) {
        self.left.pop();
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// The time that the rest will take: a case that has run takes as long again, one that
    /// has not as long as the mean of the others.
    fn time_left(&self) -> Duration {
        let mean = |(sum, count): &(Duration, u32)| *sum / (*count).max(1);
        let all: Duration = self.took.values().map(|(sum, _)| *sum).sum();
        let count: u32 = self.took.values().map(|(_, count)| *count).sum();
        let usual = mean(&(all, count));
        let of = |case: &usize| self.took.get(case).map_or(usual, mean);
        self.left.iter().map(of).sum()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn show_left(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_millis() >= 500);
    match seconds {
        0..60 => format!("{seconds} s left"),
        60..3600 => format!("{}:{:02} min left", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h left", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_cases_that_are_left() {
        let todo = [(0, 0), (0, 1), (1, 1), (1, 0)];
        let mut progress = Progress::new(&todo, false);
        progress.begins(0, "a");
        progress.ended(0, Duration::from_secs(10));
        assert_eq!(
            progress.time_left(),
            Duration::from_secs(30),
            "as the only one known"
        );
        progress.begins(1, "b");
        progress.ended(1, Duration::from_secs(2));
        assert_eq!(progress.time_left(), Duration::from_secs(12));
        progress.skip();
        assert_eq!(progress.time_left(), Duration::from_secs(10));
    }

    #[test]
    fn times_are_shown_in_what_fits_them() {
        let show = |seconds| show_left(Duration::from_secs(seconds));
        assert_eq!(show(59), "59 s left");
        assert_eq!(show(61), "1:01 min left");
        assert_eq!(show(3600 * 2 + 120), "2:02 h left");
    }
}
