//! The format and the records agree; intervals add up; a sink that fails harms nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::Value;

use super::*;
use crate::device::report::{Move, Reason, Stalls, Traffic};
use crate::telemetry::memory::{Level, Process};
use crate::telemetry::pressure::{Action, Decision};

/// The fields of each kind of record, in order, with their types, as the format has them.
fn format() -> BTreeMap<String, Vec<(String, String)>> {
    let mut kinds = BTreeMap::new();
    for section in FORMAT.split("### ").skip(1) {
        let (heading, text) = section.split_once('\n').unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let fields: Vec<_> = rows
            .map(|row| {
                let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
                (cells[0].trim_matches('`').to_owned(), cells[1].to_owned())
            })
            .collect();
        for kind in heading.split(", ") {
            kinds.insert(kind.trim_matches('`').to_owned(), fields.clone());
        }
    }
    kinds
}

/// The keys of a line, in the order in which they are written.
fn keys(line: &str) -> Vec<String> {
    let object: BTreeMap<String, Value> = serde_json::from_str(line).unwrap();
    let mut keys: Vec<_> = object.into_keys().collect();
    keys.sort_by_key(|key| line.find(&format!("\"{key}\":")));
    keys
}

/// One record of each kind, in the order in which a run has them.
fn records() -> Vec<Record> {
    let report = Report {
        layers: 3,
        ..Report::default()
    };
    let change = Change {
        reason: Reason::Pressure,
        moves: [true, false]
            .map(|evicted| Move {
                layer: evicted.then_some(1),
                states: false,
                evicted,
                bytes: 7,
            })
            .to_vec(),
        report,
    };
    let decision = Decision {
        action: Action::Shrink,
        level: Level::default(),
        before_bytes: 2,
        after_bytes: 1,
    };
    let mut recorder = Recorder::default();
    recorder.begin(0.5, 4, Some(report));
    let mut records = recorder.change(&change);
    recorder.token(0.75, 11);
    records.push(recorder.close(&Facts::default()));
    records.push(recorder.pressure(PressureRecord::new(&decision, false, 0.85, 1)));
    records.push(Record::Error(ErrorRecord {
        sentence: "no".into(),
        exit_code: 1,
    }));
    records.push(Record::Log(LogRecord {
        level: None,
        text: "a \"b\"\n".into(),
    }));
    let error = Error::OutputClosed;
    records.push(recorder.summary(1.0, Some(&error), Process::default()));
    records
}

#[test]
fn records_have_the_fields_of_the_format_in_its_order() {
    let format = format();
    let mut seen = Vec::new();
    for record in records() {
        let line = record.line(false);
        assert!(line.ends_with("}\n") && line.trim().lines().count() == 1);
        let kind = record.kind();
        let expected: Vec<_> = format[kind].iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(keys(&line), expected, "{kind}");
        assert!(record.line(true).lines().count() > 3);
        seen.push(kind.to_owned());
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen, format.into_keys().collect::<Vec<_>>());
}

fn value(record: &Record) -> Value {
    serde_json::from_str(&record.line(false)).unwrap()
}

/// A device after `passes` over a model whose copies take half a second each.
fn report(passes: u32) -> Report {
    let passes = f64::from(passes);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small whole numbers"
    )]
    let count = passes as u64;
    Report {
        budget_bytes: 2 << 20,
        arena_bytes_used: 1 << 20,
        streamed_bytes: 900,
        pass_bytes: 1000,
        graphs: count,
        compute_seconds: 0.125 * passes,
        host_seconds: 0.125 * passes,
        host_bytes: 7 * count,
        traffic: Traffic {
            storage_bytes: 600 * count,
            link_bytes: 400 * count,
            write_back_bytes: 8 * count,
            storage_seconds: 0.3 * passes,
            link_seconds: 0.2 * passes,
            ..Traffic::default()
        },
        stalls: Stalls {
            storage_seconds: 0.25 * passes,
            ..Stalls::default()
        },
        ..Report::default()
    }
}

