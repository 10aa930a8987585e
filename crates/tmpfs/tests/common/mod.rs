//! Helpers of the tests: a VM of a given number of frames, a store in memory, a clock that ticks when it is read.
#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use overspill_store::{AllocError, BLOCK, Backend, Run, Space, Usage};
use overspill_tmpfs::{Attr, Caller, Clock, FsError, SetAttr, Timestamp, TmpFs, TmpFsConfig, WriteFlags};
use overspill_vm::{PAGE, Pager, VmConfig, testing};

pub(crate) const ROOT: u64 = overspill_tmpfs::ROOT_INO;
pub(crate) const ME: Caller = Caller { uid: 1000, gid: 1000, privileged: false };

/// Blocks in memory, with a first-fit allocator and a switch that damages reads.
pub(crate) struct MemStore {
    blocks: Mutex<Blocks>,
    pub(crate) damage: AtomicBool,
}

struct Blocks {
    bytes: Vec<u8>,
    taken: Vec<bool>,
}

impl MemStore {
    pub(crate) fn new(blocks: usize) -> Arc<MemStore> {
        let blocks = Blocks { bytes: vec![0; blocks * BLOCK], taken: vec![false; blocks] };
        Arc::new(MemStore { blocks: Mutex::new(blocks), damage: AtomicBool::new(false) })
    }
}

impl Space for MemStore {
    fn allocate(&self, _owner: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        let mut blocks = self.blocks.lock().unwrap();
        let mut start = 0;
        while start < blocks.taken.len() {
            let free = blocks.taken[start..].iter().take(max as usize).take_while(|taken| !**taken).count();
            if free >= min as usize {
                blocks.taken[start..start + free].fill(true);
                return Ok(Run { start: start as u64, blocks: u32::try_from(free).unwrap() });
            }
            start += free + 1;
        }
        Err(AllocError::Full)
    }

    fn free(&self, run: Run) {
        let mut blocks = self.blocks.lock().unwrap();
        let range = usize::try_from(run.start).unwrap()..usize::try_from(run.end()).unwrap();
        let taken = &mut blocks.taken[range];
        assert!(taken.iter().all(|taken| *taken), "double free of {run:?}");
        taken.fill(false);
    }

    fn maintain(&self, _pressure: bool) -> bool {
        false
    }

    fn usage(&self) -> Usage {
        let blocks = self.blocks.lock().unwrap();
        let allocated = blocks.taken.iter().filter(|taken| **taken).count() as u64;
        Usage { allocated_blocks: allocated, capacity_blocks: blocks.taken.len() as u64, ..Usage::default() }
    }
}

impl Backend for MemStore {
    fn write(&self, start: u64, buf: &[u8]) -> std::io::Result<()> {
        let at = usize::try_from(start).unwrap() * BLOCK;
        self.blocks.lock().unwrap().bytes[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn read(&self, start: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let at = usize::try_from(start).unwrap() * BLOCK;
        buf.copy_from_slice(&self.blocks.lock().unwrap().bytes[at..at + buf.len()]);
        if self.damage.load(Ordering::Relaxed) {
            buf[0] ^= 0x55;
        }
        Ok(())
    }
}

/// A VM with room for `frames` pages and whatever metadata takes of them, over a store of `blocks`.
pub(crate) fn vm_on(frames: usize, store: Arc<MemStore>) -> Pager {
    let mut config = VmConfig::new(64 << 20);
    config.batch_bytes = VmConfig::new(1).batch_bytes;
    config.batches = 2;
    config.fetch_slots = 4;
    let probe = Pager::new(&config, vec![store.clone()]).unwrap();
    let buffers = config.memory_bytes - probe.stats().limit_bytes;
    config.memory_bytes = buffers + frames * PAGE;
    Pager::new(&config, vec![store]).unwrap()
}

pub(crate) fn vm(frames: usize) -> Pager {
    vm_on(frames, MemStore::new(8192))
}

/// A clock in seconds that advances by one each time it is read.
pub(crate) struct Ticks(AtomicI64);

impl Clock for Ticks {
    fn now(&self) -> Timestamp {
        Timestamp { sec: self.0.fetch_add(1, Ordering::Relaxed), nsec: 7 }
    }
}

impl Ticks {
    pub(crate) fn new() -> Arc<Ticks> {
        Arc::new(Ticks(AtomicI64::new(1_000_000)))
    }

    pub(crate) fn set(&self, sec: i64) {
        self.0.store(sec, Ordering::Relaxed);
    }
}

pub(crate) fn config(vm: &Pager, size_pages: u64) -> TmpFsConfig {
    TmpFsConfig {
        vm: vm.vm().clone(),
        size_pages,
        nr_inodes: None,
        mode: 0o1777,
        uid: 0,
        gid: 0,
        clock: Ticks::new(),
    }
}

pub(crate) fn fs_on(vm: &Pager, size_pages: u64) -> Fs {
    Fs::new(vm, config(vm, size_pages))
}

/// A file system, and the pager of its VM: tests drive it.
pub(crate) struct Fs {
    pub(crate) fs: TmpFs,
    pub(crate) pager: Pager,
}

impl Fs {
    pub(crate) fn new(pager: &Pager, config: TmpFsConfig) -> Fs {
        Fs { fs: TmpFs::new(config).unwrap(), pager: pager.clone() }
    }
}

impl std::ops::Deref for Fs {
    type Target = TmpFs;
    fn deref(&self) -> &TmpFs {
        &self.fs
    }
}

/// A file system with plenty of everything.
pub(crate) fn fs() -> Fs {
    fs_on(&vm(4096), 4096)
}

/// Incompressible bytes.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    })
    .take(len)
    .collect()
}

// The waiting operations, driven to completion in place.

pub(crate) fn read(fs: &Fs, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
    let mut buf = vec![0xEE; len];
    let n = testing::block_on(&fs.pager, fs.read(ino, offset, &mut buf))?;
    buf.truncate(n);
    Ok(buf)
}

pub(crate) fn write(fs: &Fs, ino: u64, offset: u64, data: &[u8]) -> Result<usize, FsError> {
    testing::block_on(&fs.pager, fs.write(ino, offset, data, WriteFlags::default()))
}

pub(crate) fn write_with(
    fs: &Fs,
    ino: u64,
    offset: u64,
    data: &[u8],
    flags: WriteFlags,
) -> Result<usize, FsError> {
    testing::block_on(&fs.pager, fs.write(ino, offset, data, flags))
}

pub(crate) fn setattr(fs: &Fs, ino: u64, set: SetAttr) -> Result<Attr, FsError> {
    testing::block_on(&fs.pager, fs.setattr(ino, set, ME))
}

pub(crate) fn truncate(fs: &Fs, ino: u64, size: u64) -> Result<Attr, FsError> {
    setattr(fs, ino, SetAttr { size: Some(size), ..SetAttr::default() })
}

/// A directory's names with their inodes, without the dots.
pub(crate) fn list(fs: &Fs, dir: u64) -> Vec<(Vec<u8>, Attr)> {
    let mut found = Vec::new();
    fs.readdir_plus(dir, 0, &mut |entry, attr| {
        assert_eq!((entry.ino, entry.kind), (attr.ino, attr.kind));
        if entry.name != b"." && entry.name != b".." {
            found.push((entry.name.to_vec(), *attr));
        }
        true
    })
    .unwrap();
    found
}
