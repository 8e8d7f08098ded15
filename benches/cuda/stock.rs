//! Of stock llama.cpp the placements that are compared with.

use super::placement::{Found, Kind, next};
use super::run::Runner;
use super::speed::Rig;
use super::work::{Case, Failure, Measured, Tried, What, Why};

/// Counts that a search for a placement tries for one budget.
const TRIES_MAX: usize = 4;

/// What of stock is compared with.
#[derive(Default)]
pub struct Stock {
    /// Places in `Rig::stock`.
    pub fitting: Vec<usize>,
    /// Whether all that was to be tried was, or had no room.
    pub is_complete: bool,
    pub errors: Vec<String>,
}

impl Stock {
    /// Notes a run that failed.
    pub fn failed(&mut self, failure: &Failure) {
        self.errors.push(failure.sentence.clone());
        self.is_complete &= failure.why == Why::Memory;
    }
}

/// Bytes that are the same as `bytes`: memory is sampled.
fn about(bytes: u64) -> u64 {
    bytes + bytes / 100
}

/// A sentence when stock took more of the GPU's memory than the paged run.
pub fn more_than(ours: Option<u64>, stock: Option<u64>) -> Option<String> {
    let (ours, stock) = ours.zip(stock)?;
    (stock > about(ours)).then(|| {
        let more = (stock - ours) >> 20;
        format!("stock took {more} MiB more of the GPU's memory than the paged run")
    })
}

impl Rig<'_> {
    /// Placements of stock that take no more than `limit`; where everything is to be resident,
    /// and where only the KV cache is not, what is so without paging.
    pub fn best_of_stock(&mut self, runner: &Runner, case: &Case, limit: Option<u64>) -> Stock {
        let [small, large] = self.work.ubatches;
        let mut stock = Stock {
            is_complete: true,
            ..Stock::default()
        };
        let searches = match case.what {
            What::Beyond(_) => {
                let flags = ["-ngl", "99", "-nkvo", "1"].map(str::to_owned).into();
                let index = self.try_stock(runner, case.what, (flags, small), None);
                match index {
                    Ok(index) => stock.fitting.push(index),
                    Err(failure) => stock.failed(&failure),
                }
                return stock;
            }
            What::Prefill if case.percent >= 100 => {
                self.full(runner, case, large, &mut stock);
                self.full(runner, case, small, &mut stock);
                return stock;
            }
            What::Decode(_) if case.percent >= 100 => {
                self.full(runner, case, small, &mut stock);
                return stock;
            }
            What::Prefill => vec![
                (Kind::Layers, large),
                (Kind::Layers, small),
                (Kind::FeedForward, large),
            ],
            What::Decode(depth) => {
                let mut searches = vec![(Kind::Layers, small), (Kind::FeedForward, small)];
                // So large a KV cache may be better off in the machine's memory.
                if depth > self.work.depths[0] {
                    searches.push((Kind::LayersWithoutKv, small));
                }
                searches
            }
        };
        for (kind, ubatch) in searches {
            self.search(runner, case, (kind, ubatch), limit, &mut stock);
        }
        stock
    }

    /// All of the model on the GPU, whatever it takes.
    fn full(&mut self, runner: &Runner, case: &Case, ubatch: u64, stock: &mut Stock) {
        let kind = Kind::Layers;
        let most = kind.most(&self.model);
        let found = self.found(case.what, kind, ubatch);
        let known = found.into_iter().find(|(count, ..)| *count == most);
        let index = match known {
            Some((.., index)) => Ok(index),
            None => {
                let flags = (kind.flags(&self.model, most), ubatch);
                self.try_stock(runner, case.what, flags, Some((kind, most, ubatch)))
            }
        };
        match index {
            Ok(index) => stock.fitting.push(index),
            Err(failure) => stock.failed(&failure),
        }
    }

    /// Looks for the most of one kind that takes no more than `limit`.
    fn search(
        &mut self,
        runner: &Runner,
        case: &Case,
        (kind, ubatch): (Kind, u64),
        limit: Option<u64>,
        stock: &mut Stock,
    ) {
        let most = kind.most(&self.model);
        let guess = (most * case.percent / 100).min(most);
        let limit = limit.map(about);
        let mut too_large = Vec::new();
        for _ in 0..TRIES_MAX {
            let found = self.found(case.what, kind, ubatch);
            let known = found
                .iter()
                .filter_map(|(count, bytes, _)| Some((*count, (*bytes)?)));
            let known: Vec<Found> = known.collect();
            let is_new = |count: &u64| {
                !too_large.contains(count) && found.iter().all(|(other, ..)| other != count)
            };
            let count = match limit {
                Some(limit) if !(known.is_empty() && too_large.is_empty()) => {
                    let step = self.model.bytes / (u64::from(self.model.layers) + 1);
                    next(&known, &too_large, limit, most, step)
                }
                _ => Some(guess).filter(is_new),
            };
            let Some(count) = count else {
                break;
            };
            let flags = (kind.flags(&self.model, count), ubatch);
            let placement = Some((kind, count, ubatch));
            if let Err(failure) = self.try_stock(runner, case.what, flags, placement) {
                stock.failed(&failure);
                if failure.why != Why::Memory {
                    break;
                }
                too_large.push(count);
            }
        }
        let found = self.found(case.what, kind, ubatch).into_iter();
        let fits = |(count, bytes, _): &(u64, Option<u64>, usize)| match (*bytes, limit) {
            (Some(bytes), Some(limit)) => bytes <= limit,
            // Nobody says how much it takes: about the same part of the model.
            _ => *count == guess,
        };
        let fitting = found.filter(fits).map(|(.., index)| index);
        stock.fitting.extend(fitting);
    }

    /// Runs stock with these flags and so many tokens at once; its place in `self.stock`.
    fn try_stock(
        &mut self,
        runner: &Runner,
        what: What,
        (mut flags, ubatch): (Vec<String>, u64),
        placement: Option<(Kind, u64, u64)>,
    ) -> Result<usize, Failure> {
        flags.extend(["-lm", "none", "-ub", &ubatch.to_string()].map(str::to_owned));
        let measured = self.bench(runner, what, &flags);
        let measured = measured.and_then(Measured::whole)?;
        let mut tried = Tried::new(what, flags, measured);
        tried.placement = placement;
        self.stock.push(tried);
        Ok(self.stock.len() - 1)
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

/// What counts as more memory, on known sizes.
pub fn check_arithmetic() {
    let gib = |count: u64| Some(count << 30);
    assert!(more_than(gib(8), gib(9)).is_some_and(|text| text.contains("1024 MiB more")));
    assert_eq!(more_than(gib(8), Some((8 << 30) + (40 << 20))), None);
    assert_eq!(more_than(gib(8), None), None);
    let failure = |why| Failure {
        why,
        sentence: String::new(),
    };
    let is_complete = |why| {
        let mut stock = Stock {
            is_complete: true,
            ..Stock::default()
        };
        stock.failed(&failure(why));
        stock.is_complete
    };
    let all = [Why::Memory, Why::Time, Why::Other];
    assert_eq!(all.map(is_complete), [true, false, false]);
}
