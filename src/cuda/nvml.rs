//! NVIDIA's management library, which comes with the driver: who uses how much of a card, as
//! nvidia-smi shows it. Without it nothing of that is known.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

/// What a call gives back: 0 or an error code.
type Status = c_int;
const INSUFFICIENT_SIZE: Status = 7;
const FUNCTION_NOT_FOUND: Status = 13;

/// What is said of memory that is not known.
const NOT_AVAILABLE: u64 = u64::MAX;

const LIBRARIES: &[&str] = match cfg!(windows) {
    true => &["nvml.dll"],
    false => &["libnvidia-ml.so.1", "libnvidia-ml.so"],
};

/// A card of the library's.
type Handle = *mut c_void;

/// Lists processes: their number, and as many entries.
type List = unsafe extern "C" fn(Handle, *mut c_uint, *mut c_void) -> Status;

/// The functions that list processes, the newest first, and the size of an entry, in words.
const LISTS: [(&str, usize); 3] = [
    ("nvmlDeviceGetComputeRunningProcesses_v3\0", 3),
    ("nvmlDeviceGetComputeRunningProcesses_v2\0", 3),
    ("nvmlDeviceGetComputeRunningProcesses\0", 2),
];

/// Words of the largest entry: some drivers (of 535 and 550) append one to those of the third
/// version.
const WORDS_MAX: usize = 4;
/// Fills what is not written.
const UNWRITTEN: u64 = 0xA5A5_5A5A_A5A5_5A5A;
/// Processes for which there is room at first.
const PROCESSES: usize = 32;
/// How often more room is made.
const TRIES: usize = 5;

/// The library, started.
#[derive(Debug)]
struct Nvml {
    by_bus_id: unsafe extern "C" fn(*const c_char, *mut Handle) -> Status,
    memory: unsafe extern "C" fn(Handle, *mut [u64; 3]) -> Status,
    lists: Vec<(List, usize)>,
    // Never closed: the functions are its.
    _library: Library,
}

/// A process that uses a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number, as the driver counts: within a container perhaps that of the machine.
    pub number: u32,
    /// Bytes of the card's memory that it takes; None when that is not said.
    pub bytes: Option<u64>,
}

/// How a card's memory is used at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Bytes in use, whoever uses them.
    pub used_bytes: Option<u64>,
    /// Who has a context there; None when that is not said.
    pub processes: Option<Vec<Process>>,
}

/// A card, as the library knows it.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    nvml: &'static Nvml,
    handle: Handle,
}

// SAFETY: the library's functions may be called from any thread, with any handle.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

impl Nvml {
    fn get() -> Option<&'static Self> {
        static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
        NVML.get_or_init(Self::start).as_ref()
    }

    fn start() -> Option<Self> {
        let open = |name: &&str| {
            // SAFETY: loading it runs what NVIDIA put there.
            unsafe { Library::new(*name) }.ok()
        };
        let library = LIBRARIES.iter().find_map(open)?;
        // SAFETY: the library's function of this name has these arguments.
        let init = unsafe { symbol::<unsafe extern "C" fn() -> Status>(&library, "nvmlInit_v2\0") };
        // SAFETY: no preconditions.
        let started = unsafe { init?() };
        if started != 0 {
            return None;
        }
        let list = |(name, words): (&str, usize)| {
            // SAFETY: as above; entries are told by address.
            unsafe { symbol::<List>(&library, name) }.map(|list| (list, words))
        };
        let lists = LISTS.into_iter().filter_map(list).collect();
        Some(Self {
            // SAFETY: as above.
            by_bus_id: unsafe { symbol(&library, "nvmlDeviceGetHandleByPciBusId_v2\0") }?,
            // SAFETY: as above; what is written are three numbers.
            memory: unsafe { symbol(&library, "nvmlDeviceGetMemoryInfo\0") }?,
            lists,
            _library: library,
        })
    }
}

/// A function by its name, which ends with a zero; None where there is none.
///
/// # Safety
/// - `F` is the type of a pointer to that function.
unsafe fn symbol<F: Copy>(library: &Library, name: &str) -> Option<F> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.ok().map(|symbol| *symbol)
}

