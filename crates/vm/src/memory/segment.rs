//! Segments: extents side by side in one run of a store, whatever their lengths. A block goes free with the last extent
//! that touches it, so a dead extent keeps at most its two outer blocks (iron rule 4).

use std::ops::Range;

use overspill_slab::{Ref, WeakRef};
use overspill_store::{BLOCK, Run};

use super::backing::RunGuard;
use super::records::{Chunk, SEGMENT_BLOCKS, Segment};
use crate::budget::Charge;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};

impl Segment {
    /// The segment of a run that was written, with extents at these byte ranges. Untouched blocks are freed.
    pub(crate) fn new(
        mut run: RunGuard,
        extents: impl Iterator<Item = Range<usize>>,
        chunks: Vec<WeakRef<Chunk>>,
        charge: Charge,
    ) -> Segment {
        let mut users = [0u8; SEGMENT_BLOCKS];
        let mut count = 0;
        for bytes in extents {
            count += 1;
            for block in blocks_of(&bytes) {
                // At most 64 extents begin in a block.
                users[block] += 1;
            }
        }
        let segment = Segment {
            backing: run.backing.clone(),
            start: run.run.start,
            users: users.map(Into::into),
            extents: AtomicU32::new(count),
            blocks: AtomicU32::new(run.blocks()),
            live: AtomicU32::new(0),
            taken: AtomicBool::new(false),
            chunks: Mutex::new(chunks),
            _charge: charge,
        };
        let blocks = run.blocks() as usize;
        // The blocks now belong to the segment.
        run.run.blocks = 0;
        if segment.frees_parts() {
            segment.free_runs((0..blocks).filter(|&block| users[block] == 0));
        }
        segment
    }

    /// Makes it visible to compaction.
    pub(crate) fn register(this: &Ref<Segment>) {
        this.backing.add(this);
    }

    /// The compactor that took it is done with it.
    pub(crate) fn let_go(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// The chunks that show clusters written here, and some that are gone.
    pub(crate) fn chunks(&self) -> Vec<WeakRef<Chunk>> {
        self.chunks.lock().clone()
    }

    /// One more chunk, a fork's, shows clusters of it.
    pub(crate) fn add_chunk(&self, chunk: WeakRef<Chunk>) {
        self.chunks.lock().push(chunk);
    }

    /// Its dead share, in 256ths. One block does not count: a small segment may lose it by rounding, and would lose it
    /// again when rewritten.
    pub(super) fn dead_share(&self) -> usize {
        let all = self.blocks.load(Ordering::Relaxed) as usize * BLOCK;
        let live = self.live.load(Ordering::Relaxed) as usize;
        (all.saturating_sub(live + BLOCK) * 256).checked_div(all).unwrap_or(0)
    }

    pub(super) fn add_live(&self, bytes: usize) {
        self.live.fetch_add(u32::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.backing.live.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub_live(&self, bytes: usize) {
        self.live.fetch_sub(u32::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.backing.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn frees_parts(&self) -> bool {
        self.backing.store.frees_parts()
    }

    /// The extent at these bytes is gone: blocks that no other extent touches are freed. Where the store frees whole
    /// runs only, the last extent frees all.
    pub(super) fn release(&self, bytes: &Range<usize>) {
        let is_last = self.extents.fetch_sub(1, Ordering::AcqRel) == 1;
        if !self.frees_parts() {
            if is_last {
                self.free_run(Run { start: self.start, blocks: self.blocks.load(Ordering::Relaxed) });
            }
            return;
        }
        self.free_runs(blocks_of(bytes).filter(|&b| self.users[b].fetch_sub(1, Ordering::AcqRel) == 1));
    }

    /// Frees blocks, neighbours together.
    fn free_runs(&self, blocks: impl Iterator<Item = usize>) {
        let mut run = Run { start: 0, blocks: 0 };
        for block in blocks {
            let start = self.start + block as u64;
            if run.blocks > 0 && run.end() == start {
                run.blocks += 1;
                continue;
            }
            self.free_run(run);
            run = Run { start, blocks: 1 };
        }
        self.free_run(run);
    }

    fn free_run(&self, run: Run) {
        if run.blocks > 0 {
            self.blocks.fetch_sub(run.blocks, Ordering::Relaxed);
            self.backing.free(run);
        }
    }
}

pub(super) fn blocks_of(bytes: &Range<usize>) -> Range<usize> {
    bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)
}
