//! What a run on a device needs beside the rates of what computes: the link, the processor,
//! and both at once, for both draw on the machine's memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::copies::{Kind, Pump};
use super::measure::{COPY_TIME, both, per_second};
use super::products::On;
use super::{Calibration, Contention, LinkRates, Wanted};
use crate::error::{Error, Result};
use crate::ggml::workload::{Work, kind_name};
use crate::ggml::{DeviceBuffer, InnerDevice};

/// How long the link is timed with each kind of memory.
pub(super) const LINK_TIME: Duration = COPY_TIME.checked_div(2).expect("not by zero");
/// How long copying and computing at once are timed, each time.
pub(super) const BOTH_TIME: Duration = Duration::from_millis(400);
/// Bytes that are handed over with a segment: what a token is in a layer.
const HANDOVER_BYTES: usize = 16 << 10;
/// How often a handover is timed.
const HANDOVERS: usize = 65;

/// Measures what of this is wanted and not in `rates` yet.
pub fn measure(
    device: InnerDevice,
    wanted: &Wanted,
    rates: &mut Calibration,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    let threads = wanted.machine.threads;
    let on = On::Processor { threads };
    let is_new = rates.link.is_none();
    let mut link = rates.link.take().unwrap_or_else(empty);
    for kind in wanted.kinds_of_processor() {
        let Some(name) = kind_name(kind) else {
            continue;
        };
        if !link.processor_bytes_per_second.contains_key(name) {
            progress(&format!("matrices of type {name} on the processor"));
            let mut matrices = on.matrices(kind, 1)?;
            let rate = per_second(matrices.bytes, on.seconds(&mut matrices.work)?);
            link.processor_bytes_per_second
                .insert(name.to_owned(), rate);
        }
    }
    if is_new {
        progress("the link to the device");
        measure_link(device, wanted, rates, &mut link)?;
        progress("the way from the device to the processor");
        link.handover_seconds = handover_seconds(device, threads)?;
    }
    if rates.contention_prefill.is_none() && wanted.ubatch.is_some() {
        progress("the link to the device, beside batches");
        measure_batches(device, wanted, rates, link.bytes_per_second())?;
    }
    rates.link = Some(link);
    Ok(())
}

fn empty() -> LinkRates {
    LinkRates {
        pinned_bytes_per_second: None,
        pageable_bytes_per_second: 0.0,
        processor_bytes_per_second: BTreeMap::new(),
        processor_contention: Contention {
            copy_slowdown: 1.0,
            compute_slowdown: 1.0,
        },
        handover_seconds: 0.0,
    }
}

/// The link alone, beside the device that computes, and beside the processor that does.
fn measure_link(
    device: InnerDevice,
    wanted: &Wanted,
    rates: &mut Calibration,
    link: &mut LinkRates,
) -> Result<()> {
    let copies = wanted.machine.copy_threads;
    let pump = |kind| Pump::to_device(device, kind, copies);
    let alone = |pump: &mut Pump| pump.run(|time, _| time > LINK_TIME);
    let missing = || Error::Failed("there is no memory to copy to the device from".to_owned());
    let mut slow = pump(Kind::Pageable)?.ok_or_else(missing)?;
    link.pageable_bytes_per_second = alone(&mut slow)?;
    let mut pump = match pump(Kind::Pinned)? {
        Some(mut fast) => {
            link.pinned_bytes_per_second = Some(alone(&mut fast)?);
            fast
        }
        None => slow,
    };
    let Some(kind) = wanted.kinds_of_processor().next() else {
        return Ok(());
    };
    let rate = link.bytes_per_second();
    let (here, there) = (
        On::Processor {
            threads: wanted.machine.threads,
        },
        On::Device(device),
    );
    let matrices = here.matrices(kind, 1)?;
    link.processor_contention = both(&mut pump, rate, here, matrices, BOTH_TIME)?;
    let matrices = there.matrices(kind, 1)?;
    rates.contention_decode = Some(both(&mut pump, rate, there, matrices, BOTH_TIME)?);
    Ok(())
}

/// The link beside batches that the device computes.
fn measure_batches(
    device: InnerDevice,
    wanted: &Wanted,
    rates: &mut Calibration,
    rate: f64,
) -> Result<()> {
    let kind = wanted.kinds_of_processor().next();
    let (Some(kind), Some(ubatch)) = (kind, wanted.ubatch) else {
        return Ok(());
    };
    let copies = wanted.machine.copy_threads;
    let pump = match Pump::to_device(device, Kind::Pinned, copies)? {
        Some(pump) => Some(pump),
        None => Pump::to_device(device, Kind::Pageable, copies)?,
    };
    if let Some(mut pump) = pump {
        let there = On::Device(device);
        let matrices = there.matrices(kind, ubatch)?;
        rates.contention_prefill = Some(both(&mut pump, rate, there, matrices, BOTH_TIME)?);
    }
    Ok(())
}

/// Seconds from the device to the processor and back: the median of many. The device is
/// waited for, bytes come from it, the processor computes next to nothing, bytes go back,
/// and the device is begun anew.
fn handover_seconds(device: InnerDevice, threads: u32) -> Result<f64> {
    let small = Work::Nodes {
        elements: (HANDOVER_BYTES / 4) as i64,
        count: 1,
    };
    let (here, there) = (On::Processor { threads }, On::Device(device));
    let (mut of_processor, mut of_device) = (here.workload(small)?, there.workload(small)?);
    let buffer = DeviceBuffer::new(device, HANDOVER_BYTES);
    let mut buffer =
        buffer.map_err(|why| Error::Failed(format!("no memory for a handover: {why}")))?;
    let mut bytes = vec![0; HANDOVER_BYTES];
    let mut all = Vec::with_capacity(HANDOVERS);
    let failed = || Error::Failed("could not measure a handover: a graph failed".to_owned());
    for _ in 0..HANDOVERS {
        let started = Instant::now();
        let done = of_device.run();
        buffer.read_all(&mut bytes);
        let done = of_processor.run() && done;
        buffer.write_all(&bytes);
        if !done {
            return Err(failed());
        }
        all.push(started.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2].max(1e-9))
}
