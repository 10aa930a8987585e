//! The clock that the kernel stamps files by.
//!
//! A file's times have two origins: the kernel stamps its write-back and files of other file systems; the daemon stamps
//! creations and removals. With two clocks a file could seem to be changed before it was made. The kernel uses its
//! coarse clock, up to a tick behind the exact one; since Linux 6.13 it is never behind a stamp that any file system
//! gave before, and no clock that a program can read shows that. So the daemon asks the kernel for a stamp.

use std::os::fd::OwnedFd;

use overspill_tmpfs::{Clock, Timestamp};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW};
use rustix::time::{ClockId, clock_gettime};

/// A pipe whose stamp tells the kernel's time. Two system calls, half a microsecond.
#[derive(Debug)]
pub(crate) struct KernelClock(Option<OwnedFd>);

impl KernelClock {
    pub(crate) fn new() -> KernelClock {
        KernelClock(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok().map(|(end, _)| end))
    }

    fn stamp(&self) -> Option<Timestamp> {
        let pipe = self.0.as_ref()?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        rustix::fs::futimens(pipe, &Timestamps { last_access: now, last_modification: now }).ok()?;
        let stat = rustix::fs::fstat(pipe).ok()?;
        Some(Timestamp { sec: stat.st_mtime, nsec: u32::try_from(stat.st_mtime_nsec).ok()? })
    }
}

impl Clock for KernelClock {
    fn now(&self) -> Timestamp {
        self.stamp().unwrap_or_else(|| {
            let now = clock_gettime(ClockId::RealtimeCoarse);
            Timestamp { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    /// Stamps of ours and of a file system that the kernel stamps, in turn, while other threads make the kernel give
    /// finer ones.
    #[test]
    fn stamps_follow_those_of_other_file_systems() {
        let dir = tempfile::tempdir().unwrap();
        let clock = KernelClock::new();
        assert!(clock.stamp().is_some(), "pipes have no times here");
        let mut last = clock.now();
        for n in 0..2000 {
            let path = dir.path().join((n % 3).to_string());
            std::fs::write(&path, "x").unwrap();
            // Read, so that the next stamp of this file is a finer one.
            let metadata = std::fs::metadata(&path).unwrap();
            let theirs =
                Timestamp { sec: metadata.mtime(), nsec: u32::try_from(metadata.mtime_nsec()).unwrap() };
            assert!(theirs >= last, "turn {n}: {theirs:?} after {last:?}");
            last = clock.now();
            assert!(last >= theirs, "turn {n}: {last:?} after {theirs:?}");
        }
    }
}
