//! Compaction: the living pages of a sparse segment are brought back and clustered again with their chunk's other
//! pages, so that dead pages keep at most a tenth of the store (iron rule 4).
//!
//! A page that is brought back is dirty, as if written: pageout encodes it when its turn comes. This one way serves
//! pages that died within clusters and between them, and a chunk's clusters from there become one.

use overspill_slab::{Ref, WeakRef};

use crate::error::VmError;
use crate::memory::chunk::ChunkHandle as _;
use crate::memory::records::{Chunk, Cluster, Extent, Segment};
use crate::page::{CHUNK_PAGES, PAGE, PageSet, members};
use crate::pagein::fetch::{PageInError, Wanted};
use crate::pagein::service::PageIn;

/// Dead bytes tolerated whatever their share: fewer are not worth the I/O.
const TOLERATED: u64 = 256 << 10;

impl PageIn {
    /// True if too much of the stores is dead.
    pub(crate) fn wants_compaction(&self) -> bool {
        let (dead, all) = (self.dead_bytes(), self.memory.stored_bytes());
        dead > TOLERATED && dead * 10 > all
    }

    /// Bytes of the stores that are neither free nor living pages.
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.memory.stored_bytes().saturating_sub(self.memory.stored_live_bytes())
    }

    /// Brings back the living pages of the sparsest of some segments. Waits for memory and store. Returns true if there
    /// was one.
    pub(crate) async fn compact(&self) -> bool {
        let sparse = self.memory.backings.iter().find_map(|backing| backing.sparse_segment());
        let Some(segment) = sparse else { return false };
        let mut any = false;
        for chunk in segment.chunks() {
            // Pages that cannot be read now stay where they are; their reader will get the error.
            any |= self.recluster(&chunk, &segment).await.unwrap_or(false);
        }
        segment.let_go();
        if any {
            self.memory.counters.compacted.add(1);
        }
        any
    }
}

/// A chunk is held for a moment at a time, never across a wait: a chunk that no object shows any more must be free to
/// go, or memory that is short would seem to be full.
impl PageIn {
    /// Returns true if there was something to bring back.
    async fn recluster(&self, chunk: &WeakRef<Chunk>, segment: &Ref<Segment>) -> Result<bool, VmError> {
        let mut any = false;
        // Each turn ends one cluster, and others make at most as many again meanwhile.
        for _ in 0..2 * CHUNK_PAGES {
            let Some(next) = first_in(chunk, segment) else { break };
            self.bring_back(chunk, &next).await?;
            any = true;
        }
        Ok(any)
    }

    /// Makes living pages of an extent dirty, as if they had been written.
    async fn bring_back(
        &self,
        chunk: &WeakRef<Chunk>,
        (extent, live): &(Ref<Extent>, PageSet),
    ) -> Result<(), VmError> {
        // As many at once as one reservation can hold: matters to the smallest budgets only.
        let most = (self.memory.budget.max_reservation() / PAGE).clamp(1, CHUNK_PAGES);
        let set = members(*live).take(most).fold(0, |set: PageSet, page| set | 1 << page);
        let mut reservation = self.memory.budget.reserve(set.count_ones() as usize * PAGE).await?;
        let outcome = self.page_in(&Wanted::strips(extent, set), None, || ()).await;
        let Some(chunk) = chunk.upgrade() else { return Ok(()) };
        let decoded = match outcome {
            Ok(decoded) => decoded,
            Err(PageInError::Damaged(strip)) => {
                // Left here, it would keep its segment the sparsest for ever, and hide the others.
                chunk.lock().lose_strip(extent, strip);
                return Ok(());
            }
            Err(PageInError::Failed(error)) => return Err(error),
        };
        let mut state = chunk.lock();
        for page in members(set) {
            let is_there = |c: &Cluster| Ref::ptr_eq(&c.extent, extent) && c.live & 1 << page != 0;
            if state.clusters().iter().any(is_there) {
                // Writes nothing: the page only becomes resident and dirty. A page of strips that were not read stays.
                let _ = state.write_page(page, 0, &[], decoded.page(page), &self.memory, &mut reservation);
            }
        }
        Ok(())
    }
}

/// The first of a chunk's clusters that lies in the segment, and its living pages. Only these: bringing back the
/// chunk's other clusters too would leave holes in their segments.
fn first_in(chunk: &WeakRef<Chunk>, segment: &Ref<Segment>) -> Option<(Ref<Extent>, PageSet)> {
    let chunk = chunk.upgrade()?;
    let state = chunk.lock();
    let mut clusters = state.clusters().iter().filter(|cluster| cluster.extent.is_in(segment));
    clusters.next().map(|cluster| (cluster.extent.clone(), cluster.live))
}
