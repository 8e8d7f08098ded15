use proptest::prelude::*;

use super::*;

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() <= 5e-3 * left.abs().max(right.abs())
}

/// Rates without contention, and segments that cost nothing.
fn rates(link: f64, processor: f64, device: f64) -> Rates {
    Rates {
        link,
        processor,
        device,
        link_slowdown: 1.0,
        processor_slowdown: 1.0,
        segment_seconds: 0.0,
    }
}

fn load(may_bytes: u64, resident_bytes: u64) -> Load {
    Load {
        may_bytes,
        resident_bytes,
        segments: 1000,
        ..Load::default()
    }
}

/// An 8B model in 4 GB: 2.0 GB are cold. The law's 15.5 (processor), 6.0 (stream) and 22.5
/// (ideal) tokens/s are K / Bp = 1/6.0, K / (Bp + Bc) = 1/22.5 and so Bc = 16.5 K, and what
/// the device takes for the rest is 1/15.5 - 1/16.5 s.
#[test]
fn the_law_for_8b_in_4_gb() {
    let cold = 2e9;
    let on_device = 1.0 / 15.5 - 1.0 / 16.5;
    let rates = rates(6.0 * cold, 16.5 * cold, 3e9 / on_device);
    let (load, per_second) = (load(2_000_000_000, 3_000_000_000), |time: f64| 1.0 / time);
    let found = shares(&load, &rates);
    assert!(close(per_second(found.static_seconds), 15.5));
    assert!(close(found.processor_seconds, found.static_seconds));
    assert!(close(per_second(found.stream_seconds), 6.0));
    // The law's ideal has the device compute beside the processor; a chain does not.
    let best = per_second(found.chosen.seconds);
    assert!((20.5..22.5).contains(&best), "{best}");
    let nothing_else = Load {
        resident_bytes: 0,
        ..load
    };
    let beside = Rates {
        device: f64::INFINITY,
        ..rates
    };
    let ideal = shares(&nothing_else, &beside);
    assert!(close(per_second(ideal.chosen.seconds), 22.5));
    // The link's part is Bp / (Bp + Bc).
    assert!(close(1.0 - ideal.chosen.share, 6.0 / 22.5));
}

/// A 70B model in 24 GB: 20.9 GB are cold, the memory of the machine is what bounds both:
/// K / Bd = 1/3.44, K / Bp = 1/1.15; the processor alone takes 1/2.75 s with the device's part,
/// 22 GB from a memory of 1 TB/s.
#[test]
fn the_law_for_70b_in_24_gb() {
    let cold = 20.9e9;
    let on_device = 22e9 / 1e12;
    let (link, memory) = (1.15 * cold, 3.44 * cold);
    let processor = cold / (1.0 / 2.75 - on_device);
    // Together they draw more than there is: each gets its part of it.
    let slowdown = (link + processor) / memory;
    assert!(slowdown > 1.1, "{slowdown}");
    let contended = Rates {
        link_slowdown: slowdown,
        processor_slowdown: slowdown,
        ..rates(link, processor, 1e12)
    };
    let load = load(20_900_000_000, 22_000_000_000);
    let found = shares(&load, &contended);
    assert!(close(1.0 / found.static_seconds, 2.75));
    assert!(close(1.0 / found.stream_seconds, 1.15));
    let best = 1.0 / found.chosen.seconds;
    assert!((3.2..3.44).contains(&best), "{best}");
    let free = Load {
        resident_bytes: 0,
        ..load
    };
    let ideal = Rates {
        device: f64::INFINITY,
        ..contended
    };
    assert!(close(1.0 / best_seconds(&free, &ideal), 3.44));
}

fn best_seconds(load: &Load, rates: &Rates) -> f64 {
    best(load, rates).seconds
}

#[test]
fn a_slow_processor_streams_and_a_slow_link_does_not() {
    let load = load(1_000_000_000, 0);
    let segments = Rates {
        segment_seconds: 1e-3,
        ..rates(1e10, 1e8, 1e12)
    };
    assert!(best(&load, &segments).share < 0.02);
    assert!(best(&load, &rates(1e6, 1e10, 1e12)).share > 0.99);
}

#[test]
fn segments_have_a_price() {
    let load = load(1_000_000_000, 0);
    let free = rates(1e10, 2e10, 1e12);
    let dear = Rates {
        segment_seconds: 1e-4,
        ..free
    };
    let apart = seconds(&load, &dear, 1.0) - seconds(&load, &free, 1.0);
    assert!(close(apart, 0.1), "{apart}");
    assert!(best(&load, &dear).share < best(&load, &free).share);
}

#[test]
fn what_must_stream_does_so_at_any_share() {
    let load = Load {
        must_bytes: 500_000_000,
        ..load(500_000_000, 0)
    };
    let rates = rates(1e9, 1e12, 1e15);
    assert!(close(seconds(&load, &rates, 1.0), 0.5));
    assert!(close(seconds(&load, &rates, 0.0), 1.0));
    assert!(static_seconds(&load, &rates) < 2e-3);
}

