//! The messages of the protocol, as the kernel lays them out (`include/uapi/linux/fuse.h`, 7.31 to 7.45). All numbers are
//! in the machine's byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's major version, which has never changed since.
pub const MAJOR: u32 = 7;
/// The newest minor version that this crate knows.
pub const MINOR: u32 = 45;
/// The oldest that it speaks (Linux 5.4).
pub const OLDEST_MINOR: u32 = 31;

/// Numbers of requests.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
}

/// Flags of INIT. Those above 31 are in `flags2`.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod init_flag {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Bits of [`SetattrIn::valid`].
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
}

/// GETATTR names an open file.
pub const GETATTR_FH: u32 = 1;
/// WRITE comes from the kernel's cache: its write(2) has returned.
pub const WRITE_CACHE: u32 = 1;
/// WRITE must clear set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// The kernel keeps its cache of a file over its opening.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Closing needs no FLUSH.
pub const FOPEN_NOFLUSH: u32 = 1 << 5;

/// Numbers of notifications.
pub const NOTIFY_INVAL_INODE: i32 = 2;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident ($size:literal) { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[allow(missing_docs, reason = "the kernel's own names")]
            pub struct $name {
                $(pub $field: $type,)*
            }

            const _: () = assert!(size_of::<$name>() == $size);
        )*

        #[cfg(test)]
        const SIZES: &[(&str, usize)] = &[$((stringify!($name), $size)),*];
    };
}

messages! {
    /// Before each request.
    InHeader (40) { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16, }
    /// Before each reply and notification.
    OutHeader (16) { len: u32, error: i32, unique: u64, }
    /// INIT, as of 7.31.
    InitIn (16) { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// The part that INIT has behind that from 7.36 on.
    InitExt (48) { flags2: u32, unused: [u32; 11], }
    /// Reply to INIT.
    InitOut (64) {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// Attributes of a node.
    Attr (88) {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Reply that names a node.
    EntryOut (128) {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    /// Reply with attributes.
    AttrOut (104) { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// FORGET.
    ForgetIn (8) { nlookup: u64, }
    /// BATCH_FORGET; so many [`ForgetOne`] follow.
    BatchForgetIn (8) { count: u32, dummy: u32, }
    /// One of BATCH_FORGET.
    ForgetOne (16) { nodeid: u64, nlookup: u64, }
    /// GETATTR.
    GetattrIn (16) { flags: u32, dummy: u32, fh: u64, }
    /// SETATTR.
    SetattrIn (88) {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// MKNOD; a name follows.
    MknodIn (16) { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// MKDIR; a name follows.
    MkdirIn (8) { mode: u32, umask: u32, }
    /// RENAME; two names follow.
    RenameIn (8) { newdir: u64, }
    /// RENAME2; two names follow.
    Rename2In (16) { newdir: u64, flags: u32, padding: u32, }
    /// LINK; a name follows.
    LinkIn (8) { oldnodeid: u64, }
    /// OPEN and OPENDIR.
    OpenIn (8) { flags: u32, open_flags: u32, }
    /// Reply to OPEN, and the second part of that to CREATE.
    OpenOut (16) { fh: u64, open_flags: u32, backing_id: i32, }
    /// CREATE; a name follows.
    CreateIn (16) { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// READ, READDIR and READDIRPLUS.
    ReadIn (40) { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// WRITE; the data follows.
    WriteIn (40) { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// Reply to WRITE.
    WriteOut (8) { size: u32, padding: u32, }
    /// Reply to STATFS.
    StatfsOut (80) {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// SETXATTR; a name and a value follow.
    SetxattrIn (8) { size: u32, flags: u32, }
    /// GETXATTR and LISTXATTR.
    GetxattrIn (8) { size: u32, padding: u32, }
    /// Reply to GETXATTR and LISTXATTR of size 0.
    GetxattrOut (8) { size: u32, padding: u32, }
    /// INTERRUPT.
    InterruptIn (8) { unique: u64, }
    /// FALLOCATE.
    FallocateIn (32) { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// LSEEK.
    LseekIn (24) { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// Reply to LSEEK.
    LseekOut (8) { offset: u64, }
    /// An entry of READDIR; its name follows, and padding to 8 bytes.
    Dirent (24) { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// Drops the kernel's copy of a node.
    NotifyInvalInode (24) { ino: u64, off: i64, len: i64, }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Where the kernel's header is installed, the sizes are the compiler's own.
    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(SIZES.len(), 34);
        for (field, at) in [
            (offset_of!(InHeader, pid), 32),
            (offset_of!(InitOut, max_write), 20),
            (offset_of!(InitOut, max_pages), 28),
            (offset_of!(InitOut, flags2), 32),
            (offset_of!(Attr, mode), 60),
            (offset_of!(Attr, blksize), 80),
            (offset_of!(EntryOut, attr), 40),
            (offset_of!(AttrOut, attr), 16),
            (offset_of!(SetattrIn, mode), 68),
            (offset_of!(SetattrIn, uid), 76),
            (offset_of!(ReadIn, size), 16),
            (offset_of!(WriteIn, write_flags), 20),
            (offset_of!(StatfsOut, namelen), 44),
            (offset_of!(FallocateIn, mode), 24),
            (offset_of!(Dirent, namelen), 16),
        ] {
            assert_eq!(field, at);
        }
    }
}
