//! What this process holds of each card's memory beside what CUDA's driver takes for it.
//!
//! A process is listed as a whole, whoever of it holds what: where several models lie on a
//! card, each one's part has to be known to tell the driver's.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A part of what is held, by card and number.
type Parts = BTreeMap<(String, u64), u64>;

static PARTS: Mutex<Parts> = Mutex::new(BTreeMap::new());

fn parts() -> MutexGuard<'static, Parts> {
    PARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a card is on the bus, by the name that ggml has for that: it appends a number to where
/// one card plays several.
pub(super) fn card_of(bus_id: &str) -> &str {
    bus_id.split_once("-v").map_or(bus_id, |(card, _)| card)
}

/// The same as everybody spells it.
pub(super) fn place_of(bus_id: &str) -> String {
    card_of(bus_id).to_lowercase()
}

/// Bytes that the process holds of a card, all parts together.
pub(super) fn held_on(place: &str) -> u64 {
    let parts = parts();
    let of_card = parts.iter().filter(|((card, _), _)| card == place);
    of_card.map(|(_, bytes)| bytes).sum()
}

/// A part of what this process holds of a card; dropped when that is given back.
#[derive(Debug)]
pub struct Holding {
    key: (String, u64),
}

impl Holding {
    /// Nothing yet, of the card at a place on the bus, as ggml names it.
    pub fn on(bus_id: &str) -> Self {
        let mut parts = parts();
        let place = place_of(bus_id);
        let numbers = parts.keys().map(|(_, number)| *number);
        let number = numbers.max().map_or(0, |newest| newest + 1);
        let key = (place, number);
        parts.insert(key.clone(), 0);
        Self { key }
    }

    /// So many bytes from now on.
    pub fn set(&self, bytes: u64) {
        parts().insert(self.key.clone(), bytes);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        parts().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_of_a_card_is_the_sum_of_all_parts() {
        let first = Holding::on("0000:F1:00.0-v1");
        let second = Holding::on("0000:f1:00.0");
        let elsewhere = Holding::on("0000:f2:00.0");
        first.set(30);
        second.set(4);
        elsewhere.set(500);
        assert_eq!(held_on("0000:f1:00.0"), 34);
        first.set(20);
        assert_eq!(held_on("0000:f1:00.0"), 24);
        drop(first);
        let third = Holding::on("0000:f1:00.0");
        third.set(1);
        assert_eq!(held_on("0000:f1:00.0"), 5);
        drop((second, third));
        assert_eq!(held_on("0000:f1:00.0"), 0);
    }
}