fn facts(passes: u32) -> Facts {
    Facts {
        report: Some(report(passes)),
        memory_pressure: 0.25,
        process: Process {
            resident_bytes: 3 << 20,
            peak_bytes: 4 << 20,
        },
        drafts: None,
    }
}

#[test]
fn an_interval_has_what_happened_in_it_and_sums_stay_sums() {
    let mut recorder = Recorder::default();
    recorder.begin(1.0, 5, Some(report(0)));
    assert!(recorder.token(3.0, 7));
    let first = value(&recorder.close(&facts(2)));
    assert_eq!(first["token"], 7);
    assert_eq!(first["prompt_tokens"], 5);
    assert_eq!(first["bytes_storage"], 1200);
    assert_eq!(first["bytes_write_back"], 16);
    assert_eq!(first["stall_storage_ms"], 500.0);
    assert_eq!(first["seconds_per_token"], 2.0);
    assert_eq!(first["tokens_per_sec"], 0.5);
    assert_eq!(first["avg_tokens_per_sec"], 0.5);
    assert_eq!(first["seconds_per_token_predicted"], Value::Null);
    assert_eq!(first["vram_used_mb"], 1.0);
    assert_eq!(first["gpu_memory_pressure"], 0.5);
    assert_eq!(first["ram_used_mb"], 3.0);

    recorder.token(3.5, 8);
    let second = value(&recorder.close(&facts(3)));
    assert_eq!(second["bytes_storage"], 600);
    assert_eq!(second["compute_ms"], 125.0);
    assert_eq!(second["host_ms"], 125.0);
    assert_eq!(second["host_bytes"], 7);
    assert_eq!(second["avg_tokens_per_sec"], 2.0);
    assert_eq!(second["seconds_per_token_predicted"], Value::Null);

    recorder.token(4.0, 9);
    let third = value(&recorder.close(&facts(4)));
    assert_eq!(third["seconds_per_token_predicted"], 0.5);
    assert_eq!(third["seconds_per_token"], 0.5);

    let summary = value(&recorder.summary(9.0, None, Process::default()));
    assert_eq!(summary["bytes_storage"], 2400);
    assert_eq!(summary["load_seconds"], 1.0);
    assert_eq!(summary["prompt_seconds"], 2.0);
    assert_eq!(summary["generation_seconds"], 1.0);
    assert_eq!(summary["seconds_per_token_max"], 0.5);
    assert_eq!(summary["vram_peak_mb"], 1.0);
    assert_eq!(summary["ram_peak_mb"], 4.0);
    assert_eq!(summary["exit_reason"], "done");
}

#[test]
fn an_interval_of_several_tokens_is_one_record() {
    let mut recorder = Recorder::default();
    recorder.set_interval(3);
    recorder.begin(0.0, 1, Some(report(0)));
    assert!(!recorder.token(1.0, 1) && !recorder.token(2.0, 2));
    assert!(recorder.token(3.0, 3));
    let record = value(&recorder.close(&facts(3)));
    assert_eq!(record["generated_tokens"], 3);
    assert_eq!(record["seconds_per_token"], 1.0);
    assert!(!recorder.is_open());
    recorder.token(5.0, 4);
    assert!(recorder.is_open());
    let rest = value(&recorder.close(&facts(4)));
    assert_eq!(rest["seconds_per_token"], 2.0);
    assert_eq!(rest["avg_tokens_per_sec"], 0.75);
}

#[test]
fn a_warm_up_is_not_in_the_first_interval() {
    let mut recorder = Recorder::default();
    recorder.begin(0.0, 1, Some(report(1)));
    recorder.token(1.0, 1);
    assert_eq!(value(&recorder.close(&facts(2)))["bytes_link"], 400);
    // Counters of before the first graph are those of loading: they begin anew.
    let mut recorder = Recorder::default();
    let loading = Report {
        graphs: 0,
        ..report(9)
    };
    recorder.begin(0.0, 1, Some(loading));
    recorder.token(1.0, 1);
    assert_eq!(value(&recorder.close(&facts(2)))["bytes_link"], 800);
}

