//! A memory group (cgroup) for workload and daemon together: version 1 or 2, whichever this machine has.
//!
//! It lies directly below the root of the hierarchy. Processes enter it by `overspill-bench within GROUP -- COMMAND`,
//! before they touch memory. Its removal kills the processes that still run in it, by pid.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::tools::{During as _, Outcome, is_root};
use crate::undo::{self, Guard};

/// The hierarchy in which groups can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    /// Version 1, with the mountpoint of the controller.
    V1(PathBuf),
    /// Version 2, with its mountpoint.
    V2(PathBuf),
}

/// Finds the hierarchy that has the controller.
fn hierarchy(controller: &str) -> Outcome<Hierarchy> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").during("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let (Some(at), Some(fs)) = (mount.split(' ').nth(4), kind.split(' ').next()) else { continue };
        let options = kind.split(' ').nth(2).unwrap_or_default();
        if fs == "cgroup" && options.split(',').any(|o| o == controller) {
            return Ok(Hierarchy::V1(at.into()));
        }
        let offered = std::fs::read_to_string(Path::new(at).join("cgroup.controllers")).unwrap_or_default();
        if fs == "cgroup2" && offered.split_whitespace().any(|c| c == controller) {
            return Ok(Hierarchy::V2(at.into()));
        }
    }
    Err(format!("no cgroup hierarchy here has the {controller} controller"))
}

/// A memory group; it is removed on drop.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    v2: bool,
    _guard: Guard,
}

impl Cgroup {
    /// The reason why no group can be made here; `None` if it can.
    pub(crate) fn unavailable() -> Option<String> {
        if !is_root() {
            return Some("needs root (a memory group, drop_caches, mounts)".into());
        }
        hierarchy("memory").err()
    }

    /// Makes a group, with a limit in bytes or without.
    pub(crate) fn make(limit: Option<u64>) -> Outcome<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (root, v2) = match hierarchy("memory")? {
            Hierarchy::V1(root) => (root, false),
            Hierarchy::V2(root) => (root, true),
        };
        if v2 {
            std::fs::write(root.join("cgroup.subtree_control"), "+memory")
                .during("giving groups the memory controller")?;
            // For the throttle, which reports a failure when it is applied.
            let _ = std::fs::write(root.join("cgroup.subtree_control"), "+io");
        }
        let path = root.join(format!("overspill-bench-{}-{number}", std::process::id()));
        let ((), guard) = undo::make(|| {
            std::fs::create_dir(&path).during(path.display())?;
            let path = path.clone();
            Ok(((), Box::new(move || remove(&path))))
        })?;
        if let Some(limit) = limit {
            let file = path.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
            std::fs::write(&file, limit.to_string()).during(file.display())?;
        }
        Ok(Self { path, v2, _guard: guard })
    }

    /// The group's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs in the group.
    pub(crate) fn command(&self, program: &Path) -> Outcome<Command> {
        let mut command = Command::new(std::env::current_exe().during("finding this program")?);
        command.args(["within"]).arg(&self.path).arg("--").arg(program);
        Ok(command)
    }

    fn number(&self, file: &str) -> Option<u64> {
        std::fs::read_to_string(self.path.join(file)).ok()?.trim().parse().ok()
    }

    fn stat(&self, file: &str, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.path.join(file)).ok()?;
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// The most memory it ever held, in bytes.
    pub(crate) fn peak(&self) -> Option<u64> {
        self.number(if self.v2 { "memory.peak" } else { "memory.max_usage_in_bytes" })
    }

    /// The memory it holds now, in bytes.
    pub(crate) fn usage(&self) -> Option<u64> {
        self.number(if self.v2 { "memory.current" } else { "memory.usage_in_bytes" })
    }

    /// The memory its processes hold of their own now, in bytes: no file pages, no tmpfs.
    pub(crate) fn anonymous(&self) -> Option<u64> {
        self.stat("memory.stat", if self.v2 { "anon" } else { "total_rss" })
    }

    /// The number of its processes that the kernel killed for lack of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.stat(if self.v2 { "memory.events" } else { "memory.oom_control" }, "oom_kill").unwrap_or(0)
    }
}

