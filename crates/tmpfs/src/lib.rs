//! A temporary file system on memory objects: names, inodes and POSIX rules, and no FUSE.
//!
//! A regular file is an inode with an `overspill_vm` object, which knows where its bytes are (memory, store, nowhere
//! yet). Everything else here, names, inodes, extended attributes, link targets, is wired memory, charged to the VM
//! while it lives (R5, R69): only pages of data leave memory.
//!
//! [`TmpFs`] is the whole interface. Its namespace operations are plain calls: they take short locks and never
//! wait for memory or a store. Its data operations are futures: they may wait for pageout or page-in, and while
//! they wait they hold no thread and no lock but the file's own gate.
//!
//! This crate leaves to its caller, because a kernel does them better: permission checks, the umask, path walks,
//! advisory locks, and the decision when a read counts as an access ([`TmpFs::accessed`]).
//!
//! Nothing is synchronous with any disk: `fsync` has nothing to do (R4, R63, R65).
#![forbid(unsafe_code)]

mod attr;
mod dir;
mod error;
mod file;
mod fs;
mod inode;
mod lost;
mod namei;
mod rename;
mod slots;
mod sync;
mod table;
mod trie;
mod types;
mod xattr;

pub use error::FsError;
pub use fs::{TmpFs, TmpFsConfig};
pub use types::{
    Attr, Caller, Clock, DirEntry, FallocateMode, FileKind, FsStats, Orphans, RenameMode, SeekTo, SetAttr,
    SetTime, StaleAttributes, StatFs, Timestamp, WriteFlags, XattrMode,
};

/// The root directory's inode number.
pub const ROOT_INO: u64 = 1;

/// The longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// The longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;

/// The largest size of a file: the largest signed offset, which is the kernel's own limit. All data that the kernel
/// accepts from a writer must fit.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// The longest value of an extended attribute, and the longest list of their names.
pub const XATTR_SIZE_MAX: usize = 65536;
