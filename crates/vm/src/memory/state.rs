//! The life of a page: a chunk's sixteen neighbouring pages of an object, and the location of each page's bytes.
//!
//! ```text
//!  page is         state     in a cluster   a write makes it   pageout makes it
//!  absent          None      no             dirty              -
//!  zero            Zero      no             dirty              -
//!  in a source     Sourced   no             dirty              -
//!  dirty           Dirty     no             dirty              writing; zero, if all its bytes are
//!  writing         Writing   no             dirty              in a cluster; dirty if that fails
//!  clean           Clean     yes            dirty              in a cluster
//!  in a cluster    None      yes            dirty              -
//!  lost            Lost      no             dirty, if whole    -
//! ```
//! A discard makes any of them absent. Clean is for faces that promote pages on read; pageout frees the bytes of pages
//! whose cluster is made, so no page is clean yet. Only a cluster's extent knows if it is in compressed memory or in a
//! store. A page's copy in a cluster dies when the page is written (R57).
//!
//! Invariants, checked by [`ChunkState::check`]: the table above; clusters do not overlap; `bytes` holds the resident
//! pages' bytes in page order; a chunk with resident pages is on a page queue.

use overspill_slab::Ref;
use overspill_sys::Frame;
use smallvec::SmallVec;

use super::bytes::Bytes;
use super::queue::NOT_QUEUED;
use super::records::{ChunkState, Cluster, Extent, Memory};
use super::states::{State, States};
use crate::budget::Reservation;
use crate::error::VmError;
use crate::page::{CHUNK_PAGES, PAGE, PageSet, members, pages};

/// True if all bytes are 0. Ends early where they are not.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The location of a page's bytes.
pub(crate) enum Where<'a> {
    /// Here.
    Bytes(&'a Bytes),
    /// Nowhere: the page reads as zeros.
    Zero,
    /// In this extent.
    Cluster(&'a Ref<Extent>),
    /// In the object's source.
    Source,
    /// Gone.
    Lost,
}

/// The origin from which bytes of non-resident pages were read, or must be.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Extent(Ref<Extent>),
    Source,
}

impl Origin {
    pub(crate) fn is_source(&self) -> bool {
        matches!(self, Origin::Source)
    }

    pub(crate) fn is_extent(&self, extent: &Ref<Extent>) -> bool {
        matches!(self, Origin::Extent(own) if Ref::ptr_eq(own, extent))
    }
}

/// The old bytes of a page that is partly overwritten, read from their origin.
pub(crate) struct Base<'a> {
    pub(crate) origin: &'a Origin,
    pub(crate) bytes: &'a [u8],
}

/// The reason why a page was not written.
pub(crate) enum Unwritten {
    /// Its other bytes are at this origin: read them and try again.
    Needs(Origin),
    Failed(VmError),
}

/// Gauges of a chunk, for `stats` and for its guard, which keeps them up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Gauges {
    pub(super) resident: i64,
    pub(super) dirty: i64,
    pub(super) clustered: i64,
}

impl ChunkState {
    pub(super) fn empty() -> ChunkState {
        ChunkState {
            states: States::default(),
            going_out: false,
            referenced: false,
            queue: NOT_QUEUED,
            bytes: SmallVec::new(),
            clusters: SmallVec::new(),
        }
    }

    /// Pages that lie in a cluster.
    pub(crate) fn clustered(&self) -> PageSet {
        self.clusters.iter().fold(0, |set, cluster| set | cluster.live)
    }

    /// Pages that are charged to the account: neither absent nor in the source only.
    pub(crate) fn existing(&self) -> PageSet {
        self.resident() | self.states.all(State::Zero) | self.states.all(State::Lost) | self.clustered()
    }

    /// Pages that are in the source only.
    pub(crate) fn sourced(&self) -> PageSet {
        self.states.all(State::Sourced)
    }

    pub(crate) fn resident(&self) -> PageSet {
        self.states.resident()
    }

    pub(crate) fn dirty(&self) -> PageSet {
        self.states.all(State::Dirty)
    }

    pub(crate) fn writing(&self) -> PageSet {
        self.states.all(State::Writing)
    }

    /// True if a cluster of the chunk is on its way to the store.
    pub(crate) fn is_going_out(&self) -> bool {
        self.going_out
    }

    pub(crate) fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    pub(super) fn gauges(&self) -> Gauges {
        Gauges {
            resident: i64::from(self.resident().count_ones()),
            dirty: i64::from((self.dirty() | self.writing()).count_ones()),
            clustered: i64::from(self.clustered().count_ones()),
        }
    }

    fn rank(&self, page: usize) -> usize {
        (self.resident() & pages(0, page)).count_ones() as usize
    }

