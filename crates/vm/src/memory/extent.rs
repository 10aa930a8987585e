//! Extents: where a cluster of pages lies, in compressed memory or in a segment of a store, and which of its pages
//! live.
//!
//! ```text
//!   made ──► in memory ──written out──► in a segment        never back: readers copy, and let go
//!      └──────── written at once ──────────┘
//! ```

use std::ops::Range;

use overspill_codec::{Encoded, MAX_PAYLOAD, Pages, decode};
use overspill_slab::Ref;
use overspill_store::BLOCK;

use super::records::{Chunk, Cluster, EXTENT_COST, Extent, Location, Place, Segment, StoreId};
use super::segment::blocks_of;
use crate::budget::Charge;
use crate::page::{PageSet, members};
use crate::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use crate::sync::{Mutex, MutexGuard, rank};

/// Extents begin at multiples of this many bytes.
pub(crate) const EXTENT_ALIGN: usize = 64;

/// Limit of the count of chunks that show an extent; from three chunks on, pages are counted dead only once one is
/// left.
pub(super) const MANY: u8 = u8::MAX;

impl Location {
    /// In a segment, at this byte of it.
    pub(crate) fn stored(segment: &Ref<Segment>, at: usize) -> Location {
        let at = u16::try_from(at / EXTENT_ALIGN).expect("segments are at most a mebibyte");
        Location::Store(segment.clone(), at)
    }
}

/// The blocks of a store that hold some strips.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlocksOfStrips {
    pub(crate) start: Place,
    pub(crate) blocks: u32,
    /// Offset of the strips in the first block.
    pub(crate) skip: usize,
}

/// Blocks that a payload can touch.
pub(crate) const MAX_READ_BLOCKS: usize = MAX_PAYLOAD.div_ceil(BLOCK) + 1;

impl Extent {
    /// An extent, whose [`EXTENT_COST`] was charged.
    pub(crate) fn new(
        location: Location,
        encoded: Encoded,
        tag: u64,
        pages: PageSet,
        charge: Charge,
    ) -> Extent {
        charge.hand_over();
        if let Location::Store(segment, _) = &location {
            segment.add_live(encoded.len());
        }
        Extent {
            location: Mutex::new(location),
            encoded,
            tag,
            pages,
            shows: AtomicU8::new(0),
            dead: AtomicU8::new(0),
            given_up: AtomicU16::new(0),
        }
    }

    /// It has left compressed memory for this segment. Returns its old location.
    pub(crate) fn settle(&self, segment: &Ref<Segment>, at: usize) -> Location {
        let mut location = self.location();
        segment.add_live(self.live_len());
        std::mem::replace(&mut *location, Location::stored(segment, at))
    }

    /// One more chunk shows these pages of it: the first chunk, or a fork's, which shows the same pages as its
    /// original.
    pub(crate) fn show(&self, pages: PageSet) {
        let location = self.location();
        let before = self.shows.load(Ordering::Relaxed);
        self.shows.store(before.saturating_add(1), Ordering::Relaxed);
        self.given_up.store(0, Ordering::Relaxed);
        if before == 0 {
            self.bury(&location, self.encoded.pages() - pages.count_ones() as usize);
        }
    }

    /// A chunk gives up pages of it and goes on to show `left`; if `left` is empty, it no longer shows the extent.
    pub(crate) fn hide(&self, pages: PageSet, left: PageSet) {
        let location = self.location();
        let shows = self.shows.load(Ordering::Relaxed);
        match shows {
            1 => self.bury(&location, self.encoded.pages() - left.count_ones() as usize),
            2 => {
                let before = self.given_up.load(Ordering::Relaxed);
                self.bury(&location, self.dead() + (pages & before).count_ones() as usize);
                self.given_up.store((before | pages) & !(before & pages), Ordering::Relaxed);
            }
            _ => {}
        }
        if left == 0 && shows != MANY {
            self.shows.store(shows - 1, Ordering::Relaxed);
            self.given_up.store(0, Ordering::Relaxed);
        }
    }

    /// A fork's chunk shows it too: compaction must find that chunk if the original goes.
    pub(crate) fn is_shown_by(&self, fork: &Ref<Chunk>) {
        match &mut *self.location() {
            Location::Memory(payload) => payload.forks.get_or_insert_default().push(Ref::downgrade(fork)),
            Location::Store(segment, _) => segment.add_chunk(Ref::downgrade(fork)),
        }
    }

    /// Sets the number of its dead pages.
    fn bury(&self, location: &Location, dead: usize) {
        let before = self.live_len();
        self.dead.store(u8::try_from(dead).unwrap_or(u8::MAX), Ordering::Relaxed);
        if let Location::Store(segment, _) = location {
            segment.sub_live(before.saturating_sub(self.live_len()));
        }
    }

    fn dead(&self) -> usize {
        usize::from(self.dead.load(Ordering::Relaxed))
    }

    /// True if one chunk alone shows it.
    pub(crate) fn has_one_chunk(&self) -> bool {
        let _still = self.location();
        self.shows.load(Ordering::Relaxed) == 1
    }

    /// The pages that lie in this strip.
    pub(crate) fn pages_of(&self, strip: usize) -> PageSet {
        let inside = members(self.pages).filter(|&page| self.encoded.strip_of(self.rank(page)) == strip);
        inside.fold(0, |set, page| set | 1 << page)
    }

