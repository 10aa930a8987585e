//! Extents: where a cluster of pages lies, packed: in compressed memory (`tier.rs`) or in a segment of the store.
//!
//! A segment is what was written in one piece. Extents lie in it side by side, whatever their lengths; a block goes free
//! with the last extent that touches it, so a dead extent never keeps more than its two outer blocks (rule 4).
//!
//! ```text
//!   made ──► in memory ──written out──► in a segment        never back: readers copy, and let go
//!      └──────── written at once ──────────┘
//! ```

use std::ops::Range;

use overspill_slab::{Own, Ref, WeakRef, kept};
use overspill_store::codec::{self, Encoded, MAX_PAYLOAD};
use overspill_store::{AllocError, BLOCK, Run, Store};
use smallvec::SmallVec;

use crate::budget::{Budget, Charge};
use crate::chunk::Chunk;
use crate::pageset::{PageSet, members};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, rank};
use crate::tier::Held;

/// The store, and what we hold of it. Blocks belong to [`RunGuard`]s, then to segments.
pub(crate) struct ExtentSpace {
    pub(crate) store: std::sync::Arc<dyn Store>,
    budget: Arc<Budget>,
    /// Blocks held by batches and segments.
    blocks: AtomicUsize,
    /// Bytes of living pages in them. What is left of the blocks is dead: pages written again, and the outer blocks of
    /// extents whose neighbours live.
    live: AtomicUsize,
    /// A leaf lock.
    segments: Mutex<Segments>,
}

/// All segments there are, and some that are gone: looked through by who compacts.
#[derive(Default)]
struct Segments {
    all: Vec<WeakRef<Segment>>,
    /// Where to look next.
    next: usize,
}

impl std::fmt::Debug for ExtentSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExtentSpace({} bytes)", self.bytes())
    }
}

