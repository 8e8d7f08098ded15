//! Files that the pager reads and writes: the parts of the model, past the page cache
//! where the file system can do that, and the spill file for states.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Unit of direct I/O: file offsets, addresses and lengths are multiples of it. Disks
/// ask for 512 or 4096 bytes; file systems that ask for more refuse, and are then read
/// through the page cache.
pub const BLOCK_BYTES: usize = 4096;

/// How often in a row something is tried again that the system was not ready for.
const ATTEMPTS_MAX: u32 = 100;

/// Zeroes are written in pieces of this size.
const ZEROES_BYTES: usize = 1 << 16;

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Through the page cache.
    Cached,
    /// Past the page cache where the file system can (O_DIRECT); through it elsewhere.
    Direct,
}

/// A file that is open for as long as somebody needs it, so that one which is renamed or
/// deleted meanwhile still reads.
#[derive(Debug)]
pub struct StoreFile {
    file: File,
    // The same file past the page cache; kept after a refusal, for reads in flight.
    direct: Option<File>,
    is_direct: AtomicBool,
    path: PathBuf,
    // What the model's file was when it was opened; None for a spill file.
    identity: Option<Identity>,
    // A range could not be cleared: what is read there would be wrong.
    spoiled: OnceLock<String>,
}

impl StoreFile {
    /// Opens a part of the model for reading.
    ///
    /// # Errors
    /// When the file cannot be opened. A file system that cannot read past the page
    /// cache is no error: see `is_direct`.
    pub fn open(path: &Path, access: Access) -> io::Result<Self> {
        let file = File::open(path)?;
        let identity = Identity::of(&file)?;
        // The path may lead to another file by now, which must not be mixed with ours.
        let is_same = |other: &File| Identity::of(other).is_ok_and(|found| found == identity);
        let direct = match access {
            Access::Cached => None,
            Access::Direct => open_direct(path).filter(is_same),
        };
        Ok(Self {
            is_direct: AtomicBool::new(direct.is_some()),
            file,
            direct,
            path: path.to_owned(),
            identity: Some(identity),
            spoiled: OnceLock::new(),
        })
    }

