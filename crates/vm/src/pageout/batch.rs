//! Batches: clusters written out together, side by side in one run of a store.

use std::ops::Range;

use overspill_codec::{Encoded, MAX_PAYLOAD};
use overspill_slab::{Ref, RefReserve, WeakRef};
use overspill_store::BLOCK;
use overspill_sys::AlignedBuf;

use crate::budget::Budget;
use crate::error::VmError;
use crate::memory::backing::RunGuard;
use crate::memory::chunk::ChunkHandle as _;
use crate::memory::compressed::Turn;
use crate::memory::extent::EXTENT_ALIGN;
use crate::memory::records::{
    Backing, Chunk, Compressed, EXTENT_COST, Extent, Location, Memory, Place, SEGMENT_BLOCKS, SEGMENT_COST,
    Segment,
};
use crate::page::PageSet;
use crate::sync::Arc;

/// A cluster on its way out, by its origin.
pub(crate) enum Item {
    /// Encoded from pages just now.
    Fresh { chunk: Ref<Chunk>, pages: PageSet, encoded: Encoded, tag: u64 },
    /// From compressed memory.
    Held(Ref<Extent>, WeakRef<Chunk>),
}

impl Item {
    /// Puts it back: it is the next one again.
    fn put_back(self, memory: &Memory) {
        match self {
            Item::Fresh { chunk, pages, .. } => chunk.lock().abandon_writing(pages),
            Item::Held(extent, _) => memory.compressed.stays(&extent, Turn::First),
        }
    }

    /// Puts it back at the end: its turn comes after all others.
    fn pass_over(self, memory: &Memory) {
        match self {
            Item::Held(extent, _) => memory.compressed.stays(&extent, Turn::Last),
            // `next_victim` moved the chunk to the end of its queue already.
            fresh @ Item::Fresh { .. } => fresh.put_back(memory),
        }
    }

    fn chunk(&self) -> WeakRef<Chunk> {
        match self {
            Item::Fresh { chunk, .. } => Ref::downgrade(chunk),
            Item::Held(_, chunk) => chunk.clone(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Item::Fresh { encoded, .. } => encoded.len(),
            Item::Held(extent, _) => extent.len(),
        }
    }
}

struct Entry {
    item: Item,
    /// Its bytes in the batch.
    bytes: Range<usize>,
    /// Bytes of the budget that come free when it is written.
    frees: usize,
}

/// Clusters being written out together.
pub(crate) struct Batch {
    /// The driver has it during the write.
    buf: Option<AlignedBuf>,
    capacity: usize,
    used: usize,
    run: Option<RunGuard>,
    clusters: Vec<Entry>,
    /// One for each fresh cluster, and one segment: completing a write needs no memory (iron rule 1) but for the
    /// segment's list of chunks, some hundreds of bytes from the heap.
    extents: RefReserve<Extent>,
    segments: RefReserve<Segment>,
    /// The object of the first cluster; of all clusters, if a store keeps objects apart.
    object: Option<u32>,
    /// Bytes of the budget that come free when it is written.
    pub(crate) frees: usize,
    /// Bytes of `frees` that belong to compressed memory.
    pub(crate) leaving: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} clusters at {:?})", self.clusters.len(), self.run)
    }
}

impl Batch {
    /// # Errors
    /// When there is no memory.
    pub(crate) fn new(bytes: usize) -> Result<Batch, VmError> {
        let bytes = bytes.clamp(MAX_PAYLOAD, SEGMENT_BLOCKS * BLOCK).next_multiple_of(BLOCK);
        let mut batch = Batch {
            buf: Some(AlignedBuf::new(bytes)),
            capacity: bytes,
            used: 0,
            run: None,
            clusters: Vec::with_capacity(bytes / EXTENT_ALIGN / 8),
            extents: RefReserve::new(0)?,
            segments: RefReserve::new(0)?,
            object: None,
            frees: 0,
            leaving: 0,
        };
        batch.refill()?;
        Ok(batch)
    }

