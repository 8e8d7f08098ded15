//! Which rates are wanted, and those of copying and computing at once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::copies::Pump;
use super::link;
use super::products::{COLUMNS, Matrices, On, ROWS};
use super::{Calibration, Contention, FORMAT, KindRates, Machine, Wanted};
use crate::error::Result;
use crate::ggml::workload::{Work, is_measurable, kind_name};
use crate::planner::cost::Rate;

/// How long copies are timed.
pub(super) const COPY_TIME: Duration = Duration::from_millis(700);
/// How long copying and computing at once are timed.
const BOTH_TIME: Duration = Duration::from_millis(1000);
/// Bytes of the file that are timed, and how long reading them before may take.
const WARM_BYTES_MAX: u64 = 512 << 20;
const WARM_TIME_MAX: Duration = Duration::from_secs(1);
/// Heads of the attention that is timed, and rows of its cache.
const HEADS: u32 = 16;
/// Elements of a head that every device has attention for.
const HEAD: u32 = 128;
const CACHE_ROWS: u32 = 1024;
/// Nodes that do nearly nothing, and large ones, each of which has memory of its own.
const NODES: u32 = 256;
const LARGE_NODES: u32 = 16;

/// Measures what is wanted and not in `known` yet; `progress` is told what is measured.
///
/// # Errors
/// `Failed` when a graph or a copy fails, `Memory` never: some 200 MiB are taken, and as
/// much of a device's memory.
pub fn measure(
    wanted: &Wanted,
    known: Option<Calibration>,
    mut progress: impl FnMut(&str),
) -> Result<Calibration> {
    let started = Instant::now();
    let machine = &wanted.machine;
    let is_new = known.is_none();
    let mut rates = known.unwrap_or_else(|| empty(machine.clone()));
    for kind in &wanted.kinds {
        if let Some(name) = kind_name(*kind).filter(|_| is_measurable(*kind)) {
            if rates.refused_kinds.contains(name) {
                continue;
            }
            progress(&format!("matrices of type {name}"));
            let measured = measure_kind(*kind, name, wanted, &mut rates);
            // A device need not compute with every type: the processor does then, and the
            // slowest known rate stands for it.
            if wanted.device.is_none() || rates.kinds.is_empty() {
                measured?;
            } else if measured.is_err() {
                rates.refused_kinds.insert(name.to_owned());
            }
        }
    }
    progress("attention");
    measure_attention(wanted, is_new, &mut rates)?;
    if is_new {
        let node = |elements: u32, count: u32, on: On| {
            let work = Work::Nodes {
                elements: i64::from(elements),
                count: count as usize,
            };
            Ok(on.seconds(&mut on.workload(work)?)? / f64::from(count))
        };
        rates.node_seconds = node(COLUMNS, NODES, on(wanted, machine.threads))?;
        let large = COLUMNS * 512;
        let seconds = node(large, LARGE_NODES, on(wanted, machine.threads_batch))?;
        rates.element_seconds = seconds / f64::from(large);
        progress("memory");
        let mut pump = Pump::of_memory(machine.copy_threads)?;
        rates.memory_bytes_per_second = pump.run(|time, _| time > COPY_TIME / 3)?;
        progress("storage");
        measure_storage(wanted, &mut rates)?;
    }
    if let Some(device) = wanted.device {
        link::measure(device, wanted, &mut rates, &mut progress)?;
    }
    rates.measuring_seconds += started.elapsed().as_secs_f64();
    Ok(rates)
}

/// What computes: the device, or the processor with so many threads.
fn on(wanted: &Wanted, threads: u32) -> On {
    match wanted.device {
        Some(device) => On::Device(device),
        None => On::Processor { threads },
    }
}

fn empty(machine: Machine) -> Calibration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Calibration {
        format: FORMAT,
        date: crate::telemetry::metrics::timestamp(),
        date_seconds: since.map_or(0, |since| since.as_secs()),
        program: super::store::program(),
        method: method(&machine),
        machine,
        measuring_seconds: 0.0,
        storage_bytes_per_second: None,
        memory_bytes_per_second: 0.0,
        kinds: BTreeMap::new(),
        refused_kinds: BTreeSet::new(),
        attention_per_second: 0.0,
        attention_batch_per_second: BTreeMap::new(),
        node_seconds: 0.0,
        element_seconds: 0.0,
        contention_decode: None,
        contention_prefill: None,
        link: None,
        observed_runs: 0,
    }
}

/// How it is measured, for a reader.
fn method(machine: &Machine) -> String {
    let all = format!(
        "storage: {COPY_TIME:?} through the copy engine; matrices: {COLUMNS} x {ROWS}, lower \
         quartile of up to 8"
    );
    match &machine.device {
        None => format!("{all}; at once: {BOTH_TIME:?} of both"),
        Some(device) => format!(
            "{all}, on {name} and on the processor; link: {:?} of copies to {name} from each kind \
             of memory; at once: {:?} of copies while either of them computes",
            link::LINK_TIME,
            link::BOTH_TIME,
            name = device.name,
        ),
    }
}

