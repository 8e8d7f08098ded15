use proptest::prelude::*;

use super::*;

const LOAD: Load = Load {
    may_bytes: 2_000_000_000,
    must_bytes: 0,
    resident_bytes: 3_000_000_000,
    other_seconds: 0.0,
    segments: 32,
};

const RATES: Rates = Rates {
    link: 12e9,
    processor: 33e9,
    device: 770e9,
    link_slowdown: 1.0,
    processor_slowdown: 1.0,
    segment_seconds: 0.0,
};

/// What a token takes on a machine that is as fast as `truly`.
fn passage(truly: &Rates, share: f64) -> Passage {
    #[allow(clippy::cast_precision_loss, reason = "a test")]
    let may = LOAD.may_bytes as f64;
    let seconds = cold::seconds(&LOAD, truly, share);
    let bytes = |part: f64| {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a test"
        )]
        let bytes = (may * part) as u64;
        bytes
    };
    Passage {
        seconds,
        link_bytes: bytes(1.0 - share),
        // Copies that wait for what computes are in the stream all the time.
        link_seconds: seconds.max(may * (1.0 - share) / truly.link),
        processor_bytes: bytes(share),
        processor_seconds: may * share / truly.processor,
    }
}

/// Drives a run on a machine that is as fast as `truly`; all decisions in their order.
fn drive(revision: &mut Revision, truly: &Rates, tokens: usize) -> Vec<Decision> {
    (0..tokens)
        .filter_map(|_| revision.token(&passage(truly, revision.share())))
        .collect()
}

#[test]
fn a_run_as_fast_as_foretold_is_left_alone() {
    let (mut revision, chosen) = Revision::new(LOAD, RATES);
    assert_eq!(chosen.what, What::Chosen);
    assert!((0.5..0.9).contains(&chosen.share_after), "{chosen:?}");
    let a_bit_slower = Rates {
        link: RATES.link / 1.2,
        processor: RATES.processor / 1.2,
        ..RATES
    };
    assert!(drive(&mut revision, &RATES, 500).is_empty());
    assert!(drive(&mut revision, &a_bit_slower, 500).is_empty());
}

#[test]
fn a_slow_processor_gets_less_and_the_better_plan_is_kept() {
    let (mut revision, chosen) = Revision::new(LOAD, RATES);
    let truly = Rates {
        processor: RATES.processor / 3.0,
        ..RATES
    };
    let decisions = drive(&mut revision, &truly, 500);
    let what: Vec<What> = decisions.iter().map(|decision| decision.what).collect();
    let revised = What::Revised(Cause::Processor);
    assert_eq!(what, [revised, What::Tried, What::Kept]);
    assert!(decisions[0].share_after < chosen.share_after - 0.1);
    let best = cold::best(&LOAD, &truly).seconds;
    let now = cold::seconds(&LOAD, &truly, revision.share());
    assert!(now < best * 1.05, "{now} {best}");
    // Settled: nothing happens any more, whatever comes.
    let worse = Rates {
        processor: 1e9,
        ..truly
    };
    assert!(drive(&mut revision, &worse, 500).is_empty());
}

#[test]
fn a_slow_link_gives_the_processor_more() {
    let (mut revision, chosen) = Revision::new(LOAD, RATES);
    let truly = Rates {
        link: RATES.link / 4.0,
        ..RATES
    };
    let decisions = drive(&mut revision, &truly, 500);
    assert_eq!(decisions[0].what, What::Revised(Cause::Link));
    assert!(decisions[0].share_after > chosen.share_after);
    assert_eq!(decisions.len(), 3);
}

#[test]
fn where_nothing_overlaps_the_link_is_not_counted_twice() {
    let slow_processor = Rates {
        processor: 6e9,
        ..RATES
    };
    let (load, rates) = cold::in_turn(&LOAD, &slow_processor);
    let (mut revision, chosen) = Revision::new(load, rates);
    assert_eq!(chosen.share_after, 0.0);
    let truly = Passage {
        seconds: chosen.predicted_seconds * 2.0,
        link_bytes: LOAD.may_bytes,
        link_seconds: chosen.predicted_seconds * 1.8,
        ..Passage::default()
    };
    let mut decisions = (0..64).filter_map(|_| revision.token(&truly));
    let revised = decisions.next().unwrap();
    assert_eq!(revised.what, What::Revised(Cause::Device));
    let (now, seen) = (revised.predicted_seconds, truly.seconds);
    assert!(now <= seen * 1.0001, "{revised:?} {seen}");
}

#[test]
fn the_static_plan_is_taken_when_it_is_faster() {
    let (mut revision, _) = Revision::new(LOAD, RATES);
    // Streaming costs more than the link's time says: nothing of it is overlapped.
    let truly = |share: f64| {
        let overlapped = passage(&RATES, share);
        Passage {
            seconds: overlapped.seconds + f64::from(u8::from(share < 1.0)) * 0.1,
            ..overlapped
        }
    };
    let mut decisions = Vec::new();
    for _ in 0..300 {
        decisions.extend(revision.token(&truly(revision.share())));
    }
    let last = decisions.last().unwrap();
    assert_eq!(last.what, What::GivenUp, "{decisions:?}");
    assert_eq!(revision.share(), 1.0);
    assert!(last.observed_seconds < decisions[1].observed_seconds);
}

