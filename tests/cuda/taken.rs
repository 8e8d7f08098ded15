//! What the driver takes of a budget: run with the fake driver, by the tests of the module
//! above.

use async_device::{AsyncDevice, Options};
use rpaged::cuda::witness;
use rpaged::device::report::Reason;
use rpaged::device::{PagedDevice, Report};

use super::driver::Driver;
use super::paged::{card, config_on};
use crate::equivalence::case::{AMPLE_BYTES, Paging, budgets_under};
use crate::harness::{
    Flash, LlamaContext, LlamaModel, Placement, RunSpec, Step, difference, run_paged, run_steps,
    stock,
};
use crate::models::{Model, prompt};

const MIB: u64 = 1 << 20;
/// What a context is counted as: it is a little less.
const CONTEXT: u64 = 24 * MIB;

impl Driver {
    /// Bytes of the card that this process takes now, and the most since this was last asked.
    fn taken(&self) -> (u64, u64) {
        // SAFETY: no preconditions.
        let now = unsafe { (self.used_bytes)() };
        // SAFETY: as above.
        (now, unsafe { (self.peak_bytes)() })
    }
}

fn is_inside() -> bool {
    std::env::var_os(super::INSIDE).is_some()
}

/// A prompt, and more graphs after it than it takes for the driver to be known.
fn spec() -> RunSpec {
    let tokens = prompt(7, 200);
    RunSpec {
        context: 512,
        ubatch: 64,
        flash: Flash::On,
        steps: vec![
            Step::feed(0, 0, &tokens[..9]),
            Step::generate(0, 9, 3),
            Step::feed(0, 12, &tokens[12..]),
            Step::generate(0, 200, 9),
        ],
        ..RunSpec::new(Model::Tiny, 9, 3)
    }
}

/// The smallest budget, and the one that keeps everything, on a device without a driver.
fn budgets_beside(spec: &RunSpec) -> (u64, u64) {
    let options = Options {
        padded: true,
        ..Options::default()
    };
    let other = AsyncDevice::new(options).unwrap();
    budgets_under(&config_on(&other, spec, Paging::Both, AMPLE_BYTES), spec)
}

/// Runs a model within a budget; it must compute what stock computes. Gives the last report,
/// what was said, and how many plans were made for the driver.
fn outcome(on: &AsyncDevice, spec: &RunSpec, budget: u64) -> (Report, String, usize) {
    let device = PagedDevice::new(config_on(on, spec, Paging::Both, budget)).unwrap();
    let model = LlamaModel::of(spec, Placement::Paged(&device)).unwrap();
    let mut context = LlamaContext::new(&model, spec).unwrap();
    let logits = run_steps(&mut context, &spec.steps);
    let logits = logits.unwrap_or_else(|failure| panic!("{failure:?}: {:?}", device.take_error()));
    assert_eq!(difference(&stock(spec), &logits), None);
    let (report, changes) = (device.report(), device.take_changes().into_iter());
    let changes = changes.filter(|change| change.reason == Reason::Driver);
    let notices = device.take_notices().into_iter();
    let notices = notices.filter(|sentence| !sentence.starts_with("weights that are streamed"));
    let notices: Vec<String> = notices.collect();
    (report, notices.join("\n"), changes.count())
}

