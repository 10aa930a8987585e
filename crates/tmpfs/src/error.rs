//! Errors of operations, and their error numbers.

use overspill_vm::VmError;
use rustix::io::Errno;

/// The reason why a file system operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// No such name, or the directory was removed (ENOENT).
    #[error("no such file or directory")]
    NotFound,
    /// No inode has this number, or none any more (ESTALE).
    #[error("no such inode")]
    Stale,
    /// The name is taken (EEXIST).
    #[error("file exists")]
    Exists,
    /// Not a directory (ENOTDIR).
    #[error("not a directory")]
    NotDirectory,
    /// A directory, where something else is needed (EISDIR).
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries (ENOTEMPTY).
    #[error("directory not empty")]
    NotEmpty,
    /// An argument makes no sense (EINVAL).
    #[error("invalid argument")]
    Invalid,
    /// `.`, `..` or the root, where an ordinary name is needed (EBUSY).
    #[error("name cannot be moved or removed")]
    Busy,
    /// `nr_inodes` inodes exist (ENOSPC).
    #[error("no inodes left")]
    NoInodes,
    /// The name or link target is too long (ENAMETOOLONG).
    #[error("name too long")]
    NameTooLong,
    /// Beyond [`MAX_FILE_SIZE`](crate::MAX_FILE_SIZE) (EFBIG).
    #[error("file too large")]
    FileTooBig,
    /// This kind of file does not take the operation (EPERM).
    #[error("operation not permitted")]
    NotPermitted,
    /// No such extended attribute (ENODATA).
    #[error("no such attribute")]
    NoAttribute,
    /// The name of an extended attribute is empty or too long (ERANGE).
    #[error("attribute name out of range")]
    Range,
    /// The value or the list of extended attributes is too long (E2BIG).
    #[error("attribute too big")]
    AttributeTooBig,
    /// The inode has the maximum of links (EMLINK).
    #[error("too many links")]
    TooManyLinks,
    /// Not supported here (EOPNOTSUPP).
    #[error("operation not supported")]
    Unsupported,
    /// No data or hole to seek to (ENXIO).
    #[error("no data at or after this offset")]
    NoSuchOffset,
    /// The memory object failed: ENOSPC if space or memory is short, EIO if bytes cannot be read.
    #[error(transparent)]
    Memory(#[from] VmError),
}

impl FsError {
    /// Returns the error number for a system call.
    pub fn errno(self) -> i32 {
        let errno = match self {
            FsError::NotFound => Errno::NOENT,
            FsError::Stale => Errno::STALE,
            FsError::Exists => Errno::EXIST,
            FsError::NotDirectory => Errno::NOTDIR,
            FsError::IsDirectory => Errno::ISDIR,
            FsError::NotEmpty => Errno::NOTEMPTY,
            FsError::Invalid => Errno::INVAL,
            FsError::Busy => Errno::BUSY,
            FsError::NoInodes | FsError::Memory(VmError::NoSpace | VmError::NoMemory) => Errno::NOSPC,
            FsError::NameTooLong => Errno::NAMETOOLONG,
            FsError::FileTooBig => Errno::FBIG,
            FsError::NotPermitted => Errno::PERM,
            FsError::NoAttribute => Errno::NODATA,
            FsError::Range => Errno::RANGE,
            FsError::AttributeTooBig => Errno::TOOBIG,
            FsError::TooManyLinks => Errno::MLINK,
            FsError::Unsupported => Errno::OPNOTSUPP,
            FsError::NoSuchOffset => Errno::NXIO,
            FsError::Memory(_) => Errno::IO,
        };
        errno.raw_os_error()
    }
}
