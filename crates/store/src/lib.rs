//! Where overspill puts pages that memory cannot hold.
//!
//! A [`Store`] is an array of 4 KiB blocks, handed out in runs ([`Space`]), and the I/O on them ([`Backend`]). It knows
//! nothing of objects, pages and clusters, and keeps nothing that means anything by itself (R5).
//!
//! ```text
//!   pageout ──allocate──► Run ──write──► blocks     allocate, free: never block, never allocate (R35, R57)
//!   page-in ──read──────► blocks                    write, read: block; on a driver's thread
//!   upkeep  ──maintain──► preallocates ahead, punches holes behind, in large pieces
//! ```
#![forbid(unsafe_code)]

pub mod blist;
pub mod faulty;
mod file;
mod mem;

use std::io;
use std::os::fd::BorrowedFd;

pub use faulty::{FaultCounts, Faults, FaultyStore};
pub use file::{FileStore, FsKind, IoMode, Location, PerObjectStore, StoreError, check_location};
pub use mem::MemStore;

/// The unit of store space, in bytes. Equal to a page, and to what O_DIRECT demands of every disk.
pub const BLOCK: usize = 4096;

/// A run of neighbouring blocks that belongs to whoever holds it. Give it back with [`Space::free`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub start: u64,
    /// How many blocks; never 0.
    pub blocks: u32,
}

impl Run {
    /// The block behind its last one.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start.saturating_add(u64::from(self.blocks))
    }
}

/// Why no run could be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// There is room, but it is not prepared yet: run [`Space::maintain`] and ask again.
    #[error("store space is not prepared yet")]
    NotReady,
    /// The store is full, or its disk is: nothing will come of waiting but a [`Space::free`].
    #[error("store is full")]
    Full,
}

/// What a store holds and costs, for `stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks handed out in runs and not yet freed.
    pub allocated_blocks: u64,
    /// Blocks that may ever be handed out.
    pub capacity_blocks: u64,
    /// Bytes the store takes on its disk now (`st_blocks`), preallocated ones included.
    pub file_bytes: u64,
    /// Bytes its disk could still give.
    pub disk_free_bytes: u64,
}

/// An array of blocks that are handed out in runs. All methods may be called from several threads at once.
pub trait Space: Send + Sync {
    /// Takes a run of at least `min` and at most `max` blocks (`1 <= min <= max`), the longest that is cheap to find.
    /// `hint` is a placement hint: data of one hint (an object's number) had better lie together (R59); most spaces
    /// ignore it. Never blocks on I/O and allocates no memory, because pageout calls it when there is none (R35).
    ///
    /// # Errors
    /// [`AllocError::NotReady`] until [`Space::maintain`] has prepared more; [`AllocError::Full`].
    fn allocate(&self, hint: u32, min: u32, max: u32) -> Result<Run, AllocError>;

    /// True if runs of different hints lie apart, so that one write had better hold data of one hint.
    fn separates(&self) -> bool {
        false
    }

    /// True if any block-aligned part of a run can be freed; false if a run must be freed as a whole.
    fn frees_parts(&self) -> bool {
        true
    }

    /// Gives back a run or, where [`Space::frees_parts`], any block-aligned part of one. Never blocks on I/O, allocates no
    /// memory.
    fn free(&self, run: Run);

    /// Work kept off the pageout path: preallocates ahead of the allocator, and gives freed space back to the disk in
    /// large pieces. `pressure` says that pageout is or will soon be writing; without it nothing is preallocated (R9).
    /// Blocks. Returns true if there is more to do at once.
    fn maintain(&self, pressure: bool) -> bool;

    /// Counts of blocks and bytes. Cheap; may ask the disk.
    fn usage(&self) -> Usage;
}

/// The I/O of a store. All methods may be called from several threads at once.
pub trait Backend: Send + Sync {
    /// Writes `buf` (a whole number of blocks, page-aligned in memory) at block `start`. Blocks.
    ///
    /// # Errors
    /// The device's. Nothing of the write counts as written then.
    fn write(&self, start: u64, buf: &[u8]) -> io::Result<()>;

    /// Reads `buf.len()` bytes (a whole number of blocks, page-aligned in memory) from block `start`. Blocks.
    ///
    /// # Errors
    /// The device's.
    fn read(&self, start: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The open file, and the byte in it, where `len` bytes from block `start` on lie, for a driver that does direct I/O by
    /// itself (io_uring); always the same file. `None`, the default, if there is no such file, or no longer.
    /// [`Backend::read`] and [`Backend::write`] always work, and know what to do with a request that does not go through
    /// whole.
    fn direct(&self, start: u64, len: usize) -> Option<(BorrowedFd<'_>, u64)> {
        let _ = (start, len);
        None
    }
}

/// A place for pages: space, and the I/O on it.
pub trait Store: Space + Backend + 'static {}

impl<T: Space + Backend + 'static> Store for T {}

/// Refuses buffers that break the contract of [`Backend`], in every store alike: what a memory store would
/// forgive, a disk would not.
fn check_buffer(buf: &[u8]) -> io::Result<()> {
    if buf.len().is_multiple_of(BLOCK) && buf.as_ptr().addr().is_multiple_of(BLOCK) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "buffer is not page-aligned or not whole blocks"))
}

/// The run that an I/O of `len` bytes at block `start` covers, if it lies within the store.
fn check_range(start: u64, len: usize, capacity: u32) -> io::Result<Run> {
    u32::try_from(len / BLOCK)
        .ok()
        .filter(|blocks| start.checked_add(u64::from(*blocks)).is_some_and(|end| end <= u64::from(capacity)))
        .map(|blocks| Run { start, blocks })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "blocks beyond the end of the store"))
}

/// Locks whether or not another thread panicked meanwhile: what these locks guard is whole between statements.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
