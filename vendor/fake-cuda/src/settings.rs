//! What the environment asks of the driver; read once.

use std::ffi::c_int;
use std::ops::Range;
use std::sync::OnceLock;

use crate::errors::Status;

/// What host memory can be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// Any, and read-only too.
    ReadOnly,
    /// What can be written.
    Writable,
    /// None at all.
    Nothing,
}

/// What the environment asks for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `FAKE_CUDA_DEVICES`: number of cards; 1 when not said.
    pub devices: usize,
    /// `FAKE_CUDA_VERSION`: what CUDA the driver is of, such as 12040.
    pub version: c_int,
    /// `FAKE_CUDA_MEMORY`: size of each card, in bytes; 1 GiB when not said.
    pub memory_bytes: usize,
    /// `FAKE_CUDA_PINNED`: how much host memory can be pinned, in bytes; no limit when not
    /// said.
    pub pinned_bytes: usize,
    /// `FAKE_CUDA_REGISTER`: `read-only` (when not said), `writable`, `nothing`.
    pub registers: Registers,
    /// `FAKE_CUDA_SEED`: of the delays.
    pub seed: u64,
    /// `FAKE_CUDA_DELAY_US`: the longest delay before a piece of work, in microseconds; 0
    /// when not said.
    pub delay_us_max: u64,
    /// `FAKE_CUDA_FAIL_COPY`: `N:CODE`: the copy of this number, counted from 1, loses the
    /// card with this error.
    pub fail_copy: Option<(u64, Status)>,
    /// `FAKE_CUDA_GRANULE`: the unit in which memory is mapped, in bytes; 2 MiB when not said,
    /// 0 when none can be mapped.
    pub granule_bytes: usize,
    /// `FAKE_CUDA_FAIL_CREATE`: `N:M`: `cuMemCreate` fails from its call number N on, counted
    /// from 1, until M, as on a card that others have filled.
    pub fail_create: Range<u64>,
    /// `FAKE_CUDA_INIT_ERROR`: what `cuInit` fails with.
    pub init_error: Option<Status>,
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

impl Settings {
    fn from_environment() -> Self {
        let registers = match std::env::var("FAKE_CUDA_REGISTER").as_deref() {
            Ok("nothing") => Registers::Nothing,
            Ok("writable") => Registers::Writable,
            _ => Registers::ReadOnly,
        };
        let fail_copy = std::env::var("FAKE_CUDA_FAIL_COPY").ok();
        let fail_copy = fail_copy.as_deref().and_then(|text| {
            let (copy, code) = text.split_once(':')?;
            Some((copy.parse().ok()?, code.parse().ok()?))
        });
        let fail_create = std::env::var("FAKE_CUDA_FAIL_CREATE").ok();
        let fail_create = fail_create.as_deref().and_then(|text| {
            let (first, end) = text.split_once(':')?;
            Some(first.parse().ok()?..end.parse().ok()?)
        });
        Self {
            devices: number("FAKE_CUDA_DEVICES").unwrap_or(1),
            version: number("FAKE_CUDA_VERSION").unwrap_or(12040),
            memory_bytes: number("FAKE_CUDA_MEMORY").unwrap_or(1 << 30),
            pinned_bytes: number("FAKE_CUDA_PINNED").unwrap_or(usize::MAX),
            registers,
            seed: number("FAKE_CUDA_SEED").unwrap_or(1),
            delay_us_max: number("FAKE_CUDA_DELAY_US").unwrap_or(0),
            fail_copy,
            granule_bytes: number("FAKE_CUDA_GRANULE").unwrap_or(2 << 20),
            fail_create: fail_create.unwrap_or(0..0),
            init_error: number("FAKE_CUDA_INIT_ERROR"),
        }
    }
}

/// The settings.
pub fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(Settings::from_environment)
}
