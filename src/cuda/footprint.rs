//! What CUDA's driver takes of a card's memory for this process: the context, kernels that were
//! loaded, handles and workspaces of its libraries. That is what the process takes there, less
//! what is known to be held ([`super::Holding`]).
//!
//! Which of the processes on the card is this one? Within a container the driver may count
//! them otherwise than the system does, or show none at all. So it helps to know how the card
//! was used before this process had a context there ([`witness`]):
//!
//! ```text
//!  listed under its own number, and not before        that one
//!  one alone was not listed before, and has taken
//!  no more than there is more in use                   that one
//!  nobody else changed what he takes meanwhile         the growth of what is in use
//! ```
//! Whoever takes less than what this process is known to hold is somebody else. The number under
//! which it was found stays its own.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUdevice;

use super::driver::{Calls, driver};
use super::holding::{held_on, place_of};
use super::nvml::{Card, Process, Snapshot};

/// What is in use of a card and no process's may change by this without anybody's doing.
const SLACK_BYTES: u64 = 64 << 20;

/// What this process, or the driver for it, takes of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footprint {
    /// So many bytes; it can be asked again at any time.
    Listed(u64),
    /// So many bytes more are in use than before: right as long as nobody else comes or goes.
    Grown(u64),
    /// The processes are listed, and none of them is surely this one.
    NotListed,
    /// It is not said what a process takes.
    NotSaid,
}

/// A card on which this process is looked for.
#[derive(Clone, Debug)]
pub struct Usage {
    card: Card,
    place: String,
}

/// What is known of a card.
#[derive(Clone, Debug, Default)]
struct Known {
    // Before this process had a context there.
    before: Option<Snapshot>,
    // The number under which this process was found there.
    number: Option<u32>,
}

/// By the card's place on the bus.
static KNOWN: Mutex<BTreeMap<String, Known>> = Mutex::new(BTreeMap::new());

fn known() -> MutexGuard<'static, BTreeMap<String, Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes how each card is used on which this process has no context yet. To be called before
/// anything of CUDA's is; does nothing without a driver.
pub fn witness() {
    let Ok(driver) = driver() else { return };
    let mut count = 0;
    // SAFETY: a place for the number.
    if unsafe { (driver.calls.device_count)(&raw mut count) } != 0 {
        return;
    }
    for ordinal in 0..count {
        let Some(bus_id) = place_of_unused(&driver.calls, ordinal) else {
            continue;
        };
        let Some(card) = Card::at(&bus_id) else {
            return;
        };
        let mut known = known();
        let known = known.entry(bus_id).or_default();
        known.before.get_or_insert_with(|| card.look());
    }
}

/// Where a device is on the bus; None where it has a context of ours.
fn place_of_unused(calls: &Calls, ordinal: i32) -> Option<String> {
    let mut device: CUdevice = 0;
    // SAFETY: a place for the number.
    let found = unsafe { (calls.device)(&raw mut device, ordinal) };
    let (mut flags, mut is_active) = (0, 1);
    // SAFETY: a device, where one was found, and places for both numbers.
    let told = unsafe { (calls.context_state)(device, &raw mut flags, &raw mut is_active) };
    if found != 0 || told != 0 || is_active != 0 {
        return None;
    }
    let mut text = [0_u8; 32];
    let (to, bytes) = (text.as_mut_ptr().cast::<c_char>(), 32);
    // SAFETY: room for as many bytes, and a device.
    let told = unsafe { (calls.bus_id)(to, bytes, device) };
    let text = CStr::from_bytes_until_nul(&text).ok()?;
    (told == 0).then(|| text.to_string_lossy().to_lowercase())
}

impl Usage {
    /// Of the card at a place on the bus, as ggml names it; None where nothing can be asked.
    pub fn at(bus_id: &str) -> Option<Self> {
        let place = place_of(bus_id);
        let card = Card::at(&place)?;
        Some(Self { card, place })
    }

