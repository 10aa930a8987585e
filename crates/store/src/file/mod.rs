//! A store in an unnamed file.
//!
//! ```text
//!              maintain(true): fallocate                allocate
//!   absent ───────────────────────────────► free ───────────────────► allocated
//!      ▲                                     │  ▲                          │
//!      └── maintain: punch, whole GROUPs ────┘  └─────────── free ─────────┘
//! ```
//!
//! - Only *free* blocks can be handed out, and free blocks are backed by the disk: writing to them makes the
//!   host file system allocate nothing (R35, R61). Blocks beyond the frontier and punched groups are *absent*.
//! - The space lock is held for moments, never over a system call or a heap allocation: pageout takes it. The
//!   upkeep lock serialises [`Space::maintain`], which nobody in a hurry calls. Order: upkeep, then space.
//! - What maintain works on it has first **taken** from the allocator, as if it were anyone's run; so nobody can
//!   be given a block that is being punched, and nothing needs checking afterwards.
//! - The file has no name from the start, and vanishes with the process, however that ends.

mod io;
mod open;
mod per_object;
mod upkeep;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Mutex;

pub use io::IoMode;
pub use open::{FsKind, Location, StoreError, check_location};
pub use per_object::PerObjectStore;

use crate::blist::{Blist, GROUP};
use crate::{AllocError, BLOCK, Backend, Run, Space, Usage, check_range, lock};

/// Free, prepared blocks that are kept ahead of the allocator by default: 32 MiB.
const AHEAD: u32 = 8192;

/// A store in an unnamed file of a directory that its user chose. The module's source shows how space moves.
#[derive(Debug)]
pub struct FileStore {
    io: io::Io,
    capacity: u32,
    /// Blocks to keep prepared.
    ahead: u32,
    /// Blocks that the first step prepares; later steps double the total.
    first_step: u32,
    /// Bytes to leave free on the disk (R39).
    keep_free: u64,
    space: Mutex<Blocks>,
    upkeep: Mutex<upkeep::Upkeep>,
}

/// State of the allocator. Pageout takes its lock: see the module.
#[derive(Debug)]
struct Blocks {
    blist: Blist,
    /// Blocks handed out.
    allocated: u32,
    /// Blocks below the frontier that are not on the disk; taken from `blist`.
    absent: u32,
    /// The disk refused more space when last asked.
    refused: bool,
    /// An allocation failed since space was last prepared.
    starved: bool,
}

impl Blocks {
    /// Whether preparing more may help.
    fn can_grow(&self) -> bool {
        !self.refused && (self.absent > 0 || self.blist.prepared() < self.blist.capacity())
    }
}

impl FileStore {
    /// Creates a store of up to `capacity_blocks` in an unnamed file in `dir`.
    pub fn in_directory(dir: &Path, capacity_blocks: u32) -> Result<FileStore, StoreError> {
        Ok(Self::new(open::unnamed(dir)?, capacity_blocks, true))
    }

    /// Creates a store in an unnamed file in the directory of `path`. No file may exist at `path`, unless `force`
    /// allows to remove it.
    pub fn at_path(path: &Path, capacity_blocks: u32, force: bool) -> Result<FileStore, StoreError> {
        Ok(Self::new(open::at_path(path, force)?, capacity_blocks, true))
    }

    fn new(file: std::fs::File, capacity: u32, direct: bool) -> FileStore {
        let capacity = capacity.min(largest_file());
        FileStore {
            io: io::Io::new(file, direct),
            capacity,
            ahead: AHEAD.min(capacity / 4).max(GROUP),
            first_step: GROUP,
            keep_free: 0,
            space: Mutex::new(Blocks {
                blist: Blist::new(capacity),
                allocated: 0,
                absent: 0,
                refused: false,
                starved: false,
            }),
            upkeep: Mutex::default(),
        }
    }

    /// Leaves at least this many bytes free on the disk when growing (R39).
    #[must_use]
    pub fn keep_free(mut self, bytes: u64) -> FileStore {
        self.keep_free = bytes;
        self
    }

    /// Keeps about this many bytes prepared ahead of the allocator while there is pressure.
    #[must_use]
    pub fn ahead(mut self, bytes: u64) -> FileStore {
        let blocks = u32::try_from(bytes / BLOCK as u64).unwrap_or(u32::MAX);
        self.ahead = blocks.max(GROUP);
        self
    }

    /// Goes through the page cache even where direct I/O would work.
    #[must_use]
    pub fn buffered(self) -> FileStore {
        self.io.become_buffered();
        self
    }

    /// The kind of I/O on the file. May change from direct to buffered at the first I/O.
    #[must_use]
    pub fn mode(&self) -> IoMode {
        self.io.mode()
    }

    fn offset(block: u64) -> u64 {
        block * BLOCK as u64
    }
}

/// Most blocks of a file of this process. Beyond RLIMIT_FSIZE the kernel would send a signal, not an error.
fn largest_file() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    limit.and_then(|bytes| u32::try_from(bytes / BLOCK as u64).ok()).unwrap_or(u32::MAX)
}

impl Space for FileStore {
    /// `min` is at most [`GROUP`]: longer runs are not promised, so asking for one is answered `Full`.
    fn allocate(&self, _hint: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        if min > GROUP {
            return Err(AllocError::Full);
        }
        let mut space = lock(&self.space);
        if let Some(run) = space.blist.allocate(min, max) {
            space.allocated += run.blocks;
            return Ok(run);
        }
        space.starved = true;
        Err(if space.can_grow() { AllocError::NotReady } else { AllocError::Full })
    }

    fn free(&self, run: Run) {
        let mut space = lock(&self.space);
        let freed = space.blist.free(run);
        space.allocated = space.allocated.saturating_sub(freed);
        drop(space);
        debug_assert_eq!(freed, run.blocks, "blocks of {run:?} were free already");
    }

    fn maintain(&self, pressure: bool) -> bool {
        let mut upkeep = lock(&self.upkeep);
        if pressure && self.wants_more() && self.grow(&mut upkeep) {
            return self.wants_more() || self.surplus(pressure) > 0;
        }
        if !pressure {
            self.io.settle();
        }
        self.give_back(&mut upkeep, pressure)
    }

    fn usage(&self) -> Usage {
        let allocated = lock(&self.space).allocated;
        let blocks = rustix::fs::fstat(&self.io.file).map_or(0, |s| s.st_blocks);
        Usage {
            allocated_blocks: u64::from(allocated),
            capacity_blocks: u64::from(self.capacity),
            file_bytes: u64::try_from(blocks).unwrap_or(0) * 512,
            disk_free_bytes: self.disk_free().saturating_sub(self.keep_free),
        }
    }
}

impl Backend for FileStore {
    fn write(&self, start: u64, buf: &[u8]) -> std::io::Result<()> {
        check_range(start, buf.len(), self.capacity)?;
        self.io.write(Self::offset(start), buf)
    }

    fn read(&self, start: u64, buf: &mut [u8]) -> std::io::Result<()> {
        check_range(start, buf.len(), self.capacity)?;
        self.io.read(Self::offset(start), buf)
    }

    fn direct(&self, start: u64, len: usize) -> Option<(BorrowedFd<'_>, u64)> {
        check_range(start, len, self.capacity).ok()?;
        (self.mode() == IoMode::Direct).then(|| (self.io.file.as_fd(), Self::offset(start)))
    }
}
