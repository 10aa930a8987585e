//! The memory of this machine: physical RAM, and the part of it that our cgroup may use.

use std::path::{Path, PathBuf};

use overspill::mountinfo::{Entry, Mounts};

/// The memory of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Physical RAM, in bytes. Sizes in `%` refer to it.
    pub(crate) ram: u64,
    /// The cgroup's limit in bytes, if it is below RAM.
    pub(crate) limit: Option<u64>,
}

impl Memory {
    /// Reads the memory from the kernel.
    pub(crate) fn of_machine() -> Self {
        let ram = std::fs::read_to_string("/proc/meminfo").ok().and_then(|t| meminfo(&t, "MemTotal"));
        let ram = ram.unwrap_or(1 << 30);
        let limit = cgroup().and_then(|c| c.memory_limit).filter(|l| *l < ram);
        Memory { ram, limit }
    }

    /// The most bytes that this process may use.
    pub(crate) fn usable(self) -> u64 {
        self.limit.map_or(self.ram, |l| l.min(self.ram))
    }
}

/// A value of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The cgroup whose memory limit applies to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroup {
    /// 1 or 2.
    pub(crate) version: u8,
    /// The smallest limit in bytes, from our group up to the root, if any is set.
    pub(crate) memory_limit: Option<u64>,
}

/// The memory cgroup of this process; `None` if it cannot be seen from here.
pub(crate) fn cgroup() -> Option<Cgroup> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = Mounts::read().ok()?;
    find_cgroup(&groups, &mounts, |path| std::fs::read_to_string(path).ok())
}

/// `groups` is `/proc/self/cgroup`. Version 1 has priority: if it has the memory controller, version 2 has not.
fn find_cgroup(groups: &str, mounts: &Mounts, read: impl Fn(&Path) -> Option<String>) -> Option<Cgroup> {
    let v1 = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|c| c == "memory").then_some(path)
    });
    let v1_mount =
        mounts.iter().find(|e| e.fstype == "cgroup" && e.options.split(',').any(|o| o == "memory"));
    let v2 = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let v2_mount = mounts.iter().find(|e| e.fstype == "cgroup2");
    let (version, path, mount, file) = match (v1, v1_mount, v2, v2_mount) {
        (Some(path), Some(mount), ..) => (1, path, mount, "memory.limit_in_bytes"),
        (None, _, Some(path), Some(mount)) => (2, path, mount, "memory.max"),
        _ => return None,
    };
    let leaf = directory(mount, path);
    // "max" is no number and means no limit. Version 1 writes a huge number instead, which is above any RAM.
    let memory_limit = leaf
        .ancestors()
        .take_while(|dir| dir.starts_with(&mount.mountpoint))
        .filter_map(|dir| read(&dir.join(file))?.trim().parse().ok())
        .min();
    Some(Cgroup { version, memory_limit })
}

/// The directory of the group `path` below `mount`. A container often has only its own group mounted, under a path that
/// does not exist inside: then the mountpoint is the group.
fn directory(mount: &Entry, path: &str) -> PathBuf {
    match Path::new(path).strip_prefix(&mount.root) {
        Ok(below) if !path.contains("..") => mount.mountpoint.join(below),
        _ => mount.mountpoint.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn limit(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<Cgroup> {
        let files: HashMap<PathBuf, String> =
            files.iter().map(|(p, t)| (PathBuf::from(p), (*t).to_owned())).collect();
        find_cgroup(groups, &Mounts::parse(mounts.as_bytes()), |p| files.get(p).cloned())
    }

    const V1: &str = "31 1 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    const V2: &str = "31 1 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn version_1_takes_the_smallest_limit_above_us() {
        let found = limit(
            "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n",
            V1,
            &[
                ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
                ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "536870912\n"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("/sys/fs/cgroup/memory.limit_in_bytes", "1\n"),
            ],
        );
        assert_eq!(found, Some(Cgroup { version: 1, memory_limit: Some(512 << 20) }));
    }

    #[test]
    fn version_2_with_and_without_a_limit() {
        let files =
            [("/sys/fs/cgroup/u/s/memory.max", "max\n"), ("/sys/fs/cgroup/u/memory.max", "1048576\n")];
        assert_eq!(limit("0::/u/s\n", V2, &files), Some(Cgroup { version: 2, memory_limit: Some(1 << 20) }));
        assert_eq!(limit("0::/u/s\n", V2, &files[..1]), Some(Cgroup { version: 2, memory_limit: None }));
    }

    #[test]
    fn a_container_that_sees_its_own_group_only() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let files = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4096")];
        for groups in ["4:memory:/docker/abc\n", "4:memory:/elsewhere\n", "4:memory:/../x\n"] {
            let found = limit(groups, mounts, &files).unwrap();
            assert_eq!(found.memory_limit, Some(4096), "{groups}");
        }
    }

    #[test]
    fn no_cgroup_is_no_limit() {
        assert_eq!(limit("", V2, &[]), None);
        assert_eq!(limit("garbage\n4:memory\n", V1, &[]), None);
        assert_eq!(Memory { ram: 100, limit: None }.usable(), 100);
        assert_eq!(Memory { ram: 100, limit: Some(10) }.usable(), 10);
    }

    #[test]
    fn meminfo_is_in_kib() {
        let text = "MemTotal:       24683996 kB\nSwapTotal:             0 kB\nHugePages_Total:       0\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_683_996 * 1024));
        assert_eq!(meminfo(text, "SwapTotal"), Some(0));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo(text, "HugePages_Total"), None);
    }
}