impl ExtentSpace {
    pub(crate) fn new(store: std::sync::Arc<dyn Store>, budget: &Arc<Budget>) -> Arc<ExtentSpace> {
        Arc::new(ExtentSpace {
            store,
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

    /// A segment much of which is dead: the worst of the next few, or none.
    pub(crate) fn sparse_segment(&self) -> Option<Ref<Segment>> {
        // Let go under no lock: one may be the last to go.
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
        // Not one that somebody else is at.
        found
            .into_iter()
            .map(|(_, segment)| segment)
            .find(|segment| !segment.taken.swap(true, Ordering::AcqRel))
    }

    fn add(&self, segment: &Ref<Segment>) {
        let mut segments = self.segments.lock();
        // Those that are gone make room for new ones: two looked at for each that comes.
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

    /// `object`: whose data it will be.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        object: u32,
        min: u32,
        max: u32,
    ) -> Result<RunGuard, AllocError> {
        let run = self.store.allocate_for(object, min, max)?;
        self.blocks.fetch_add(run.blocks as usize, Ordering::Relaxed);
        Ok(RunGuard { space: self.clone(), run })
    }

    fn free(&self, run: Run) {
        self.store.free(run);
        self.blocks.fetch_sub(run.blocks as usize, Ordering::Relaxed);
    }
}

/// How many segments are looked at for the sparsest.
const LOOK: usize = 64;
/// In 256ths: less dead than this is not worth reading and writing the rest.
const SPARSE: usize = 20;

/// Blocks of the store, freed when dropped.
#[derive(Debug)]
pub(crate) struct RunGuard {
    space: Arc<ExtentSpace>,
    run: Run,
}

impl RunGuard {
    pub(crate) fn start(&self) -> u32 {
        self.run.start
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.run.blocks
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        if self.run.blocks > 0 {
            self.space.free(self.run);
        }
    }
}

/// Blocks of a segment, at most.
pub(crate) const SEGMENT_BLOCKS: usize = 256;

/// Extents begin at multiples of so many bytes.
pub(crate) const EXTENT_ALIGN: usize = 64;

/// What a segment costs in metadata, with its share of a slab.
pub(crate) const SEGMENT_COST: usize = size_of::<Segment>() + 32;

/// Blocks that were written in one piece.
#[derive(Debug)]
pub(crate) struct Segment {
    space: Arc<ExtentSpace>,
    start: u32,
    /// How many extents touch each block. (Not the model checker's: under it each would take as much as a page.)
    users: [std::sync::atomic::AtomicU8; SEGMENT_BLOCKS],
    /// Blocks that are not free yet.
    blocks: AtomicU32,
    /// Bytes of living pages.
    live: AtomicU32,
    /// Somebody compacts it.
    taken: AtomicBool,
    /// Chunks that show clusters which were written here, and some that did. A leaf lock.
    chunks: Mutex<Vec<WeakRef<Chunk>>>,
    _charge: Charge,
}

kept!(counted Segment, "segment");

impl Segment {
    /// The segment of a run that was written, with extents at these bytes of it. Blocks that none touches go free.
    pub(crate) fn new(
        mut run: RunGuard,
        extents: impl Iterator<Item = Range<usize>>,
        chunks: Vec<WeakRef<Chunk>>,
        charge: Charge,
    ) -> Segment {
        let mut users = [0u8; SEGMENT_BLOCKS];
        for bytes in extents {
            for block in blocks_of(&bytes) {
                // At most 64 extents begin in a block.
                users[block] += 1;
            }
        }
        let segment = Segment {
            space: run.space.clone(),
            start: run.start(),
            users: users.map(Into::into),
            blocks: AtomicU32::new(run.blocks()),
            live: AtomicU32::new(0),
            taken: AtomicBool::new(false),
            chunks: Mutex::new(chunks),
            _charge: charge,
        };
        let count = run.blocks() as usize;
        // The blocks are the segment's now.
        run.run.blocks = 0;
        segment.free_runs((0..count).filter(|&block| users[block] == 0));
        segment
    }

    /// Shows it to who compacts.
    pub(crate) fn register(this: &Ref<Segment>) {
        this.space.add(this);
    }

    /// Who took it to be compacted is done with it.
    pub(crate) fn let_go(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// The chunks that show clusters which were written here, and some that are gone.
    pub(crate) fn chunks(&self) -> Vec<WeakRef<Chunk>> {
        self.chunks.lock().clone()
    }

    /// One more chunk shows some: a fork's.
    pub(crate) fn add_chunk(&self, chunk: WeakRef<Chunk>) {
        self.chunks.lock().push(chunk);
    }

    /// How much of it is dead, in 256ths. Not counted is a block that a small one may lose by rounding: to write it again
    /// would lose it again.
    fn dead_share(&self) -> usize {
        let all = self.blocks.load(Ordering::Relaxed) as usize * BLOCK;
        let live = self.live.load(Ordering::Relaxed) as usize;
        (all.saturating_sub(live + BLOCK) * 256).checked_div(all).unwrap_or(0)
    }

    fn add_live(&self, bytes: usize) {
        self.live.fetch_add(u32::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.space.live.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub_live(&self, bytes: usize) {
        self.live.fetch_sub(u32::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.space.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn release(&self, bytes: &Range<usize>) {
        self.free_runs(blocks_of(bytes).filter(|&b| self.users[b].fetch_sub(1, Ordering::AcqRel) == 1));
    }

    /// Frees blocks, neighbours together.
    fn free_runs(&self, blocks: impl Iterator<Item = usize>) {
        let mut run = Run { start: 0, blocks: 0 };
        for block in blocks {
            let start = self.start + u32::try_from(block).unwrap_or(u32::MAX);
            if run.blocks > 0 && run.start + run.blocks == start {
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
            self.space.free(run);
        }
    }
}

fn blocks_of(bytes: &Range<usize>) -> Range<usize> {
    bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)
}

/// Where an extent's payload is.
#[derive(Debug)]
pub(crate) enum Place {
    Memory(Own<Held>),
    /// At a multiple of [`EXTENT_ALIGN`] of the segment.
    Store(Ref<Segment>, u16),
}

impl Place {
    /// In a segment, at this byte of it.
    pub(crate) fn stored(segment: &Ref<Segment>, at: usize) -> Place {
        let at = u16::try_from(at / EXTENT_ALIGN).expect("segments are at most a mebibyte");
        Place::Store(segment.clone(), at)
    }
}

/// What an extent costs in metadata: itself and its place in a chunk's list, with its share of a slab.
pub(crate) const EXTENT_COST: usize = size_of::<Extent>() + 24;

/// A cluster that is packed: where it is, how to read it back, and which pages of its chunk it held.
#[derive(Debug)]
pub(crate) struct Extent {
    /// A leaf lock, but for the tier's.
    place: Mutex<Place, { rank::PLACE }>,
    encoded: Encoded,
    /// Seeds the checksums, so that another cluster's bytes are not taken for this one's. Never used twice.
    tag: u64,
    pages: PageSet,
    /// How many chunks show pages of it: a fork shows what its original shows. Readers and batches that hold the extent
    /// for a moment do not count. Like the next two it changes under the place's lock. [`MANY`] is never left.
    shows: AtomicU8,
    /// How many pages no chunk shows any more.
    dead: AtomicU8,
    /// While two chunks show it: the pages that one of them has given up.
    given_up: AtomicU16,
}

/// Chunks that show an extent are counted up to this; from three on no page of it is counted dead before one alone is left.
const MANY: u8 = u8::MAX;

kept!(counted Extent, "extent");

/// What to read from a store to have some strips.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlocksOfStrips {
    pub(crate) start: u32,
    pub(crate) blocks: u32,
    /// Where in the first block the strips begin.
    pub(crate) skip: usize,
}

/// Blocks that a payload can touch.
pub(crate) const MAX_READ_BLOCKS: usize = MAX_PAYLOAD.div_ceil(BLOCK) + 1;

impl Extent {
    /// An extent, which [`EXTENT_COST`] was charged for.
    pub(crate) fn new(place: Place, encoded: Encoded, tag: u64, pages: PageSet, charge: Charge) -> Extent {
        charge.hand_over();
        if let Place::Store(segment, _) = &place {
            segment.add_live(encoded.len());
        }
        Extent {
            place: Mutex::new(place),
            encoded,
            tag,
            pages,
            shows: AtomicU8::new(0),
            dead: AtomicU8::new(0),
            given_up: AtomicU16::new(0),
        }
    }

    /// It has left compressed memory for this segment. Answers what it was.
    pub(crate) fn settle(&self, segment: &Ref<Segment>, at: usize) -> Place {
        let mut place = self.place();
        segment.add_live(self.live_len());
        std::mem::replace(&mut *place, Place::stored(segment, at))
    }

    /// One more chunk shows these pages of it: the first one ever, or a fork, which shows what its original does.
    pub(crate) fn show(&self, pages: PageSet) {
        let place = self.place();
        let before = self.shows.load(Ordering::Relaxed);
        self.shows.store(before.saturating_add(1), Ordering::Relaxed);
        self.given_up.store(0, Ordering::Relaxed);
        if before == 0 {
            self.bury(&place, self.encoded.pages() - pages.count_ones() as usize);
        }
    }

    /// A chunk gives up pages of it, and goes on to show `left`; with none left it shows the extent no more.
    pub(crate) fn hide(&self, pages: PageSet, left: PageSet) {
        let place = self.place();
        let shows = self.shows.load(Ordering::Relaxed);
        match shows {
            1 => self.bury(&place, self.encoded.pages() - left.count_ones() as usize),
            2 => {
                let before = self.given_up.load(Ordering::Relaxed);
                self.bury(&place, self.dead() + (pages & before).count_ones() as usize);
                self.given_up.store((before | pages) & !(before & pages), Ordering::Relaxed);
            }
            _ => {}
        }
        if left == 0 && shows != MANY {
            self.shows.store(shows - 1, Ordering::Relaxed);
            self.given_up.store(0, Ordering::Relaxed);
        }
    }

    /// A fork's chunk shows it too: compaction must find that one, should the original go.
    pub(crate) fn is_shown_by(&self, fork: &Ref<Chunk>) {
        match &mut *self.place() {
            Place::Memory(held) => held.forks.get_or_insert_default().push(Ref::downgrade(fork)),
            Place::Store(segment, _) => segment.add_chunk(Ref::downgrade(fork)),
        }
    }

    /// So many of its pages are dead now.
    fn bury(&self, place: &Place, dead: usize) {
        let before = self.live_len();
        self.dead.store(u8::try_from(dead).unwrap_or(u8::MAX), Ordering::Relaxed);
        if let Place::Store(segment, _) = place {
            segment.sub_live(before.saturating_sub(self.live_len()));
        }
    }

    fn dead(&self) -> usize {
        usize::from(self.dead.load(Ordering::Relaxed))
    }

    /// Whether one chunk alone shows it.
    pub(crate) fn has_one_chunk(&self) -> bool {
        let _still = self.place();
        self.shows.load(Ordering::Relaxed) == 1
    }

    /// The pages that lie in this strip.
    pub(crate) fn pages_of(&self, strip: usize) -> PageSet {
        let inside = members(self.pages).filter(|&page| self.encoded.strip_of(self.rank(page)) == strip);
        inside.fold(0, |set, page| set | 1 << page)
    }

    /// Whether a part of it that is worth an effort is dead.
    pub(crate) fn is_stale(&self) -> bool {
        self.dead() * 8 >= self.encoded.pages().max(1)
    }

    /// Bytes of payload, less the dead pages' share.
    fn live_len(&self) -> usize {
        self.len_without(self.dead())
    }

    /// The same were these pages all that live. For [`crate::testing`].
    pub(crate) fn live_len_of(&self, live: PageSet) -> usize {
        self.len_without(self.encoded.pages() - live.count_ones() as usize)
    }

    fn len_without(&self, dead: usize) -> usize {
        let all = self.encoded.pages().max(1);
        self.len() - self.len() * dead.min(all) / all
    }

    /// Whether it lies in this segment.
    pub(crate) fn is_in(&self, segment: &Ref<Segment>) -> bool {
        matches!(&*self.place(), Place::Store(of, _) if Ref::ptr_eq(of, segment))
    }

    pub(crate) fn place(&self) -> MutexGuard<'_, Place, { rank::PLACE }> {
        self.place.lock()
    }

    /// Bytes of payload.
    pub(crate) fn len(&self) -> usize {
        self.encoded.len()
    }

    pub(crate) fn tag(&self) -> u64 {
        self.tag
    }

    /// The pages it was written with, live or not.
    pub(crate) fn pages(&self) -> PageSet {
        self.pages
    }

    /// The place of a page of the chunk among the cluster's.
    pub(crate) fn rank(&self, page: usize) -> usize {
        (self.pages & ((1 << page) - 1)).count_ones() as usize
    }

    /// Neighbouring strips that hold the first of these pages, each of them some: a strip that nobody wants and that is
    /// damaged must not stand in the way of the others.
    pub(crate) fn strips(&self, set: PageSet) -> Range<usize> {
        let mut wanted = members(set & self.pages).map(|page| self.encoded.strip_of(self.rank(page)));
        let Some(first) = wanted.next() else { return 0..0 };
        let mut strips = first..first + 1;
        for strip in wanted {
            match strip {
                _ if strip < strips.end => {}
                _ if strip == strips.end => strips.end += 1,
                _ => break,
            }
        }
        strips
    }

    /// Whether it is in the store.
    pub(crate) fn is_stored(&self) -> bool {
        matches!(&*self.place(), Place::Store(..))
    }

    /// What to read from the store for some strips; `None` while they are in memory.
    pub(crate) fn blocks_of(&self, strips: Range<usize>) -> Option<BlocksOfStrips> {
        let Place::Store(segment, at) = &*self.place() else { return None };
        let base = usize::from(*at) * EXTENT_ALIGN;
        let bytes = self.encoded.bytes_of(strips);
        let bytes = base + bytes.start..base + bytes.end;
        let blocks = blocks_of(&bytes);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Some(BlocksOfStrips {
            start: segment.start + count(blocks.start),
            blocks: count(blocks.len()),
            skip: bytes.start % BLOCK,
        })
    }

    /// Copies the bytes of some strips out of compressed memory; `None` when they are in the store. Returns how many.
    pub(crate) fn copy_held(&self, strips: Range<usize>, out: &mut [u8]) -> Option<usize> {
        let Place::Memory(held) = &mut *self.place() else { return None };
        let bytes = self.encoded.bytes_of(strips);
        held.copy_to(bytes.start, &mut out[..bytes.len()]);
        held.referenced = true;
        Some(bytes.len())
    }

    /// The same for who looks after them, which is no use of them.
    pub(crate) fn peek_held(&self, strips: Range<usize>, out: &mut [u8]) -> Option<usize> {
        let Place::Memory(held) = &*self.place() else { return None };
        let bytes = self.encoded.bytes_of(strips);
        held.copy_to(bytes.start, &mut out[..bytes.len()]);
        Some(bytes.len())
    }

    /// Checks and unpacks some strips from their bytes.
    ///
    /// # Errors
    /// The first strip whose bytes are not those that were written.
    pub(crate) fn unpack(
        &self,
        strips: Range<usize>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<codec::Pages, usize> {
        codec::decode(&self.encoded, self.tag, strips.clone(), payload, out).map_err(|_| {
            let base = self.encoded.bytes_of(strips.clone()).start;
            let is_damaged = |strip: &usize| {
                let bytes = self.encoded.bytes_of(*strip..*strip + 1);
                let bytes = payload.get(bytes.start - base..bytes.end - base).unwrap_or(&[]);
                codec::decode(&self.encoded, self.tag, *strip..*strip + 1, bytes, out).is_err()
            };
            strips.clone().find(is_damaged).unwrap_or(strips.start)
        })
    }

    /// Bytes of the budget it takes in compressed memory. For [`crate::testing`].
    pub(crate) fn held_cost(&self) -> usize {
        match &*self.place() {
            Place::Memory(held) => held.cost(),
            Place::Store(..) => 0,
        }
    }

    /// Blocks of the store it touches. For [`crate::testing`].
    pub(crate) fn stored_blocks(&self) -> Option<Range<u32>> {
        let all = self.blocks_of(0..self.encoded.strips())?;
        Some(all.start..all.start + all.blocks)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let (len, live) = (self.encoded.len(), self.live_len());
        match self.place.get_mut() {
            Place::Memory(held) => {
                held.leave();
                held.budget().uncharge_metadata(EXTENT_COST);
            }
            Place::Store(segment, at) => {
                let start = usize::from(*at) * EXTENT_ALIGN;
                segment.sub_live(live);
                segment.release(&(start..start + len));
                segment.space.budget.uncharge_metadata(EXTENT_COST);
            }
        }
    }
}