    /// The location of `page`'s bytes.
    pub(crate) fn page(&self, page: usize) -> Where<'_> {
        let bit = 1 << page;
        if self.resident() & bit != 0 {
            Where::Bytes(&self.bytes[self.rank(page)])
        } else if self.states.all(State::Lost) & bit != 0 {
            Where::Lost
        } else if let Some(cluster) = self.clusters.iter().find(|cluster| cluster.live & bit != 0) {
            Where::Cluster(&cluster.extent)
        } else if self.sourced() & bit != 0 {
            Where::Source
        } else {
            Where::Zero
        }
    }

    /// Makes `bytes` the contents of a page that has none resident, and forgets its other locations.
    fn put(&mut self, page: usize, bytes: Bytes) {
        let rank = self.rank(page);
        self.bytes.insert(rank, bytes);
        self.mark_dirty(page);
    }

    fn mark_dirty(&mut self, page: usize) {
        let bit = 1 << page;
        self.states.set(bit, State::Dirty);
        self.forget_copies(bit);
    }

    /// Frees the pages' copies in clusters; an extent goes with its last page (R57).
    fn forget_copies(&mut self, set: PageSet) {
        self.clusters.retain(|cluster| cluster.live & !set != 0);
        for cluster in &mut self.clusters {
            let dying = cluster.live & set;
            if dying != 0 {
                cluster.live &= !set;
                cluster.extent.hide(dying, cluster.live);
            }
        }
    }

    /// Writes `data` at byte `at` of `page`, all inside the page. `base` holds the page's other bytes, if they were
    /// read for this write.
    ///
    /// # Errors
    /// The page's other bytes must be read first, or the write cannot be done.
    pub(crate) fn write_page(
        &mut self,
        page: usize,
        at: usize,
        data: &[u8],
        base: Option<Base<'_>>,
        memory: &Memory,
        reservation: &mut Reservation,
    ) -> Result<(), Unwritten> {
        debug_assert!(at + data.len() <= PAGE);
        let bit = 1 << page;
        let whole = data.len() == PAGE;
        if self.resident() & bit != 0 {
            let rank = self.rank(page);
            // Bytes that a fork or a batch shares are never changed (R28): this page gets its own.
            if !self.bytes[rank].try_write(at, data) {
                let base: &[u8] = if whole { &[] } else { self.bytes[rank].as_slice() };
                self.bytes[rank] = Bytes::build(base, at, data, reservation, &memory.arena);
            }
            self.mark_dirty(page);
            self.referenced = true;
            return Ok(());
        }
        let before = match self.page(page) {
            _ if whole => &[],
            Where::Lost => return Err(Unwritten::Failed(VmError::Lost)),
            Where::Cluster(extent) => match base.filter(|base| base.origin.is_extent(extent)) {
                Some(base) => base.bytes,
                None => return Err(Unwritten::Needs(Origin::Extent(extent.clone()))),
            },
            Where::Source => match base.filter(|base| base.origin.is_source()) {
                Some(base) => base.bytes,
                None => return Err(Unwritten::Needs(Origin::Source)),
            },
            Where::Zero | Where::Bytes(_) => &[],
        };
        let bytes = Bytes::build(before, at, data, reservation, &memory.arena);
        self.put(page, bytes);
        Ok(())
    }

    /// Gives a page a frame with its new contents, whatever its state.
    pub(crate) fn install(&mut self, page: usize, frame: Frame) {
        if self.resident() & 1 << page != 0 {
            let rank = self.rank(page);
            self.bytes[rank] = Bytes::Frame(frame);
            self.mark_dirty(page);
            self.referenced = true;
        } else {
            self.put(page, Bytes::Frame(frame));
        }
    }

    /// Marks `set` as in the source: for a new chunk.
    pub(crate) fn begin_sourced(&mut self, set: PageSet) {
        debug_assert!(self.existing() == 0);
        self.states.set(set, State::Sourced);
    }

    /// Makes the pages absent. Returns how many existed.
    pub(crate) fn discard(&mut self, set: PageSet) -> u32 {
        let gone = (self.existing() & set).count_ones();
        self.drop_bytes(set & self.resident());
        self.states.set(set, State::None);
        self.forget_copies(set);
        gone
    }

    fn drop_bytes(&mut self, set: PageSet) {
        if set == self.resident() {
            self.bytes = SmallVec::new();
            self.states.set(set, State::None);
            return;
        }
        for page in members(set) {
            let rank = self.rank(page);
            self.bytes.remove(rank);
            self.states.set(1 << page, State::None);
        }
    }

    /// Makes absent pages of `set` exist, as zeros without bytes.
    pub(crate) fn allocate(&mut self, set: PageSet) {
        self.states.set(set & !self.existing() & !self.sourced(), State::Zero);
    }

    /// Marks the pages lost: reads fail.
    pub(crate) fn lose(&mut self, set: PageSet) {
        self.discard(set);
        self.states.set(set, State::Lost);
    }

    /// Moves the pages that lie in `old` to `new`, which holds the same pages, if `go_ahead` agrees under the chunk's
    /// lock. Returns true if it did.
    pub(crate) fn replace_extent(
        &mut self,
        old: &Ref<Extent>,
        new: &Ref<Extent>,
        go_ahead: impl FnOnce() -> bool,
    ) -> bool {
        let Some(cluster) = self.clusters.iter_mut().find(|c| Ref::ptr_eq(&c.extent, old)) else {
            return false;
        };
        // A fork would go on showing the old one, and both would take memory.
        if !old.has_one_chunk() || cluster.live & !new.pages() != 0 || !go_ahead() {
            return false;
        }
        // The caller holds `old` too: it is not dropped here, under the lock.
        *cluster = Cluster::new(new.clone(), cluster.live);
        true
    }

    /// The pages in a strip of `extent` are unreadable for good; its other strips may be sound.
    pub(crate) fn lose_strip(&mut self, extent: &Ref<Extent>, strip: usize) {
        let hit = self.clusters.iter().filter(|c| Ref::ptr_eq(&c.extent, extent));
        let set = hit.fold(0, |set, cluster| set | cluster.live) & extent.pages_of(strip);
        // A clean page still has its bytes: it loses its copy in a cluster only.
        self.forget_copies(set);
        let clean = set & self.resident();
        self.states.set(clean, State::Dirty);
        self.states.set(set & !clean, State::Lost);
    }

    /// Drops the bytes of clean pages: their cluster has them. Returns the bytes freed.
    pub(crate) fn drop_clean(&mut self) -> usize {
        let clean = self.states.all(State::Clean);
        let freed = members(clean).map(|page| self.bytes[self.rank(page)].cost()).sum();
        self.drop_bytes(clean);
        freed
    }

    /// Drops the bytes of dirty pages that are all zeros. Returns the bytes freed.
    pub(crate) fn drop_zeros(&mut self) -> usize {
        let mut zeros = 0;
        let mut freed = 0;
        for page in members(self.dirty()) {
            let bytes = &self.bytes[self.rank(page)];
            if is_zero(bytes.as_slice()) {
                zeros |= 1 << page;
                freed += bytes.cost();
            }
        }
        self.drop_bytes(zeros);
        self.states.set(zeros, State::Zero);
        freed
    }

    /// Takes the dirty pages for writing: shares of their bytes, in page order, and the bytes that come free with them.
    /// (Bytes that a fork shows too stay.)
    pub(crate) fn begin_writing(&mut self, out: &mut SmallVec<[Bytes; CHUNK_PAGES]>) -> (PageSet, usize) {
        debug_assert!(!self.going_out);
        let set = self.dirty();
        self.going_out = set != 0;
        let mut cost = 0;
        for page in members(set) {
            let rank = self.rank(page);
            let bytes = &mut self.bytes[rank];
            if bytes.is_unshared() {
                cost += bytes.cost();
            }
            out.push(bytes.share());
        }
        self.states.set(set, State::Writing);
        (set, cost)
    }

    /// The write of `set` failed: pages not written again meanwhile are dirty again.
    pub(crate) fn abandon_writing(&mut self, set: PageSet) {
        self.going_out = false;
        self.states.set(self.writing() & set, State::Dirty);
    }

    /// The write of `set` succeeded. Pages written again meanwhile are left alone; the others live in `extent`
    /// and give up their bytes. The extent goes at once if it holds no page any more.
    pub(crate) fn finish_writing(&mut self, set: PageSet, extent: impl FnOnce() -> Ref<Extent>) {
        self.going_out = false;
        let live = self.writing() & set;
        if live != 0 {
            self.clusters.push(Cluster::new(extent(), live));
            self.drop_bytes(live);
        }
    }

    /// Asserts the invariants in this module's documentation.
    ///
    /// # Panics
    /// When one does not hold.
    pub(crate) fn check(&self) {
        let clustered = self.clustered();
        let apart = [State::Zero, State::Lost, State::Sourced, State::Dirty, State::Writing];
        for state in apart {
            assert_eq!(self.states.all(state) & clustered, 0, "{state:?} is in no cluster: {self:?}");
        }
        assert_eq!(self.states.all(State::Clean) & !clustered, 0, "clean is in a cluster: {self:?}");
        assert!(self.going_out || self.writing() == 0, "{self:?}");
        assert_eq!(self.bytes.len(), self.resident().count_ones() as usize, "{self:?}");
        assert_eq!(self.queue == NOT_QUEUED, self.resident() == 0, "queued when resident: {self:?}");
        let sum: u32 = self.clusters.iter().map(|cluster| cluster.live.count_ones()).sum();
        assert_eq!(sum, clustered.count_ones(), "clusters do not overlap: {self:?}");
        for cluster in &self.clusters {
            assert_eq!(cluster.live & !cluster.extent.pages(), 0, "live pages are in the extent: {self:?}");
        }
    }

    /// The bytes of the resident pages, in page order.
    pub(crate) fn bytes(&self) -> &[Bytes] {
        &self.bytes
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::records::{Chunk, Extent};

    /// An evicted chunk should cost next to nothing: the chunk and its extent stay in memory.
    #[test]
    fn an_evicted_chunk_is_small() {
        assert!(size_of::<Chunk>() <= 96 && size_of::<Extent>() <= 48);
    }
}