impl Card {
    /// The card at a place on the bus (`0000:01:00.0`); None without library, or where it
    /// knows of none there.
    pub fn at(bus_id: &str) -> Option<Self> {
        let text = CString::new(bus_id).ok()?;
        let nvml = Nvml::get()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a C string, and a place for the handle.
        let status = unsafe { (nvml.by_bus_id)(text.as_ptr(), &raw mut handle) };
        (status == 0).then_some(Self { nvml, handle })
    }

    /// How its memory is used now.
    pub fn look(&self) -> Snapshot {
        Snapshot {
            used_bytes: self.used_bytes(),
            processes: self.processes(),
        }
    }

    fn used_bytes(&self) -> Option<u64> {
        // All there is, what is free, what is used.
        let mut bytes = [0; 3];
        // SAFETY: a live handle, and a place for three numbers.
        let status = unsafe { (self.nvml.memory)(self.handle, &raw mut bytes) };
        (status == 0).then_some(bytes[2])
    }

    fn processes(&self) -> Option<Vec<Process>> {
        for (list, words) in &self.nvml.lists {
            match self.list(*list, *words) {
                Err(FUNCTION_NOT_FOUND) => {}
                listed => return listed.ok(),
            }
        }
        None
    }

    fn list(&self, list: List, words: usize) -> Result<Vec<Process>, Status> {
        let mut room = PROCESSES;
        for _ in 0..TRIES {
            let mut entries = vec![UNWRITTEN; room * WORDS_MAX];
            let mut count = c_uint::try_from(room).unwrap_or(c_uint::MAX);
            let to = entries.as_mut_ptr().cast();
            // SAFETY: a live handle, and room for as many entries of the largest size.
            let status = unsafe { list(self.handle, &raw mut count, to) };
            let count = usize::try_from(count).unwrap_or(0);
            match status {
                0 => return Ok(read(&entries, count.min(room), words)),
                // There may be more of them the next time.
                INSUFFICIENT_SIZE => room = (2 * room).max(count + count / 2),
                other => return Err(other),
            }
        }
        Err(INSUFFICIENT_SIZE)
    }
}

/// Reads `count` entries of `words` words, or of as many as were written.
fn read(entries: &[u64], count: usize, words: usize) -> Vec<Process> {
    let written = entries.iter().rposition(|word| *word != UNWRITTEN);
    let is_larger = words == 3 && written.is_some_and(|last| last >= count * words);
    let words = if is_larger { WORDS_MAX } else { words };
    let entries = entries.chunks_exact(words).take(count);
    let processes = entries.map(|entry| {
        let [a, b, c, d, ..] = entry[0].to_ne_bytes();
        Process {
            number: u32::from_ne_bytes([a, b, c, d]),
            bytes: Some(entry[1]).filter(|bytes| *bytes != NOT_AVAILABLE),
        }
    });
    processes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(words: usize, count: usize) -> Vec<u64> {
        let mut entries = vec![UNWRITTEN; PROCESSES * WORDS_MAX];
        for (index, entry) in entries.chunks_exact_mut(words).take(count).enumerate() {
            entry.fill(0);
            // The number is the first half of its word.
            let number = 100 + u32::try_from(index).unwrap();
            let [a, b, c, d] = number.to_ne_bytes();
            entry[0] = u64::from_ne_bytes([a, b, c, d, 9, 9, 9, 9]);
            entry[1] = (index as u64 + 1) << 20;
        }
        entries
    }

    #[test]
    fn entries_are_read_as_large_as_they_were_written() {
        for (said, written) in [(2, 2), (3, 3), (3, 4)] {
            for count in [0, 1, 2, 7, PROCESSES] {
                let found = read(&entries(written, count), count, said);
                let expected: Vec<Process> = (0..count)
                    .map(|index| Process {
                        number: 100 + u32::try_from(index).unwrap(),
                        bytes: Some((index as u64 + 1) << 20),
                    })
                    .collect();
                assert_eq!(found, expected, "{said} {written} {count}");
            }
        }
        let mut unknown = entries(3, 1);
        unknown[1] = u64::MAX;
        assert_eq!(read(&unknown, 1, 3)[0].bytes, None);
    }
}
