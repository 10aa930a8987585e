//! Conversions between the file system's types and the kernel's.

use overspill_fuse::abi::{self, SetattrIn, fattr};
use overspill_tmpfs::{Attr, FileKind, SetAttr, SetTime, Timestamp};

/// The attributes of a node. With `writeback` a regular file shows a page at least: the kernel then shows the last count
/// it was sent until data reaches us, and tools take a file that has bytes and no blocks for nothing but zeros
/// (`tar -S` archives it so).
pub(crate) fn attr(attr: &Attr, writeback: bool) -> abi::Attr {
    let least = if writeback && attr.kind == FileKind::Regular { 8 } else { 0 };
    abi::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks.max(least),
        atime: attr.atime.sec.cast_unsigned(),
        mtime: attr.mtime.sec.cast_unsigned(),
        ctime: attr.ctime.sec.cast_unsigned(),
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: attr.kind.mode_bits() | attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// The type of a directory entry, as `d_type` has it.
pub(crate) fn entry_kind(kind: FileKind) -> u32 {
    kind.mode_bits() >> 12
}

fn time(sec: u64, nsec: u32) -> Timestamp {
    Timestamp { sec: sec.cast_signed(), nsec: nsec.min(999_999_999) }
}

/// The changes that a SETATTR asks for.
pub(crate) fn changes(args: &SetattrIn) -> SetAttr {
    let wants = |flag: u32| args.valid & flag != 0;
    let set_time = |at: u32, now: u32, sec: u64, nsec: u32| {
        wants(at).then(|| if wants(now) { SetTime::Now } else { SetTime::At(time(sec, nsec)) })
    };
    SetAttr {
        mode: wants(fattr::MODE).then_some(args.mode & 0o7777),
        uid: wants(fattr::UID).then_some(args.uid),
        gid: wants(fattr::GID).then_some(args.gid),
        size: wants(fattr::SIZE).then_some(args.size),
        atime: set_time(fattr::ATIME, fattr::ATIME_NOW, args.atime, args.atimensec),
        mtime: set_time(fattr::MTIME, fattr::MTIME_NOW, args.mtime, args.mtimensec),
        ctime: wants(fattr::CTIME).then(|| time(args.ctime, args.ctimensec)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_those_whose_flags_are_set() {
        let args = SetattrIn {
            valid: fattr::SIZE | fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW,
            size: 7,
            mode: 0o777,
            atime: (-5i64).cast_unsigned(),
            atimensec: 999_999_999,
            ..SetattrIn::default()
        };
        let set = changes(&args);
        assert_eq!((set.size, set.mode), (Some(7), None));
        assert_eq!(set.atime, Some(SetTime::At(Timestamp { sec: -5, nsec: 999_999_999 })));
        assert_eq!(set.mtime, Some(SetTime::Now));
    }
}