    /// True if a part of it that is worth an effort is dead.
    pub(crate) fn is_stale(&self) -> bool {
        self.dead() * 8 >= self.encoded.pages().max(1)
    }

    /// Bytes of payload, less the dead pages' share.
    fn live_len(&self) -> usize {
        self.len_without(self.dead())
    }

    /// `live_len` if just these pages lived. For [`crate::testing`].
    pub(crate) fn live_len_of(&self, live: PageSet) -> usize {
        self.len_without(self.encoded.pages() - live.count_ones() as usize)
    }

    fn len_without(&self, dead: usize) -> usize {
        let all = self.encoded.pages().max(1);
        self.len() - self.len() * dead.min(all) / all
    }

    /// True if it lies in this segment.
    pub(crate) fn is_in(&self, segment: &Ref<Segment>) -> bool {
        matches!(&*self.location(), Location::Store(of, _) if Ref::ptr_eq(of, segment))
    }

    pub(crate) fn location(&self) -> MutexGuard<'_, Location, { rank::LOCATION }> {
        self.location.lock()
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

    /// Neighbouring strips that hold the first of these pages, each strip holding some of them: a damaged strip that no
    /// reader wants must not stand in the way of the others.
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

    /// True if it is in the store.
    pub(crate) fn is_stored(&self) -> bool {
        matches!(&*self.location(), Location::Store(..))
    }

    /// The blocks of a store to read for some strips; `None` while they are in memory.
    pub(crate) fn blocks_of(&self, strips: Range<usize>) -> Option<BlocksOfStrips> {
        let Location::Store(segment, at) = &*self.location() else { return None };
        let base = usize::from(*at) * EXTENT_ALIGN;
        let bytes = self.encoded.bytes_of(strips);
        let bytes = base + bytes.start..base + bytes.end;
        let blocks = blocks_of(&bytes);
        Some(BlocksOfStrips {
            start: Place { store: segment.backing.id, block: segment.start + blocks.start as u64 },
            blocks: u32::try_from(blocks.len()).unwrap_or(u32::MAX),
            skip: bytes.start % BLOCK,
        })
    }

    /// Copies the bytes of some strips out of compressed memory; `None` when they are in the store. Returns how many
    /// bytes.
    pub(crate) fn copy_payload(&self, strips: Range<usize>, out: &mut [u8]) -> Option<usize> {
        let Location::Memory(payload) = &mut *self.location() else { return None };
        let bytes = self.encoded.bytes_of(strips);
        payload.copy_to(bytes.start, &mut out[..bytes.len()]);
        payload.referenced = true;
        Some(bytes.len())
    }

    /// The same for maintenance: does not mark the extent as used.
    pub(crate) fn peek_payload(&self, strips: Range<usize>, out: &mut [u8]) -> Option<usize> {
        let Location::Memory(payload) = &*self.location() else { return None };
        let bytes = self.encoded.bytes_of(strips);
        payload.copy_to(bytes.start, &mut out[..bytes.len()]);
        Some(bytes.len())
    }

    /// Checks and decodes some strips from their bytes.
    ///
    /// # Errors
    /// The first strip whose bytes differ from those that were written.
    pub(crate) fn decode(
        &self,
        strips: Range<usize>,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<Pages, usize> {
        decode(&self.encoded, self.tag, strips.clone(), payload, out).map_err(|_| {
            let base = self.encoded.bytes_of(strips.clone()).start;
            let is_damaged = |strip: &usize| {
                let bytes = self.encoded.bytes_of(*strip..*strip + 1);
                let bytes = payload.get(bytes.start - base..bytes.end - base).unwrap_or(&[]);
                decode(&self.encoded, self.tag, *strip..*strip + 1, bytes, out).is_err()
            };
            strips.clone().find(is_damaged).unwrap_or(strips.start)
        })
    }

    /// Bytes of the budget it takes in compressed memory. For [`crate::testing`].
    pub(crate) fn payload_cost(&self) -> usize {
        match &*self.location() {
            Location::Memory(payload) => payload.cost(),
            Location::Store(..) => 0,
        }
    }

    /// Blocks of the store it touches. For [`crate::testing`].
    pub(crate) fn stored_blocks(&self) -> Option<(StoreId, Range<u64>)> {
        let all = self.blocks_of(0..self.encoded.strips())?;
        Some((all.start.store, all.start.block..all.start.block + u64::from(all.blocks)))
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let (len, live) = (self.encoded.len(), self.live_len());
        match self.location.get_mut() {
            Location::Memory(payload) => {
                payload.leave();
                payload.budget().uncharge_metadata(EXTENT_COST);
            }
            Location::Store(segment, at) => {
                let start = usize::from(*at) * EXTENT_ALIGN;
                segment.sub_live(live);
                segment.release(&(start..start + len));
                segment.backing.budget.uncharge_metadata(EXTENT_COST);
            }
        }
    }
}

impl Cluster {
    pub(super) fn new(extent: Ref<Extent>, live: PageSet) -> Cluster {
        extent.show(live);
        Cluster { extent, live }
    }
}

impl Clone for Cluster {
    fn clone(&self) -> Cluster {
        Cluster::new(self.extent.clone(), self.live)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.extent.hide(self.live, 0);
    }
}
