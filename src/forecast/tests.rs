//! Forecasts for a device: the demo's model on one of memory and streams of its own, with
//! rates by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use async_device::{AsyncDevice, Options};

use super::record::Forecast;
use super::*;
use crate::calibration::{Calibration, Contention, FORMAT, KindRates, LinkRates, Machine};
use crate::cli::{self, Command};
use crate::device::Cold;
use crate::ggml::InnerDevice;
use crate::telemetry::metrics::Metrics;

const DEPTH: usize = 200;

fn subject(device: Option<&AsyncDevice>, line: &str) -> Subject {
    let line = format!(
        "--demo -no-cnv -p Once -t 1 -c 256 -ub 16 --log-disable --dynamic-layers --paged-kv {line}"
    );
    llama::log::start();
    let metrics: &'static Metrics = Box::leak(Box::new(Metrics::new()));
    let words = line.split_whitespace().map(OsString::from);
    let Command::Run(request) = cli::parse(words, llama::options().unwrap()).unwrap() else {
        panic!("nothing to print is asked for");
    };
    let mut config = request.resolve(metrics).unwrap();
    let paging = config.paging.as_mut().unwrap();
    paging.cold = Cold::Auto;
    paging.inner = device.map(|device| InnerDevice::of_test(device.raw()).unwrap());
    Subject::new(config).unwrap()
}

/// A link of so many bytes per second and a processor of so many, on a fast device.
fn rates(subject: &Subject, link: f64, processor: f64) -> Calibration {
    by_hand(subject.wanted().machine, link, processor)
}

/// The same for any machine.
pub fn by_hand(machine: Machine, link: f64, processor: f64) -> Calibration {
    let none = Contention {
        copy_slowdown: 1.0,
        compute_slowdown: 1.0,
    };
    let q8_0 = KindRates {
        bytes_per_second: 1e11,
        products_per_second: BTreeMap::from([(16, 1e12)]),
    };
    Calibration {
        format: FORMAT,
        date: "2026-11-01T00:00:00.000Z".into(),
        date_seconds: 0,
        program: String::new(),
        machine,
        method: "by hand".into(),
        measuring_seconds: 0.0,
        storage_bytes_per_second: None,
        memory_bytes_per_second: 1e10,
        kinds: BTreeMap::from([("q8_0".into(), q8_0)]),
        refused_kinds: BTreeSet::new(),
        attention_per_second: 1e14,
        attention_batch_per_second: BTreeMap::from([(16, 1e14)]),
        node_seconds: 1e-12,
        element_seconds: 1e-15,
        contention_decode: Some(none),
        contention_prefill: Some(none),
        link: Some(LinkRates {
            pinned_bytes_per_second: Some(link),
            pageable_bytes_per_second: link / 3.0,
            processor_bytes_per_second: BTreeMap::from([("q8_0".into(), processor)]),
            processor_contention: none,
            handover_seconds: 1e-12,
        }),
        observed_runs: 0,
    }
}

fn forecast(subject: &Subject, rates: &Calibration) -> Forecast {
    Forecast::new(subject, Some(rates), subject.budget_bytes(), DEPTH).unwrap()
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() <= 0.02 * left.abs().max(right.abs())
}

#[test]
fn a_device_is_as_fast_as_link_and_processor_together() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    let subject = subject(Some(&device), "--vram-budget 1200K");
    let by = |link, processor| forecast(&subject, &rates(&subject, link, processor));
    let streamed = by(1e9, 1.0);
    let all = streamed.decode.unwrap().pass_bytes;
    assert!(all > 500_000, "{all}");
    assert_eq!(streamed.cold.unwrap().share, 0.0);
    let seconds = streamed.decode.unwrap().pass_seconds;
    assert!(close(seconds, streamed.decode.unwrap().copy_seconds));

    let on_processor = by(1.0, 1e12).cold.unwrap();
    assert_eq!(on_processor.share, 1.0);

    let both = by(1e6, 1e6);
    let (cold, decode) = (both.cold.unwrap(), both.decode.unwrap());
    assert!(cold.share > 0.0, "{cold:?}");
    assert!(cold.tokens_per_second > cold.stream_tokens_per_second * 1.2);
    assert!(cold.tokens_per_second >= cold.processor_tokens_per_second);
    assert!(decode.pass_bytes < all);
    assert_eq!(cold.tokens_per_second, decode.tokens_per_second);
    let text = table::text(&both);
    assert!(
        text.contains("the processor computes") && text.contains("CPU's"),
        "{text}"
    );
}