    /// What the driver takes now for this process.
    pub fn of_driver(&self) -> Footprint {
        let (held_bytes, now) = (held_on(&self.place), self.card.look());
        let mut known = known();
        let known = known.entry(self.place.clone()).or_default();
        match find(known, &now, std::process::id(), held_bytes) {
            Footprint::Listed(bytes) => Footprint::Listed(bytes - held_bytes),
            Footprint::Grown(bytes) => Footprint::Grown(bytes - held_bytes),
            unknown => unknown,
        }
    }
}

/// What this process takes `now`, which holds so much.
fn find(known: &mut Known, now: &Snapshot, own: u32, held_bytes: u64) -> Footprint {
    let listed = now.processes.as_deref().unwrap_or_default();
    let before = known.before.as_ref();
    let mine = match known.number {
        Some(number) => listed.iter().find(|process| process.number == number),
        None => choose(before, now, own),
    };
    let mine = mine.filter(|mine| mine.bytes.is_none_or(|bytes| bytes >= held_bytes));
    if let Some((number, bytes)) = mine.and_then(|mine| Some((mine.number, mine.bytes?))) {
        known.number = Some(number);
        return Footprint::Listed(bytes);
    }
    let is_known = known.number.is_some();
    let grown = before.and_then(|before| growth(before, now));
    let grown = grown.filter(|_| !is_known);
    match grown.filter(|bytes| *bytes >= held_bytes) {
        Some(bytes) => Footprint::Grown(bytes),
        None if now.processes.is_none() || mine.is_some() => Footprint::NotSaid,
        None => Footprint::NotListed,
    }
}

/// The process that was not there `before`.
fn choose<'a>(before: Option<&Snapshot>, now: &'a Snapshot, own: u32) -> Option<&'a Process> {
    let earlier = before.and_then(|before| before.processes.as_deref());
    let earlier = earlier.unwrap_or_default();
    let listed = now.processes.as_deref().unwrap_or_default();
    let is_new = |process: &&Process| earlier.iter().all(|old| old.number != process.number);
    let new: Vec<&Process> = listed.iter().filter(is_new).collect();
    if let Some(mine) = new.iter().find(|process| process.number == own) {
        return Some(mine);
    }
    let used = before.and_then(|before| before.used_bytes).unwrap_or(0);
    let more = now.used_bytes.map(|bytes| bytes.saturating_sub(used));
    let most = more.map_or(u64::MAX, |bytes| bytes.saturating_add(SLACK_BYTES));
    match &*new {
        [alone] if alone.bytes.is_none_or(|bytes| bytes <= most) => Some(alone),
        _ => None,
    }
}