#[test]
fn without_paging_nothing_is_predicted_and_paging_counts_nothing() {
    let mut recorder = Recorder::default();
    recorder.begin(0.0, 1, None);
    for token in 1..5 {
        recorder.token(f64::from(token), token);
        let record = value(&recorder.close(&Facts::default()));
        assert_eq!(record["seconds_per_token_predicted"], Value::Null);
        assert_eq!(record["vram_total_mb"], 0.0);
        assert_eq!(record["gpu_memory_pressure"], 0.0);
        assert_eq!(record["cpu_layers_active"], 0);
        assert_eq!(record["seconds_per_token"], 1.0);
    }
}

/// A sink whose end this test holds; gone, it fails as a closed pipe does.
struct Pipe(Sender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.send(bytes.to_vec());
        sent.map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn pipe() -> (Sink, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    (Box::new(Pipe(sender)), receiver)
}

#[test]
fn both_sinks_get_the_records_and_the_log_is_for_standard_error_alone() {
    let metrics = Metrics::new();
    assert!(!metrics.is_on());
    let ((stderr, on_stderr), (file, in_file)) = (pipe(), pipe());
    metrics.add_stderr(stderr);
    metrics.add_file(file, "f".into());
    assert!(metrics.is_on() && metrics.is_on_stderr());
    metrics.log(Some("info"), "hello".into());
    metrics.error("broken", 1);
    metrics.end(None);
    metrics.error("too late", 1);
    let on_stderr: Vec<_> = on_stderr.try_iter().collect();
    let in_file: Vec<_> = in_file.try_iter().collect();
    assert_eq!(on_stderr.len(), 3, "a line is one write");
    assert_eq!(on_stderr[1..], in_file);
    for line in on_stderr {
        serde_json::from_slice::<Value>(&line).unwrap();
    }
}

#[test]
fn a_file_that_fails_is_given_up_with_one_sentence() {
    let metrics = Metrics::new();
    let ((stderr, on_stderr), (file, in_file)) = (pipe(), pipe());
    metrics.add_stderr(stderr);
    metrics.add_file(file, "run.jsonl".into());
    drop(in_file);
    metrics.error("one", 1);
    let complaint = metrics.take_complaint().unwrap();
    assert!(complaint.contains("'run.jsonl'"), "{complaint}");
    metrics.error("two", 1);
    assert_eq!(metrics.take_complaint(), None);
    assert_eq!(on_stderr.try_iter().count(), 2);
}

#[test]
fn a_reader_of_standard_error_who_leaves_does_not_take_the_file_along() {
    let metrics = Metrics::new();
    let ((stderr, on_stderr), (file, in_file)) = (pipe(), pipe());
    metrics.add_stderr(stderr);
    metrics.add_file(file, "f".into());
    drop(on_stderr);
    metrics.error("one", 1);
    metrics.end(None);
    assert_eq!(in_file.try_iter().count(), 2);
    assert_eq!(metrics.take_complaint(), None);
}

/// Panics at its first write.
struct Broken(Option<Sink>);

impl Write for Broken {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        static ONCE: AtomicBool = AtomicBool::new(false);
        assert!(ONCE.swap(true, Ordering::Relaxed), "as asked");
        self.0.as_mut().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_a_panic_inside_there_are_still_last_words() {
    let metrics = Arc::new(Metrics::new());
    let (sink, lines) = pipe();
    metrics.add_stderr(Box::new(Broken(Some(sink))));
    let other = Arc::clone(&metrics);
    let panicked = std::thread::spawn(move || other.log(None, "lost".into())).join();
    assert!(panicked.is_err());
    metrics.error("a bug", 70);
    metrics.end(Some(&Error::Bug("a bug".into())));
    assert_eq!(lines.try_iter().count(), 2);
}
