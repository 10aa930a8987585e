//! Errors of the VM.

use std::io;

/// An I/O error, in a form that can be handed to every waiting reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoFailure {
    kind: io::ErrorKind,
    errno: Option<i32>,
}

impl IoFailure {
    /// The same failure as `error`, without its text.
    #[must_use]
    pub fn of(error: &io::Error) -> IoFailure {
        IoFailure { kind: error.kind(), errno: error.raw_os_error() }
    }
}

impl std::fmt::Display for IoFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.errno {
            Some(errno) => io::Error::from_raw_os_error(errno).fmt(f),
            None => self.kind.fmt(f),
        }
    }
}

impl std::error::Error for IoFailure {}

/// Why an operation on an object failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The account's limit is reached (ENOSPC).
    #[error("no space left in the account")]
    NoSpace,
    /// Memory and the store are full, so pageout can free nothing; or there is no memory for metadata (ENOSPC).
    #[error("memory and store are full")]
    NoMemory,
    /// The bytes are gone: their copy in the store was damaged, or they were never taken in (EIO).
    #[error("the data of this page is lost")]
    Lost,
    /// The store could not be read; a later try may succeed (EIO).
    #[error("the store could not be read")]
    StoreRead(#[source] IoFailure),
    /// The source could not be read; a later try may succeed (EIO).
    #[error("the source could not be read")]
    SourceRead(#[source] IoFailure),
    /// The VM is going away (EIO).
    #[error("the pager is shutting down")]
    ShutDown,
    /// The budget cannot be set to this size.
    #[error("memory cannot be limited to this: metadata does not fit, or it is more than was laid out for")]
    Limit,
    /// The frame arena could not be made.
    #[error("the memory for page frames could not be reserved")]
    Arena(#[source] IoFailure),
}

impl From<overspill_slab::OutOfMemory> for VmError {
    fn from(_: overspill_slab::OutOfMemory) -> Self {
        VmError::NoMemory
    }
}
