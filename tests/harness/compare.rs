//! Compares logits bit by bit.

use std::fmt::Debug;

use super::{Logits, RunSpec, likeliest};

/// The first difference, and how many there are; None when every bit is the same.
pub fn difference(stock: &Logits, paged: &Logits) -> Option<String> {
    if stock.len() != paged.len() {
        return Some(format!(
            "{} rows from stock, {} paged",
            stock.len(),
            paged.len()
        ));
    }
    let differences = |row: usize| {
        let pairs = stock[row].iter().zip(&paged[row]).enumerate();
        pairs.filter(|(_, (stock, paged))| stock.to_bits() != paged.to_bits())
    };
    let row = (0..stock.len()).find(|row| differences(*row).next().is_some())?;
    let (index, (expected, found)) = differences(row).next()?;
    let rows = (0..stock.len())
        .filter(|row| differences(*row).next().is_some())
        .count();
    Some(format!(
        "{rows} of {} rows differ, first row {row} at token id {index} ({} of {} there): \
         stock {expected} ({:#010x}), paged {found} ({:#010x})",
        stock.len(),
        differences(row).count(),
        stock[row].len(),
        expected.to_bits(),
        found.to_bits(),
    ))
}

/// Panics with the first difference, unless every bit is the same.
pub fn assert_same(stock: &Logits, paged: &Logits, what: &dyn Debug) {
    if let Some(difference) = difference(stock, paged) {
        panic!("{difference}\nin {what:?}");
    }
}

/// Panics when the logits could not tell a right run from a wrong one.
pub fn assert_sound(logits: &Logits, spec: &RunSpec) {
    let finite = logits.iter().flatten().all(|value| value.is_finite());
    assert!(
        finite,
        "stock llama.cpp gave infinite logits or NaN in {spec:?}"
    );
    let mut likely: Vec<i32> = logits.iter().map(|row| likeliest(row)).collect();
    likely.sort_unstable();
    likely.dedup();
    assert!(
        likely.len() > 1 || logits.len() < 4,
        "the likeliest token never changes over {} rows in {spec:?}",
        logits.len()
    );
}
