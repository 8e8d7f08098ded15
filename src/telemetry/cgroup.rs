//! Linux control groups: which ones bound this process's memory, and how full they are.
//!
//! A process lies in one group of a tree; each group up to the root may have a limit, and
//! the kernel kills at the first that is reached. So all of them are looked at, for both
//! versions of the interface:
//!
//! ```text
//!            limit                         in use                  page cache in it
//!  v1  memory.limit_in_bytes        memory.usage_in_bytes    memory.stat: total_*_file
//!  v2  memory.max, memory.high      memory.current           memory.stat: *_file
//! ```
//!
//! Page cache counts as in use, but the kernel takes it back before it kills, so it is
//! subtracted: otherwise reading a large file would look like pressure.

use std::path::{Path, PathBuf};

use super::memory::{Level, Probe};

/// A limit of at least this many bytes is none; version 1 spells "no limit" as the
/// largest number of whole pages.
const UNLIMITED: u64 = 1 << 62;

/// The two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn limit_files(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["memory.limit_in_bytes"],
            Self::V2 => &["memory.max", "memory.high"],
        }
    }

    fn usage_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    /// The lines of `memory.stat` that count page cache, of the group and all below it.
    fn cache_keys(self) -> [&'static str; 2] {
        match self {
            Self::V1 => ["total_inactive_file", "total_active_file"],
            Self::V2 => ["inactive_file", "active_file"],
        }
    }
}

/// Where the groups of a process lie in the file system.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    /// The folder of the process's own group, then those above it, up to the mount.
    folders: Vec<PathBuf>,
}

/// One line of `/proc/self/mountinfo` that mounts control groups.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// The group that lies at `point`; not `/` inside a container.
    root: PathBuf,
    point: PathBuf,
}

/// Finds the groups that bound memory, from the texts of `/proc/self/cgroup` and
/// `/proc/self/mountinfo`. Where version 1 has the memory controller, version 2 has not.
fn find(cgroup: &str, mountinfo: &str) -> Option<Place> {
    let (version, path) = [Version::V1, Version::V2]
        .into_iter()
        .find_map(|version| Some((version, own_path(cgroup, version)?)))?;
    let mounts = mountinfo.lines().filter_map(mount);
    let mount = mounts
        .filter(|mount| mount.version == version)
        // Where one group is mounted several times, the mount that shows the most.
        .min_by_key(|mount| mount.root.as_os_str().len())?;
    // Outside of what is mounted (in a container that keeps the host's names), the mount
    // itself is the nearest that can be seen.
    let inside = path.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let climbs = inside.components().any(|part| part.as_os_str() == "..");
    let inside = if climbs { Path::new("") } else { inside };
    let folders = inside.ancestors().map(|inside| mount.point.join(inside));
    Some(Place {
        version,
        folders: folders.collect(),
    })
}

/// The path of the process's own group in the hierarchy that has the memory controller.
fn own_path(cgroup: &str, version: Version) -> Option<PathBuf> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match version {
            Version::V1 => controllers.split(',').any(|name| name == "memory"),
            Version::V2 => number == "0" && controllers.is_empty(),
        };
        is_it.then(|| PathBuf::from(path))
    })
}

/// Reads a line of `mountinfo`; None when it does not mount the memory controller.
///
/// ```text
/// 35 31 0:32 /root /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
///            root  point                 options, optional    - type   source options
/// ```
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let kind = after.next()?;
    let options = after.nth(1).unwrap_or_default();
    let version = match kind {
        "cgroup2" => Version::V2,
        "cgroup" if options.split(',').any(|option| option == "memory") => Version::V1,
        _ => return None,
    };
    Some(Mount {
        version,
        root: unescaped(root),
        point: unescaped(point),
    })
}

/// The kernel writes blanks, tabs, line ends and backslashes in paths as octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let escapes = [
        (r"\040", " "),
        (r"\011", "\t"),
        (r"\012", "\n"),
        (r"\134", "\\"),
    ];
    let plain = |text: String, (escape, plain): (&str, &str)| text.replace(escape, plain);
    PathBuf::from(escapes.into_iter().fold(text.to_owned(), plain))
}

