//! Matrices by their type.

use std::cmp::Reverse;

use crate::ggml::workload::kind_name;
use crate::planner::cost;

/// Bytes of matrices by ggml's number of their type.
#[derive(Clone, Debug, Default)]
pub struct Kinds(Vec<(u32, u64)>);

impl Kinds {
    /// Counts `bytes` more of a type.
    pub fn add(&mut self, kind: u32, bytes: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, sum)) => *sum += bytes,
            None => self.0.push((kind, bytes)),
        }
    }

    /// Whether there are no matrices.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The types and their bytes, the most first.
    pub fn most_first(&self) -> Vec<(u32, u64)> {
        let mut kinds = self.0.clone();
        kinds.sort_by_key(|(kind, bytes)| (Reverse(*bytes), *kind));
        kinds
    }

    /// Seconds of one token's products with all of them; `of` gives a type's bytes per second,
    /// by its name. None when that of one is not known.
    pub fn seconds(&self, of: impl Fn(&str) -> Option<f64>) -> Option<f64> {
        let mut seconds = 0.0;
        for (kind, bytes) in &self.0 {
            seconds += cost::matrix_seconds(*bytes, of(kind_name(*kind)?)?);
        }
        Some(seconds)
    }
}
