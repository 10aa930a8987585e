//! The plain types of the interface.

use crate::FsError;

/// Set-user-id on execution.
pub(crate) const SET_UID: u32 = 0o4000;
/// Set-group-id on execution; on a directory, new entries inherit its group.
pub(crate) const SET_GID: u32 = 0o2000;
/// Execution by the group. Without it set-group-id grants no rights and stays.
pub(crate) const GROUP_EXEC: u32 = 0o0010;
/// The bits of a mode other than the file type.
pub(crate) const MODE_BITS: u32 = 0o7777;

/// A time of the real-time clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub sec: i64,
    /// Nanoseconds, below a thousand million.
    pub nsec: u32,
}

/// Source of the time; the file system has no clock of its own.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;
}

impl<F: Fn() -> Timestamp + Send + Sync> Clock for F {
    fn now(&self) -> Timestamp {
        self()
    }
}

/// The file type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileKind {
    /// The kind as the file type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            FileKind::Fifo => 0o010_000,
            FileKind::CharDevice => 0o020_000,
            FileKind::Directory => 0o040_000,
            FileKind::BlockDevice => 0o060_000,
            FileKind::Regular => 0o100_000,
            FileKind::Symlink => 0o120_000,
            FileKind::Socket => 0o140_000,
        }
    }

    /// The kind that the file type bits of a mode name. Zero is a regular file, as for `mknod`.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        match mode & 0o170_000 {
            0 => Some(FileKind::Regular),
            bits => FileKind::ALL.into_iter().find(|kind| kind.mode_bits() == bits),
        }
    }

    pub(crate) const ALL: [FileKind; 7] = [
        FileKind::Regular,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::Socket,
        FileKind::CharDevice,
        FileKind::BlockDevice,
    ];
}

/// The attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode number; never reused.
    pub ino: u64,
    /// The file type.
    pub kind: FileKind,
    /// Permissions with set-id and sticky bits, without the file type.
    pub mode: u32,
    /// Number of hard links; of a directory, two plus its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
    /// Bytes of a file or link target; of a directory, a figure that grows with its entries.
    pub size: u64,
    /// Pages that exist, in memory or in a store, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of data or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// Attributes handed out before that an operation on a file's data has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleAttributes {
    /// Nothing.
    None,
    /// The count of blocks.
    Blocks,
    /// The mode: set-id bits are gone.
    Mode,
}

/// The process on whose behalf an operation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// Owner of new inodes.
    pub uid: u32,
    /// Group of new inodes, unless the directory passes on its own.
    pub gid: u32,
    /// May change a file and keep its set-id bits (CAP_FSETID).
    pub privileged: bool,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The clock's time.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to change; the default changes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permissions with set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a regular file.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
    /// Change time; without it, the clock's time if anything else is set.
    pub ctime: Option<Timestamp>,
}

/// Options of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteFlags {
    /// May use the account's reserve: the data was acknowledged to the writer before.
    pub reserve: bool,
    /// Leave the times alone: the caller sets them by [`TmpFs::setattr`](crate::TmpFs::setattr).
    pub keep_times: bool,
    /// Clear the set-id bits.
    pub kill_suidgid: bool,
}

/// An operation on a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallocateMode {
    /// Allocate space for the range.
    Allocate {
        /// Do not grow the file.
        keep_size: bool,
    },
    /// Make the range a hole; the size stays.
    PunchHole,
    /// Make the range read as zeros, with space allocated.
    ZeroRange {
        /// Do not grow the file.
        keep_size: bool,
    },
}

impl FallocateMode {
    /// Decodes the mode bits of fallocate(2).
    ///
    /// # Errors
    /// [`FsError::Unsupported`] for every other combination.
    pub fn from_bits(bits: u32) -> Result<FallocateMode, FsError> {
        const KEEP_SIZE: u32 = 1;
        const PUNCH_HOLE: u32 = 2;
        const ZERO_RANGE: u32 = 16;
        let keep_size = bits & KEEP_SIZE != 0;
        match bits & !KEEP_SIZE {
            0 => Ok(FallocateMode::Allocate { keep_size }),
            PUNCH_HOLE if keep_size => Ok(FallocateMode::PunchHole),
            ZERO_RANGE => Ok(FallocateMode::ZeroRange { keep_size }),
            _ => Err(FsError::Unsupported),
        }
    }
}

/// The target of a seek.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The first byte at or after the offset that is not in a hole.
    Data,
    /// The first hole at or after the offset; the end of the file is one.
    Hole,
}

/// Behaviour of a rename if the new name exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// The source replaces it.
    Replace,
    /// The rename fails (RENAME_NOREPLACE).
    NoReplace,
    /// The two entries are exchanged; the new name must exist (RENAME_EXCHANGE).
    Exchange,
}

/// Condition for setting an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// None.
    Any,
    /// The attribute must not exist (XATTR_CREATE).
    Create,
    /// The attribute must exist (XATTR_REPLACE).
    Replace,
}

/// A directory entry, as readdir returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Position at which to continue after this entry. Cookies grow along the directory and are never reused in it.
    pub cookie: u64,
    /// The inode number.
    pub ino: u64,
    /// The inode's file type.
    pub kind: FileKind,
    /// The entry's name.
    pub name: &'a [u8],
}

/// Sizes of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Pages that may exist.
    pub pages: u64,
    /// Free pages.
    pub pages_free: u64,
    /// Inodes that may exist: the limit, or without one the existing inodes and those there is memory for.
    pub inodes: u64,
    /// Inodes that can be created now: as many as the limit and the memory for metadata allow.
    pub inodes_free: u64,
}

/// Inodes without a name that are still referenced. They are freed by [`TmpFs::forget`](crate::TmpFs::forget).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orphans {
    /// Number of inodes.
    pub inodes: u64,
    /// Pages of their data.
    pub pages: u64,
}

/// Counts for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsStats {
    /// Inodes that exist, orphans included.
    pub inodes: u64,
    /// Limit on inodes, if any.
    pub inodes_limit: Option<u64>,
    /// Pages of data that exist.
    pub pages: u64,
    /// Limit on pages of data.
    pub pages_limit: u64,
    /// Inodes without a name that are still referenced.
    pub orphans: Orphans,
}