/// How much more is in use than before, if nobody else has changed what he takes.
fn growth(before: &Snapshot, now: &Snapshot) -> Option<u64> {
    let (old, new) = (before.processes.as_deref(), now.processes.as_deref());
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let others_stay = old.iter().all(|process| new.contains(process));
    if !others_stay || new.len() > old.len() + 1 {
        return None;
    }
    let grown = now.used_bytes?.checked_sub(before.used_bytes?)?;
    // Who is listed with more than that has not come meanwhile.
    let is_possible = |process: &Process| {
        let bytes = process.bytes.unwrap_or(0);
        old.contains(process) || bytes <= grown.saturating_add(SLACK_BYTES)
    };
    new.iter().all(is_possible).then_some(grown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 7;

    fn find(before: Option<&Snapshot>, now: &Snapshot, own: u32, held_bytes: u64) -> Footprint {
        let mut known = Known {
            before: before.cloned(),
            number: None,
        };
        super::find(&mut known, now, own, held_bytes)
    }

    fn at(used_bytes: u64, processes: &[(u32, u64)]) -> Snapshot {
        let process = |(number, bytes): &(u32, u64)| Process {
            number: *number,
            bytes: Some(*bytes).filter(|bytes| *bytes != u64::MAX),
        };
        Snapshot {
            used_bytes: Some(used_bytes),
            processes: Some(processes.iter().map(process).collect()),
        }
    }

    #[test]
    fn a_process_is_found_by_its_number() {
        let now = at(900, &[(3, 200), (OWN, 500)]);
        assert_eq!(find(None, &now, OWN, 400), Footprint::Listed(500));
        // What takes less than we hold has our number by chance.
        assert_eq!(find(None, &now, OWN, 501), Footprint::NotListed);
        // As has who was there before us.
        let before = at(700, &[(OWN, 450)]);
        let now = at(1200, &[(OWN, 450), (9001, 500)]);
        assert_eq!(find(Some(&before), &now, OWN, 0), Footprint::Listed(500));
    }

    #[test]
    fn under_a_number_of_the_machines_who_came_alone_is_found() {
        let before = at(300, &[(3, 200)]);
        let now = at(900, &[(3, 200), (9001, 500)]);
        assert_eq!(find(Some(&before), &now, OWN, 400), Footprint::Listed(500));
        assert_eq!(find(None, &now, OWN, 0), Footprint::NotListed);
        // Nobody saw what was before, and there is one alone.
        let alone = at(600, &[(9001, 500)]);
        assert_eq!(find(None, &alone, OWN, 500), Footprint::Listed(500));
        assert_eq!(find(None, &alone, OWN, 501), Footprint::NotListed);
        let two = at(900, &[(3, 200), (9001, 500), (9002, 50)]);
        assert_eq!(find(Some(&before), &two, OWN, 0), Footprint::NotListed);
        // Nor is one of two this one because the other has too little.
        assert_eq!(find(Some(&before), &two, OWN, 400), Footprint::NotListed);
        // Who has taken more than there is more in use was there, unseen.
        let unseen = at(900, &[(3, 200), (9001, 601 + SLACK_BYTES)]);
        assert_eq!(find(Some(&before), &unseen, OWN, 0), Footprint::NotListed);
    }

    #[test]
    fn who_was_found_once_is_looked_for_by_that_number_only() {
        let mut known = Known {
            before: Some(at(300, &[(3, 200)])),
            number: None,
        };
        let mut find = |now: &Snapshot| super::find(&mut known, now, OWN, 100);
        let alone = at(900, &[(3, 200), (9001, 500)]);
        assert_eq!(find(&alone), Footprint::Listed(500));
        let joined = at(9900, &[(3, 200), (9001, 550), (9002, 9000)]);
        assert_eq!(find(&joined), Footprint::Listed(550));
        let gone = at(9900, &[(3, 200), (9002, 9000)]);
        assert_eq!(find(&gone), Footprint::NotListed);
        // Not even when it alone could be this one.
        let back = at(9900, &[(OWN, 700), (9001, 560)]);
        assert_eq!(find(&back), Footprint::Listed(560));
    }

    #[test]
    fn where_processes_are_not_shown_the_growth_of_what_is_in_use_counts() {
        let hidden = |used| Snapshot {
            used_bytes: Some(used),
            processes: None,
        };
        let find = |before: &Snapshot, now: &Snapshot| self::find(Some(before), now, OWN, 100);
        assert_eq!(find(&hidden(300), &hidden(800)), Footprint::Grown(500));
        assert_eq!(find(&at(300, &[]), &at(800, &[])), Footprint::Grown(500));
        let unknown = [(9001, u64::MAX)];
        assert_eq!(
            find(&at(300, &[]), &at(800, &unknown)),
            Footprint::Grown(500)
        );
        // Somebody else came, went, or changed.
        assert_eq!(find(&hidden(300), &hidden(390)), Footprint::NotSaid);
        assert_eq!(
            find(&at(300, &[(3, 200)]), &at(800, &[])),
            Footprint::NotListed
        );
        let changed = at(800, &[(3, 250)]);
        assert_eq!(find(&at(300, &[(3, 200)]), &changed), Footprint::NotListed);
        let both = at(800, &[(9001, u64::MAX), (9002, u64::MAX)]);
        assert_eq!(find(&at(300, &[]), &both), Footprint::NotListed);
    }

    #[test]
    fn what_is_not_said_is_not_known() {
        let unknown = at(800, &[(OWN, u64::MAX)]);
        assert_eq!(find(None, &unknown, OWN, 0), Footprint::NotSaid);
        let nothing = Snapshot::default();
        assert_eq!(find(None, &nothing, OWN, 0), Footprint::NotSaid);
        assert_eq!(find(Some(&nothing), &nothing, OWN, 0), Footprint::NotSaid);
    }
}
