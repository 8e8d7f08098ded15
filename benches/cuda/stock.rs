//! Of stock llama.cpp the placements that are compared with.

use serde_json::{Value, json};

use super::placement::{Kind, next};
use super::run::Runner;
use super::speed::Rig;
use super::work::{Case, Tried, What};

/// Counts that a search for a placement tries for one budget.
const TRIES_MAX: usize = 4;

impl Rig<'_> {
    /// Placements of stock that take no more than `limit`, as places in `self.stock`.
    pub fn best_of_stock(
        &mut self,
        runner: &Runner,
        case: &Case,
        limit: Option<u64>,
        record: &mut Value,
    ) -> Vec<usize> {
        let [small, large] = self.work.ubatches;
        let mut errors = Vec::new();
        let mut fitting = Vec::new();
        let mut look = |rig: &mut Self, kind, ubatch| {
            let (mut found, error) = rig.search(runner, case, (kind, ubatch), limit);
            errors.extend(error.map(|error| format!("{error:#}")));
            fitting.append(&mut found);
        };
        match case.what {
            What::Beyond(_) => {
                let flags = [
                    "-ngl",
                    "99",
                    "-nkvo",
                    "1",
                    "-lm",
                    "none",
                    "-ub",
                    &small.to_string(),
                ];
                let flags: Vec<String> = flags.map(str::to_owned).into();
                match self.bench(runner, case.what, &flags) {
                    Ok(measured) => {
                        fitting.push(self.stock.len());
                        self.stock.push(Tried {
                            what: case.what,
                            placement: None,
                            flags,
                            runs: vec![measured],
                        });
                    }
                    Err(error) => errors.push(format!("{error:#}")),
                }
            }
            What::Prefill => {
                look(self, Kind::Layers, large);
                look(self, Kind::Layers, small);
                if case.percent < 100 {
                    look(self, Kind::FeedForward, large);
                }
            }
            What::Decode(_) => {
                look(self, Kind::Layers, small);
                if case.percent < 100 {
                    look(self, Kind::FeedForward, small);
                }
            }
        }
        record["failed_of_stock"] = json!(errors);
        fitting
    }

    /// Looks for the most of one kind that takes no more than `limit`.
    fn search(
        &mut self,
        runner: &Runner,
        case: &Case,
        (kind, ubatch): (Kind, u64),
        limit: Option<u64>,
    ) -> (Vec<usize>, Option<anyhow::Error>) {
        let most = kind.most(&self.model);
        let guess = (most * case.percent / 100).min(most);
        // Sizes are sampled: a hundredth more is the same.
        let limit = limit.map(|limit| limit + limit / 100);
        let (mut failure, mut failed) = (None, Vec::new());
        for _ in 0..TRIES_MAX {
            let found = self.found(case.what, kind, ubatch);
            let known = found
                .iter()
                .filter_map(|(count, bytes, _)| Some((*count, (*bytes)?)));
            let known: Vec<(u64, u64)> = known.chain(failed.iter().copied()).collect();
            let count = match limit {
                Some(limit) if !known.is_empty() => {
                    let step = self.model.bytes / (u64::from(self.model.layers) + 1);
                    next(&known, limit, most, step)
                }
                _ => Some(guess).filter(|guess| !found.iter().any(|(count, ..)| count == guess)),
            };
            let Some(count) = count else {
                break;
            };
            let mut flags = kind.flags(&self.model, count);
            flags.extend(["-lm", "none", "-ub", &ubatch.to_string()].map(str::to_owned));
            match self.bench(runner, case.what, &flags) {
                Ok(measured) => self.stock.push(Tried {
                    what: case.what,
                    placement: Some((kind, count, ubatch)),
                    flags,
                    runs: vec![measured],
                }),
                Err(error) => {
                    failure = Some(error);
                    // Most likely there is not so much memory at all.
                    let Some(limit) = limit else {
                        break;
                    };
                    failed.push((count, limit + limit / 4 + 1));
                }
            }
        }
        let found = self.found(case.what, kind, ubatch).into_iter();
        let fits = |(count, bytes, _): &(u64, Option<u64>, usize)| match (*bytes, limit) {
            (Some(bytes), Some(limit)) => bytes <= limit,
            // Nobody says how much it takes: about the same part of the model.
            _ => *count == guess,
        };
        (
            found.filter(fits).map(|(.., index)| index).collect(),
            failure,
        )
    }

    /// What was tried of one kind: counts, bytes, and places in `self.stock`.
    fn found(&self, what: What, kind: Kind, ubatch: u64) -> Vec<(u64, Option<u64>, usize)> {
        let all = self.stock.iter().enumerate();
        let all = all.filter_map(|(index, tried)| {
            let (of, count, at_once) = tried.placement?;
            let same = tried.what == what && (of, at_once) == (kind, ubatch);
            same.then(|| (count, tried.vram_bytes(), index))
        });
        all.collect()
    }
}
