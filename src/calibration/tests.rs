use std::collections::{BTreeMap, BTreeSet};

use async_device::{AsyncDevice, Options};

use super::super::{Contention, Device, KindRates};
use super::*;
use crate::ggml::InnerDevice;

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
        refused_kinds: BTreeSet::new(),
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
        ubatch: Some(512),
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
        ubatch: Some(64),
        ..wanted()
    };
    assert!(!rates.has(&other_batch));
}

#[test]
fn a_type_that_was_refused_is_not_wanted_again() {
    let mut found = calibration();
    let wanted = Wanted {
        kinds: vec![ggml_sys::GGML_TYPE_Q8_0, ggml_sys::GGML_TYPE_Q4_K],
        ..wanted()
    };
    assert!(!found.has(&wanted), "it may be computed with");
    found.refused_kinds.insert("q4_K".into());
    assert!(found.has(&wanted));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.json");
    write(&path, &found).unwrap();
    let read = read(&path, &machine(), 1_000_060).unwrap();
    assert_eq!(read, Some(found));
}

#[test]
fn what_a_device_refuses_is_told_when_it_is_new() {
    let mut after = calibration();
    after.refused_kinds.insert("q4_K".into());
    assert_eq!(refusal(None, &after), None, "a processor computes with all");
    after.machine.device = Some(Device {
        name: "CUDA7".into(),
        description: String::new(),
        memory_bytes: 1,
    });
    let sentence = refusal(Some(&calibration()), &after).unwrap();
    for part in ["CUDA7", "q4_K", "--recalibrate"] {
        assert!(sentence.contains(part), "{sentence}");
    }
    assert_eq!(refusal(Some(&after), &after), None);
    assert!(refusal(None, &after).is_some());
}

#[test]
fn an_unknown_type_is_as_slow_as_the_slowest() {
    let rates = calibration();
    assert_eq!(rates.kind("iq1_m"), rates.kind("q8_0"));
}

#[test]
fn files_keep_the_names_that_they_had_before_devices() {
    // FNV-1a of the text that `Machine` had then.
    let then = "Machine { processor: \"a processor\", processors: 4, threads: 2, \
                threads_batch: 4, copy_threads: 2, file_system: \"device 1\", direct: true }";
    let hash = then.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(
        file_name(&machine()),
        format!("calibration-{hash:016x}.json")
    );
    let on_device = Machine {
        device: Some(Device {
            name: "CUDA0".into(),
            description: "a GPU".into(),
            memory_bytes: 1 << 30,
        }),
        ..machine()
    };
    assert_ne!(file_name(&on_device), file_name(&machine()));
    let text = serde_json::to_string(&machine()).unwrap();
    assert!(!text.contains("device\":{"), "{text}");
}

#[test]
fn rates_of_a_host_do_not_do_for_a_device() {
    let test_device = AsyncDevice::new(Options::default()).unwrap();
    let device = inner(&test_device);
    let of_device = Wanted {
        device: Some(device),
        ..wanted()
    };
    assert!(calibration().has(&wanted()));
    assert!(!calibration().has(&of_device));
}

fn inner(device: &AsyncDevice) -> InnerDevice {
    InnerDevice::of_test(device.raw()).unwrap()
}

#[test]
fn a_device_and_its_link_are_measured_and_kept() {
    let test_device = AsyncDevice::new(Options {
        pinned: true,
        ..Options::default()
    })
    .unwrap();
    let device = inner(&test_device);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rates.json");
    let model = folder.path().join("model");
    std::fs::write(&model, vec![7; 1 << 20]).unwrap();
    let machine = Machine {
        device: Some(Device::of(device)),
        ..machine()
    };
    let mut wanted = Wanted {
        machine: machine.clone(),
        model,
        ubatch: None,
        device: Some(device),
        ..wanted()
    };
    let origin = Origin {
        file: Some(path.clone()),
        anew: false,
    };
    let mut seen = Vec::new();
    let (found, notices) = rates(&wanted, &origin, |what| seen.push(what.to_owned())).unwrap();
    assert!(notices.is_empty(), "{notices:?}");
    let link = found.link.as_ref().unwrap();
    assert!(link.pinned_bytes_per_second.is_some_and(|rate| rate > 0.0));
    assert!(
        found.method.contains("copies to ASYNC0"),
        "{}",
        found.method
    );
    assert!(link.processor("q8_0").is_some_and(|rate| rate > 0.0));
    assert!(found.contention_decode.is_some() && found.contention_prefill.is_none());
    assert!(seen.iter().any(|what| what.contains("link")), "{seen:?}");
    assert_eq!(test_device.take_complaints(), Vec::<String>::new());
    // A second run measures nothing, and a plan only what it lacks: batches.
    let measured = |what: &str| panic!("'{what}' was measured");
    let (again, _) = rates(&wanted, &origin, measured).unwrap();
    assert_eq!(again.date, found.date);
    wanted.ubatch = Some(4);
    let (more, _) = rates(&wanted, &origin, |_| ()).unwrap();
    let unchanged = |rates: &Calibration| {
        let link = rates.link.as_ref().unwrap();
        (link.handover_seconds * 1e9).round()
    };
    assert_eq!(unchanged(&more), unchanged(&found));
    assert!(more.contention_prefill.is_some());
    assert!(more.kinds["q8_0"].products_per_second.contains_key(&4));
    let kept = read(&path, &machine, now()).unwrap().unwrap();
    assert_eq!(kept.kinds.keys().collect::<Vec<_>>(), ["q8_0"]);
    assert!(kept.contention_prefill.is_some() && kept.has(&wanted));
    let left = test_device.counters();
    assert_eq!((left.buffers, left.streams, left.events), (0, 0, 0));
}

#[test]
fn a_device_without_room_for_the_probe_is_a_sentence() {
    let test_device = AsyncDevice::new(Options {
        memory_bytes: 64 << 20,
        ..Options::default()
    })
    .unwrap();
    let device = inner(&test_device);
    let wanted = Wanted {
        machine: Machine {
            device: Some(Device::of(device)),
            ..machine()
        },
        device: Some(device),
        ..wanted()
    };
    let error = measure(&wanted, None, |_| ()).unwrap_err().to_string();
    assert!(
        error.contains("ASYNC0") && error.contains("64 MiB"),
        "{error}"
    );
}
