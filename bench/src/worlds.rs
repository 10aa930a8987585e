//! The worlds that a workload runs in: overspill and its rivals, each mounted afresh and removed on drop.
//!
//! All take their disk space from one [`Disk`], so that a store, a swap file and an ext4 file system use the same
//! device.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::cgroup::{Cgroup, Throttle};
use crate::tools::{During as _, MIB, Outcome, is_root, run, run_for};
use crate::undo::{self, Guard, Guards};

/// Overspill, or one of its rivals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An overspill mount.
    Ours,
    /// An overspill mount with `-o writeback`.
    Writeback,
    /// An overspill mount whose store has a file for each object.
    PerObject,
    /// The kernel's tmpfs.
    Tmpfs,
    /// The kernel's tmpfs, with a swap file.
    TmpfsSwap,
    /// The kernel's tmpfs, with swap in compressed memory (lz4).
    TmpfsZram,
    /// ext4; where the disk is the bench's directory, the file system of that directory.
    Ext4,
    /// ext4 without journal, barriers and access times, on a disk of its own.
    Ext4Relaxed,
}

impl Kind {
    /// The name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Writeback => "ours, writeback",
            Self::PerObject => "file per object",
            Self::Tmpfs => "tmpfs",
            Self::TmpfsSwap => "tmpfs+swap file",
            Self::TmpfsZram => "tmpfs+zram",
            Self::Ext4 => "ext4",
            Self::Ext4Relaxed => "ext4 relaxed",
        }
    }
}

/// Options of the relaxed ext4.
pub(crate) const RELAXED: &str = "noatime,lazytime,nobarrier,noauto_da_alloc";

/// The source of disk space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A directory of the file system the bench runs on.
    Directory,
    /// An ext4 file system on a loop device of its own (direct I/O).
    Loop {
        /// Limits of the device.
        throttle: Option<Throttle>,
        /// The throttle is on a second device below this one. The kernel lets writes marked as swap or metadata pass a
        /// throttle; from the upper device they come as plain writes, and its queue joins neighbours.
        queued: bool,
    },
}

/// The settings that all worlds of a bench share.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    /// A directory of the bench for files and mountpoints.
    pub(crate) base: &'a Path,
    /// The overspill program.
    pub(crate) program: &'a Path,
    /// Bytes that a world must hold.
    pub(crate) size: u64,
    /// The memory of overspill, in bytes.
    pub(crate) memory: u64,
    /// The disk that overspill spills to.
    pub(crate) disk: Disk,
    /// The group that overspill runs in.
    pub(crate) cgroup: Option<&'a Cgroup>,
    /// The user who mounts and uses overspill, if not the user of the bench.
    pub(crate) user: Option<&'a str>,
}

impl Setup<'_> {
    /// A command that runs in the group, as the user.
    pub(crate) fn command(&self, program: &Path) -> Outcome<Command> {
        as_user(self.user, self.cgroup, program)
    }

    /// Makes the user the owner of a path.
    fn hand_over(&self, path: &Path) -> Outcome<()> {
        let Some(user) = self.user else { return Ok(()) };
        run(Command::new("chown").arg(user).arg(path)).map(drop)
    }
}

/// A command that runs in a group, as a user.
pub(crate) fn as_user(user: Option<&str>, group: Option<&Cgroup>, program: &Path) -> Outcome<Command> {
    let first = if user.is_some() { Path::new("runuser") } else { program };
    let mut command = match group {
        Some(group) => group.command(first)?,
        None => Command::new(first),
    };
    if let Some(user) = user {
        command.args(["-u", user, "--"]).arg(program);
    }
    Ok(command)
}

/// A place to work in. Its drop removes it and everything it rests on.
#[derive(Debug)]
pub(crate) struct World {
    /// Its top directory.
    pub(crate) dir: PathBuf,
    /// The pid of overspill's daemon.
    pub(crate) daemon: Option<u32>,
    /// The user who mounted it, if not the user of the bench.
    user: Option<String>,
    /// The block device under it, "major:minor", if that is known.
    pub(crate) device: Option<String>,
    guards: Guards,
}

