//! The second layout (R59): a file for each owner, which is what the placement hint names, all without a name, in one directory.
//!
//! ```text
//!   block     window (4096 blocks) | block in it         windows are numbers only: they cost nothing on the disk
//!   window ─► file and window in it ─► block of the file ─► FileStore: allocator, upkeep, I/O
//! ```
//!
//! - What an owner leaves behind goes back to the disk at once, by closing its file: no holes are punched.
//! - A file is made, and prepared, by [`Space::maintain`]; who asks for space of an owner that has none waits for that.
//! - Where no more files may be open, or there are no more windows, owners share the first one.
//! - Locks: upkeep, then files, then those of a [`FileStore`]. Files are locked for writing for moments only.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{FileStore, IoMode, StoreError, open};
use crate::blist::{GROUP, SEGMENT};
use crate::{AllocError, BLOCK, Backend, Run, Space, Usage, lock};

/// Blocks of a window: no run of a [`FileStore`] crosses from one into the next.
const WINDOW: u64 = SEGMENT as u64;

/// Blocks that a file is given first, since most objects are small. Later steps double it.
const FIRST_STEP: u32 = 8;

/// Steps from the first to the size that the longest run needs.
const STEPS: u32 = 8;

/// Open files left to the rest of the process.
const SPARE: u64 = 128;

/// Most owners whose requests are remembered until the next upkeep; others ask again.
const WANTS: usize = 64;

/// Files that one sweep visits.
const SWEEP: usize = 256;

/// The owner of the file shared by owners that cannot have one.
const EVERYBODY: u32 = u32::MAX;

/// A store with a file for each owner.
#[derive(Debug)]
pub struct PerObjectStore {
    dir: PathBuf,
    /// Most files.
    most: usize,
    capacity: u32,
    keep_free: u64,
    files: RwLock<Files>,
    /// Owners that want space, and how many blocks. Allocated in full at the start.
    wants: Mutex<Vec<(u32, u32)>>,
    upkeep: Mutex<Upkeep>,
    /// No more files could be opened when one was last wanted: owners without a file share the first.
    full: AtomicBool,
    /// Of all files: blocks handed out, and blocks on the disk.
    allocated: AtomicU64,
    backed: AtomicU64,
}

#[derive(Debug, Default)]
struct Upkeep {
    /// Position at which the next sweep begins.
    next: usize,
    /// The log says already that files are shared.
    told: bool,
}

#[derive(Debug, Default)]
struct Files {
    of: HashMap<u32, Arc<OwnFile>>,
    /// Indexed by window number.
    windows: Vec<Option<(Arc<OwnFile>, u32)>>,
    /// Window numbers that are free again.
    free: Vec<u32>,
}

/// An owner's file.
#[derive(Debug)]
struct OwnFile {
    owner: u32,
    store: FileStore,
    /// The number of each of the file's windows. Changed with the files locked for writing.
    windows: RwLock<Vec<u32>>,
}

/// How many of `len` bytes from block `start` on lie in its window.
fn in_window(start: u64, len: usize) -> usize {
    let blocks = usize::try_from(WINDOW - start % WINDOW).unwrap_or(usize::MAX);
    len.min(blocks * BLOCK)
}

