//! Asks a mount for its state, without waiting for ever on a daemon that hangs.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use overspill::stats::Stats;
use rustix::io::Errno;

use crate::error::Error;
use crate::mountinfo::Entry;

/// The longest time that a living daemon may take to answer: enough for one that pages to a slow disk.
const PATIENCE: Duration = Duration::from_secs(20);

/// The state of a mount.
pub(crate) enum Probe {
    /// The daemon lives.
    Alive(Box<Stats>),
    /// The daemon lives, but gives no statistics, for this reason.
    Mute(String),
    /// The daemon is gone.
    Dead,
    /// The mount belongs to another user.
    Denied,
    /// The daemon did not answer in time.
    Silent,
}

impl Probe {
    /// The statistics, or the reason why there are none.
    pub(crate) fn stats(self, mount: &Entry) -> Result<Stats, Error> {
        let path = mount.mountpoint.clone();
        match self {
            Probe::Alive(stats) => Ok(*stats),
            Probe::Mute(why) => Err(Error::Stats(path, why)),
            Probe::Dead => Err(Error::Dead(path)),
            Probe::Denied => Err(Error::NotYours(path, mount.option_u32("user_id").unwrap_or(0))),
            Probe::Silent => Err(Error::Silent(path)),
        }
    }
}

/// Asks `mount` in a thread, which may be left behind: a call into a hung file system cannot be cancelled.
pub(crate) fn probe(mount: &Entry) -> Probe {
    let (answer, answered) = mpsc::channel();
    let mount = mount.clone();
    let asker = std::thread::Builder::new().spawn(move || {
        let _ = answer.send(ask(&mount));
    });
    match asker {
        Ok(_) => answered.recv_timeout(PATIENCE).unwrap_or(Probe::Silent),
        Err(error) => Probe::Mute(error.to_string()),
    }
}

fn ask(mount: &Entry) -> Probe {
    // The kernel may answer getattr from its cache after the daemon's death; it never caches statfs.
    if let Err(error) = rustix::fs::statvfs(&mount.mountpoint) {
        return match error {
            Errno::NOTCONN | Errno::CONNABORTED => Probe::Dead,
            Errno::ACCESS | Errno::PERM => Probe::Denied,
            other => Probe::Mute(other.to_string()),
        };
    }
    match overspill::stats::of_mount(&mount.mountpoint) {
        Ok(stats) => Probe::Alive(Box::new(stats)),
        Err(error) => match rustix::fs::access(&mount.mountpoint, rustix::fs::Access::READ_OK) {
            Err(Errno::ACCESS | Errno::PERM) => ask_as_owner(mount),
            Err(Errno::NOTCONN | Errno::CONNABORTED) => Probe::Dead,
            _ => Probe::Mute(error.to_string()),
        },
    }
}

/// FUSE keeps even root out of another user's mount. Root can become that user and ask again.
fn ask_as_owner(mount: &Entry) -> Probe {
    let (Some(uid), Some(gid)) = (mount.option_u32("user_id"), mount.option_u32("group_id")) else {
        return Probe::Denied;
    };
    if !rustix::process::geteuid().is_root() || uid == 0 {
        return Probe::Denied;
    }
    // That user may inspect his processes, so the child gets nothing of root's environment.
    let output = Command::new("/proc/self/exe")
        .args(["stats", "--json"])
        .arg(&mount.mountpoint)
        .env_clear()
        .current_dir("/")
        .uid(uid)
        .gid(gid)
        .output();
    match output {
        Ok(out) => match serde_json::from_slice(&out.stdout) {
            Ok(stats) => Probe::Alive(Box::new(stats)),
            Err(_) => Probe::Denied,
        },
        Err(error) => Probe::Mute(error.to_string()),
    }
}
