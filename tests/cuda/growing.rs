//! States whose memory is mapped as it comes into use: run with the fake driver, by the tests
//! of the module above.

use std::path::Path;

use rpaged::device::report::Reason;
use rpaged::device::{PagedDevice, PagingConfig};
use rpaged::forecast::ubatch::Given;
use rpaged::pager::block::{Arena, Block};
use rpaged::session::demo::DemoModel;

use super::device::device;
use super::driver::Driver;
use super::paged::{card, config_on};
use crate::equivalence::case::{AMPLE_BYTES, Paging};
use crate::harness::{
    Flash, LlamaContext, LlamaModel, Placement, RunSpec, Step, difference, run, run_steps, stock,
};
use crate::models::{Model, prompt};
use crate::rehearsal::{least, raised};

/// What the settings of these tests say.
const GRANULE: usize = 4096;

impl Driver {
    fn created(&self) -> usize {
        // SAFETY: no preconditions.
        usize::try_from(unsafe { (self.created_bytes)() }).unwrap()
    }

    /// Fills memory of the card's, and waits for that.
    fn fill_with(&self, address: usize, value: u8, bytes: usize) {
        // SAFETY: mapped memory, which the driver checks.
        let status = unsafe { (self.fill)(address, value, bytes) };
        assert_eq!(status, 0);
    }

    fn bytes_at(&self, address: usize, bytes: usize) -> Vec<u8> {
        let mut found = vec![9; bytes];
        let to = found.as_mut_ptr().cast();
        // SAFETY: as many bytes; they are pageable, so the copy is done on return.
        let status = unsafe { (self.copy_out)(to, address, bytes, 0) };
        assert_eq!(status, 0);
        found
    }
}