fn blocks(bytes: usize) -> u64 {
    (bytes / BLOCK) as u64
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl OwnFile {
    /// Converts a run of this file to the block numbers of the whole store.
    fn outer(&self, run: Run) -> Run {
        let window = read(&self.windows)[(run.start / WINDOW) as usize];
        Run { start: u64::from(window) * WINDOW + run.start % WINDOW, ..run }
    }
}

impl PerObjectStore {
    /// Bytes of memory that a file takes, most of it for the allocator's nodes.
    pub const FILE_COST: usize = 5 << 10;

    /// Creates a store of up to `capacity_blocks` in `dir`, in at most `most` files: each takes
    /// [`PerObjectStore::FILE_COST`] of memory, and one of the files that the process may have open.
    ///
    /// # Errors
    /// If files cannot be created there.
    pub fn in_directory(dir: &Path, capacity_blocks: u32, most: usize) -> Result<PerObjectStore, StoreError> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let open = limit.and_then(|files| usize::try_from(files.saturating_sub(SPARE)).ok());
        let store = PerObjectStore {
            most: most.min(open.unwrap_or(usize::MAX)).max(1),
            dir: dir.to_owned(),
            capacity: capacity_blocks,
            keep_free: 0,
            files: RwLock::default(),
            wants: Mutex::new(Vec::with_capacity(WANTS)),
            upkeep: Mutex::default(),
            full: AtomicBool::new(false),
            allocated: AtomicU64::new(0),
            backed: AtomicU64::new(0),
        };
        // The first file is the shared one. Creating it now reports errors of the directory.
        let file = FileStore::new(open::unnamed(dir)?, capacity_blocks, true);
        store.add(EVERYBODY, file.ahead(0));
        Ok(store)
    }

    /// Leaves at least this many bytes free on the disk when growing (R39).
    #[must_use]
    pub fn keep_free(mut self, bytes: u64) -> PerObjectStore {
        self.keep_free = bytes;
        self
    }

    /// The kind of I/O on the files.
    #[must_use]
    pub fn mode(&self) -> IoMode {
        self.file_of(EVERYBODY).map_or(IoMode::Direct, |file| file.store.mode())
    }

    /// Number of files.
    #[must_use]
    pub fn files(&self) -> usize {
        read(&self.files).of.len()
    }

    fn file_of(&self, owner: u32) -> Option<Arc<OwnFile>> {
        read(&self.files).of.get(&owner).cloned()
    }

    fn add(&self, owner: u32, store: FileStore) -> Arc<OwnFile> {
        let file = Arc::new(OwnFile { owner, store, windows: RwLock::default() });
        write(&self.files).of.insert(owner, file.clone());
        file
    }

    /// The file that a window is of, and which of its own it is.
    fn at(&self, start: u64) -> Option<(Arc<OwnFile>, u64)> {
        let (file, inner) = read(&self.files).windows.get((start / WINDOW) as usize)?.clone()?;
        Some((file, u64::from(inner) * WINDOW + start % WINDOW))
    }

    fn want(&self, owner: u32, blocks: u32) {
        let mut wants = lock(&self.wants);
        if wants.len() < WANTS && wants.iter().all(|(known, _)| *known != owner) {
            wants.push((owner, blocks));
        }
    }

    /// Returns the file of an owner that wants space, creating it if there is none; the shared file if that fails.
    fn provide(&self, upkeep: &mut Upkeep, owner: u32) -> Option<Arc<OwnFile>> {
        if let Some(file) = self.file_of(owner) {
            return Some(file);
        }
        let made = if self.files() < self.most { open::unnamed_again(&self.dir).ok() } else { None };
        match made {
            Some(file) => {
                let mut store = FileStore::new(file, self.capacity, self.mode() == IoMode::Direct);
                store.first_step = FIRST_STEP;
                Some(self.add(owner, store.keep_free(self.keep_free).ahead(0)))
            }
            None => {
                if !std::mem::replace(&mut upkeep.told, true) {
                    tracing::info!(files = self.files(), "no more files for the store: objects share one");
                }
                self.full.store(true, Ordering::Relaxed);
                self.file_of(EVERYBODY)
            }
        }
    }

    /// Adds windows for all the space that the next step may prepare. Returns false if numbers run out.
    fn open_windows(&self, file: &Arc<OwnFile>) -> bool {
        let wanted = u64::from(file.store.prepared()) / WINDOW + 2;
        let mut files = write(&self.files);
        let mut own = write(&file.windows);
        while (own.len() as u64) < wanted {
            let number = match files.free.pop() {
                Some(number) => number,
                None if files.windows.len() < (u64::from(u32::MAX) / WINDOW) as usize => {
                    files.windows.push(None);
                    u32::try_from(files.windows.len() - 1).unwrap_or(u32::MAX)
                }
                None => return false,
            };
            files.windows[number as usize] =
                Some((file.clone(), u32::try_from(own.len()).unwrap_or(u32::MAX)));
            own.push(number);
        }
        true
    }

    fn maintain_file(&self, file: &OwnFile, pressure: bool) -> bool {
        let before = u64::from(file.store.backed());
        let more = file.store.maintain(pressure);
        let after = u64::from(file.store.backed());
        self.backed.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        more
    }

    /// Closes a file that holds no run: its space returns to the disk.
    fn close_if_empty(&self, file: &Arc<OwnFile>) {
        let mut files = write(&self.files);
        if file.owner == EVERYBODY || file.store.usage_of_blocks() > 0 {
            return;
        }
        files.of.remove(&file.owner);
        let own = std::mem::take(&mut *write(&file.windows));
        for number in own {
            files.windows[number as usize] = None;
            files.free.push(number);
        }
        drop(files);
        self.full.store(false, Ordering::Relaxed);
        self.backed.fetch_sub(u64::from(file.store.backed()), Ordering::Relaxed);
    }

    /// Closes empty files and, without pressure, maintains the others, some per call. Returns true if there is more to
    /// do.
    fn sweep(&self, upkeep: &mut Upkeep, pressure: bool) -> bool {
        let some: Vec<Arc<OwnFile>> = {
            let files = read(&self.files);
            let count = files.of.len();
            if upkeep.next >= count {
                upkeep.next = 0;
            }
            files.of.values().skip(upkeep.next).take(SWEEP).cloned().collect()
        };
        upkeep.next += some.len();
        let mut more = false;
        for file in &some {
            if file.owner != EVERYBODY && file.store.usage_of_blocks() == 0 {
                self.close_if_empty(file);
                more |= some.len() == SWEEP;
            } else if !pressure {
                more |= self.maintain_file(file, false);
            }
        }
        more
    }
}

