//! The law over budgets: what a token has to take.
//!
//! ```text
//!  seconds per token = max( bytes copied per token / rate of the copies,
//!                           seconds of computing when all is resident )
//! ```
//!
//! Rate and bytes are measured in this sweep: the rate is the median over all budgets, so
//! that one budget's own time does not say what it should have been. Where copies and
//! computing share processors or memory bandwidth, and where a copy cannot begin before a
//! layer is done, a token takes longer.

use super::case::{Case, Variant};
use super::row::Row;
use super::statistics::median;
use crate::telemetry::prediction::seconds_per_token;

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
            series.case().on(Variant::Stock) == row.case.on(Variant::Stock)
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
        let per_token = |row: &Row| row.compute_per_token();
        let resident = series.paged.iter().rev().find(|row| is_resident(row));
        let stock = series.stock.and_then(|row| {
            let times = median(&row.times());
            times.map(|ns| ns / 1e9 / f64::from(row.case.tokens()))
        });
        // Contention slows computing while weights stream: the least is the closest.
        let computed = series.paged.iter().filter_map(|row| per_token(row));
        let least = computed.min_by(f64::total_cmp);
        let travelling = series.paged.iter().map(|row| {
            let budget = row.case.variant.budget_bytes().unwrap_or(0);
            (budget as f64, row.bytes_per_token().unwrap_or(0.0))
        });
        Self {
            bytes_per_second: median(&rates),
            compute_seconds: resident.and_then(|row| per_token(row)).or(stock).or(least),
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
        let seconds = seconds_per_token(bytes, self.bytes_per_second, self.compute_seconds)?;
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