fn measure_kind(kind: u32, name: &str, wanted: &Wanted, rates: &mut Calibration) -> Result<()> {
    let machine = &wanted.machine;
    if let Entry::Vacant(slot) = rates.kinds.entry(name.to_owned()) {
        let on = on(wanted, machine.threads);
        let mut matrices = on.matrices(kind, 1)?;
        slot.insert(KindRates {
            bytes_per_second: per_second(matrices.bytes, on.seconds(&mut matrices.work)?),
            products_per_second: BTreeMap::new(),
        });
    }
    let (Some(of_kind), Some(ubatch)) = (rates.kinds.get_mut(name), wanted.ubatch) else {
        return Ok(());
    };
    if let Entry::Vacant(slot) = of_kind.products_per_second.entry(ubatch) {
        let on = on(wanted, machine.threads_batch);
        let mut matrices = on.matrices(kind, ubatch)?;
        slot.insert(per_second(
            matrices.products,
            on.seconds(&mut matrices.work)?,
        ));
    }
    Ok(())
}

fn measure_attention(wanted: &Wanted, is_new: bool, rates: &mut Calibration) -> Result<()> {
    let by_head = |head: u32, tokens: u32, on: On| {
        let work = Work::Attention {
            head: i64::from(head),
            heads: i64::from(HEADS),
            heads_kv: i64::from(HEADS / 4),
            rows: i64::from(CACHE_ROWS),
            tokens: i64::from(tokens),
        };
        let width = u64::from(head) * u64::from(HEADS);
        let products = width * u64::from(CACHE_ROWS) * u64::from(tokens);
        Ok(per_second(products, on.seconds(&mut on.workload(work)?)?))
    };
    let own = wanted.head.next_multiple_of(32).clamp(32, 256);
    // A device need not compute with every head: a usual one stands for it.
    let rate = |tokens: u32, on: On| match by_head(own, tokens, on) {
        Err(_) if wanted.device.is_some() && own != HEAD => by_head(HEAD, tokens, on),
        result => result,
    };
    if is_new {
        rates.attention_per_second = rate(1, on(wanted, wanted.machine.threads))?;
    }
    let Some(ubatch) = wanted.ubatch else {
        return Ok(());
    };
    if let Entry::Vacant(slot) = rates.attention_batch_per_second.entry(ubatch) {
        slot.insert(rate(ubatch, on(wanted, wanted.machine.threads_batch))?);
    }
    Ok(())
}

fn measure_storage(wanted: &Wanted, rates: &mut Calibration) -> Result<()> {
    let machine = &wanted.machine;
    let pump = Pump::of_file(&wanted.model, machine.direct, machine.copy_threads)?;
    let Some(mut pump) = pump else {
        return Ok(());
    };
    pump.warm(|time, bytes| bytes >= WARM_BYTES_MAX || time > WARM_TIME_MAX)?;
    let alone = pump.run(|time, _| time > COPY_TIME)?;
    rates.storage_bytes_per_second = Some(alone);
    let kind = wanted.kinds.iter().find(|kind| is_measurable(**kind));
    // Where a device computes it hardly minds what is read.
    let Some(kind) = kind.filter(|_| wanted.device.is_none()) else {
        return Ok(());
    };
    let one = on(wanted, machine.threads);
    let matrices = one.matrices(*kind, 1)?;
    rates.contention_decode = Some(both(&mut pump, alone, one, matrices, BOTH_TIME)?);
    if let Some(ubatch) = wanted.ubatch {
        let batch = on(wanted, machine.threads_batch);
        let matrices = batch.matrices(*kind, ubatch)?;
        rates.contention_prefill = Some(both(&mut pump, alone, batch, matrices, BOTH_TIME)?);
    }
    Ok(())
}

/// Copies and computes at once, for so long.
pub(super) fn both(
    pump: &mut Pump,
    copy_alone: f64,
    on: On,
    matrices: Matrices,
    time: Duration,
) -> Result<Contention> {
    let Matrices { mut work, .. } = matrices;
    let compute_alone = 1.0 / on.seconds(&mut work)?;
    let (stop, runs) = (AtomicBool::new(false), AtomicU64::new(0));
    let (copied, computed) = std::thread::scope(|scope| {
        let computing = scope.spawn(|| {
            let started = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                if !work.run() {
                    break;
                }
                runs.fetch_add(1, Ordering::Relaxed);
            }
            per_second(
                runs.load(Ordering::Relaxed),
                started.elapsed().as_secs_f64(),
            )
        });
        // A batch may take long: at least one is to be computed while something is copied;
        // one that fails is not waited for.
        let copied = pump.run(|so_far, _| {
            so_far > time && (runs.load(Ordering::Relaxed) > 0 || computing.is_finished())
        });
        stop.store(true, Ordering::Relaxed);
        (copied, computing.join())
    });
    let copy = Rate {
        alone: copy_alone,
        contended: copied?,
    };
    let compute = Rate {
        alone: compute_alone,
        contended: computed.unwrap_or(compute_alone).max(1e-9),
    };
    Ok(Contention::of(copy, compute))
}

#[allow(clippy::cast_precision_loss, reason = "a rate")]
pub(super) fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}
