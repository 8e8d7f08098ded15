//! Memory control groups: a bound on all that one run takes, its page cache included.
//!
//! Version 1 and version 2 of the kernel's interface, whichever has the memory controller.
#![allow(
    unsafe_code,
    reason = "a process joins its group between fork and exec"
)]

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What the groups' names begin with; the number of the process that made them follows.
const NAME: &str = "rpaged-larger-";

/// How often a group is tried to be removed: the kernel may still be at its last pages.
const REMOVALS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

/// Where groups can be made.
pub struct Controller {
    version: Version,
    parent: PathBuf,
}

impl Controller {
    /// Finds the memory controller, and removes what a killed bench has left there.
    pub fn find() -> Result<Self> {
        let group = fs::read_to_string("/proc/self/cgroup")
            .context("no control groups here: /proc/self/cgroup cannot be read")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let (version, mount, own) = locate(&group, &mounts)
            .context("no memory controller here: no control group bounds memory")?;
        let parent = match version {
            Version::One => Some(own),
            Version::Two => own
                .ancestors()
                .take_while(|folder| folder.starts_with(&mount))
                .find(|folder| passes_memory_on(folder))
                .map(Path::to_path_buf),
        };
        let parent = parent.with_context(|| {
            format!(
                "no group from '{}' up passes the memory controller on (cgroup.subtree_control)",
                mount.display()
            )
        })?;
        let controller = Self { version, parent };
        controller.remove_stale();
        Ok(controller)
    }

    /// A new group that takes at most `limit_bytes`, without swap.
    pub fn group(&self, limit_bytes: u64) -> Result<Group> {
        let folder = self.parent.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::PermissionDenied => "only root may; run as root".to_owned(),
                _ => error.to_string(),
            };
            anyhow::anyhow!("could not make the group '{}': {why}", folder.display())
        })?;
        let group = Group {
            version: self.version,
            folder,
        };
        group.bound(limit_bytes)?;
        Ok(group)
    }

    /// Groups of processes that are gone: they were killed before they could tidy up.
    fn remove_stale(&self) {
        for entry in fs::read_dir(&self.parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix(NAME));
            if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
                drop(fs::remove_dir(entry.path()));
            }
        }
    }
}

/// Whether groups below `folder` have the memory controller (version 2).
fn passes_memory_on(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.subtree_control"))
        .is_ok_and(|text| text.split_whitespace().any(|name| name == "memory"))
}

/// A group; removed when dropped.
pub struct Group {
    version: Version,
    folder: PathBuf,
}

impl Group {
    fn bound(&self, bytes: u64) -> Result<()> {
        let (limit, swap) = match self.version {
            // Both together are never below the first.
            Version::One => (
                "memory.limit_in_bytes",
                vec![
                    ("memory.memsw.limit_in_bytes", bytes),
                    ("memory.swappiness", 0),
                ],
            ),
            Version::Two => ("memory.max", vec![("memory.swap.max", 0)]),
        };
        self.set(limit, bytes)?;
        for (name, value) in swap {
            // Without swap in the kernel there is no such file, and nothing to bound.
            if self.folder.join(name).exists() {
                self.set(name, value)?;
            }
        }
        Ok(())
    }

    fn set(&self, name: &str, value: u64) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, value.to_string())
            .with_context(|| format!("could not write {value} to '{}'", path.display()))
    }

    /// Has `command` run in this group from its first instruction on.
    pub fn admit(&self, command: &mut Command) -> Result<()> {
        let path = self.folder.join("cgroup.procs");
        let members = OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("could not open '{}'", path.display()))?;
        // Zero stands for whoever writes it.
        let join = move || (&members).write_all(b"0");
        // SAFETY:
        // - between fork and exec `join` only calls `write` on an open file.
        unsafe { command.pre_exec(join) };
        Ok(())
    }

    /// The most that was taken; unknown before Linux 5.19 (version 2).
    pub fn peak_bytes(&self) -> Option<u64> {
        let name = match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        };
        let text = fs::read_to_string(self.folder.join(name)).ok()?;
        text.trim().parse().ok()
    }

    /// Processes that were killed because the limit did not suffice.
    pub fn kills(&self) -> u64 {
        let name = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        count_of(&text, "oom_kill").unwrap_or(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.version == Version::One {
            // Page cache that stays behind would be charged to the parent.
            drop(fs::write(self.folder.join("memory.force_empty"), "0"));
        }
        for _ in 0..REMOVALS_MAX {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        eprintln!("the group '{}' could not be removed", self.folder.display());
    }
}

/// Has the process of `command` end with this one, even if this one is killed.
pub fn tie(command: &mut Command) {
    let tie = || {
        // SAFETY:
        // - changes an attribute of the calling process only; the signal is a valid one.
        let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY:
    // - between fork and exec `tie` only makes one system call.
    unsafe { command.pre_exec(tie) };
}

/// Refuses to go on without the rights to bound memory.
pub fn check_root() -> Result<()> {
    ensure!(
        is_root(),
        "memory control groups need root; run as root, or try --smoke, which does without"
    );
    Ok(())
}

/// Whether this process may make control groups.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The number behind `name` in lines of a name and a number each.
fn count_of(text: &str, name: &str) -> Option<u64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, count) = lines.into_iter().find(|(found, _)| *found == name)?;
    count.trim().parse().ok()
}

/// The interface that has the memory controller, where it is mounted, and the folder of
/// this process's own group.
fn locate(cgroup: &str, mountinfo: &str) -> Option<(Version, PathBuf, PathBuf)> {
    let own = |is_it: fn(&str) -> bool| {
        cgroup.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            is_it(controllers).then_some(path)
        })
    };
    let has_memory = |names: &str| names.split(',').any(|name| name == "memory");
    let (version, path) = match own(has_memory) {
        Some(path) => (Version::One, path),
        None => (Version::Two, own(str::is_empty)?),
    };
    for line in mountinfo.lines() {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let is_it = match (kind.next(), version) {
            (Some("cgroup"), Version::One) => kind.nth(1).is_some_and(has_memory),
            (Some("cgroup2"), Version::Two) => true,
            _ => false,
        };
        if !is_it {
            continue;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, PathBuf::from(fields.next()?));
        // A container sees the part of the tree from `root` on.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let folder = point.join(below);
        return Some((version, point, folder));
    }
    None
}

/// This file's reading of the kernel's texts on known ones.
pub fn check_texts() {
    let one = locate(
        "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n",
        "23 1 0:2 / /proc rw - proc proc rw\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n",
    );
    let two = locate(
        "0::/docker/a/b\n",
        "35 31 0:32 /docker/a /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    );
    let memory = PathBuf::from("/sys/fs/cgroup/memory");
    let own = memory.join("a/b");
    assert_eq!(one, Some((Version::One, memory, own)));
    let top = PathBuf::from("/sys/fs/cgroup");
    let own = top.join("b");
    assert_eq!(two, Some((Version::Two, top, own)));
    assert_eq!(locate("0::/\n", "1 1 0:1 / / rw - ext4 a rw\n"), None);
    assert_eq!(count_of("oom 3\noom_kill 2\n", "oom_kill"), Some(2));
}
