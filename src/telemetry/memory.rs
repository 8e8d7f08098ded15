//! Memory of the machine, of the control groups this process is in, and of the process.

use crate::ggml::InnerDevice;

/// How full one thing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Bytes that cannot be had without taking them from somebody; page cache that the
    /// kernel would give back is not among them.
    pub used_bytes: u64,
    /// Bytes that there are.
    pub total_bytes: u64,
}

impl Level {
    /// How full the memory of a device is now, whoever uses it.
    pub fn of_device(device: InnerDevice) -> Self {
        let (free, total) = device.memory_bytes();
        Self::of_free(free, total)
    }

    /// From what is said to be free. More than there is means none: ggml-vulkan subtracts
    /// what is in use from what the driver allows without looking which is larger.
    fn of_free(free_bytes: u64, total_bytes: u64) -> Self {
        Self {
            used_bytes: total_bytes.checked_sub(free_bytes).unwrap_or(total_bytes),
            total_bytes,
        }
    }

    /// Bytes that can still be had.
    pub fn available_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes)
    }

    /// The share in use, 0.0 to 1.0 and more; 0.0 of nothing.
    #[allow(clippy::cast_precision_loss, reason = "a share of a size")]
    pub fn pressure(&self) -> f64 {
        if self.total_bytes == 0 {
            return 0.0;
        }
        self.used_bytes as f64 / self.total_bytes as f64
    }

    /// The fuller one of two.
    fn fuller(self, other: Self) -> Self {
        if other.pressure() > self.pressure() {
            other
        } else {
            self
        }
    }
}

/// What bounds this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The machine.
    pub machine: Level,
    /// The fullest of the control groups that this process is in and that have a limit.
    pub group: Option<Level>,
    /// Bytes that this process can still take: what the machine, and each control group
    /// with a limit, leaves at least.
    pub available_bytes: u64,
}

impl Memory {
    /// The fuller one of machine and control group.
    pub fn tightest(&self) -> Level {
        let group = self.group.unwrap_or_default();
        self.machine.fuller(group)
    }
}

/// What this process takes of the machine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Bytes in memory now.
    pub resident_bytes: u64,
    /// The most that there ever were.
    pub peak_bytes: u64,
}

/// `share` of `bytes`, rounded down; nothing of a negative share.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a size needs no more than 52 bits; the cast saturates"
)]
pub fn share_of(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share).max(0.0) as u64
}

/// Bytes that this process can still take without anybody swapping or being killed: the
/// least that the machine and the control groups above this process have left.
pub fn available_bytes() -> u64 {
    Reader::new().read().available_bytes
}