/// A limit as its file spells it; None when there is none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < UNLIMITED)
}

/// The number behind `key` in a text of `key number` lines.
fn stat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(key)?.strip_prefix(' ')?;
        value.trim().parse().ok()
    })
}

/// How full a group is, from the texts of its files; None when nothing limits it.
fn level<'a>(
    version: Version,
    limits: impl IntoIterator<Item = &'a str>,
    usage: &str,
    memory_stat: &str,
) -> Option<Level> {
    let own = limits.into_iter().filter_map(limit).min();
    // Only version 1 says this: the least limit from here up, even where a container
    // hides the groups above.
    let above = stat(memory_stat, "hierarchical_memory_limit").filter(|limit| *limit < UNLIMITED);
    let total_bytes = own.into_iter().chain(above).min()?;
    let usage: u64 = usage.trim().parse().ok()?;
    let cache = version.cache_keys().map(|key| stat(memory_stat, key));
    let cache: u64 = cache.into_iter().flatten().sum();
    Some(Level {
        used_bytes: usage.saturating_sub(cache),
        total_bytes,
    })
}

/// One group, its files kept open.
#[derive(Debug)]
struct Group {
    version: Version,
    limits: Vec<Probe>,
    usage: Probe,
    stat: Probe,
}

impl Group {
    /// None when the folder holds no such files, as at version 2's root.
    fn open(version: Version, folder: &Path) -> Option<Self> {
        let limits = version.limit_files().iter();
        let limits: Vec<_> = limits
            .filter_map(|name| Probe::open(&folder.join(name)))
            .collect();
        if limits.is_empty() {
            return None;
        }
        Some(Self {
            version,
            limits,
            usage: Probe::open(&folder.join(version.usage_file()))?,
            stat: Probe::open(&folder.join("memory.stat"))?,
        })
    }

    fn read(&mut self) -> Option<Level> {
        let limits: Vec<_> = self.limits.iter_mut().filter_map(Probe::read).collect();
        // The groups at the top rarely have a limit; their sums take the kernel longest.
        if self.version == Version::V2 && limits.iter().all(|text| limit(text).is_none()) {
            return None;
        }
        level(
            self.version,
            limits,
            self.usage.read()?,
            self.stat.read().unwrap_or_default(),
        )
    }
}

/// The groups that bound this process's memory. A process that is moved to another group
/// while it runs is not followed.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Vec<Group>,
}

impl Groups {
    /// Finds them; none where the system has no control groups.
    pub fn open() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let place = find(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo"));
        let groups = place.map(|place| {
            let folders = place.folders.iter();
            folders
                .filter_map(|folder| Group::open(place.version, folder))
                .collect()
        });
        Self {
            groups: groups.unwrap_or_default(),
        }
    }

