//! The law over budgets: what a token has to take.
//!
//! ```text
//!  seconds per token = max( bytes copied per token / rate of the copies,
//!                           seconds of computing when all is resident )
//! ```
//!
//! All of it is measured in this sweep. Computing is what a token takes unpaged, or where no
//! weight streams, whichever is less; where neither ran, the least that the inner device
//! computed. The rate is the median over all budgets, so that one budget's own time does not
//! say what it should have been. Where copies and computing share processors or memory
//! bandwidth, and where a copy cannot begin before a layer is done, a token takes longer.

use super::case::{Case, Variant};
use super::row::Row;
use super::statistics::median;
use crate::planner::cost::least_seconds;

/// The law for a series.
pub struct Law {
    bytes_per_second: Option<f64>,
    compute_seconds: Option<f64>,
    /// Budget and bytes copied per token, by budget.
    travelling: Vec<(f64, f64)>,
}

/// The rows of one measurement over all budgets, and the unpaged one beside them.
pub struct Series<'a> {
    /// The paged rows that ran, by budget.
    pub paged: Vec<&'a Row>,
    /// The unpaged row.
    pub stock: Option<&'a Row>,
}

impl Series<'_> {
    /// The case of all, on whatever it ran.
    pub fn case(&self) -> &Case {
        &self.paged[0].case
    }
}

/// The series among `rows`, in the order of their first rows.
pub fn series(rows: &[Row]) -> Vec<Series<'_>> {
    let ran = |row: &&Row| !row.samples.is_empty();
    let mut all: Vec<Series<'_>> = Vec::new();
    for row in rows.iter().filter(ran).filter(|row| row.case.is_paged()) {
        let same = |series: &&mut Series<'_>| {
            series.case().variant.cold() == row.case.variant.cold()
                && series.case().on(Variant::Stock) == row.case.on(Variant::Stock)
        };
        match all.iter_mut().find(same) {
            Some(series) => series.paged.push(row),
            None => all.push(Series {
                paged: vec![row],
                stock: None,
            }),
        }
    }
    for series in &mut all {
        series
            .paged
            .sort_by_key(|row| row.case.variant.budget_bytes());
        let stock = series.case().on(Variant::Stock);
        series.stock = rows.iter().filter(ran).find(|row| row.case == stock);
    }
    all
}

impl Law {
    /// The law for `series`, with the rates of all `rows`.
    #[allow(clippy::cast_precision_loss, reason = "a budget on an axis")]
    pub fn new(series: &Series<'_>, rows: &[Row]) -> Self {
        let model = &series.case().model;
        let fellows = rows.iter().filter(|row| row.case.model == *model);
        let rates: Vec<f64> = fellows.filter_map(Row::copy_rate).collect();
        let wall = |row: &Row| {
            let ns = median(&row.times())?;
            Some(ns / 1e9 / f64::from(row.case.tokens()))
        };
        let resident = series.paged.iter().filter(|row| is_resident(row));
        let resident = resident.filter_map(|row| wall(row));
        let unhindered = resident.chain(series.stock.and_then(wall));
        // Contention slows computing while weights stream: the least is the closest.
        let computed = series
            .paged
            .iter()
            .filter_map(|row| row.compute_per_token());
        let least = computed.min_by(f64::total_cmp);
        let travelling = series.paged.iter().map(|row| {
            let budget = row.case.variant.budget_bytes().unwrap_or(0);
            (budget as f64, row.bytes_per_token().unwrap_or(0.0))
        });
        Self {
            bytes_per_second: median(&rates),
            compute_seconds: unhindered.min_by(f64::total_cmp).or(least),
            travelling: travelling.collect(),
        }
    }

    /// Tokens per second that it gives a budget, between those that were measured.
    pub fn tokens_per_second(&self, budget: f64) -> Option<f64> {
        let at = self
            .travelling
            .iter()
            .position(|(known, _)| *known >= budget)?;
        let (right, bytes) = self.travelling[at];
        let bytes = match at.checked_sub(1).map(|left| self.travelling[left]) {
            Some((left, before)) if right > left => {
                before + (bytes - before) * (budget - left) / (right - left)
            }
            _ => bytes,
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of bytes; a conversion from float saturates"
        )]
        let bytes = bytes.round() as u64;
        let seconds = least_seconds(bytes, self.bytes_per_second, self.compute_seconds)?;
        (seconds > 0.0).then(|| 1.0 / seconds)
    }
}

fn is_resident(row: &Row) -> bool {
    row.samples
        .last()
        .is_some_and(|sample| sample.paged.streamed_bytes == 0)
}