/// Makes an empty directory for the bench below `parent`.
pub(crate) fn base(parent: &Path) -> Outcome<(PathBuf, Guards)> {
    let mut guards = Guards::default();
    std::fs::create_dir_all(parent).during(parent.display())?;
    let parent = parent.canonicalize().during(parent.display())?;
    let dir = parent.join(format!("bench-{}", std::process::id()));
    guards.push(directory(&dir)?);
    Ok((dir, guards))
}

/// A path that is not in use.
fn fresh(base: &Path, what: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    base.join(format!("{what}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Makes a directory; the guard removes it, which must be empty then.
fn directory(path: &Path) -> Outcome<Guard> {
    let path = path.to_path_buf();
    let ((), guard) = undo::make(|| {
        std::fs::create_dir(&path).during(path.display())?;
        Ok(((), Box::new(move || std::fs::remove_dir(&path).during(path.display()))))
    })?;
    Ok(guard)
}

/// Makes a directory; the guard removes it with everything in it. Nothing is ever mounted in there.
fn tree(path: &Path) -> Outcome<Guard> {
    let path = path.to_path_buf();
    let ((), guard) = undo::make(|| {
        std::fs::create_dir(&path).during(path.display())?;
        Ok(((), Box::new(move || std::fs::remove_dir_all(&path).during(path.display()))))
    })?;
    Ok(guard)
}

/// Makes a file with all its blocks; the guard removes it.
pub(crate) fn file(path: &Path, size: u64) -> Outcome<Guard> {
    let path = path.to_path_buf();
    let ((), guard) = undo::make(|| {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = std::fs::OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(&path).during(path.display())?;
        let reserved = match size {
            0 => Ok(()),
            size => rustix::fs::fallocate(&made, rustix::fs::FallocateFlags::empty(), 0, size),
        };
        if let Err(e) = reserved {
            let _ = std::fs::remove_file(&path);
            return Err(format!("{}: {size} bytes: {e}", path.display()));
        }
        Ok(((), Box::new(move || std::fs::remove_file(&path).during(path.display()))))
    })?;
    Ok(guard)
}

/// Mounts. The guard tries to unmount for 10 s, then detaches the mount.
fn mount(arguments: &[&str], at: &Path) -> Outcome<Guard> {
    let at = at.to_path_buf();
    let ((), guard) = undo::make(|| {
        run(Command::new("mount").args(arguments).arg(&at))?;
        Ok(((), Box::new(move || unmount(&at))))
    })?;
    Ok(guard)
}

fn unmount(at: &Path) -> Outcome<()> {
    use rustix::mount::{UnmountFlags, unmount};
    let start = Instant::now();
    loop {
        match unmount(at, UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if start.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => {
                let detached = unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
                return detached.map_err(|_| format!("{}: {e}", at.display()));
            }
        }
    }
}

/// Swaps to a file or device, before any other swap.
fn swap(on: &Path) -> Outcome<Guard> {
    let on = on.to_path_buf();
    run(Command::new("mkswap").arg(&on))?;
    let ((), guard) = undo::make(|| {
        run(Command::new("swapon").args(["--priority", "32767"]).arg(&on))?;
        let off = move || run_for(Command::new("swapoff").arg(&on), Duration::from_secs(900)).map(drop);
        Ok(((), Box::new(off)))
    })?;
    Ok(guard)
}

/// A zram device of the bench, for swap.
fn zram(size: u64) -> Outcome<(PathBuf, Guard)> {
    const CONTROL: &str = "/sys/class/zram-control";
    if !Path::new(CONTROL).exists() {
        let _ = run(Command::new("modprobe").arg("zram"));
    }
    if !Path::new(CONTROL).exists() {
        return Err("this kernel has no zram".into());
    }
    undo::make(|| {
        let number = std::fs::read_to_string(format!("{CONTROL}/hot_add")).during("adding a zram device")?;
        let number = number.trim().to_owned();
        let sys = PathBuf::from(format!("/sys/block/zram{number}"));
        let remove = {
            let sys = sys.clone();
            let number = number.clone();
            move || {
                std::fs::write(sys.join("reset"), "1").during("resetting zram")?;
                std::fs::write(format!("{CONTROL}/hot_remove"), &number).during("removing zram")
            }
        };
        let set = std::fs::write(sys.join("comp_algorithm"), "lz4").during("zram with lz4");
        let set =
            set.and_then(|()| std::fs::write(sys.join("disksize"), size.to_string()).during("sizing zram"));
        if let Err(e) = set {
            let _ = remove();
            return Err(e);
        }
        Ok((PathBuf::from(format!("/dev/zram{number}")), Box::new(remove)))
    })
}

/// A loop device over a file, with direct I/O, so that its data is not cached twice.
fn loop_device(file: &Path) -> Outcome<(PathBuf, Guard)> {
    undo::make(|| {
        let made = run(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file))?;
        let device = PathBuf::from(made.trim());
        let detached = device.clone();
        Ok((device, Box::new(move || run(Command::new("losetup").arg("-d").arg(&detached)).map(drop))))
    })
}

/// "major:minor" of a loop device.
fn number_of(device: &Path) -> Outcome<String> {
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = format!("/sys/block/{name}/dev");
    Ok(std::fs::read_to_string(&path).during(path)?.trim().to_owned())
}

/// A directory with `size` bytes of disk space, and the device under it.
fn disk(
    setup: &Setup<'_>,
    size: u64,
    relaxed: bool,
    guards: &mut Guards,
) -> Outcome<(PathBuf, Option<String>)> {
    let (throttle, queued) = match setup.disk {
        Disk::Directory => {
            let dir = fresh(setup.base, "disk");
            guards.push(tree(&dir)?);
            return Ok((dir.clone(), device_under(&dir)));
        }
        Disk::Loop { throttle, queued } => (throttle, queued),
    };
    let image = fresh(setup.base, "image");
    guards.push(file(&image, size + size / 16 + 64 * MIB)?);
    let (mut device, guard) = loop_device(&image)?;
    guards.push(guard);
    let throttled = number_of(&device)?;
    if queued {
        let (upper, guard) = loop_device(&device)?;
        guards.push(guard);
        device = upper;
    }
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]);
    if relaxed {
        mkfs.args(["-O", "^has_journal"]);
    }
    run(mkfs.arg(&device))?;
    let at = fresh(setup.base, "disk");
    guards.push(directory(&at)?);
    let options = if relaxed { RELAXED } else { "defaults" };
    guards.push(mount(&["-t", "ext4", "-o", options, &device.to_string_lossy()], &at)?);
    let number = number_of(&device)?;
    if let Some(throttle) = throttle {
        guards.push(throttle.apply(&throttled, setup.cgroup)?);
    }
    Ok((at, Some(number)))
}