fn end(driver: Driver, on: &AsyncDevice) {
    assert_eq!(on.take_complaints(), [""; 0]);
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn sources() {
    if !is_inside() {
        return;
    }
    if std::env::var_os("WITNESS").is_some() {
        witness();
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    let (report, notices, _) = outcome(&on, &spec, 600 * MIB);
    let expected: u64 = std::env::var("EXPECTED_MIB").unwrap().parse().unwrap();
    assert_eq!(report.driver_bytes, expected * MIB, "{notices}");
    let sentence = std::env::var("EXPECTED").unwrap();
    if sentence.is_empty() {
        assert_eq!(notices, "");
    }
    assert!(notices.contains(&sentence), "{notices}");
    end(driver, &on);
}

#[test]
#[ignore = "run by a test of the module above"]
fn grows() {
    const GROWTH: u64 = 8 * MIB;
    if !is_inside() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    let (minimum, whole) = budgets_beside(&spec);
    let budget = CONTEXT + GROWTH + (minimum + whole) / 2;
    let (_, before) = driver.taken();
    assert_eq!(before, CONTEXT - MIB / 4);
    let (report, notices, changes) = outcome(&on, &spec, budget);
    let (_, peak) = driver.taken();
    assert_eq!(report.driver_bytes, CONTEXT + GROWTH, "{notices}");
    // It is what nvidia-smi shows that stays within the budget, and uses it.
    assert!(peak <= budget, "{peak} of {budget}");
    assert!(report.arena_bytes_used <= budget, "{report:?}");
    assert!(
        report.streamed_bytes > 0 && report.resident_bytes > 0,
        "{report:?}"
    );
    // What was kept free for the driver is used in the end, by one plan.
    assert_eq!(changes, 1);
    assert_eq!(notices, "");
    // Another run of the process finds what was loaded.
    let (again, _, changes) = outcome(&on, &spec, budget);
    assert_eq!((again.driver_bytes, changes), (CONTEXT + GROWTH, 1));
    assert_eq!(again.resident_bytes, report.resident_bytes);
    end(driver, &on);
}

/// What other models of the process hold is not the driver's.
#[test]
#[ignore = "run by a test of the module above"]
fn beside() {
    if !is_inside() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    let first = PagedDevice::new(config_on(&on, &spec, Paging::Both, 600 * MIB)).unwrap();
    let model = LlamaModel::of(&spec, Placement::Paged(&first)).unwrap();
    let mut first_context = LlamaContext::new(&model, &spec).unwrap();
    let (begin, rest) = spec.steps.split_at(2);
    let mut logits = run_steps(&mut first_context, begin).unwrap();
    {
        let second = PagedDevice::new(config_on(&on, &spec, Paging::Both, 600 * MIB)).unwrap();
        assert_eq!(second.report().driver_bytes, CONTEXT);
        let model = LlamaModel::of(&spec, Placement::Paged(&second)).unwrap();
        let mut context = LlamaContext::new(&model, &spec).unwrap();
        let others = run_steps(&mut context, &spec.steps).unwrap();
        assert_eq!(difference(&stock(&spec), &others), None);
        assert_eq!(second.report().driver_bytes, CONTEXT);
        // More than the rounding of the driver's part would hide.
        let held = second.report().arena_bytes_used - CONTEXT;
        assert!(held > MIB / 4, "{held}");
        logits.extend(run_steps(&mut first_context, rest).unwrap());
        assert_eq!(first.report().driver_bytes, CONTEXT);
    }
    assert_eq!(difference(&stock(&spec), &logits), None);
    end(driver, &on);
}

/// A budget that leaves less than the driver is guessed to take is as good as any.
#[test]
#[ignore = "run by a test of the module above"]
fn guessed() {
    if !is_inside() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    let (minimum, _) = budgets_beside(&spec);
    let budget = minimum + MIB;
    assert!(budget < 256 * MIB);
    let (report, notices, _) = outcome(&on, &spec, budget);
    assert!(report.arena_bytes_used <= budget, "{report:?}");
    assert!(report.minimum_bytes <= budget, "{report:?}");
    assert!(notices.contains("is taken to need 256.00 MiB"), "{notices}");
    end(driver, &on);
}

#[test]
#[ignore = "run by a test of the module above"]
fn overruns() {
    if !is_inside() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    let (minimum, _) = budgets_beside(&spec);
    let budget = CONTEXT + minimum + MIB / 2;
    let (report, notices, _) = outcome(&on, &spec, budget);
    assert_eq!(report.driver_bytes, CONTEXT + 8 * MIB);
    assert!(report.arena_bytes_used > budget, "{report:?}");
    assert!(report.minimum_bytes > budget, "{report:?}");
    let said = "the driver of CUDA0 takes 32.00 MiB of the budget";
    assert!(notices.contains(said), "{notices}");
    assert_eq!(notices.matches("over the budget").count(), 1, "{notices}");
    end(driver, &on);
}

#[test]
#[ignore = "run by a test of the module above"]
fn refuses() {
    if !is_inside() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    let (minimum, _) = budgets_beside(&spec);
    assert!(minimum < CONTEXT);
    let config = config_on(&on, &spec, Paging::Both, CONTEXT);
    let sentence = run_paged(&config, &spec).unwrap_err();
    let has = |text: &str| sentence.contains(text);
    assert!(has("VRAM budget of 24.00 MiB is below"), "{sentence}");
    assert!(
        has("24.00 MiB for what the GPU's driver takes"),
        "{sentence}"
    );
    end(driver, &on);
}

/// The same with room for more tokens than will come.
fn spec_with_room() -> RunSpec {
    RunSpec {
        context: 8192,
        ..spec()
    }
}

/// Memory that was mapped for a growth that failed further on is counted until it is given back.
#[test]
#[ignore = "run by a test of the module above"]
fn leftovers() {
    if !is_inside() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec_with_room());
    for budget in (8..40).step_by(4).map(|part| part * MIB / 16) {
        let device = PagedDevice::new(config_on(&on, &spec, Paging::Both, budget)).unwrap();
        let Ok(model) = LlamaModel::of(&spec, Placement::Paged(&device)) else {
            continue;
        };
        let Ok(mut context) = LlamaContext::new(&model, &spec) else {
            continue;
        };
        let logits = run_steps(&mut context, &spec.steps);
        let (report, (taken, _)) = (device.report(), driver.taken());
        let counted = report.arena_bytes_used - report.driver_bytes;
        // A little, for tensors that share a block.
        assert!(taken <= counted + 32768, "{taken} of {counted}: {report:?}");
        let error = device.take_error();
        match logits {
            Ok(logits) => assert_eq!(difference(&stock(&spec), &logits), None),
            Err(failure) => assert!(error.is_some(), "{failure:?}"),
        }
    }
    end(driver, &on);
}

/// States without addresses take all of their memory at once: the plan knows that before.
#[test]
#[ignore = "run by a test of the module above"]
fn without_addresses() {
    if !is_inside() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec_with_room());
    let (minimum, whole) = budgets_beside(&spec);
    assert!(whole - minimum > MIB, "the states are large");
    for budget in [minimum, minimum + (whole - minimum) / 3, whole] {
        let budget = CONTEXT + budget;
        driver.taken();
        let (report, notices, _) = outcome(&on, &spec, budget);
        let (_, peak) = driver.taken();
        assert!(peak <= budget, "{peak} of {budget}: {report:?}");
        // All that is there was counted, but for little.
        assert_eq!(report.driver_bytes, CONTEXT, "{report:?}");
        assert_eq!(notices, "");
    }
    end(driver, &on);
}