/// Gives each paged row what the law says about its budget.
#[allow(clippy::cast_precision_loss, reason = "a budget on an axis")]
pub fn set_law(rows: &mut [Row]) {
    let mut laws = Vec::new();
    for series in series(rows) {
        let law = Law::new(&series, rows);
        for row in &series.paged {
            let budget = row.case.variant.budget_bytes().unwrap_or(0) as f64;
            laws.push((row.case.clone(), law.tokens_per_second(budget)));
        }
    }
    for row in rows {
        let found = laws.iter().find(|(case, _)| *case == row.case);
        row.law_ts = found.and_then(|(_, law)| *law);
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::Axes;
    use super::super::row::{Counters, Sample};
    use super::*;
    use crate::device::Cold;

    /// Generations of 10 tokens, which took so many milliseconds; paged ones with a budget,
    /// and kilobytes copied in so many milliseconds.
    fn rows(runs: &[(Option<u64>, u64, u64, u64)]) -> Vec<Row> {
        let axes = Axes {
            n_prompt: vec![0],
            n_gen: vec![10],
            ..Axes::of_test()
        };
        let case = axes.cases().unwrap().remove(0);
        let row = |&(budget, ms, kb, copied_ms): &(Option<u64>, u64, u64, u64)| {
            let paged = |budget_bytes| Variant::Paged {
                budget: String::new(),
                budget_bytes,
                cold: Cold::Auto,
            };
            Row {
                case: case.on(budget.map_or(Variant::Stock, paged)),
                model: None,
                samples: vec![Sample {
                    ns: ms * 1_000_000,
                    paged: Counters {
                        bytes_in: kb * 1000,
                        copy_seconds: copied_ms as f64 / 1e3,
                        compute_seconds: 0.05,
                        streamed_bytes: kb,
                        ..Counters::default()
                    },
                    ..Sample::default()
                }],
                failure: None,
                ratio: None,
                law_ts: None,
            }
        };
        runs.iter().map(row).collect()
    }

    fn laws(runs: &[(Option<u64>, u64, u64, u64)]) -> Vec<Option<f64>> {
        let mut rows = rows(runs);
        set_law(&mut rows);
        let rounded = |law: f64| (law * 1000.0).round() / 1000.0;
        rows.iter().map(|row| row.law_ts.map(rounded)).collect()
    }

    #[test]
    fn copies_rule_below_and_computing_above() {
        // 1 MB per second: 400 kB are 0.4 s for 10 tokens, and computing takes 0.1 s.
        let runs = [
            (None, 100, 0, 0),
            (Some(10), 500, 400, 400),
            (Some(20), 150, 50, 50),
            (Some(30), 100, 0, 0),
        ];
        assert_eq!(laws(&runs), [None, Some(25.0), Some(100.0), Some(100.0)]);
    }

    #[test]
    fn computing_alone_rules_where_nothing_ran_unhindered() {
        let runs = [(Some(10), 500, 400, 400), (Some(20), 150, 50, 50)];
        assert_eq!(laws(&runs), [Some(25.0), Some(200.0)]);
        assert_eq!(laws(&[]), []);
    }

    #[test]
    fn who_computes_makes_another_series_beside_the_same_stock() {
        let mut rows = rows(&[
            (None, 100, 0, 0),
            (Some(10), 500, 400, 400),
            (Some(10), 200, 0, 0),
            (Some(20), 400, 200, 200),
        ]);
        if let Variant::Paged { cold, .. } = &mut rows[2].case.variant {
            *cold = Cold::Cpu;
        }
        let all = series(&rows);
        let shown = |series: &Series<'_>| (series.case().variant.cold(), series.paged.len());
        let shown: Vec<_> = all.iter().map(shown).collect();
        assert_eq!(shown, [(Some(Cold::Auto), 2), (Some(Cold::Cpu), 1)]);
        assert!(all.iter().all(|series| series.stock.is_some()));
    }

    #[test]
    fn between_two_budgets_the_bytes_lie_on_a_line() {
        let rows = rows(&[(Some(20), 500, 200, 200), (Some(10), 500, 400, 400)]);
        let all = series(&rows);
        assert_eq!(all.len(), 1);
        let law = Law::new(&all[0], &rows);
        let at = |budget| law.tokens_per_second(budget).map(f64::round);
        assert_eq!(
            [at(10.0), at(15.0), at(20.0)],
            [Some(25.0), Some(33.0), Some(50.0)]
        );
        assert_eq!(at(21.0), None);
    }
}