/// The block device of a directory's file system, if it has one.
fn device_under(dir: &Path) -> Option<String> {
    let stat = rustix::fs::stat(dir).ok()?;
    let number = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    Path::new(&format!("/sys/dev/block/{number}")).exists().then_some(number)
}

/// The type of the file system that a directory is on.
pub(crate) fn file_system(dir: &Path) -> String {
    let Ok(stat) = rustix::fs::stat(dir) else { return "unknown".into() };
    let number = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = table.lines().find(|l| l.split(' ').nth(2) == Some(&number));
    let kind = line.and_then(|l| l.split_once(" - ")?.1.split(' ').next());
    kind.unwrap_or("unknown").to_owned()
}

/// Bytes written to a block device ("major:minor") so far, as the kernel counts them.
pub(crate) fn written(device: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{device}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * 512)
}

impl World {
    /// Makes a world, or returns the reason why it is not available here.
    pub(crate) fn make(kind: Kind, setup: &Setup<'_>) -> Outcome<Self> {
        let mut guards = Guards::default();
        match kind {
            Kind::Ours => ours(setup, "defaults", guards),
            Kind::Writeback => ours(setup, "writeback", guards),
            Kind::PerObject => ours(setup, "layout=per-object", guards),
            Kind::Tmpfs if !is_root() => {
                let dir = fresh(Path::new("/dev/shm"), &format!("overspill-bench-{}", std::process::id()));
                guards.push(tree(&dir)?);
                Ok(Self { dir, daemon: None, user: None, device: None, guards })
            }
            Kind::Tmpfs => tmpfs(setup, None, guards),
            Kind::TmpfsSwap => {
                let size = setup.size + setup.size / 8;
                let (dir, device) = disk(setup, size + 16 * MIB, false, &mut guards)?;
                let on = dir.join("swap");
                guards.push(file(&on, size)?);
                guards.push(swap(&on)?);
                tmpfs(setup, device, guards)
            }
            Kind::TmpfsZram => {
                let (device, guard) = zram(setup.size + setup.size / 8)?;
                guards.push(guard);
                guards.push(swap(&device)?);
                tmpfs(setup, None, guards)
            }
            Kind::Ext4 | Kind::Ext4Relaxed => {
                let (dir, device) = disk(setup, setup.size, kind == Kind::Ext4Relaxed, &mut guards)?;
                Ok(Self { dir, daemon: None, user: None, device, guards })
            }
        }
    }