#[cfg(target_os = "linux")]
pub(super) use self::linux::Probe;
#[cfg(target_os = "linux")]
pub use self::linux::{ProcessReader, Reader};
#[cfg(not(target_os = "linux"))]
pub use self::other::{ProcessReader, Reader};

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::super::cgroup::Groups;
    use super::{Level, Memory, Process};

    /// A small file of the kernel's that is kept open and read again and again.
    #[derive(Debug)]
    pub struct Probe {
        file: File,
        text: Vec<u8>,
    }

    impl Probe {
        /// None when there is no such file, or it may not be read.
        pub fn open(path: &Path) -> Option<Self> {
            let file = File::open(path).ok()?;
            Some(Self {
                file,
                text: vec![0; 8192],
            })
        }

        /// What it says now; None when it is gone.
        pub fn read(&mut self) -> Option<&str> {
            let mut length = 0;
            while length < self.text.len() {
                match self.file.read_at(&mut self.text[length..], length as u64) {
                    Ok(0) => break,
                    Ok(count) => length += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => return None,
                }
            }
            std::str::from_utf8(&self.text[..length]).ok()
        }
    }

    /// The number of a `key: number kB` line, in bytes.
    fn kilobytes(text: &str, key: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name == key).then_some(value)
        })?;
        let number: u64 = line.split_whitespace().next()?.parse().ok()?;
        number.checked_mul(1024)
    }

    /// Reads `/proc/meminfo`.
    fn machine(text: &str) -> Level {
        let get = |key| kilobytes(text, key);
        let total_bytes = get("MemTotal").unwrap_or(0);
        // Kernels before 3.14 do not estimate it.
        let old = || Some(get("MemFree")? + get("Buffers")? + get("Cached")?);
        let available = get("MemAvailable").or_else(old).unwrap_or(0);
        Level {
            used_bytes: total_bytes.saturating_sub(available),
            total_bytes,
        }
    }

    /// Reads `/proc/self/status`.
    fn process(text: &str) -> Process {
        let resident_bytes = kilobytes(text, "VmRSS").unwrap_or(0);
        Process {
            resident_bytes,
            peak_bytes: kilobytes(text, "VmHWM").unwrap_or(resident_bytes),
        }
    }

    /// Reads machine and control groups, with the kernel's files kept open: a reading
    /// takes a few microseconds.
    #[derive(Debug)]
    pub struct Reader {
        machine: Option<Probe>,
        groups: Groups,
    }

    impl Reader {
        /// Opens what there is.
        #[allow(clippy::new_without_default, reason = "it opens files")]
        pub fn new() -> Self {
            Self {
                machine: Probe::open(Path::new("/proc/meminfo")),
                groups: Groups::open(),
            }
        }

        /// How things stand now.
        pub fn read(&mut self) -> Memory {
            let text = self.machine.as_mut().and_then(Probe::read);
            let machine = machine(text.unwrap_or_default());
            let mut memory = Memory {
                machine,
                group: None,
                available_bytes: machine.available_bytes(),
            };
            for level in self.groups.read() {
                memory.group = Some(memory.group.unwrap_or(level).fuller(level));
                memory.available_bytes = memory.available_bytes.min(level.available_bytes());
            }
            memory
        }
    }

    /// Reads what this process takes.
    #[derive(Debug)]
    pub struct ProcessReader {
        status: Option<Probe>,
    }

    impl ProcessReader {
        /// Opens the kernel's file.
        #[allow(clippy::new_without_default, reason = "it opens a file")]
        pub fn new() -> Self {
            Self {
                status: Probe::open(Path::new("/proc/self/status")),
            }
        }

        /// How things stand now.
        pub fn read(&mut self) -> Process {
            let text = self.status.as_mut().and_then(Probe::read);
            process(text.unwrap_or_default())
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_machine_is_read_from_its_text() {
            let text = "MemTotal:       1000 kB\nMemFree:         100 kB\n\
                        MemAvailable:    400 kB\nBuffers:    1 kB\n";
            let level = machine(text);
            assert_eq!(level.total_bytes, 1000 << 10);
            assert_eq!(level.available_bytes(), 400 << 10);
            let old = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 30 kB\n";
            assert_eq!(machine(old).available_bytes(), 150 << 10);
            assert_eq!(machine("").pressure(), 0.0);
        }

        #[test]
        fn the_process_is_read_from_its_text() {
            let text = "Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t  30 kB\nVmRSS:\t   20 kB\n";
            let process = process(text);
            assert_eq!(process.resident_bytes, 20 << 10);
            assert_eq!(process.peak_bytes, 30 << 10);
        }

        #[test]
        fn this_machine_and_process_make_sense() {
            let mut reader = Reader::new();
            for _ in 0..3 {
                let memory = reader.read();
                assert!(memory.machine.total_bytes > 1 << 20, "{memory:?}");
                assert!(memory.available_bytes <= memory.machine.total_bytes);
                assert!(memory.tightest().pressure() <= 1.0, "{memory:?}");
            }
            let block = vec![1_u8; 64 << 20];
            let process = ProcessReader::new().read();
            assert!(process.resident_bytes >= 60 << 20, "{process:?}");
            assert!(process.peak_bytes >= process.resident_bytes, "{process:?}");
            assert!(block.iter().all(|byte| *byte == 1));
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

    use super::{Level, Memory, Process};

    /// Reads the machine; there are no control groups here.
    #[derive(Debug)]
    pub struct Reader {
        system: System,
    }

    impl Reader {
        /// Looks at nothing yet.
        #[allow(clippy::new_without_default, reason = "as elsewhere")]
        pub fn new() -> Self {
            Self {
                system: System::new(),
            }
        }

        /// How things stand now.
        pub fn read(&mut self) -> Memory {
            self.system.refresh_memory();
            let total_bytes = self.system.total_memory();
            let available_bytes = self.system.available_memory();
            Memory {
                machine: Level {
                    used_bytes: total_bytes.saturating_sub(available_bytes),
                    total_bytes,
                },
                group: None,
                available_bytes,
            }
        }
    }

    /// Reads what this process takes; the peak is that of the readings.
    #[derive(Debug)]
    pub struct ProcessReader {
        system: System,
        peak_bytes: u64,
    }

    impl ProcessReader {
        /// Looks at nothing yet.
        #[allow(clippy::new_without_default, reason = "as elsewhere")]
        pub fn new() -> Self {
            Self {
                system: System::new(),
                peak_bytes: 0,
            }
        }

        /// How things stand now.
        pub fn read(&mut self) -> Process {
            let id = sysinfo::Pid::from_u32(std::process::id());
            self.system.refresh_processes_specifics(
                ProcessesToUpdate::Some(&[id]),
                false,
                ProcessRefreshKind::nothing().with_memory(),
            );
            let process = self.system.process(id);
            let resident_bytes = process.map_or(0, sysinfo::Process::memory);
            self.peak_bytes = self.peak_bytes.max(resident_bytes);
            Process {
                resident_bytes,
                peak_bytes: self.peak_bytes,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_says_more_is_free_than_there_is_has_nothing() {
        assert_eq!(Level::of_free(30, 100).used_bytes, 70);
        assert_eq!(Level::of_free(u64::MAX - 5, 100).available_bytes(), 0);
    }

    #[test]
    fn the_fuller_of_machine_and_group_is_the_tightest() {
        let level = |used_bytes, total_bytes| Level {
            used_bytes,
            total_bytes,
        };
        let mut memory = Memory {
            machine: level(50, 100),
            group: Some(level(9, 10)),
            available_bytes: 1,
        };
        assert_eq!(memory.tightest(), level(9, 10));
        memory.group = Some(level(1, 10));
        assert_eq!(memory.tightest(), level(50, 100));
        memory.group = None;
        assert_eq!(memory.tightest(), level(50, 100));
    }

    #[test]
    fn what_is_available_is_never_more_than_the_machine_has() {
        let memory = Reader::new().read();
        let available = available_bytes();
        assert!(available > 0 && available <= memory.machine.total_bytes);
    }
}
