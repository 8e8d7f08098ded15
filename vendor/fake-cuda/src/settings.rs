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

/// Under which number NVIDIA's management library lists the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Its own.
    Own,
    /// Another: that of the machine, and not of its container.
    Machine,
    /// Another; its own is that of somebody else.
    Taken,
    /// Its own, without saying what it takes.
    Unknown,
    /// None, and others are.
    Unlisted,
    /// No processes are listed at all.
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
    /// `FAKE_CUDA_FAIL_RESERVE`: `N:M`: so for `cuMemAddressReserve`.
    pub fail_reserve: Range<u64>,
    /// `FAKE_CUDA_CONTEXT`: what a context takes of its card, in bytes; 0 when not said.
    pub context_bytes: usize,
    /// `FAKE_CUDA_GROWTH`: `N:BYTES`: with the launch of this number, counted from 1, the
    /// driver takes so much more, as for kernels that it loads.
    pub growth: Option<(u64, usize)>,
    /// `FAKE_NVML_LISTING`: `own` (when not said), `machine`, `taken`, `unknown`, `unlisted`,
    /// `nothing`.
    pub listing: Listing,
    /// `FAKE_NVML_OTHERS`: number of other processes on each card; each takes 1 MiB.
    pub others: u32,
    /// `FAKE_NVML_VERSION`: of the function that lists processes: 3 when not said, 2, 1, or 35
    /// for the third with larger entries.
    pub nvml_version: u32,
    /// `FAKE_CUDA_INIT_ERROR`: what `cuInit` fails with.
    pub init_error: Option<Status>,
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Two numbers with a colon between.
fn pair(name: &str) -> Option<(u64, u64)> {
    let text = std::env::var(name).ok()?;
    let (first, second) = text.split_once(':')?;
    Some((first.parse().ok()?, second.parse().ok()?))
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
        let listing = match std::env::var("FAKE_NVML_LISTING").as_deref() {
            Ok("machine") => Listing::Machine,
            Ok("taken") => Listing::Taken,
            Ok("unknown") => Listing::Unknown,
            Ok("unlisted") => Listing::Unlisted,
            Ok("nothing") => Listing::Nothing,
            _ => Listing::Own,
        };
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
            fail_create: pair("FAKE_CUDA_FAIL_CREATE").map_or(0..0, |(first, end)| first..end),
            fail_reserve: pair("FAKE_CUDA_FAIL_RESERVE").map_or(0..0, |(first, end)| first..end),
            context_bytes: number("FAKE_CUDA_CONTEXT").unwrap_or(0),
            growth: pair("FAKE_CUDA_GROWTH").map(|(launch, bytes)| (launch, bytes as usize)),
            listing,
            others: number("FAKE_NVML_OTHERS").unwrap_or(0),
            nvml_version: number("FAKE_NVML_VERSION").unwrap_or(3),
            init_error: number("FAKE_CUDA_INIT_ERROR"),
        }
    }
}

/// The settings.
pub fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(Settings::from_environment)
}