#[test]
fn where_all_is_on_the_processor_there_is_nothing_to_try() {
    let slow_link = Rates { link: 1e6, ..RATES };
    let (mut revision, chosen) = Revision::new(LOAD, slow_link);
    assert_eq!(chosen.share_after, 1.0);
    let truly = Rates {
        processor: RATES.processor / 3.0,
        ..slow_link
    };
    let decisions = drive(&mut revision, &truly, 300);
    assert_eq!(decisions.len(), 1);
    assert_eq!(revision.share(), 1.0);
}

#[test]
fn a_few_tokens_that_took_long_change_nothing() {
    let (mut revision, _) = Revision::new(LOAD, RATES);
    for index in 0..500 {
        let usual = passage(&RATES, revision.share());
        let slept = Passage {
            seconds: 3600.0,
            ..usual
        };
        let passage = if index % 16 == 7 { slept } else { usual };
        assert_eq!(revision.token(&passage), None, "token {index}");
    }
}

#[test]
fn the_first_tokens_after_a_change_do_not_count() {
    let (mut revision, _) = Revision::new(LOAD, RATES);
    let reading = Passage {
        seconds: 10.0,
        ..Passage::default()
    };
    for _ in 0..WARM_TOKENS {
        assert_eq!(revision.token(&reading), None);
    }
    assert!(drive(&mut revision, &RATES, 100).is_empty());
    // A window that something else has spoilt is begun anew.
    for _ in 0..5 {
        revision.token(&reading);
    }
    revision.begin_window();
    assert!(drive(&mut revision, &RATES, 100).is_empty());
}

#[test]
fn a_change_of_the_plan_chooses_anew_until_something_was_revised() {
    let (mut revision, chosen) = Revision::new(LOAD, RATES);
    assert_eq!(revision.reload(LOAD), None);
    let more = Load {
        must_bytes: 1_000_000_000,
        ..LOAD
    };
    let anew = revision.reload(more).unwrap();
    assert!(anew.share_after > chosen.share_after, "{anew:?}");
    revision.reload(LOAD);
    let truly = Rates {
        processor: RATES.processor / 3.0,
        ..RATES
    };
    // A page of the context more is no other plan.
    let grown = Load {
        other_seconds: 1e-4,
        must_bytes: 1_000_000,
        ..LOAD
    };
    assert_eq!(revision.reload(grown), None);
    revision.reload(LOAD);
    drive(&mut revision, &truly, 300);
    let settled = revision.share();
    assert_eq!(revision.reload(more), None);
    assert_eq!(revision.share(), settled);
}

#[test]
fn a_context_that_grows_all_the_time_hides_no_slow_link() {
    let (mut revision, _) = Revision::new(LOAD, RATES);
    let truly = Rates {
        link: RATES.link / 4.0,
        ..RATES
    };
    let mut decisions = Vec::new();
    for token in 0..60 {
        let grown = Load {
            must_bytes: token * 10_000,
            ..LOAD
        };
        decisions.extend(revision.reload(grown));
        decisions.extend(revision.token(&passage(&truly, revision.share())));
    }
    let what: Vec<What> = decisions.iter().map(|decision| decision.what).collect();
    assert_eq!(what, [What::Revised(Cause::Link)]);
    // Another budget is another plan: what was measured of the old one is for nothing.
    let (mut revision, _) = Revision::new(LOAD, RATES);
    drive(&mut revision, &truly, 30);
    let less = Load {
        may_bytes: LOAD.may_bytes / 3,
        ..LOAD
    };
    revision.reload(less);
    assert!(drive(&mut revision, &truly, 30).is_empty());
}

proptest! {
    #[test]
    fn any_run_ends_with_the_faster_of_its_plan_and_the_static_one(
        link in 1.0f64..10.0, processor in 1.0f64..10.0, device in 1.0f64..10.0,
    ) {
        let truly = Rates {
            link: RATES.link / link,
            processor: RATES.processor / processor,
            device: RATES.device / device,
            ..RATES
        };
        let (mut revision, _) = Revision::new(LOAD, RATES);
        let decisions = drive(&mut revision, &truly, 1000);
        prop_assert!(decisions.len() <= 3, "{decisions:?}");
        let revised = decisions.iter();
        let revised = revised.filter(|decision| matches!(decision.what, What::Revised(_)));
        prop_assert!(revised.count() <= 1);
        if decisions.len() == 3 {
            let now = cold::seconds(&LOAD, &truly, revision.share());
            let all = cold::seconds(&LOAD, &truly, 1.0);
            prop_assert!(now <= all * (1.0 + 1e-9), "{now} {all}");
        }
        // No further decision ever.
        prop_assert!(decisions.is_empty() || drive(&mut revision, &RATES, 200).is_empty()
            || decisions.len() < 3);
    }
}
