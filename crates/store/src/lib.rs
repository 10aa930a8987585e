//! Where overspill puts what memory cannot hold.
//!
//! A [`Store`] is an array of 4 KiB blocks with an allocator of runs. It knows nothing of objects and pages:
//! the VM packs pages into clusters ([`codec`]), asks for a [`Run`], and keeps the run, its length and its
//! checksum in memory (R5: the store alone means nothing to anyone).
//!
//! ```text
//!   vm pageout ──allocate──► Run ──write──► blocks          allocate, free: never block, never allocate (R35, R57)
//!   vm fetch   ──read──────► bytes ──codec::decode──► pages  write, read: block; run on a driver's thread
//!   driver     ──maintain──► preallocates ahead, punches behind, in large pieces
//! ```
#![forbid(unsafe_code)]

pub mod blist;
pub mod codec;
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

/// A run of neighbouring blocks that belongs to whoever holds it. Give it back with [`Store::free`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub start: u32,
    /// How many blocks; never 0.
    pub blocks: u32,
}

/// Why no run could be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// There is room, but it is not prepared yet: run [`Store::maintain`] and ask again.
    #[error("store space is not prepared yet")]
    NotReady,
    /// The store is full, or its disk is: nothing will come of waiting but a [`Store::free`].
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

/// A place for blocks. All methods may be called from several threads at once.
pub trait Store: Send + Sync + 'static {
    /// Takes a run of at least `min` and at most `max` blocks (`1 <= min <= max`), the longest that is cheap to
    /// find. Never blocks on I/O and allocates no memory: pageout calls it when there is none (R35, R59).
    fn allocate(&self, min: u32, max: u32) -> Result<Run, AllocError>;

    /// As [`Store::allocate`], for data of `owner` (an object): a store with one file for all does not care.
    fn allocate_for(&self, owner: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        let _ = owner;
        self.allocate(min, max)
    }

    /// Whether different owners' runs lie apart, so that what is written in one piece had better be one owner's.
    fn separates(&self) -> bool {
        false
    }

    /// Gives back a run or any block-aligned part of one. Never blocks on I/O, allocates no memory.
    fn free(&self, run: Run);

    /// Writes `buf` (a whole number of blocks, page-aligned in memory) at block `start`. Blocks.
    fn write(&self, start: u32, buf: &[u8]) -> io::Result<()>;

    /// Reads `buf.len()` bytes (a whole number of blocks, page-aligned in memory) from block `start`. Blocks.
    fn read(&self, start: u32, buf: &mut [u8]) -> io::Result<()>;

    /// The open file, and the place in it, of `len` bytes from block `start` on, for a driver that does direct I/O by itself
    /// (io_uring); always the same file. `None`, the default: there is no such thing, or no more. [`Store::read`] and
    /// [`Store::write`] always do, and know what to do where a request does not go through whole.
    fn direct(&self, start: u32, len: usize) -> Option<(BorrowedFd<'_>, u64)> {
        let _ = (start, len);
        None
    }

    /// Work kept off the pageout path: preallocates ahead of the allocator, and gives freed space back to the
    /// disk in large pieces. `pressure` says that pageout is or will soon be writing; without it nothing is
    /// preallocated (R9). Blocks. Returns whether there is more to do at once.
    fn maintain(&self, pressure: bool) -> bool;

    /// What it holds now. Cheap; may ask the disk.
    fn usage(&self) -> Usage;
}

/// Refuses buffers that break the contract of [`Store`], in every store alike: what a memory store would
/// forgive, a disk would not.
fn check_buffer(buf: &[u8]) -> io::Result<()> {
    if buf.len().is_multiple_of(BLOCK) && buf.as_ptr().addr().is_multiple_of(BLOCK) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "buffer is not page-aligned or not whole blocks"))
}

/// The run that an I/O of `len` bytes at block `start` covers, if it lies within the store.
fn check_range(start: u32, len: usize, capacity: u32) -> io::Result<Run> {
    u32::try_from(len / BLOCK)
        .ok()
        .filter(|blocks| start.checked_add(*blocks).is_some_and(|end| end <= capacity))
        .map(|blocks| Run { start, blocks })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "blocks beyond the end of the store"))
}

/// Locks whether or not another thread panicked meanwhile: what these locks guard is whole between statements.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
