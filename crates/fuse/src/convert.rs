//! Conversions between the file system's types and the kernel's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use overspill_tmpfs::{Attr, FileKind, FsError, SetTime, Timestamp};

/// Only the kernel changes anything here: its copies stay true until it changes them.
pub(crate) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

pub(crate) fn errno(error: FsError) -> Errno {
    Errno::from_i32(error.errno())
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(crate) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks.max(least_blocks(attr.kind)),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// A regular file shows a page at least. Under a write-back cache the kernel shows the last count it was sent until
/// data reaches us, and tools take a file that has bytes and no blocks for nothing but zeros (`tar -S` archives it so).
fn least_blocks(kind: FileKind) -> u64 {
    if kind == FileKind::Regular { 8 } else { 0 }
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::new(0, time.nsec);
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => {
            Timestamp { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Timestamp { sec: -whole, nsec: 0 },
                part => Timestamp { sec: -whole - 1, nsec: 1_000_000_000 - part },
            }
        }
    }
}

/// Converts the time of a request. `fuser` 0.18 subtracts the nanoseconds of a time before 1970 from its seconds; the
/// kernel means them added.
pub(crate) fn requested(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => timestamp(time),
        Err(before) => {
            let before = before.duration();
            let sec = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            Timestamp { sec: -sec, nsec: before.subsec_nanos() }
        }
    }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(requested(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        for time in [
            Timestamp { sec: 0, nsec: 0 },
            Timestamp { sec: -1, nsec: 1 },
            Timestamp { sec: -5, nsec: 999_999_999 },
            Timestamp { sec: 1_700_000_000, nsec: 123_456_789 },
        ] {
            assert_eq!(timestamp(system_time(time)), time);
        }
    }

    #[test]
    fn requests_bring_times_before_1970() {
        // The time that fuser 0.18 makes of -5 s and 999,999,999 ns.
        let brought = UNIX_EPOCH - Duration::new(5, 999_999_999);
        assert_eq!(requested(brought), Timestamp { sec: -5, nsec: 999_999_999 });
    }
}