#[test]
fn contention_counts_only_while_both_are_at_work() {
    let load = load(1_000_000_000, 0);
    let both = Rates {
        link_slowdown: 2.0,
        processor_slowdown: 2.0,
        ..rates(1e9, 1e9, f64::INFINITY)
    };
    // Half each, taking turns: the whole as if one had done it all.
    assert!(close(seconds(&load, &both, 0.5), 1.0));
    assert!(close(seconds(&load, &both, 0.25), 1.0));
    let worse = Rates {
        link_slowdown: 5.0,
        processor_slowdown: 5.0,
        ..both
    };
    assert!(
        close(seconds(&load, &worse, 0.5), 1.0),
        "no worse than in turn"
    );
    assert!(close(seconds(&load, &worse, 1.0), 1.0));
}

#[test]
fn in_turn_is_the_sum() {
    let load = Load {
        must_bytes: 300_000_000,
        other_seconds: 0.25,
        ..load(1_000_000_000, 2_000_000_000)
    };
    let rates = rates(1e9, 4e9, 1e10);
    let (alone, slow) = in_turn(&load, &rates);
    let expected = 0.8 + 0.25 + (2.0 + 0.8) / 10.0 + 0.5 / 4.0;
    assert!(close(seconds(&alone, &slow, 0.5), expected));
    assert!(seconds(&load, &rates, 0.5) < expected);
}

#[test]
fn with_nothing_cold_nothing_is_chosen_badly() {
    let none = Load {
        resident_bytes: 1_000_000_000,
        ..Load::default()
    };
    let found = shares(&none, &rates(1e9, 1e9, 1e10));
    assert!(close(found.chosen.seconds, 0.1));
    assert_eq!(found.chosen.share, 1.0);
}

fn any_load() -> impl Strategy<Value = Load> {
    let bytes = || 0u64..1 << 36;
    (bytes(), bytes(), bytes(), 0.0f64..0.1, 0u32..200).prop_map(
        |(may_bytes, must_bytes, resident_bytes, other_seconds, segments)| Load {
            may_bytes,
            must_bytes,
            resident_bytes,
            other_seconds,
            segments,
        },
    )
}

fn any_rates() -> impl Strategy<Value = Rates> {
    let rate = || (1e8f64.ln()..1e12f64.ln()).prop_map(f64::exp);
    let slow = || 1.0f64..3.0;
    (rate(), rate(), rate(), slow(), slow(), 0.0f64..1e-3).prop_map(
        |(link, processor, device, link_slowdown, processor_slowdown, segment_seconds)| Rates {
            link,
            processor,
            device,
            link_slowdown,
            processor_slowdown,
            segment_seconds,
        },
    )
}

proptest! {
    #[test]
    fn the_best_beats_both_ends(load in any_load(), rates in any_rates()) {
        let found = shares(&load, &rates);
        prop_assert!(found.chosen.seconds <= found.stream_seconds);
        prop_assert!(found.chosen.seconds <= found.processor_seconds);
        prop_assert!((0.0..=1.0).contains(&found.chosen.share));
    }

    #[test]
    fn a_faster_link_never_raises_the_share(
        load in any_load(), rates in any_rates(), faster in 1.0f64..20.0,
    ) {
        // A device slower than the processor is used only where contention makes it pay.
        let rates = Rates { device: rates.device.max(rates.processor), ..rates };
        let with = Rates { link: rates.link * faster, ..rates };
        let (slow, fast) = (best(&load, &rates), best(&load, &with));
        // Shares that take as long as each other are alike.
        let as_good = seconds(&load, &with, slow.share) <= fast.seconds * (1.0 + 1e-9);
        prop_assert!(fast.share <= slow.share || as_good, "{slow:?} {fast:?}");
        prop_assert!(fast.seconds <= slow.seconds * (1.0 + 1e-9));
    }

    #[test]
    fn a_faster_processor_never_slows_a_pass(
        load in any_load(), rates in any_rates(), faster in 1.0f64..20.0,
    ) {
        let with = Rates { processor: rates.processor * faster, ..rates };
        prop_assert!(best_seconds(&load, &with) <= best_seconds(&load, &rates) * (1.0 + 1e-9));
    }

    #[test]
    fn a_pass_takes_at_least_chain_and_copies_and_at_most_one_after_the_other(
        load in any_load(), rates in any_rates(), share in 0.0f64..1.0,
    ) {
        let found = seconds(&load, &rates, share);
        let free = Rates { link_slowdown: 1.0, processor_slowdown: 1.0, ..rates };
        let copies = units(load.must_bytes) + units(load.may_bytes) * (1.0 - share);
        let chain = seconds(&load, &Rates { link: f64::INFINITY, ..free }, share);
        let copies = copies / rates.link;
        prop_assert!(found >= chain.max(copies) * (1.0 - 1e-9));
        prop_assert!(found <= (chain + copies) * (1.0 + 1e-9));
    }
}