    /// Makes an empty file in `folder` that has no name and is gone with its last user;
    /// read and written through the page cache.
    ///
    /// # Errors
    /// When the folder does not let a file be made.
    pub fn spill(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open_nameless(folder)?,
            direct: None,
            is_direct: AtomicBool::new(false),
            path: folder.to_owned(),
            identity: None,
            spoiled: OnceLock::new(),
        })
    }

    /// Where the file was when it was opened; the folder of a spill file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a part of the model, which nobody writes.
    pub fn is_model(&self) -> bool {
        self.identity.is_some()
    }

    /// Whether the file is read past the page cache. False after a fallback: the file
    /// system refused when the file was opened, or when it was first read.
    pub fn is_direct(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed)
    }

    /// The descriptor to read from past the page cache; None when that is not done.
    pub(super) fn direct(&self) -> Option<&File> {
        self.direct.as_ref().filter(|_| self.is_direct())
    }

    /// Reads whole blocks past the page cache, as many bytes as come at once; None when
    /// the file is not read in that way. Offset, address and length are multiples of
    /// `BLOCK_BYTES`.
    pub(super) fn read_blocks_at(&self, to: &mut [u8], offset: u64) -> Option<io::Result<usize>> {
        Some(read_at(self.direct()?, to, offset))
    }

    /// From now on the file is read through the page cache; whether that is news.
    pub(super) fn refuse_direct(&self) -> bool {
        self.is_direct.swap(false, Ordering::Relaxed)
    }

    /// How a sentence calls the file.
    pub(super) fn name(&self) -> String {
        let path = self.path.display();
        match self.identity {
            Some(_) => format!("'{path}'"),
            None => format!("the spill file in '{path}'"),
        }
    }

    /// What a sentence about a failed read ends with.
    pub(super) fn advice(&self) -> &'static str {
        match self.identity {
            Some(_) => "; was the model file changed while it is in use?",
            None => "; the KV cache's pages are lost, see --spill-dir",
        }
    }

    /// Reads exactly `to.len()` bytes at `offset`, through the page cache, without moving
    /// a cursor.
    ///
    /// # Errors
    /// When the file ends before, or the system fails to read.
    pub fn read_exact_at(&self, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
        let mut patience = Patience::default();
        while !to.is_empty() {
            match read_at(&self.file, to, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    patience = Patience::default();
                    to = &mut to[count..];
                    offset += count as u64;
                }
                Err(error) if patience.bears(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `from` at `offset`, through the page cache, without moving a cursor.
    ///
    /// # Errors
    /// When the system fails to write, as on a full disk.
    pub fn write_all_at(&self, mut from: &[u8], mut offset: u64) -> io::Result<()> {
        let mut patience = Patience::default();
        while !from.is_empty() {
            match write_at(&self.file, from, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    patience = Patience::default();
                    from = &from[count..];
                    offset += count as u64;
                }
                Err(error) if patience.bears(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Has the disk keep space for `range`, which the file contains afterwards; what was
    /// not written yet reads as zero. A file system that cannot promise space only lets
    /// the file grow.
    ///
    /// # Errors
    /// When there is no space.
    pub fn reserve(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        match allocate(&self.file, &range) {
            Err(error) if is_unsupported(&error) => self.grow(range.end),
            outcome => outcome,
        }
    }

    fn grow(&self, bytes: u64) -> io::Result<()> {
        if self.file.metadata()?.len() < bytes {
            self.file.set_len(bytes)?;
        }
        Ok(())
    }

    /// Gives the disk space of `range` back; it reads as zero afterwards. Where that
    /// fails, later uses of the file in requests fail with the reason.
    pub fn release(&self, range: Range<u64>) {
        if range.is_empty() || punch_hole(&self.file, &range).is_ok() {
            return;
        }
        if let Err(error) = self.clear(&range) {
            let sentence = format!(
                "could not clear {} bytes at offset {} of {} ({error})",
                range.end - range.start,
                range.start,
                self.name()
            );
            let _ = self.spoiled.set(sentence);
        }
    }

    /// Writes zeroes to the part of `range` that lies in the file.
    fn clear(&self, range: &Range<u64>) -> io::Result<()> {
        let end = range.end.min(self.file.metadata()?.len());
        let mut at = range.start;
        while at < end {
            let bytes =
                usize::try_from(end - at).map_or(ZEROES_BYTES, |left| left.min(ZEROES_BYTES));
            self.write_all_at(&[0; ZEROES_BYTES][..bytes], at)?;
            at += bytes as u64;
        }
        Ok(())
    }

    /// Checks that the model's file is what it was when it was opened.
    ///
    /// # Errors
    /// A sentence: what changed, or why that cannot be known.
    pub fn check_unchanged(&self) -> Result<(), String> {
        if let Some(sentence) = self.spoiled.get() {
            return Err(sentence.clone());
        }
        let Some(then) = &self.identity else {
            return Ok(());
        };
        let now = Identity::of(&self.file)
            .map_err(|error| format!("could not look at {} ({error})", self.name()))?;
        if now == *then {
            return Ok(());
        }
        let what = if now.bytes == then.bytes {
            "it was written to".to_owned()
        } else {
            format!("it had {} bytes and has {}", then.bytes, now.bytes)
        };
        Err(format!(
            "the model file {} was changed while it is in use: {what}",
            self.name()
        ))
    }
}

/// Tells errors that pass by themselves from others, and from those that never pass.
#[derive(Debug, Default)]
pub(super) struct Patience {
    attempts: u32,
}

impl Patience {
    /// Whether to try again after `error`.
    pub fn bears(&mut self, error: &io::Error) -> bool {
        use io::ErrorKind::{Interrupted, WouldBlock};
        self.attempts += 1;
        matches!(error.kind(), Interrupted | WouldBlock) && self.attempts <= ATTEMPTS_MAX
    }
}

/// What tells a file from another one, and from itself at another time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    bytes: u64,
    modified: Option<std::time::SystemTime>,
    // Device and inode; nothing on systems without them.
    number: (u64, u64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        #[cfg(unix)]
        let number = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let number = (0, 0);
        Ok(Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            number,
        })
    }
}

#[cfg(unix)]
fn read_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, to, offset)
}

#[cfg(windows)]
fn read_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, to, offset)
}

#[cfg(unix)]
fn write_at(file: &File, from: &[u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, from, offset)
}

#[cfg(windows)]
fn write_at(file: &File, from: &[u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, from, offset)
}

/// Opens `path` past the page cache; None where the file system refuses.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_DIRECT);
    options.open(path).ok()
}

/// Other systems have no such descriptors.
#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Option<File> {
    None
}

/// Whether the file system lacks an operation, which then is done in another way.
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, range: &Range<u64>) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::empty();
    let bytes = range.end - range.start;
    Ok(rustix::io::retry_on_intr(|| {
        fallocate(file, flags, range.start, bytes)
    })?)
}

#[cfg(not(target_os = "linux"))]
fn allocate(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn punch_hole(file: &File, range: &Range<u64>) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let bytes = range.end - range.start;
    Ok(rustix::io::retry_on_intr(|| {
        fallocate(file, flags, range.start, bytes)
    })?)
}

#[cfg(not(target_os = "linux"))]
fn punch_hole(_file: &File, _range: &Range<u64>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes a file without a name in `folder`.
fn open_nameless(folder: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Mode, OFlags, open};
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        if let Ok(descriptor) = open(folder, flags, Mode::RUSR | Mode::WUSR) {
            return Ok(descriptor.into());
        }
    }
    open_and_unlink(folder)
}