impl Space for PerObjectStore {
    fn allocate(&self, owner: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        // Kept locked, so that the file is not closed for being empty meanwhile.
        let files = read(&self.files);
        let own = files.of.get(&owner);
        let shared = || files.of.get(&EVERYBODY).filter(|_| self.full.load(Ordering::Relaxed));
        let Some(file) = own.or_else(shared) else {
            self.want(owner, max);
            return Err(AllocError::NotReady);
        };
        let run = file.store.allocate(owner, min, max).inspect_err(|_| self.want(file.owner, max))?;
        self.allocated.fetch_add(u64::from(run.blocks), Ordering::Relaxed);
        if file.store.is_nearly_out() {
            self.want(file.owner, GROUP);
        }
        Ok(file.outer(run))
    }

    fn separates(&self) -> bool {
        true
    }

    fn free(&self, run: Run) {
        if let Some((file, start)) = self.at(run.start) {
            file.store.free(Run { start, ..run });
            self.allocated.fetch_sub(u64::from(run.blocks), Ordering::Relaxed);
        }
    }

    fn maintain(&self, pressure: bool) -> bool {
        let mut upkeep = lock(&self.upkeep);
        let mut wants = [(0, 0); WANTS];
        let count = {
            let mut list = lock(&self.wants);
            let count = list.len();
            wants[..count].copy_from_slice(&list);
            list.clear();
            count
        };
        // Without pressure no space is prepared: owners that still want some ask again.
        let wants = if pressure { &wants[..count] } else { &[] };
        for (owner, wanted) in wants {
            let Some(file) = self.provide(&mut upkeep, *owner) else { continue };
            for _ in 0..STEPS {
                if !self.open_windows(&file) {
                    break;
                }
                self.maintain_file(&file, true);
                if file.store.free_blocks() >= *wanted {
                    break;
                }
            }
            if file.owner != EVERYBODY && file.store.prepared() == 0 {
                // No window numbers, or no space, are left: the owner shares a file, or gets `Full`.
                self.close_if_empty(&file);
                self.full.store(true, Ordering::Relaxed);
            }
        }
        if wants.is_empty() { self.sweep(&mut upkeep, pressure) } else { count == WANTS }
    }

    fn usage(&self) -> Usage {
        let disk_free = self.file_of(EVERYBODY).map_or(0, |file| file.store.disk_free());
        Usage {
            allocated_blocks: self.allocated.load(Ordering::Relaxed),
            capacity_blocks: u64::from(self.capacity),
            file_bytes: self.backed.load(Ordering::Relaxed) * BLOCK as u64,
            disk_free_bytes: disk_free.saturating_sub(self.keep_free),
        }
    }
}

impl Backend for PerObjectStore {
    fn write(&self, start: u64, buf: &[u8]) -> io::Result<()> {
        let (mut start, mut buf) = (start, buf);
        while !buf.is_empty() {
            let here = in_window(start, buf.len());
            let (file, inner) = self.at(start).ok_or(io::ErrorKind::InvalidInput)?;
            file.store.write(inner, &buf[..here])?;
            (start, buf) = (start.wrapping_add(blocks(here)), &buf[here..]);
        }
        Ok(())
    }

    /// Neighbours by number may be of different files: who joins reads knows nothing of that.
    fn read(&self, start: u64, buf: &mut [u8]) -> io::Result<()> {
        let (mut start, mut buf) = (start, buf);
        while !buf.is_empty() {
            let here = in_window(start, buf.len());
            let (file, inner) = self.at(start).ok_or(io::ErrorKind::InvalidInput)?;
            let (now, rest) = buf.split_at_mut(here);
            file.store.read(inner, now)?;
            (start, buf) = (start.wrapping_add(blocks(here)), rest);
        }
        Ok(())
    }
}

/// What more than one file needs to know of each.
impl FileStore {
    fn prepared(&self) -> u32 {
        lock(&self.space).blist.prepared()
    }

    /// Blocks that the file has on the disk.
    fn backed(&self) -> u32 {
        let space = lock(&self.space);
        space.blist.prepared() - space.absent
    }

    fn free_blocks(&self) -> u32 {
        lock(&self.space).blist.free_blocks()
    }

    fn usage_of_blocks(&self) -> u32 {
        lock(&self.space).allocated
    }

    fn is_nearly_out(&self) -> bool {
        let space = lock(&self.space);
        // A small file mostly has its final size already.
        space.allocated > GROUP && space.can_grow() && space.blist.free_blocks() < GROUP
    }
}