    /// True if its daemon still runs, or it has none.
    pub(crate) fn alive(&self) -> bool {
        let Some(pid) = self.daemon else { return true };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// The most memory that its daemon ever had resident, in bytes.
    pub(crate) fn daemon_peak(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon?)).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kb| kb * 1024)
    }

    /// Bytes of the records that locate pages. For overspill only.
    pub(crate) fn metadata(&self, program: &Path) -> Option<u64> {
        const CACHES: [&str; 4] = ["chunk", "extent", "segment", "tree node"];
        let info = self.ask(program, "slabinfo")?;
        let caches = info["caches"].as_array()?.iter();
        let ours = caches.filter(|cache| CACHES.iter().any(|name| cache["name"] == *name));
        Some(ours.filter_map(|cache| cache["memory"].as_u64()).sum())
    }

    /// The output of `stats` or `slabinfo`. For overspill only.
    pub(crate) fn ask(&self, program: &Path, what: &str) -> Option<serde_json::Value> {
        self.daemon?;
        let mut command = as_user(self.user.as_deref(), None, program).ok()?;
        let output = command.args([what, "--json"]).arg(&self.dir).output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Removes the world and waits for that. A drop does the same, less visibly.
    pub(crate) fn end(self) {
        drop(self.guards);
    }
}

fn tmpfs(setup: &Setup<'_>, device: Option<String>, mut guards: Guards) -> Outcome<World> {
    let dir = fresh(setup.base, "tmpfs");
    guards.push(directory(&dir)?);
    let options = format!("size={},mode=0755", setup.size);
    guards.push(mount(&["-t", "tmpfs", "-o", &options, "overspill-bench"], &dir)?);
    Ok(World { dir, daemon: None, user: None, device, guards })
}

fn ours(setup: &Setup<'_>, option: &str, mut guards: Guards) -> Outcome<World> {
    let (store, device) = disk(setup, setup.size + setup.size / 8, false, &mut guards)?;
    let at = fresh(setup.base, "ours");
    guards.push(directory(&at)?);
    let log = fresh(setup.base, "log");
    guards.push(file(&log, 0)?);
    [&at, &log, &store].into_iter().try_for_each(|path| setup.hand_over(path))?;
    let mut command = setup.command(setup.program)?;
    command.args([
        "mount",
        "-o",
        option,
        "--size",
        &setup.size.to_string(),
        "--memory",
        &setup.memory.to_string(),
    ]);
    command.arg("--store").arg(&store).arg("--log").arg(&log).arg(&at);
    let (daemon, guard) = undo::make(|| {
        let (program, at) = (setup.program.to_path_buf(), at.clone());
        let mounted = run(&mut command).and_then(|_| daemon_of(setup, &at));
        let daemon = mounted.map_err(|e| {
            let _ = unmount_ours(&program, &at, None);
            format!("{e}\n{}", std::fs::read_to_string(&log).unwrap_or_default())
        })?;
        Ok((daemon, Box::new(move || unmount_ours(&program, &at, Some(daemon)))))
    })?;
    guards.push(guard);
    Ok(World { dir: at, daemon: Some(daemon), user: setup.user.map(str::to_owned), device, guards })
}

