//! Compaction: what a segment still holds is brought back, to be clustered again with whatever its chunk has by now, so
//! that dead pages do not keep more than a tenth of the store (rule 4).
//!
//! A page that is brought back is dirty, as if it had been written: pageout packs it when its turn comes. That is one way
//! for what died within clusters and for what died between them, and a chunk's clusters from there become one.

use overspill_slab::{Ref, WeakRef};

use crate::chunk::{Chunk, ChunkHandle as _, Cluster};
use crate::error::VmError;
use crate::extent::{Extent, Segment};
use crate::fetch::PageInError;
use crate::pageset::{PageSet, members};
use crate::sync::Arc;
use crate::vm::Shared;
use crate::{CHUNK_PAGES, PAGE, Vm};

/// So much may be dead whatever the share: it is not worth the I/O.
const TOLERATED: u64 = 256 << 10;

impl Vm {
    /// Whether more of the store is dead than should be.
    pub fn wants_compaction(&self) -> bool {
        let (dead, all) = (self.dead_bytes(), self.stats().stored_bytes);
        dead > TOLERATED && dead * 10 > all
    }

    /// Bytes of the store that are neither free nor of any use.
    pub fn dead_bytes(&self) -> u64 {
        let stats = self.stats();
        stats.stored_bytes.saturating_sub(stats.stored_live_bytes)
    }

    /// Brings back what the sparsest of some segments holds. Waits for memory and store. Returns whether there was one.
    pub async fn compact(&self) -> bool {
        let shared = &self.0;
        let Some(segment) = shared.sparse_segment() else { return false };
        let mut any = false;
        for chunk in segment.chunks() {
            // What cannot be read now stays where it is; who wants it will be told.
            any |= shared.recluster(&chunk, &segment).await.unwrap_or(false);
        }
        segment.let_go();
        if any {
            shared.counters.compacted.add(1);
        }
        any
    }
}

/// A chunk is held for a moment at a time, never while anything is waited for: one that no object shows any more must be
/// free to go, or memory that is short would seem to be full.
impl Shared {
    /// Returns whether there was something to bring back.
    async fn recluster(
        self: &Arc<Self>,
        chunk: &WeakRef<Chunk>,
        segment: &Ref<Segment>,
    ) -> Result<bool, VmError> {
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
        self: &Arc<Self>,
        chunk: &WeakRef<Chunk>,
        (extent, live): &(Ref<Extent>, PageSet),
    ) -> Result<(), VmError> {
        // As many at once as a reservation may be for: matters to the smallest budgets only.
        let most = (self.budget.max_reservation() / PAGE).clamp(1, CHUNK_PAGES);
        let set = members(*live).take(most).fold(0, |set: PageSet, page| set | 1 << page);
        let mut reservation = self.budget.reserve(set.count_ones() as usize * PAGE).await?;
        let outcome = self.page_in(extent, extent.strips(set), None, || ()).await;
        let Some(chunk) = chunk.upgrade() else { return Ok(()) };
        let unpacked = match outcome {
            Ok(unpacked) => unpacked,
            Err(PageInError::Damaged(strip)) => {
                // Were it left here its segment would be the sparsest for ever, and hide the others.
                chunk.lock().lose_strip(extent, strip);
                return Ok(());
            }
            Err(PageInError::Failed(error)) => return Err(error),
        };
        let mut state = chunk.lock();
        for page in members(set) {
            let is_there = |c: &Cluster| Ref::ptr_eq(&c.extent, extent) && c.live & 1 << page != 0;
            if state.clusters().iter().any(is_there) {
                // Nothing is written: it only becomes resident and dirty. A page of strips that were not read stays.
                let _ = state.write_page(page, 0, &[], Some(&unpacked), self, &mut reservation);
            }
        }
        Ok(())
    }
}

/// The first of a chunk's clusters that lies in the segment, and which pages live. Only these: to bring back the chunk's
/// others too would leave holes in their segments.
fn first_in(chunk: &WeakRef<Chunk>, segment: &Ref<Segment>) -> Option<(Ref<Extent>, PageSet)> {
    let chunk = chunk.upgrade()?;
    let state = chunk.lock();
    let mut clusters = state.clusters().iter().filter(|cluster| cluster.extent.is_in(segment));
    clusters.next().map(|cluster| (cluster.extent.clone(), cluster.live))
}
