//! A store, as the VM sees it: the blocks of it that are held, its segments, its health.

use overspill_slab::{Ref, WeakRef};
use overspill_store::{AllocError, BLOCK, Run, Store};
use smallvec::SmallVec;

use super::health::Health;
use super::records::{Backing, Place, Segment, StoreId};
use crate::budget::Budget;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backing({} bytes, {:?})", self.bytes(), self.health)
    }
}

impl Backing {
    pub(crate) fn new(id: StoreId, store: std::sync::Arc<dyn Store>, budget: &Arc<Budget>) -> Arc<Backing> {
        Arc::new(Backing {
            id,
            store,
            health: Health::default(),
            is_wanted: AtomicBool::new(false),
            budget: budget.clone(),
            blocks: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            segments: Mutex::default(),
        })
    }

    /// Bytes of the store that are not free.
    pub(crate) fn bytes(&self) -> u64 {
        (self.blocks.load(Ordering::Relaxed) * BLOCK) as u64
    }

    /// Bytes of living pages among them.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live.load(Ordering::Relaxed) as u64
    }

    /// The segment with the largest dead share among the next few, if that is worth compacting.
    pub(crate) fn sparse_segment(&self) -> Option<Ref<Segment>> {
        // Dropped under no lock: one may be the last handle.
        let mut found: SmallVec<[Ref<Segment>; LOOK]> = SmallVec::new();
        {
            let mut segments = self.segments.lock();
            for _ in 0..LOOK.min(segments.all.len()) {
                if segments.next >= segments.all.len() {
                    segments.next = 0;
                }
                let at = segments.next;
                match segments.all.get(at).map(WeakRef::upgrade) {
                    Some(Some(segment)) => {
                        segments.next += 1;
                        found.push(segment);
                    }
                    Some(None) => drop(segments.all.swap_remove(at)),
                    None => {}
                }
            }
        }
        let mut found: SmallVec<[(usize, Ref<Segment>); LOOK]> =
            found.into_iter().map(|segment| (segment.dead_share(), segment)).collect();
        found.retain(|(share, _)| *share > SPARSE);
        found.sort_unstable_by_key(|(share, _)| std::cmp::Reverse(*share));
        // Skip a segment that another compactor has.
        found
            .into_iter()
            .map(|(_, segment)| segment)
            .find(|segment| !segment.taken.swap(true, Ordering::AcqRel))
    }

    pub(super) fn add(&self, segment: &Ref<Segment>) {
        let mut segments = self.segments.lock();
        // Entries of dead segments make room for new ones: two entries are checked for each new one.
        for _ in 0..2 {
            let at = segments.next;
            match segments.all.get(at).map(WeakRef::is_alive) {
                None => segments.next = 0,
                Some(true) => segments.next += 1,
                Some(false) => drop(segments.all.swap_remove(at)),
            }
        }
        segments.all.push(Ref::downgrade(segment));
    }

    /// A run for data of an object.
    ///
    /// # Errors
    /// The store's.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        object: u32,
        min: u32,
        max: u32,
    ) -> Result<RunGuard, AllocError> {
        let run = self.store.allocate(object, min, max)?;
        self.blocks.fetch_add(run.blocks as usize, Ordering::Relaxed);
        Ok(RunGuard { backing: self.clone(), run })
    }

    pub(super) fn free(&self, run: Run) {
        self.store.free(run);
        self.blocks.fetch_sub(run.blocks as usize, Ordering::Relaxed);
    }
}

/// Segments that are checked to find the sparsest.
const LOOK: usize = 64;
/// In 256ths: with a smaller dead share, reading and writing the rest does not pay.
const SPARSE: usize = 20;

/// Blocks of the store, freed when dropped.
#[derive(Debug)]
pub(crate) struct RunGuard {
    pub(super) backing: Arc<Backing>,
    pub(super) run: Run,
}

impl RunGuard {
    pub(crate) fn place(&self) -> Place {
        Place { store: self.backing.id, block: self.run.start }
    }

    pub(crate) fn backing(&self) -> &Arc<Backing> {
        &self.backing
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.run.blocks
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        if self.run.blocks > 0 {
            self.backing.free(self.run);
        }
    }
}
