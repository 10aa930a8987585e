//! The failures of a command: each has one sentence (the failure, its object, the cure) and an exit code.

use std::path::{Path, PathBuf};

use overspill::engine::{EngineError, ErrorKind};
use rustix::io::Errno;

use crate::exit::Exit;
use crate::holders::Holders;
use crate::size::{SizeError, human};

/// A failure, as the user reads it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("unknown option '{0}' after -o; `overspill mount --help` lists the known ones")]
    UnknownOption(String),
    #[error("the option {name} does not take '{value}'; it takes {wants}")]
    BadValue { name: &'static str, value: String, wants: &'static str },

    #[error("{name} '{value}' {error}")]
    BadSize { name: &'static str, value: String, error: SizeError },
    #[error("memory {} is too little; the least is {}", human(*.memory), human(*.least))]
    MemoryTooSmall { memory: u64, least: u64 },
    #[error("memory {} is more than the {} this machine may use; give less memory and a larger size", human(*.memory), human(*.usable))]
    MemoryTooLarge { memory: u64, usable: u64 },
    #[error("memory {} leaves too little of the {} that this cgroup may use for what the kernel charges to it beside us; give at most {}", human(*.memory), human(*.limit), human(*.most))]
    NoRoomForKernel { memory: u64, limit: u64, most: u64 },
    #[error("size {} holds not even a page; give at least 4k (there is no 'unlimited')", human(*.0))]
    SizeTooSmall(u64),
    #[error("size {} is below memory {}; raise the size or lower the memory", human(*.size), human(*.memory))]
    SizeBelowMemory { size: u64, memory: u64 },

    #[error("the mountpoint {} does not exist; create the directory first", .0.display())]
    NoSuchDirectory(PathBuf),
    #[error("the mountpoint {} is not a directory; name a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("an overspill mount is already at {at}; `overspill umount {at}` removes it", at = .0.display())]
    AlreadyMounted(PathBuf),
    #[error("the mountpoint {} cannot be reached: {}", .0.display(), .1)]
    Unreachable(PathBuf, std::io::Error),
    #[error("no permission to mount on {}: a user may mount only on a directory that he can write to", .0.display())]
    MountpointNotWritable(PathBuf),
    #[error("no permission for the option {0}: only root may give it")]
    RootOnly(&'static str),

    #[error("the log {} cannot be written: {}; name another with --log", .0.display(), .1)]
    Log(PathBuf, std::io::Error),
    #[error("the daemon could not be started: {0}")]
    Spawn(std::io::Error),
    #[error("the daemon ended before it had mounted ({status}); its log is {log}")]
    DaemonDied { status: std::process::ExitStatus, log: String },
    /// The daemon's own sentence and code, which it sent before it ended.
    #[error("{sentence}")]
    Daemon { sentence: String, code: u8 },
    #[error(transparent)]
    Engine(#[from] EngineError),

    #[error("{} is not on an overspill mount; `overspill stats` lists those there are", .0.display())]
    NotOverspill(PathBuf),
    #[error("there is no overspill mount; `overspill mount` makes one")]
    NoMount,
    #[error("there are several overspill mounts; name one (`overspill stats` lists them)")]
    WhichMount,
    #[error("nothing of overspill is mounted at {} itself; its mountpoint is {}", .0.display(), .1.display())]
    NotTheMountpoint(PathBuf, PathBuf),
    #[error("the mount at {at} is dead: its daemon is gone and its contents with it; `overspill umount {at}` clears it", at = .0.display())]
    Dead(PathBuf),
    #[error("no permission to ask the mount at {}: it belongs to the user {}", .0.display(), .1)]
    NotYours(PathBuf, u32),
    #[error("the daemon of {at} does not answer; wait, or give up what it holds with `overspill umount --force {at}`", at = .0.display())]
    Silent(PathBuf),
    #[error("{at} is in use by {}; end these, or detach it with `overspill umount --lazy {at}`", .1, at = .0.display())]
    Busy(PathBuf, Holders),
    #[error("no permission to unmount {}: {}", .0.display(), .1)]
    UnmountDenied(PathBuf, String),
    #[error("{} could not be unmounted: {}", .0.display(), .1)]
    Unmount(PathBuf, String),
    #[error("fusermount3 cannot be run ({0}); install the package fuse3, or unmount as root")]
    NoFusermount(std::io::Error),
    #[error("the daemon of {} gives no answer: {}", .0.display(), .1)]
    NoAnswer(PathBuf, String),

    #[error(
        "there is no FUSE over io_uring to turn on: it needs Linux 6.14, and the fuse module loaded (modprobe fuse)"
    )]
    NoSwitch,
    #[error("no permission to turn on FUSE over io_uring: run `overspill doctor --fix` as root")]
    RootFixes,
    #[error("this machine cannot mount: {0}")]
    CannotMount(String),
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
}

impl Error {
    /// The exit code of the process.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Error::Engine(e) => of_kind(e.kind()).code(),
            Error::Daemon { code, .. } => *code,
            other => other.exit().code(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Error::UnknownOption(_) | Error::WhichMount | Error::BadValue { .. } => Exit::Usage,
            Error::BadSize { .. }
            | Error::MemoryTooSmall { .. }
            | Error::MemoryTooLarge { .. }
            | Error::NoRoomForKernel { .. }
            | Error::SizeTooSmall(_)
            | Error::SizeBelowMemory { .. } => Exit::Size,
            Error::NoSuchDirectory(_) | Error::NotADirectory(_) | Error::AlreadyMounted(_) => {
                Exit::Mountpoint
            }
            Error::Unreachable(_, e) if e.kind() == std::io::ErrorKind::PermissionDenied => Exit::Permission,
            Error::Unreachable(..) => Exit::Mountpoint,
            Error::MountpointNotWritable(_)
            | Error::RootOnly(_)
            | Error::NotYours(..)
            | Error::RootFixes
            | Error::UnmountDenied(..) => Exit::Permission,
            Error::NoFusermount(_) | Error::NoSwitch => Exit::Fuse,
            Error::Busy(..) => Exit::Busy,
            Error::NotOverspill(_) | Error::NoMount | Error::NotTheMountpoint(..) | Error::Dead(_) => {
                Exit::NotMounted
            }
            Error::Engine(_)
            | Error::Daemon { .. }
            | Error::Log(..)
            | Error::Spawn(_)
            | Error::DaemonDied { .. }
            | Error::Silent(_)
            | Error::Unmount(..)
            | Error::NoAnswer(..)
            | Error::CannotMount(_)
            | Error::Io(..) => Exit::Failure,
        }
    }

    /// The error for an unmount that the kernel refused.
    pub(crate) fn from_umount(mountpoint: &Path, errno: Errno) -> Self {
        match errno {
            Errno::PERM | Errno::ACCESS => {
                Error::UnmountDenied(mountpoint.to_owned(), "only root and its owner may".into())
            }
            Errno::INVAL => Error::NotOverspill(mountpoint.to_owned()),
            other => Error::Unmount(mountpoint.to_owned(), other.to_string()),
        }
    }
}

fn of_kind(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::Mountpoint => Exit::Mountpoint,
        ErrorKind::Permission => Exit::Permission,
        ErrorKind::Fuse => Exit::Fuse,
        ErrorKind::Store => Exit::Store,
        ErrorKind::Memory => Exit::Size,
        ErrorKind::Other => Exit::Failure,
    }
}
