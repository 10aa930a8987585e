//! A chunk in the trees that show it: locked, copied for a fork that writes, queued for pageout.

use std::ops::{Deref, DerefMut};

use overspill_slab::Ref;

use super::bytes::Bytes;
use super::queue::NOT_QUEUED;
use super::records::{CHUNK_COST, Chunk, ChunkState, Memory};
use super::state::Gauges;
use super::states::State;
use crate::account::{Account, Allowance};
use crate::budget::Charge;
use crate::error::VmError;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, rank};

/// A tree's reference to a chunk.
pub(crate) struct ChunkRef(Ref<Chunk>);

impl ChunkRef {
    /// # Errors
    /// [`VmError::NoMemory`] when there is no memory for it.
    pub(crate) fn new(chunk: Chunk) -> Result<ChunkRef, VmError> {
        chunk.owners.store(1, Ordering::Relaxed);
        Ok(ChunkRef(Ref::new(chunk)?))
    }

    /// True if only the tree this reference is in shows the chunk. Meaningful while that tree is locked and its
    /// path is unshared: others can then only let go.
    pub(crate) fn is_unshared(&self) -> bool {
        self.0.owners.load(Ordering::Acquire) == 1
    }
}

impl Clone for ChunkRef {
    fn clone(&self) -> Self {
        self.0.owners.fetch_add(1, Ordering::Relaxed);
        ChunkRef(self.0.clone())
    }
}

impl Drop for ChunkRef {
    fn drop(&mut self) {
        self.0.owners.fetch_sub(1, Ordering::Release);
    }
}

impl Deref for ChunkRef {
    type Target = Ref<Chunk>;
    fn deref(&self) -> &Ref<Chunk> {
        &self.0
    }
}

impl Chunk {
    /// A chunk, whose [`CHUNK_COST`] was charged.
    pub(crate) fn new(
        memory: &Arc<Memory>,
        object: u32,
        account: &std::sync::Arc<Account>,
        charge: Charge,
    ) -> Chunk {
        charge.hand_over();
        Chunk {
            owners: AtomicU32::new(0),
            object,
            state: Mutex::new(ChunkState::empty()),
            memory: memory.clone(),
            account: account.clone(),
        }
    }

    /// True if some tree still shows the chunk. Once false it stays so.
    pub(crate) fn is_owned(&self) -> bool {
        self.owners.load(Ordering::Acquire) > 0
    }

    pub(crate) fn object(&self) -> u32 {
        self.object
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }
}

/// Operations that need the handle of a chunk, not just the chunk: its lock makes weak handles for the page queues.
pub(crate) trait ChunkHandle {
    /// Locks the chunk's state.
    fn lock(&self) -> ChunkGuard<'_>;

    /// A chunk with the same pages, for a tree that is about to change them: frames, small pages and extents are
    /// shared, not copied (R40, R58). `account` pays for the pages from now on; with no `allowance` the charge is
    /// forced.
    ///
    /// # Errors
    /// [`VmError::NoSpace`] when the account has no room, [`VmError::NoMemory`] when there is none for the chunk.
    fn copy(
        &self,
        account: &std::sync::Arc<Account>,
        allowance: Option<Allowance>,
    ) -> Result<ChunkRef, VmError>;
}

impl ChunkHandle for Ref<Chunk> {
    fn copy(
        &self,
        account: &std::sync::Arc<Account>,
        allowance: Option<Allowance>,
    ) -> Result<ChunkRef, VmError> {
        let charge = self.memory.budget.charge_forced(CHUNK_COST);
        // First, because it can fail: the account is not charged yet.
        let copy = ChunkRef::new(Chunk::new(&self.memory, self.object, account, charge))?;
        let from = self.lock();
        let count = u64::from(from.existing().count_ones());
        match allowance {
            Some(allowance) if !account.try_charge(count, allowance) => return Err(VmError::NoSpace),
            Some(_) => {}
            None => account.charge_forced(count),
        }
        let mut to = copy.lock();
        to.states = from.states;
        // The cluster being written belongs to the original; the copy's pages will be written for themselves.
        to.states.set(from.states.all(State::Writing), State::Dirty);
        to.bytes = from.bytes.iter().map(Bytes::share).collect();
        to.clusters = from.clusters.clone();
        to.clusters.iter().for_each(|cluster| cluster.extent.is_shown_by(&copy));
        drop(to);
        drop(from);
        Ok(copy)
    }

    fn lock(&self) -> ChunkGuard<'_> {
        let state = self.state.lock();
        ChunkGuard { before: state.gauges(), state, chunk: self }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let gauges = state.gauges();
        let existing = u64::from(state.existing().count_ones());
        if state.queue != NOT_QUEUED {
            self.memory.queues.lock().remove(state.queue);
        }
        state.bytes.clear();
        state.clusters.clear();
        self.memory.counters.adjust(-gauges.resident, -gauges.dirty, -gauges.clustered);
        self.account.uncharge(existing);
        self.memory.budget.uncharge_metadata(CHUNK_COST);
    }
}

/// A locked chunk. Unlocking it puts it on or takes it off the page queues, and updates the gauges.
pub(crate) struct ChunkGuard<'a> {
    state: MutexGuard<'a, ChunkState, { rank::CHUNK }>,
    chunk: &'a Ref<Chunk>,
    before: Gauges,
}

impl Deref for ChunkGuard<'_> {
    type Target = ChunkState;
    fn deref(&self) -> &ChunkState {
        &self.state
    }
}

impl DerefMut for ChunkGuard<'_> {
    fn deref_mut(&mut self) -> &mut ChunkState {
        &mut self.state
    }
}

impl Drop for ChunkGuard<'_> {
    fn drop(&mut self) {
        let queued = self.state.queue != NOT_QUEUED;
        if queued != (self.state.resident() != 0) {
            let mut queues = self.chunk.memory.queues.lock();
            if queued {
                queues.remove(self.state.queue);
                self.state.queue = NOT_QUEUED;
            } else {
                self.state.queue = queues.insert(Ref::downgrade(self.chunk));
            }
        }
        let now = self.state.gauges();
        if now != self.before {
            self.chunk.memory.counters.adjust(
                now.resident - self.before.resident,
                now.dirty - self.before.dirty,
                now.clustered - self.before.clustered,
            );
        }
    }
}