#[test]
#[ignore = "run by a test of the module above"]
fn blocks() {
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let driver = Driver::load();
    let arena = Arena::of(device(driver, "CUDA0", "0000:01:00.0"));
    let bytes = 10 * GRANULE;
    let block = arena.sparse_block(bytes).unwrap().unwrap();
    assert!(!block.is_whole());
    assert_eq!((block.bytes(), driver.created()), (bytes, 0));
    let start = block.address(0);
    // One byte and what a kernel may read behind it.
    assert_eq!(block.missing_bytes(1), 2 * GRANULE);
    block.grow(1).unwrap();
    assert_eq!(driver.created(), 2 * GRANULE);
    assert_eq!(driver.bytes_at(start, 2 * GRANULE), vec![0; 2 * GRANULE]);
    driver.fill_with(start, 7, GRANULE);
    block.grow(1 + 2 * GRANULE).unwrap();
    assert_eq!(driver.created(), 4 * GRANULE);
    let mut expected = vec![0; 4 * GRANULE];
    expected[..GRANULE].fill(7);
    assert_eq!(driver.bytes_at(start, 4 * GRANULE), expected);
    // Less is no reason to take anything away.
    block.grow(1).unwrap();
    assert_eq!(driver.created(), 4 * GRANULE);
    block.release(0..bytes);
    assert_eq!(driver.created(), 0);
    for in_use in [
        0,
        1,
        GRANULE - 1,
        GRANULE,
        3 * GRANULE + 1,
        9 * GRANULE,
        bytes,
    ] {
        block.grow(in_use).unwrap();
        let counted = arena.state_bytes(bytes, in_use, 64);
        assert_eq!(driver.created(), counted, "{in_use} bytes in use");
        assert_eq!(driver.bytes_at(start, counted), vec![0; counted]);
        assert_eq!(block.missing_bytes(in_use), 0);
        driver.fill_with(start, 5, counted);
        block.release(0..bytes);
    }
    block.grow(bytes).unwrap();
    assert_eq!(driver.created(), bytes);
    // What is small has all of it at once.
    let small = arena.sparse_block(GRANULE).unwrap().unwrap();
    assert!(small.is_whole() && small.missing_bytes(1) == 0);
    assert_eq!(arena.state_bytes(GRANULE, 1, 64), GRANULE);
    // What has a block to itself takes whole granules, what shares one does not.
    assert_eq!(arena.own_block_bytes((1 << 20) + 1), (1 << 20) + GRANULE);
    assert_eq!(arena.own_block_bytes(1000), 1000);
    drop((small, block));
    assert_eq!(driver.created(), 0);
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn refused() {
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let driver = Driver::load();
    let arena = Arena::of(device(driver, "CUDA0", "0000:01:00.0"));
    let grown = |block: &Block, in_use: usize| (block.grow(in_use), driver.created());
    let block = arena.sparse_block(10 * GRANULE).unwrap().unwrap();
    assert_eq!(grown(&block, 1), (Ok(()), 2 * GRANULE));
    // The second one fails, and leaves all as it was.
    let (refused, created) = grown(&block, 3 * GRANULE);
    let sentence = refused.unwrap_err();
    assert!(
        sentence.contains("CUDA0: 'cuMemCreate of 1 MiB' gave 'out of memory"),
        "{sentence}"
    );
    assert_eq!(created, 2 * GRANULE);
    assert_eq!(grown(&block, 3 * GRANULE), (Ok(()), 4 * GRANULE));
    drop(block);
    assert_eq!(driver.created(), 0);
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn whole() {
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let arena = Arena::of(device(Driver::load(), "CUDA0", "0000:01:00.0"));
    let block = arena.sparse_block(10 * GRANULE).unwrap().unwrap();
    assert!(block.is_whole());
    assert_eq!(block.grow(1), Ok(()));
    assert_eq!(arena.state_bytes(10 * GRANULE, 1, 64), 10 * GRANULE);
}

/// A prompt that fills a quarter of the context, then one that fills most of it.
fn spec() -> RunSpec {
    let tokens = prompt(7, 700);
    RunSpec {
        context: 1024,
        ubatch: 64,
        flash: Flash::On,
        steps: vec![
            Step::feed(0, 0, &tokens[..9]),
            Step::generate(0, 9, 2),
            Step::feed(0, 11, &tokens[11..500]),
            Step::feed(0, 500, &tokens[500..]),
            Step::generate(0, 700, 2),
        ],
        ..RunSpec::new(Model::Tiny, 9, 3)
    }
}

fn paging(on: &async_device::AsyncDevice, budget: u64) -> PagingConfig {
    PagingConfig {
        kv_page_tokens: 16,
        ..config_on(on, &spec(), Paging::Both, budget)
    }
}

#[test]
#[ignore = "run by a test of the module above"]
fn models() {
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    {
        let device = PagedDevice::new(paging(&on, AMPLE_BYTES)).unwrap();
        let model = LlamaModel::of(&spec, Placement::Paged(&device)).unwrap();
        let mut context = LlamaContext::new(&model, &spec).unwrap();
        assert_eq!(driver.created(), 0, "nothing is in use");
        let mut logits = Vec::new();
        let mut seen = Vec::new();
        for steps in [&spec.steps[..2], &spec.steps[2..3], &spec.steps[3..]] {
            logits.extend(run_steps(&mut context, steps).unwrap());
            let report = device.report();
            assert_eq!(report.kv_streamed_bytes, 0);
            seen.push((
                driver.created(),
                report.arena_bytes_used - report.scratch_bytes,
            ));
        }
        assert_eq!(difference(&stock(&spec), &logits), None);
        for pair in seen.windows(2) {
            let (grown, counted) = (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1);
            assert!(grown > 0, "{seen:?}");
            assert_eq!(grown as u64, counted, "{seen:?}");
        }
        // States leave with their memory, and come back with it.
        let (all, full) = (driver.created(), device.report());
        device
            .set_budget(full.minimum_bytes, Reason::Budget)
            .unwrap();
        assert!(device.report().kv_streamed_bytes > 0);
        assert!(driver.created() < all);
        device.set_budget(AMPLE_BYTES, Reason::Budget).unwrap();
        assert_eq!(driver.created(), all);
        assert_eq!(device.report().arena_bytes_used, full.arena_bytes_used);
        context.clear(true);
        assert_eq!(driver.created(), 0, "what is cleared is not in use");
        let again = run_steps(&mut context, &spec.steps).unwrap();
        assert_eq!(difference(&stock(&spec), &again), None);
        assert_eq!(driver.created(), all);
    }
    assert_eq!(driver.created(), 0);
    assert_eq!(on.take_complaints(), [""; 0]);
    assert_eq!(driver.violations(), "");
}

#[test]
#[ignore = "run by a test of the module above"]
fn crowded() {
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let (driver, on, spec) = (Driver::load(), card(), spec());
    {
        let device = PagedDevice::new(paging(&on, AMPLE_BYTES)).unwrap();
        let logits = run(Placement::Paged(&device), &spec);
        let sentence = device.take_error().map(|error| error.to_string());
        let logits = logits.unwrap_or_else(|failure| panic!("{failure:?}: {sentence:?}"));
        assert_eq!(difference(&stock(&spec), &logits), None);
        let notices = device.take_notices().join("\n");
        let has = |text: &str| notices.contains(text);
        assert!(has("cuMemCreate") && has("weights give way"), "{notices}");
        assert!(device.report().budget_bytes < AMPLE_BYTES);
    }
    assert_eq!(driver.created(), 0);
    assert_eq!(on.take_complaints(), [""; 0]);
    assert_eq!(driver.violations(), "");
}

/// A context that can be filled with the usual ubatch can be filled with the larger one.
#[test]
#[ignore = "run by a test of the module above"]
fn ubatches() {
    const TOKENS: usize = 8192;
    if std::env::var_os(super::INSIDE).is_none() {
        return;
    }
    let (driver, on) = (Driver::load(), card());
    {
        let demo = DemoModel::new().unwrap();
        let path = Path::new(demo.path().to_str().unwrap());
        let with = |budget| PagingConfig {
            model: path.to_owned(),
            ..paging(&on, budget)
        };
        let least = |ubatch, tokens| {
            let words = ["-c", "8192", "-ub", ubatch];
            least(path, &with(AMPLE_BYTES), tokens, &words)
        };
        let whole = least("16", TOKENS);
        assert!(least("16", 512) < whole && least("8", TOKENS) < whole);
        let of = |budget| {
            let words = ["-c", "8192"];
            raised(path, &with(budget), Given::default(), &words).0
        };
        assert_eq!(of(whole - 1), 8);
        assert_eq!(of(whole), 16);
    }
    assert_eq!(on.take_complaints(), [""; 0]);
    assert_eq!(driver.violations(), "");
}