/// Kills the processes left in a group and removes it.
fn remove(path: &Path) -> Outcome<()> {
    let start = Instant::now();
    loop {
        let left = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        for pid in left.lines().filter_map(|l| rustix::process::Pid::from_raw(l.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        match std::fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if start.elapsed() > Duration::from_secs(20) => {
                return Err(format!("{}: {e}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// `overspill-bench within`: enters the group and becomes the command. Returns only on an error, which it describes.
pub(crate) fn become_within(group: &Path, command: &[std::ffi::OsString]) -> String {
    if let Err(e) = std::fs::write(group.join("cgroup.procs"), "0") {
        return format!("entering {}: {e}", group.display());
    }
    let Some((program, args)) = command.split_first() else { return "no command to run".into() };
    format!("{}: {}", program.display(), Command::new(program).args(args).exec())
}

/// The limits of a disk, for reads and for writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Throttle {
    /// Bytes per second.
    pub(crate) bytes: u64,
    /// Operations per second.
    pub(crate) operations: u64,
}

impl Throttle {
    /// The usual limits of a cloud volume.
    pub(crate) const CLOUD: Self = Self { bytes: 125 << 20, operations: 3000 };

    /// Throttles a block device ("major:minor"). Version 1 throttles the root group, that is everyone. Version 2 has no
    /// limit for the root: it throttles the group that holds workload and daemon.
    pub(crate) fn apply(self, device: &str, group: Option<&Cgroup>) -> Outcome<Guard> {
        let settings = match hierarchy("blkio") {
            Ok(Hierarchy::V1(root)) => self.v1(&root, device),
            _ => self.v2(
                group.map(Cgroup::path).ok_or("cgroup v2 throttles a group only, and there is none")?,
                device,
            ),
        };
        let ((), guard) = undo::make(|| {
            let mut done = Vec::new();
            for (file, on, off) in settings {
                if let Err(e) = std::fs::write(&file, on).during(file.display()) {
                    let _ = undo_settings(&done);
                    return Err(e);
                }
                done.push((file, off));
            }
            Ok(((), Box::new(move || undo_settings(&done))))
        })?;
        Ok(guard)
    }

    /// The files to write, each with its line and with the line that undoes it.
    fn v1(self, root: &Path, device: &str) -> Vec<(PathBuf, String, String)> {
        let limits = [
            ("read_bps", self.bytes),
            ("write_bps", self.bytes),
            ("read_iops", self.operations),
            ("write_iops", self.operations),
        ];
        let setting = |(name, limit)| {
            let file = root.join(format!("blkio.throttle.{name}_device"));
            (file, format!("{device} {limit}"), format!("{device} 0"))
        };
        limits.map(setting).into()
    }

    fn v2(self, group: &Path, device: &str) -> Vec<(PathBuf, String, String)> {
        let Self { bytes, operations } = self;
        let on = format!("{device} rbps={bytes} wbps={bytes} riops={operations} wiops={operations}");
        vec![(group.join("io.max"), on, format!("{device} rbps=max wbps=max riops=max wiops=max"))]
    }
}

fn undo_settings(done: &[(PathBuf, String)]) -> Outcome<()> {
    let results: Vec<Outcome<()>> =
        done.iter().map(|(file, off)| std::fs::write(file, off).during(file.display())).collect();
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_limits_both_ways_and_is_taken_back() {
        let v1 = Throttle::CLOUD.v1(Path::new("/blkio"), "7:3");
        let lines: Vec<&str> = v1.iter().map(|(_, on, _)| on.as_str()).collect();
        assert_eq!(lines, ["7:3 131072000", "7:3 131072000", "7:3 3000", "7:3 3000"]);
        assert!(v1.iter().all(|(_, _, off)| off == "7:3 0"));
        assert_eq!(v1[1].0, Path::new("/blkio/blkio.throttle.write_bps_device"));
        let v2 = Throttle::CLOUD.v2(Path::new("/group"), "7:3");
        assert_eq!(v2[0].1, "7:3 rbps=131072000 wbps=131072000 riops=3000 wiops=3000");
    }

    #[test]
    fn a_group_holds_its_command_and_goes_with_it() {
        if let Some(why) = Cgroup::unavailable() {
            eprintln!("skipped: {why}");
            return;
        }
        let group = Cgroup::make(Some(64 << 20)).unwrap();
        let path = group.path().to_path_buf();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert!(group.peak().is_some() && group.anonymous().is_some());
        assert_eq!(group.oom_kills(), 0);
        drop(group);
        assert!(!path.exists());
        assert!(!child.wait().unwrap().success(), "killed with its group");
    }
}
