//! Helpers of the tests: a VM of a given number of frames, a store in memory, a clock that ticks when it is read.
#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use overspill_store::{AllocError, BLOCK, Run, Store, Usage};
use overspill_tmpfs::{Attr, Caller, Clock, FsError, SetAttr, Timestamp, TmpFs, TmpFsConfig, WriteFlags};
use overspill_vm::{PAGE, Vm, VmConfig, testing};

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

impl Store for MemStore {
    fn allocate(&self, min: u32, max: u32) -> Result<Run, AllocError> {
        let mut blocks = self.blocks.lock().unwrap();
        let mut start = 0;
        while start < blocks.taken.len() {
            let free = blocks.taken[start..].iter().take(max as usize).take_while(|taken| !**taken).count();
            if free >= min as usize {
                blocks.taken[start..start + free].fill(true);
                return Ok(Run {
                    start: u32::try_from(start).unwrap(),
                    blocks: u32::try_from(free).unwrap(),
                });
            }
            start += free + 1;
        }
        Err(AllocError::Full)
    }

    fn free(&self, run: Run) {
        let mut blocks = self.blocks.lock().unwrap();
        let taken = &mut blocks.taken[run.start as usize..(run.start + run.blocks) as usize];
        assert!(taken.iter().all(|taken| *taken), "double free of {run:?}");
        taken.fill(false);
    }

    fn write(&self, start: u32, buf: &[u8]) -> std::io::Result<()> {
        let at = start as usize * BLOCK;
        self.blocks.lock().unwrap().bytes[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn read(&self, start: u32, buf: &mut [u8]) -> std::io::Result<()> {
        let at = start as usize * BLOCK;
        buf.copy_from_slice(&self.blocks.lock().unwrap().bytes[at..at + buf.len()]);
        if self.damage.load(Ordering::Relaxed) {
            buf[0] ^= 0x55;
        }
        Ok(())
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

/// A VM over `store` with room for `frames` pages and their metadata.
pub(crate) fn vm_on(frames: usize, store: Arc<MemStore>) -> Vm {
    let mut config = VmConfig::new(64 << 20);
    config.batch_bytes = VmConfig::new(1).batch_bytes;
    config.batches = 2;
    config.fetch_slots = 4;
    let probe = Vm::new(&config, Some(store.clone())).unwrap();
    let buffers = config.memory_bytes - probe.stats().limit_bytes;
    config.memory_bytes = buffers + frames * PAGE;
    Vm::new(&config, Some(store)).unwrap()
}

pub(crate) fn vm(frames: usize) -> Vm {
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

pub(crate) fn config(vm: &Vm, size_pages: u64) -> TmpFsConfig {
    TmpFsConfig {
        vm: vm.clone(),
        size_pages,
        nr_inodes: None,
        mode: 0o1777,
        uid: 0,
        gid: 0,
        clock: Ticks::new(),
    }
}

pub(crate) fn fs_on(vm: &Vm, size_pages: u64) -> TmpFs {
    TmpFs::new(config(vm, size_pages)).unwrap()
}

/// A file system with ample memory and space.
pub(crate) fn fs() -> TmpFs {
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

pub(crate) fn read(fs: &TmpFs, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
    let mut buf = vec![0xEE; len];
    let n = testing::block_on(fs.vm(), fs.read(ino, offset, &mut buf))?;
    buf.truncate(n);
    Ok(buf)
}

pub(crate) fn write(fs: &TmpFs, ino: u64, offset: u64, data: &[u8]) -> Result<usize, FsError> {
    testing::block_on(fs.vm(), fs.write(ino, offset, data, WriteFlags::default()))
}

pub(crate) fn write_with(
    fs: &TmpFs,
    ino: u64,
    offset: u64,
    data: &[u8],
    flags: WriteFlags,
) -> Result<usize, FsError> {
    testing::block_on(fs.vm(), fs.write(ino, offset, data, flags))
}

pub(crate) fn setattr(fs: &TmpFs, ino: u64, set: SetAttr) -> Result<Attr, FsError> {
    testing::block_on(fs.vm(), fs.setattr(ino, set, ME))
}

pub(crate) fn truncate(fs: &TmpFs, ino: u64, size: u64) -> Result<Attr, FsError> {
    setattr(fs, ino, SetAttr { size: Some(size), ..SetAttr::default() })
}

/// Lists a directory's names with their inodes, without the dots.
pub(crate) fn list(fs: &TmpFs, dir: u64) -> Vec<(Vec<u8>, Attr)> {
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
