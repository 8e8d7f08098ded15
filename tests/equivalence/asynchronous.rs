//! The device for tests: without paging it computes what the CPU computes, whatever its
//! streams dawdle; so a paged run on it is compared with stock's too.

use async_device::{AsyncDevice, Delays, Options};

use crate::harness::{Cache, Flash, Placement, RunSpec, assert_same, run, stock};
use crate::models::Model;

/// Both flavours, with delays and without.
const FLAVOURS: [(bool, Delays); 4] = [
    (true, Delays::None),
    (true, Delays::Short),
    (true, Delays::Long),
    (false, Delays::None),
];

/// Nothing was done wrong with the device, and nothing of it is left.
pub fn assert_clean(device: &AsyncDevice) {
    let complaints = device.take_complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let left = device.counters();
    assert_eq!(
        (left.buffers, left.streams, left.events),
        (0, 0, 0),
        "{left:?}"
    );
}

#[test]
fn all_layers_on_the_device_without_paging() {
    for (seed, model) in (1..).zip(Model::ALL) {
        for (asynchronous, delays) in FLAVOURS {
            let spec = RunSpec {
                ubatch: 7,
                flash: [Flash::On, Flash::Off][seed as usize % 2],
                cache: [Cache::F16, Cache::Q8][seed as usize / 2 % 2],
                ..RunSpec::new(model, 24, 3)
            };
            let device = AsyncDevice::new(Options {
                asynchronous,
                delays,
                seed,
                padded: true,
                ..Options::default()
            })
            .unwrap();
            let found = run(Placement::On(&device), &spec)
                .unwrap_or_else(|failure| panic!("{failure:?}: {:#?}", device.take_complaints()));
            assert_same(&stock(&spec), &found, &(model, delays));
            let counters = device.counters();
            assert!(counters.graphs > 0, "{counters:?}");
            assert_clean(&device);
        }
    }
}
