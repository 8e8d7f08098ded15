#![allow(unsafe_code, reason = "calls into NVIDIA's driver")]
//! NVIDIA's driver, found when the program runs: it needs neither driver nor toolkit to be
//! built or to start.
//!
//! [`available`] says whether it is there. cudarc finds the library and knows its types;
//! the functions are looked up here, all at once, because cudarc panics where one is
//! missing, and takes each error code for one that it knows.

mod context;
mod driver;
mod pinned;
mod stream;

pub use context::Context;
pub use pinned::{Pages, Registration, Uses};
pub use stream::{Event, Stream};

/// What the driver has to offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The CUDA version the driver is of: major and minor.
    pub version: (i32, i32),
    /// Its devices, by ordinal.
    pub devices: Vec<DeviceInfo>,
}

/// A device of the driver's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, such as `NVIDIA H100`.
    pub name: String,
    /// Its place on the bus, such as `0000:01:00.0`.
    pub bus_id: String,
    /// Its memory, in bytes.
    pub bytes_total: usize,
}

/// What the driver has to offer.
///
/// # Errors
/// A sentence: there is no driver, it is too old, it does not start, or it has no device.
pub fn available() -> Result<Info, String> {
    let driver = driver::driver()?;
    let ordinals = 0..driver.device_count()?;
    let devices: Result<Vec<_>, String> =
        ordinals.map(|ordinal| driver.describe(ordinal)).collect();
    let info = Info {
        version: driver.version,
        devices: devices?,
    };
    if info.devices.is_empty() {
        return Err(driver::NO_DEVICE.to_owned());
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_a_driver_a_sentence_says_so() {
        // A machine that has one says so as well; nobody panics.
        match super::available() {
            Ok(info) => assert!(!info.devices.is_empty()),
            Err(sentence) => assert!(sentence.contains("driver"), "{sentence}"),
        }
    }
}
