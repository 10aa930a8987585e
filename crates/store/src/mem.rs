//! A store in memory, for tests: it behaves like the file store, and is stricter.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use crate::blist::{Blist, SEGMENT, Stock};
use crate::{AllocError, BLOCK, Backend, Run, Space, Usage, check_buffer, check_range, lock};

/// Blocks that are prepared from the start: 1 GiB.
const READY: u32 = 1 << 18;

/// A store in memory. Only written blocks take memory, and only until they are freed.
///
/// The first GiB of its capacity can be allocated at once; beyond that it answers [`AllocError::NotReady`] until
/// [`Space::maintain`] was called, as a file store does from the start; [`MemStore::unprepared`] makes it do so too.
///
/// I/O on blocks that are not allocated is an error here: the caller has lost track of a run. Allocated blocks that
/// were not written read as zeros.
#[derive(Debug)]
pub struct MemStore {
    state: Mutex<State>,
    capacity: u32,
    separates: bool,
    /// Runs must be freed whole; their lengths, to check that.
    whole_runs: Option<Mutex<HashMap<u64, u32>>>,
}

#[derive(Debug)]
struct State {
    blist: Blist,
    allocated: u32,
    /// An allocation failed since space was last prepared.
    starved: bool,
    blocks: HashMap<u64, Box<[u8]>>,
}

impl MemStore {
    /// Creates a store of this capacity, ready to allocate from.
    #[must_use]
    pub fn new(capacity_blocks: u32) -> MemStore {
        let store = Self::unprepared(capacity_blocks);
        let ready = capacity_blocks.min(READY);
        lock(&store.state).blist.prepare(ready, &mut Stock::for_blocks(ready));
        store
    }

    /// Creates a store that must be maintained under pressure before it allocates anything.
    #[must_use]
    pub fn unprepared(capacity_blocks: u32) -> MemStore {
        let blist = Blist::new(capacity_blocks);
        let state = State { blist, allocated: 0, starved: false, blocks: HashMap::new() };
        MemStore { state: Mutex::new(state), capacity: capacity_blocks, separates: false, whole_runs: None }
    }

    /// Makes the store claim that it keeps owners apart (it does not: no caller could tell).
    #[must_use]
    pub fn separating(mut self) -> MemStore {
        self.separates = true;
        self
    }
}

impl MemStore {
    /// Demands that runs are freed as a whole, as an object store does.
    #[must_use]
    pub fn freeing_whole_runs(mut self) -> MemStore {
        self.whole_runs = Some(Mutex::default());
        self
    }
}

fn not_held(run: Run) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("I/O on blocks that nobody holds: {run:?}"))
}

impl Space for MemStore {
    fn allocate(&self, _hint: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        let mut state = lock(&self.state);
        if let Some(run) = state.blist.allocate(min, max) {
            state.allocated += run.blocks;
            if let Some(runs) = &self.whole_runs {
                lock(runs).insert(run.start, run.blocks);
            }
            return Ok(run);
        }
        state.starved = true;
        let grows = state.blist.prepared() < self.capacity && min <= SEGMENT;
        Err(if grows { AllocError::NotReady } else { AllocError::Full })
    }

    fn separates(&self) -> bool {
        self.separates
    }

    fn frees_parts(&self) -> bool {
        self.whole_runs.is_none()
    }

    fn free(&self, run: Run) {
        if let Some(runs) = &self.whole_runs {
            assert_eq!(lock(runs).remove(&run.start), Some(run.blocks), "part of a run was freed");
        }
        let mut state = lock(&self.state);
        let freed = state.blist.free(run);
        state.allocated = state.allocated.saturating_sub(freed);
        for block in run.start..run.end() {
            state.blocks.remove(&block);
        }
        drop(state);
        debug_assert_eq!(freed, run.blocks, "blocks of {run:?} were free already");
    }

    fn maintain(&self, pressure: bool) -> bool {
        let mut stock = Stock::for_blocks(SEGMENT);
        let mut state = lock(&self.state);
        if pressure && (state.starved || state.blist.free_blocks() < SEGMENT) {
            let upto = state.blist.prepared().saturating_add(SEGMENT);
            state.blist.prepare(upto, &mut stock);
            state.starved = false;
        }
        false
    }

    fn usage(&self) -> Usage {
        let state = lock(&self.state);
        Usage {
            allocated_blocks: u64::from(state.allocated),
            capacity_blocks: u64::from(self.capacity),
            file_bytes: (state.blocks.len() * BLOCK) as u64,
            disk_free_bytes: u64::from(self.capacity - state.allocated) * BLOCK as u64,
        }
    }
}

impl Backend for MemStore {
    fn write(&self, start: u64, buf: &[u8]) -> io::Result<()> {
        check_buffer(buf)?;
        let run = check_range(start, buf.len(), self.capacity)?;
        let mut state = lock(&self.state);
        if !state.blist.is_allocated(run) {
            return Err(not_held(run));
        }
        for (block, bytes) in (start..).zip(buf.chunks_exact(BLOCK)) {
            state.blocks.insert(block, bytes.into());
        }
        Ok(())
    }

    fn read(&self, start: u64, buf: &mut [u8]) -> io::Result<()> {
        check_buffer(buf)?;
        let run = check_range(start, buf.len(), self.capacity)?;
        let state = lock(&self.state);
        if !state.blist.is_allocated(run) {
            return Err(not_held(run));
        }
        for (block, bytes) in (start..).zip(buf.chunks_exact_mut(BLOCK)) {
            match state.blocks.get(&block) {
                Some(held) => bytes.copy_from_slice(held),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }
}
