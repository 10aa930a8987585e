//! The reasons why there is no engine, or no face on it.

use std::path::PathBuf;

use overspill_mount::FuseError;
use overspill_store::StoreError;
use overspill_tmpfs::FsError;

/// The kind of a failure: callers choose exit codes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The mountpoint is not fit.
    Mountpoint,
    /// Something is not permitted.
    Permission,
    /// FUSE is missing.
    Fuse,
    /// The store is refused or cannot be had.
    Store,
    /// The memory does not suffice.
    Memory,
    /// Anything else.
    Other,
}

/// The failure of an engine or of a face. Each message says which step failed, on which object, and a remedy.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store would page to itself (R14).
    #[error("no store at {}: it lies on the mount it is to serve; choose a place outside {}", .0.display(), .1.display())]
    StoreOnItself(PathBuf, PathBuf),
    /// The store would page to another pager.
    #[error("no store at {}: it lies on another overspill mount; choose a disk, or --force to page twice", .0.display())]
    StoreOnOverspill(PathBuf),
    /// The store would take the memory that it should save.
    #[error("no store at {}: it lies on a tmpfs, which is memory; choose a disk, --store none, or --force", .0.display())]
    StoreOnTmpfs(PathBuf),
    /// Too little memory for buffers.
    #[error("{0} bytes of memory do not hold even the buffers; give at least 4M")]
    Memory(u64),
    /// Too little memory for the buffers of one more face.
    #[error(
        "{needed} bytes for the buffers of another mount are more than memory has to spare; give more memory"
    )]
    NoRoom {
        /// Bytes of the buffers.
        needed: usize,
        /// The VM's refusal.
        #[source]
        source: overspill_vm::VmError,
    },
    /// No address space, or no threads.
    #[error("the pager cannot start: {0}; check ulimit -v and -u")]
    Start(#[source] std::io::Error),
    /// See [`FuseError`].
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// See [`FsError`].
    #[error("the file system cannot start: {0}; give it more memory")]
    Fs(#[from] FsError),
}

impl EngineError {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            EngineError::Store(_)
            | EngineError::StoreOnItself(..)
            | EngineError::StoreOnOverspill(_)
            | EngineError::StoreOnTmpfs(_) => ErrorKind::Store,
            EngineError::Memory(_) | EngineError::NoRoom { .. } | EngineError::Fs(_) => ErrorKind::Memory,
            EngineError::Fuse(FuseError::NoDevice | FuseError::NoFusermount) => ErrorKind::Fuse,
            EngineError::Fuse(
                FuseError::DeviceRefused | FuseError::Permission(..) | FuseError::AllowOther,
            ) => ErrorKind::Permission,
            EngineError::Fuse(_) | EngineError::Start(_) => ErrorKind::Other,
        }
    }
}
