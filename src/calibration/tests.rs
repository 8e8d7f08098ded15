use std::collections::BTreeMap;

use super::super::{Contention, KindRates};
use super::*;

pub fn machine() -> Machine {
    Machine {
        processor: "a processor".into(),
        processors: 4,
        threads: 2,
        threads_batch: 4,
        copy_threads: 2,
        file_system: "device 1".into(),
        direct: true,
        device: None,
    }
}

pub fn calibration() -> Calibration {
    let q8_0 = KindRates {
        bytes_per_second: 1e10,
        products_per_second: BTreeMap::from([(512, 2e11)]),
    };
    Calibration {
        format: FORMAT,
        date: "2026-11-01T00:00:00.000Z".into(),
        date_seconds: 1_000_000,
        program: program(),
        machine: machine(),
        method: "by hand".into(),
        measuring_seconds: 1.0,
        storage_bytes_per_second: Some(2e9),
        memory_bytes_per_second: 1e10,
        kinds: BTreeMap::from([("q8_0".into(), q8_0)]),
        attention_per_second: 1e10,
        attention_batch_per_second: BTreeMap::from([(512, 1e11)]),
        node_seconds: 2e-6,
        element_seconds: 1e-10,
        contention_decode: Some(Contention {
            copy_slowdown: 1.1,
            compute_slowdown: 1.2,
        }),
        contention_prefill: None,
        link: None,
        observed_runs: 0,
    }
}

fn wanted() -> Wanted {
    Wanted {
        machine: machine(),
        model: PathBuf::from("/nonexistent"),
        kinds: vec![ggml_sys::GGML_TYPE_Q8_0],
        ubatch: 512,
        head: 64,
        device: None,
    }
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/c.json");
    write(&path, &calibration()).unwrap();
    let read = read(&path, &machine(), 1_000_060).unwrap();
    assert_eq!(read, Some(calibration()));
    let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing is left beside it");
}

#[test]
fn what_does_not_fit_is_measured_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    let refusal = |found: &Calibration, machine: &Machine, now| {
        write(&path, found).unwrap();
        read(&path, machine, now).unwrap_err()
    };
    let found = calibration();
    let other = Machine {
        threads: 3,
        ..machine()
    };
    assert!(refusal(&found, &other, 1_000_000).contains("another machine"));
    let late = 1_000_000 + AGE_SECONDS_MAX + 86_400;
    assert!(refusal(&found, &machine(), late).contains("31 days old"));
    let old = Calibration {
        program: "rpaged 0.0.1".into(),
        ..calibration()
    };
    assert!(refusal(&old, &machine(), 1_000_000).contains("another version"));
    let absurd = Calibration {
        storage_bytes_per_second: Some(-1.0),
        ..calibration()
    };
    assert!(refusal(&absurd, &machine(), 1_000_000).contains("cannot be"));
    for text in ["", "{", "[1]", "{\"format\":1}"] {
        std::fs::write(&path, text).unwrap();
        let reason = read(&path, &machine(), 0).unwrap_err();
        assert!(reason.contains("damaged"), "{text}: {reason}");
    }
    assert_eq!(
        read(&folder.path().join("none"), &machine(), 0).unwrap(),
        None
    );
}

#[test]
fn what_is_known_is_not_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    let fresh = Calibration {
        date_seconds: now(),
        ..calibration()
    };
    write(&path, &fresh).unwrap();
    let origin = Origin {
        file: Some(path),
        anew: false,
    };
    let measured = |what: &str| panic!("'{what}' was measured");
    let (rates, notices) = rates(&wanted(), &origin, measured).unwrap();
    assert_eq!(rates, fresh);
    assert!(notices.is_empty());
    let other_batch = Wanted {
        ubatch: 64,
        ..wanted()
    };
    assert!(!rates.has(&other_batch));
}

#[test]
fn an_unknown_type_is_as_slow_as_the_slowest() {
    let rates = calibration();
    assert_eq!(rates.kind("iq1_m"), rates.kind("q8_0"));
}
