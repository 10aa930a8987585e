//! `overspill umount`: as root by umount2(2), as a user through fusermount3.
//!
//! A dead mount is cleared even if a process still uses it: there is nothing to wait for. A living mount is unmounted
//! only when nobody uses it, and the command ends when the daemon has ended: then memory and store are free again.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, unmount,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::caller::Caller;
use crate::error::Error;
use crate::holders;
use crate::probe::{self, Probe};
use crate::say::say;
use overspill::mountinfo::{Entry, Mounts};

/// Seconds that a daemon may take to end after its mount is gone.
const DAEMON_END: i64 = 10;

/// `overspill umount`
#[derive(Debug, clap::Args)]
pub(crate) struct UmountArgs {
    /// The mountpoint.
    mountpoint: PathBuf,

    /// Give up what is in it: cut off a daemon that does not answer, and its users with it.
    #[arg(long)]
    force: bool,

    /// Take it away now from where it is mounted; it ends when its last user is gone.
    #[arg(long, conflicts_with = "force")]
    lazy: bool,
}

/// Runs the command.
pub(crate) fn run(args: &UmountArgs) -> Result<(), Error> {
    let mounts = read_mounts()?;
    let mount = find(&mounts, &args.mountpoint)?;
    // Our own working directory must not keep the mount busy.
    std::env::set_current_dir("/").map_err(|e| Error::Io("cannot go to /", e))?;
    let caller = Caller::current();
    if let Some(owner) = mount.option_u32("user_id").filter(|owner| !caller.is_root() && *owner != caller.uid)
    {
        return Err(Error::NotYours(mount.mountpoint, owner));
    }
    if args.force {
        abort(&mount);
        return take_away(&mount, Manner::Detach, caller);
    }
    let daemon = match probe::stats(&mount) {
        Probe::Dead => return clear(&mount, caller),
        Probe::Silent => return Err(Error::Silent(mount.mountpoint)),
        Probe::Alive(stats) => open_pid(stats.pid),
        Probe::Mute(_) | Probe::Denied => None,
    };
    if args.lazy {
        return take_away(&mount, Manner::Detach, caller);
    }
    take_away(&mount, Manner::Gentle, caller)?;
    if let Some(daemon) = daemon
        && !ends_in_time(&daemon)
    {
        say(&format!(
            "note: {} is unmounted, but its daemon has not ended in {DAEMON_END} s",
            mount.mountpoint.display()
        ));
    }
    Ok(())
}

/// Detaches the file system `device` from `mountpoint` even if it is in use. Its daemon calls it when a signal ends it.
pub(crate) fn detach(mountpoint: &Path, device: &str) -> Result<(), Error> {
    let mount = find(&read_mounts()?, mountpoint)?;
    if mount.dev != device {
        // It was detached before, and another one lies there now.
        return Err(Error::NotOverspill(mountpoint.to_owned()));
    }
    take_away(&mount, Manner::Detach, Caller::current())
}

/// Clears the mount of a daemon that died while it started.
pub(crate) fn clear_if_dead(mountpoint: &Path) {
    let Ok(mount) = read_mounts().and_then(|mounts| find(&mounts, mountpoint)) else { return };
    if matches!(probe::stats(&mount), Probe::Dead) {
        // If this fails, `overspill umount` clears it; the caller reports the more serious error.
        let _ = clear(&mount, Caller::current());
    }
}

fn read_mounts() -> Result<Mounts, Error> {
    Mounts::read().map_err(|e| Error::Io("/proc/self/mountinfo", e))
}

/// The overspill mount whose mountpoint is exactly `path`.
fn find(mounts: &Mounts, path: &Path) -> Result<Entry, Error> {
    let absolute = mounts.resolve(path).map_err(|e| Error::Unreachable(path.to_owned(), e))?;
    match mounts.containing(&absolute) {
        Some(entry) if !entry.is_overspill() => Err(Error::NotOverspill(absolute)),
        Some(entry) if entry.mountpoint == absolute => Ok(entry.clone()),
        Some(entry) => Err(Error::NotTheMountpoint(absolute, entry.mountpoint.clone())),
        None => Err(Error::NotOverspill(absolute)),
    }
}

/// Clears a dead mount: plainly if that works, else by detaching it.
fn clear(mount: &Entry, caller: Caller) -> Result<(), Error> {
    match take_away(mount, Manner::Gentle, caller) {
        Ok(()) => Ok(()),
        Err(Error::NoFusermount(e)) => Err(Error::NoFusermount(e)),
        Err(_) => take_away(mount, Manner::Detach, caller),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Gentle,
    Detach,
}

fn take_away(mount: &Entry, manner: Manner, caller: Caller) -> Result<(), Error> {
    let path = &mount.mountpoint;
    if !caller.is_root() {
        return fusermount(mount, manner);
    }
    let flags = match manner {
        Manner::Gentle => UnmountFlags::NOFOLLOW,
        Manner::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(mount)),
        Err(errno) => Err(Error::from_umount(path, errno)),
    }
}

fn fusermount(mount: &Entry, manner: Manner) -> Result<(), Error> {
    let how = if manner == Manner::Gentle { "-u" } else { "-uz" };
    let program = overspill::fusermount::find(&overspill::fusermount::search_path(), Path::new("/"));
    let output = Command::new(program.unwrap_or_else(|| "fusermount3".into()))
        .args([how, "--"])
        .arg(&mount.mountpoint)
        .env("LC_ALL", "C")
        .output()
        .map_err(Error::NoFusermount)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(if said.contains("busy") {
        busy(mount)
    } else if said.contains("permitted") || said.contains("denied") {
        Error::UnmountDenied(mount.mountpoint.clone(), said)
    } else {
        Error::Unmount(mount.mountpoint.clone(), said)
    })
}

fn busy(mount: &Entry) -> Error {
    let mut holders = Mounts::read().map(|mounts| holders::find(&mounts, mount)).unwrap_or_default();
    holders.asked_by_root = Caller::current().is_root();
    Error::Busy(mount.mountpoint.clone(), holders)
}

/// Cuts the connection to the daemon: every call that waits for it fails, including a killed daemon's own call that
/// kept it from ending. The owner may do this where fusectl is mounted, root everywhere; others can only detach.
fn abort(mount: &Entry) {
    let Some(connection) = mount.connection() else { return };
    if std::fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1").is_ok() {
        return;
    }
    if let Err(errno) = abort_unmounted(connection) {
        tracing::debug!("cannot abort FUSE connection {connection}: {errno}");
    }
}

/// Does the same through a fusectl of our own that is mounted nowhere.
fn abort_unmounted(connection: &str) -> Result<(), Errno> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let control = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let abort =
        openat(control, format!("{connection}/abort"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(abort, b"1").map(drop)
}

/// A handle to the daemon, taken while it is known to live: later, another process may have its pid.
fn open_pid(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn ends_in_time(daemon: &OwnedFd) -> bool {
    let patience = Timespec { tv_sec: DAEMON_END, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(daemon, PollFlags::IN)], Some(&patience)) {
            Err(Errno::INTR) => {}
            other => return other.is_ok_and(|ready| ready > 0),
        }
    }
}