    /// Sets aside the metadata that its completion will need.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn refill(&mut self) -> Result<(), VmError> {
        self.segments.fill(1)?;
        // A block for each: a cluster that goes past compressed memory compresses badly, so it is not small.
        Ok(self.extents.fill(self.capacity / BLOCK)?)
    }

    /// True if it has all it needs to be sent and completed.
    pub(crate) fn is_ready(&self) -> bool {
        self.segments.left() > 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }

    /// The buffer's rest, where the next cluster is written.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let used = self.capacity - self.left();
        self.buf.as_mut().map_or(&mut [], |buf| &mut buf[used..])
    }

    fn left(&self) -> usize {
        if self.clusters.len() < self.clusters.capacity() { self.capacity - self.used } else { 0 }
    }

    /// True if a fresh cluster of `len` bytes can be pushed.
    pub(crate) fn has_room_for_another(&self, len: usize) -> bool {
        let fresh = self.clusters.iter().filter(|entry| matches!(entry.item, Item::Fresh { .. })).count();
        self.left() >= len && self.extents.left() > fresh
    }

    /// The object of its first cluster.
    pub(crate) fn object(&self) -> Option<u32> {
        self.object
    }

    /// Appends a cluster of an object. It has room ([`Batch::room`]).
    pub(crate) fn push(&mut self, object: u32, item: Item, payload: &[u8], frees: usize) {
        self.room()[..payload.len()].copy_from_slice(payload);
        self.push_here(object, item, frees);
    }

    /// The same for a payload that is already in [`Batch::room`].
    pub(crate) fn push_here(&mut self, object: u32, item: Item, frees: usize) {
        self.object.get_or_insert(object);
        let bytes = self.used..self.used + item.len();
        self.used = bytes.end.next_multiple_of(EXTENT_ALIGN);
        self.frees += frees;
        self.clusters.push(Entry { item, bytes, frees });
    }

    /// Blocks it fills.
    pub(crate) fn blocks(&self) -> u32 {
        u32::try_from(self.used.div_ceil(BLOCK)).unwrap_or(u32::MAX)
    }

    /// Blocks that its first cluster fills: a shorter run is of no use.
    pub(crate) fn least_blocks(&self) -> u32 {
        let end = self.clusters.first().map_or(1, |entry| entry.bytes.end);
        u32::try_from(end.div_ceil(BLOCK)).unwrap_or(u32::MAX)
    }

    /// Bytes to be written: whole blocks.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks() as usize * BLOCK
    }

    /// Takes the run it will be written to. Clusters beyond the run's end are put back.
    pub(crate) fn take_run(&mut self, run: RunGuard, memory: &Memory) {
        let end = run.blocks() as usize * BLOCK;
        self.run = Some(run);
        while let Some(last) = self.clusters.pop_if(|entry| entry.bytes.end > end) {
            self.used = last.bytes.start;
            self.frees -= last.frees;
            last.item.put_back(memory);
        }
    }

    /// The place it goes to, once it has a run.
    pub(crate) fn place(&self) -> Option<Place> {
        self.run.as_ref().map(RunGuard::place)
    }

    pub(crate) fn backing(&self) -> Option<Arc<Backing>> {
        self.run.as_ref().map(|run| run.backing().clone())
    }

    /// Its buffer, for the driver.
    pub(crate) fn take_buf(&mut self) -> Option<AlignedBuf> {
        self.buf.take()
    }

    /// Takes the buffer back from the driver.
    pub(crate) fn give_buf(&mut self, buf: AlignedBuf) {
        debug_assert!(buf.len() == self.capacity && self.buf.is_none());
        self.buf = Some(buf);
    }

    /// Gives its run up, to be given another.
    pub(crate) fn leave_run(&mut self) {
        self.run = None;
    }

    /// Empties it: its clusters stay where they were.
    pub(crate) fn put_back(&mut self, memory: &Memory) {
        // From the last one on, so that they are queued in the same order again.
        self.clusters.drain(..).rev().for_each(|entry| entry.item.put_back(memory));
        self.reset();
    }

    /// Empties it: its clusters stay where they were, and let others go first.
    pub(crate) fn pass_over(&mut self, memory: &Memory) {
        self.clusters.drain(..).for_each(|entry| entry.item.pass_over(memory));
        self.reset();
    }

    fn reset(&mut self) {
        (self.run, self.object) = (None, None);
        (self.used, self.frees, self.leaving) = (0, 0, 0);
    }

    /// Empties it after its write: its clusters are now in the store. Returns their number of pages.
    pub(crate) fn written(&mut self, budget: &Arc<Budget>) -> u64 {
        let run = self.run.take().expect("a batch under way has its run");
        let places = self.clusters.iter().map(|entry| entry.bytes.clone());
        let mut chunks: Vec<_> = self.clusters.iter().map(|entry| entry.item.chunk()).collect();
        chunks.dedup_by_key(|chunk| chunk.as_ptr());
        let charge = budget.charge_forced(SEGMENT_COST + size_of_val(&chunks[..]));
        let segment = Segment::new(run, places, chunks, charge);
        let segment = self.segments.make(segment).expect("one is set aside");
        Segment::register(&segment);
        let mut pages = 0;
        for Entry { item, bytes, .. } in self.clusters.drain(..) {
            match item {
                Item::Held(extent, _) => {
                    pages += u64::from(extent.pages().count_ones());
                    Compressed::stored(&extent, &segment, bytes.start);
                }
                Item::Fresh { chunk, pages: set, encoded, tag } => {
                    pages += u64::from(set.count_ones());
                    let location = Location::stored(&segment, bytes.start);
                    let extent = Extent::new(location, encoded, tag, set, budget.charge_forced(EXTENT_COST));
                    // Made in any case: dropping it frees its blocks.
                    let extent = self.extents.make(extent).expect("one is set aside for each");
                    chunk.lock().finish_writing(set, || extent.clone());
                }
            }
        }
        self.reset();
        pages
    }
}
