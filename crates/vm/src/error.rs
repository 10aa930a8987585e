//! What can go wrong in the VM.

/// Why an operation on an object failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The account's limit is reached (ENOSPC).
    #[error("no space left in the account")]
    NoSpace,
    /// Memory is full and so is the store: pageout can free nothing; or there is none for metadata (ENOSPC).
    #[error("memory and store are full")]
    NoMemory,
    /// The bytes are gone: their slot in the store was damaged, or they were never taken in (EIO).
    #[error("the data of this page is lost")]
    Lost,
    /// The store could not be read; it may be another time (EIO).
    #[error("the store could not be read")]
    StoreRead,
    /// The VM is going away (EIO).
    #[error("the pager is shutting down")]
    ShutDown,
    /// The frame arena could not be made.
    #[error("the memory for page frames could not be reserved")]
    Arena,
}

impl From<overspill_slab::OutOfMemory> for VmError {
    fn from(_: overspill_slab::OutOfMemory) -> Self {
        VmError::NoMemory
    }
}