    /// How full each one is that has a limit, the process's own first.
    pub fn read(&mut self) -> impl Iterator<Item = Level> {
        self.groups.iter_mut().filter_map(Group::read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_V1: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const MOUNTS_V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn folders(cgroup: &str, mountinfo: &str) -> (Version, Vec<String>) {
        let place = find(cgroup, mountinfo).unwrap();
        let show = |folder: &PathBuf| folder.display().to_string();
        let trimmed = |path: String| path.trim_end_matches('/').to_owned();
        let folders = place.folders.iter().map(show).map(trimmed);
        (place.version, folders.collect())
    }

    #[test]
    fn nested_groups_are_found_up_to_the_root() {
        let (version, folders) = folders("0::/user.slice/run.scope\n", MOUNTS_V2);
        assert_eq!(version, Version::V2);
        assert_eq!(
            folders,
            [
                "/sys/fs/cgroup/user.slice/run.scope",
                "/sys/fs/cgroup/user.slice",
                "/sys/fs/cgroup"
            ]
        );
    }

    #[test]
    fn where_both_versions_are_mounted_the_one_with_the_controller_counts() {
        let cgroup = "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/c\n";
        let (version, folders) = folders(cgroup, MOUNTS_V1);
        assert_eq!(version, Version::V1);
        assert_eq!(
            folders,
            [
                "/sys/fs/cgroup/memory/a/b",
                "/sys/fs/cgroup/memory/a",
                "/sys/fs/cgroup/memory"
            ]
        );
    }

    #[test]
    fn inside_a_container_the_mount_is_the_own_group() {
        let mounts = "35 31 0:32 /docker/f00 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        for cgroup in ["4:memory:/docker/f00\n", "4:memory:/elsewhere\n"] {
            let (_, folders) = folders(cgroup, mounts);
            assert_eq!(folders, ["/sys/fs/cgroup/memory"], "{cgroup}");
        }
        let (_, inner) = folders("4:memory:/docker/f00/inner\n", mounts);
        assert_eq!(inner[0], "/sys/fs/cgroup/memory/inner");
        // A namespace whose root the process has been moved out of.
        let (_, outside) = folders("0::/../other\n", MOUNTS_V2);
        assert_eq!(outside, ["/sys/fs/cgroup"]);
    }

    #[test]
    fn of_two_mounts_the_wider_one_is_taken() {
        let mounts = format!("9 1 0:1 /deep/er /mnt rw - cgroup2 cgroup2 rw\n{MOUNTS_V2}");
        assert_eq!(folders("0::/deep/er\n", &mounts).1.len(), 3);
    }

    #[test]
    fn without_control_groups_nothing_is_found() {
        assert_eq!(find("", MOUNTS_V1), None);
        assert_eq!(find("0::/a\n", ""), None);
        assert_eq!(find("nonsense\n\n1:2\n", "x - \n - \n"), None);
        assert_eq!(find("4:memory:/\n", MOUNTS_V2), None);
    }

    #[test]
    fn a_path_with_a_blank_is_unescaped() {
        let mounts = "30 23 0:26 / /mnt/my\\040groups rw - cgroup2 cgroup2 rw\n";
        assert_eq!(folders("0::/\n", mounts).1, ["/mnt/my groups"]);
    }

    #[test]
    fn page_cache_is_not_in_use() {
        let stat = "anon 600\nfile 300\ninactive_file 100\nactive_file 200\n";
        let level = level(Version::V2, ["2000\n", "max\n"], "1000\n", stat).unwrap();
        assert_eq!((level.used_bytes, level.total_bytes), (700, 2000));
    }

    #[test]
    fn the_lower_of_hard_and_soft_limit_counts() {
        let level = level(Version::V2, ["2000\n", "1500\n"], "10\n", "").unwrap();
        assert_eq!((level.used_bytes, level.total_bytes), (10, 1500));
    }

    #[test]
    fn version_1_sums_over_the_groups_below() {
        let stat = "inactive_file 1\nactive_file 1\nhierarchical_memory_limit 5000\n\
                    total_inactive_file 100\ntotal_active_file 200\n";
        let own = level(Version::V1, ["9223372036854771712\n"], "1000\n", stat).unwrap();
        assert_eq!((own.used_bytes, own.total_bytes), (700, 5000));
        let free = "hierarchical_memory_limit 9223372036854771712\n";
        assert_eq!(
            level(Version::V1, ["9223372036854771712\n"], "1\n", free),
            None
        );
    }

    #[test]
    fn texts_that_make_no_sense_limit_nothing() {
        assert_eq!(level(Version::V2, ["max\n"], "10\n", ""), None);
        assert_eq!(level(Version::V2, ["100\n"], "", ""), None);
        assert_eq!(level(Version::V2, [], "10\n", ""), None);
        // More cache than use: read a moment apart.
        let level = level(Version::V2, ["100\n"], "10\n", "active_file 20\n").unwrap();
        assert_eq!(level.used_bytes, 0);
    }
}