#[test]
fn a_larger_budget_is_no_slower_and_all_of_it_leaves_nothing_cold() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    let subject = subject(Some(&device), "--vram-budget 1200K");
    let found = forecast(&subject, &rates(&subject, 1e6, 2e6));
    assert!(found.budgets.len() > 3);
    let speeds = found.budgets.iter();
    let speeds: Vec<f64> = speeds
        .map(|other| other.decode_tokens_per_second.unwrap())
        .collect();
    let falls = speeds.windows(2).filter(|pair| pair[1] < pair[0] * 0.99);
    assert_eq!(falls.count(), 0, "{speeds:?}");
    let last = found.budgets.last().unwrap();
    assert_eq!((last.pass_bytes, last.cold_share), (0, None));
    assert!(found.budgets.iter().any(|other| other.cold_share.is_some()));
    assert!(found.prefill.is_some());
}

#[test]
fn a_host_has_no_link_and_nothing_cold() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    let on_device = subject(Some(&device), "--vram-budget 1200K");
    let wanted = on_device.wanted();
    assert_eq!(wanted.machine.device.unwrap().name, "ASYNC0");
    let on_host = subject(None, "--vram-budget 1200K");
    assert_eq!(on_host.wanted().machine.device, None);
    let rates = Calibration {
        link: None,
        storage_bytes_per_second: Some(1e6),
        ..rates(&on_host, 1.0, 1.0)
    };
    let found = forecast(&on_host, &rates);
    assert!(found.cold.is_none() && found.decode.is_some());
    assert!(!table::text(&found).contains("CPU's"));
}

#[test]
fn without_prefetching_copies_take_their_turn() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    let line = "--vram-budget 1200K --no-async-prefetch";
    let (ahead, in_turn) = (
        subject(Some(&device), "--vram-budget 1200K"),
        subject(Some(&device), line),
    );
    let of = |subject: &Subject| forecast(subject, &rates(subject, 1e6, 1.0)).decode.unwrap();
    let (ahead, in_turn) = (of(&ahead), of(&in_turn));
    assert!(in_turn.pass_seconds > 0.0 && ahead.pass_seconds > 0.0);
    assert!(in_turn.pass_seconds >= in_turn.copy_seconds + in_turn.compute_seconds * 0.9);
}

#[test]
fn who_computes_what_is_cold_may_be_said() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    let mut subject = subject(Some(&device), "--vram-budget 1200K");
    let rates = rates(&subject, 1e6, 1e6);
    let auto = forecast(&subject, &rates).cold.unwrap();
    let under = |subject: &mut Subject, who: Cold| {
        subject.paging.cold = who;
        let found = forecast(subject, &rates);
        let (cold, decode) = (found.cold.unwrap(), found.decode.unwrap());
        assert_eq!(cold.tokens_per_second, decode.tokens_per_second);
        assert!(auto.tokens_per_second >= cold.tokens_per_second);
        (cold, decode.pass_bytes)
    };
    let (streamed, all) = under(&mut subject, Cold::Stream);
    assert_eq!(streamed.share, 0.0);
    assert_eq!(streamed.tokens_per_second, auto.stream_tokens_per_second);
    // Feed-forward blocks alone: attention and the output cross the link.
    let (blocks, others) = under(&mut subject, Cold::Cpu);
    assert_eq!(blocks.share, 1.0);
    assert_eq!(blocks.tokens_per_second, blocks.processor_tokens_per_second);
    assert!(0 < others && others < all, "{others} of {all}");
}

#[test]
fn of_experts_the_processor_reads_those_that_a_token_uses() {
    let device = AsyncDevice::new(Options::default()).unwrap();
    let mut subject = subject(Some(&device), "--vram-budget 1200K");
    let rates = rates(&subject, 1e12, 1e6);
    subject.paging.cold = Cold::Cpu;
    let dense = forecast(&subject, &rates).decode.unwrap();
    subject.experts = (2, 8);
    for matrix in &mut subject.notes.paged {
        if matrix.name.contains("ffn_") {
            matrix.slices = 8;
        }
    }
    let experts = forecast(&subject, &rates).decode.unwrap();
    let (all, used) = (dense.pass_seconds, experts.pass_seconds);
    assert!(close(all, used * 4.0), "{all} {used}");
    // Nothing is weighed, as in a run, though the link would be faster.
    subject.paging.cold = Cold::Auto;
    let found = forecast(&subject, &rates);
    assert_eq!(found.cold.unwrap().share, 1.0);
    assert_eq!(found.decode.unwrap().pass_seconds, used);
}