/// The pid of the daemon that serves a mount, from its own statistics.
fn daemon_of(setup: &Setup<'_>, at: &Path) -> Outcome<u32> {
    let said = run(as_user(setup.user, None, setup.program)?.args(["stats", "--json"]).arg(at))?;
    let stats: serde_json::Value = serde_json::from_str(&said).during("overspill stats --json")?;
    let pid = stats["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    pid.ok_or_else(|| format!("overspill stats --json names no pid: {said}"))
}

/// Unmounts overspill: plainly, else by force, else lazily. Then kills a daemon that is left.
fn unmount_ours(program: &Path, at: &Path, daemon: Option<u32>) -> Outcome<()> {
    let polite = run(Command::new(program).arg("umount").arg(at));
    let Err(why) = polite else { return Ok(()) };
    if !is_mounted(at) {
        return Ok(());
    }
    let forced = run(Command::new(program).args(["umount", "--force"]).arg(at));
    if is_mounted(at) {
        let _ = run(Command::new(program).args(["umount", "--lazy"]).arg(at));
    }
    let daemon = daemon.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = daemon.filter(|pid| is_daemon(*pid)) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    match (is_mounted(at), forced) {
        (false, _) => Ok(()),
        (true, forced) => Err(format!("{why}; {}", forced.err().unwrap_or_default())),
    }
}

/// True if the process is still an overspill daemon, and not another with the same pid.
fn is_daemon(pid: rustix::process::Pid) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    line.split(|b| *b == 0).any(|argument| argument == b"--daemon-child")
}

fn is_mounted(at: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let escaped = at.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    table.lines().any(|line| line.split(' ').nth(4) == Some(&escaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftovers() -> (usize, String, String) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = format!("bench-{}", std::process::id());
        let mine = mounts.lines().filter(|l| l.contains(&ours)).count();
        let loops = run(Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]))
            .unwrap_or_default();
        let loops: Vec<&str> = loops.lines().filter(|l| l.contains(&ours)).collect();
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
        let swaps: Vec<&str> = swaps.lines().filter(|l| l.contains(&ours)).collect();
        (mine, loops.join(","), swaps.join(","))
    }

    #[test]
    fn rivals_come_and_leave_nothing() {
        if !is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let (dir, guards) = base(parent.path()).unwrap();
        let plain = Disk::Loop { throttle: None, queued: false };
        let cloud = Disk::Loop { throttle: Some(Throttle::CLOUD), queued: false };
        let queued = Disk::Loop { throttle: Some(Throttle::CLOUD), queued: true };
        for (kind, disk) in [
            (Kind::Tmpfs, Disk::Directory),
            (Kind::Ext4, queued),
            (Kind::Ext4, cloud),
            (Kind::Ext4Relaxed, plain),
            (Kind::TmpfsSwap, plain),
            (Kind::TmpfsZram, Disk::Directory),
        ] {
            let setup = Setup {
                base: &dir,
                program: Path::new("none"),
                size: 32 * MIB,
                memory: 0,
                disk,
                cgroup: None,
                user: None,
            };
            let world = match World::make(kind, &setup) {
                Ok(world) => world,
                Err(why) => {
                    eprintln!("skipped: {}: {why}", kind.name());
                    continue;
                }
            };
            std::fs::write(world.dir.join("file"), "x").unwrap();
            assert!(matches!(disk, Disk::Directory) || world.device.as_deref().and_then(written).is_some());
            world.end();
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        drop(guards);
        assert!(!dir.exists());
        assert_eq!(leftovers(), (0, String::new(), String::new()));
    }
}
