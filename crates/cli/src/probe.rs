//! Asks the daemon of a mount for its state, without waiting for ever on one that hangs.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use overspill::control::client::{AskError, Control};
use overspill::stats::{Slabinfo, Stats};
use rustix::io::Errno;

use crate::error::Error;
use overspill::mountinfo::Entry;

/// The longest time that a living daemon may take to answer: enough for one that pages to a slow disk.
const PATIENCE: Duration = Duration::from_secs(20);

/// The state of a mount.
pub(crate) enum Probe<T> {
    /// The daemon lives.
    Alive(T),
    /// The daemon lives, but gives no answer, for this reason.
    Mute(String),
    /// The daemon is gone.
    Dead,
    /// The mount belongs to another user.
    Denied,
    /// The daemon did not answer in time.
    Silent,
}

impl<T> Probe<T> {
    /// The answer, or the reason why there is none.
    pub(crate) fn answer(self, mount: &Entry) -> Result<T, Error> {
        let path = mount.mountpoint.clone();
        match self {
            Probe::Alive(answer) => Ok(answer),
            Probe::Mute(why) => Err(Error::NoAnswer(path, why)),
            Probe::Dead => Err(Error::Dead(path)),
            Probe::Denied => Err(Error::NotYours(path, owner(mount))),
            Probe::Silent => Err(Error::Silent(path)),
        }
    }
}

/// The statistics of a mount and its daemon.
pub(crate) fn stats(mount: &Entry) -> Probe<Stats> {
    ask(mount, |control| control.stats(&mount.dev))
}

/// The object caches of a mount's daemon.
pub(crate) fn slabinfo(mount: &Entry) -> Probe<Slabinfo> {
    ask(mount, Control::slabinfo)
}

/// The user whose daemon serves the mount.
fn owner(mount: &Entry) -> u32 {
    mount.option_u32("user_id").unwrap_or(0)
}

fn ask<T>(mount: &Entry, question: impl FnOnce(&mut Control) -> Result<T, AskError>) -> Probe<T> {
    let answer = Control::of_face(owner(mount), &mount.dev, PATIENCE).and_then(|mut control| {
        let faces = control.faces()?;
        let at_home = faces.iter().any(|f| f.device == mount.dev && Path::new(&f.at) == mount.mountpoint);
        Ok((question(&mut control)?, at_home))
    });
    let error = match answer {
        Ok((answer, true)) => return Probe::Alive(answer),
        // It may be seen from another namespace. Or the kernel has given the device to a new mount while the process of
        // an old one still ends: then the new one may be dead all the same.
        Ok((answer, false)) => {
            return if let Probe::Dead = look(mount) { Probe::Dead } else { Probe::Alive(answer) };
        }
        Err(AskError::Silent(..)) => return Probe::Silent,
        Err(error) => error,
    };
    match error {
        AskError::Absent(..) | AskError::Denied(_) | AskError::Impostor(_) => {
            // No socket says nothing of the daemon: the mount itself does.
            match look(mount) {
                Probe::Alive(()) if matches!(error, AskError::Denied(_)) => Probe::Denied,
                Probe::Alive(()) => Probe::Mute(error.to_string()),
                Probe::Mute(reason) => Probe::Mute(reason),
                Probe::Dead => Probe::Dead,
                Probe::Denied => Probe::Denied,
                Probe::Silent => Probe::Silent,
            }
        }
        _ => Probe::Mute(error.to_string()),
    }
}

/// Looks at `mount` in a thread, which may be left behind: a call into a hung file system cannot be cancelled.
fn look(mount: &Entry) -> Probe<()> {
    let (answer, answered) = mpsc::channel();
    let mountpoint = mount.mountpoint.clone();
    let looker = std::thread::Builder::new().spawn(move || {
        // The kernel may answer getattr from its cache after the daemon's death; it never caches statfs.
        let _ = answer.send(match rustix::fs::statvfs(&mountpoint) {
            Ok(_) => Probe::Alive(()),
            Err(Errno::NOTCONN | Errno::CONNABORTED) => Probe::Dead,
            Err(Errno::ACCESS | Errno::PERM) => Probe::Denied,
            Err(other) => Probe::Mute(other.to_string()),
        });
    });
    match looker {
        Ok(_) => answered.recv_timeout(PATIENCE).unwrap_or(Probe::Silent),
        Err(error) => Probe::Mute(error.to_string()),
    }
}
