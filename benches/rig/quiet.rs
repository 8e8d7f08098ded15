//! Whether anything else ran meanwhile. Two threads that wait for each other on two cores
//! become many times slower as soon as a third wants to run: such a run says nothing.
//!
//! Read from `/proc`; where there is none, every run counts.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The share of the machine that others may take during a run that counts.
pub const FOREIGN_SHARE_MAX: f64 = 0.03;

/// Processor time since the machine started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ticks {
    /// All processors together, idle or not.
    total: u64,
    /// Not idle; what other machines took from a virtual one counts too.
    busy: u64,
    /// Of this process and of its children that have ended.
    own: u64,
}

impl Ticks {
    /// The ticks at this moment.
    pub fn now() -> Option<Self> {
        let machine = fs::read_to_string("/proc/stat").ok()?;
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        Self::read(&machine, &own)
    }

    fn read(machine: &str, own: &str) -> Option<Self> {
        let numbers = |text: &str| -> Vec<u64> {
            text.split_whitespace()
                .map_while(|word| word.parse().ok())
                .collect()
        };
        // user nice system idle iowait irq softirq steal; what follows is in user already.
        let mut times = numbers(machine.lines().next()?.strip_prefix("cpu ")?);
        times.truncate(8);
        let total: u64 = times.iter().sum();
        let idle = times.get(3)? + times.get(4)?;
        // The program's name may hold spaces; behind it the fields are counted from 3.
        let (_, fields) = own.rsplit_once(") ")?;
        let own = fields.split_whitespace().skip(14 - 3).take(4);
        let own = own.filter_map(|word| word.parse::<u64>().ok()).sum();
        Some(Self {
            total,
            busy: total - idle,
            own,
        })
    }

    /// The share of the machine that others took since `earlier`, 0 to 1.
    fn foreign_share_since(self, earlier: Self) -> f64 {
        let busy = (self.busy - earlier.busy).saturating_sub(self.own - earlier.own);
        busy as f64 / (self.total - earlier.total).max(1) as f64
    }
}

/// The share that others took since `earlier`; 0 where it cannot be known.
pub fn foreign_share_since(earlier: Option<Ticks>) -> f64 {
    match (earlier, Ticks::now()) {
        (Some(earlier), Some(now)) => now.foreign_share_since(earlier),
        _ => 0.0,
    }
}

/// Waits until nothing else runs, at most `patience`. Says whether it is quiet.
pub fn wait(patience: Duration) -> bool {
    let started = Instant::now();
    loop {
        let before = Ticks::now();
        sleep(Duration::from_secs(2));
        if foreign_share_since(before) <= FOREIGN_SHARE_MAX {
            return true;
        }
        if started.elapsed() > patience {
            return false;
        }
    }
}

/// This file's arithmetic on known values.
pub fn check_arithmetic() {
    let read = |machine, own| Ticks::read(machine, own);
    let earlier = read(
        "cpu  10 0 10 80 0 0 0 0 0 0\n",
        "1 (a b) S 1 1 1 0 0 0 0 0 0 0 5 5 0 0 0",
    );
    let later = read(
        "cpu  70 0 20 100 0 0 0 10 9 9\n",
        "1 (a b) S 1 1 1 0 0 0 0 0 0 0 5 5 40 10 0",
    );
    assert_eq!(
        earlier,
        Some(Ticks {
            total: 100,
            busy: 20,
            own: 10
        })
    );
    assert_eq!(
        later,
        Some(Ticks {
            total: 200,
            busy: 100,
            own: 60
        })
    );
    let share = later
        .zip(earlier)
        .map(|(later, earlier)| later.foreign_share_since(earlier));
    assert_eq!(share, Some(0.3));
}