/// Makes a file in `folder` and takes its name away, for file systems that cannot make
/// one without.
fn open_and_unlink(folder: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    #[cfg(windows)]
    {
        // FILE_FLAG_DELETE_ON_CLOSE: an open file keeps its name here.
        std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, 0x0400_0000);
    }
    let process = std::process::id();
    for attempt in 0u32.. {
        let path = folder.join(format!(".rpaged-spill-{process}-{attempt}"));
        match options.open(&path) {
            Ok(file) => {
                #[cfg(unix)]
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            // Of another engine at the same moment, or left by a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn read(file: &StoreFile, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![1; usize::try_from(range.end - range.start).unwrap()];
        file.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    }

    #[test]
    fn a_spill_file_has_no_name_and_gives_back_what_was_written() {
        let folder = folder();
        let unlinked = StoreFile {
            file: open_and_unlink(folder.path()).unwrap(),
            ..StoreFile::spill(folder.path()).unwrap()
        };
        for spill in [StoreFile::spill(folder.path()).unwrap(), unlinked] {
            assert_eq!(spill.path(), folder.path());
            #[cfg(unix)]
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
            spill.write_all_at(&[7; 100], 5000).unwrap();
            assert_eq!(read(&spill, 4999..5100)[..2], [0, 7]);
            assert!(!spill.is_direct() && spill.check_unchanged().is_ok());
        }
    }

    #[test]
    fn a_reserved_range_reads_as_zero_and_a_released_one_again() {
        let folder = folder();
        let spill = StoreFile::spill(folder.path()).unwrap();
        spill.reserve(0..0).unwrap();
        spill.reserve(10_000..30_000).unwrap();
        assert_eq!(read(&spill, 0..30_000), [0; 30_000]);
        spill.write_all_at(&[9; 30_000], 0).unwrap();
        spill.release(5_000..25_000);
        assert_eq!(read(&spill, 5_000..25_000), [0; 20_000]);
        assert_eq!(read(&spill, 4_999..5_001), [9, 0]);
        assert_eq!(read(&spill, 24_999..25_001), [0, 9]);
    }

    #[test]
    fn a_file_system_without_holes_is_cleared_and_grown() {
        let folder = folder();
        let spill = StoreFile::spill(folder.path()).unwrap();
        spill.grow(200_000).unwrap();
        spill.grow(100).unwrap();
        spill.write_all_at(&[9; 200_000], 0).unwrap();
        // The end lies behind the file: clearing does not let it grow.
        spill.clear(&(1_000..300_000)).unwrap();
        assert_eq!(read(&spill, 998..1_002), [9, 9, 0, 0]);
        assert_eq!(read(&spill, 1_000..200_000), vec![0; 199_000]);
        assert!(spill.read_exact_at(&mut [0; 2], 199_999).is_err());
    }

    #[test]
    fn a_changed_model_file_is_a_sentence() {
        let folder = folder();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, [1; 5000]).unwrap();
        let file = StoreFile::open(&path, Access::Direct).unwrap();
        file.check_unchanged().unwrap();
        // Another file at the same path is not ours.
        std::fs::rename(&path, folder.path().join("renamed.gguf")).unwrap();
        std::fs::write(&path, [2; 5000]).unwrap();
        file.check_unchanged().unwrap();
        assert_eq!(read(&file, 0..5000), [1; 5000]);

        let file = StoreFile::open(&path, Access::Cached).unwrap();
        let handle = File::options().write(true).open(&path).unwrap();
        handle.set_len(4000).unwrap();
        let sentence = file.check_unchanged().unwrap_err();
        assert!(
            sentence.contains("it had 5000 bytes and has 4000"),
            "{sentence}"
        );

        let file = StoreFile::open(&path, Access::Cached).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        handle.set_modified(later).unwrap();
        let sentence = file.check_unchanged().unwrap_err();
        assert!(sentence.contains("written to"), "{sentence}");
    }

    #[test]
    fn patience_ends() {
        let error = |kind: io::ErrorKind| io::Error::from(kind);
        let mut patience = Patience::default();
        assert!(!patience.bears(&error(io::ErrorKind::NotFound)));
        let borne = std::iter::repeat_with(|| patience.bears(&error(io::ErrorKind::WouldBlock)));
        assert!(borne.take(1000).take_while(|&again| again).count() < 1000);
    }

    #[test]
    #[cfg(unix)]
    fn an_operation_that_the_file_system_lacks_is_told_from_a_failed_one() {
        let error = io::Error::from_raw_os_error;
        assert!(is_unsupported(&error(libc::EOPNOTSUPP)) && is_unsupported(&error(libc::ENOSYS)));
        assert!(!is_unsupported(&error(libc::ENOSPC)));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_system_without_direct_reads_falls_back() {
        let file = StoreFile::open(Path::new("/proc/self/cmdline"), Access::Direct).unwrap();
        assert!(!file.is_direct());
        let mut bytes = [0; 1];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_ne!(bytes, [0]);
    }

    #[test]
    fn a_range_that_cannot_be_cleared_spoils_the_file() {
        let folder = folder();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, [1; 5000]).unwrap();
        // Opened for reading: neither a hole nor zeroes can be made.
        let file = StoreFile::open(&path, Access::Cached).unwrap();
        file.release(0..100);
        let sentence = file.check_unchanged().unwrap_err();
        assert!(sentence.contains("100 bytes at offset 0"), "{sentence}");
    }
}
