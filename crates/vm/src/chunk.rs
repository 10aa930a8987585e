//! A chunk: sixteen neighbouring pages of an object, and where the bytes of each are.
//!
//! ```text
//!  location        in masks                        a write makes it   pageout makes it
//!  absent          none (reads zero)               dirty              -
//!  zero            zero: exists, costs no bytes    dirty              -
//!  dirty           resident, dirty                 dirty              being packed; zero, if it is
//!  being packed    resident, writing               dirty              packed; dirty if that fails
//!  clean           resident, live in a cluster     dirty              packed
//!  packed          live in a cluster only          dirty              -
//!  lost            lost (reads fail)               dirty, if whole    -
//! ```
//! A discard makes any of them absent. Clean is for faces that promote what they read; pageout itself frees what it
//! has packed, so no page is clean yet. Whether a cluster is in compressed memory or in the store is its extent's business.
//! (A source pager will be one more location.)
//!
//! Invariants, checked by [`ChunkState::check`]:
//! - zero, lost and (resident or packed) exclude each other; dirty and writing are resident and exclude each other;
//! - a dirty or writing page is in no cluster: its slot died when it was written (R57);
//! - resident pages that are neither dirty nor writing are in a cluster;
//! - `bytes` holds the resident pages' bytes in page order;
//! - a chunk with resident pages is on a page queue.

use std::ops::{Deref, DerefMut};

use overspill_slab::{Ref, kept};
use smallvec::SmallVec;

use crate::account::{Account, Space};
use crate::budget::{Charge, Reservation};
use crate::bytes::Bytes;
use crate::error::VmError;
use crate::extent::Extent;
use crate::fetch::Unpacked;
use crate::pageset::{PageSet, members, pages};
use crate::queue::{NOT_QUEUED, QueueSlot};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, rank};
use crate::vm::Shared;
use crate::{CHUNK_PAGES, PAGE};

/// Whether all bytes are 0. Ends early where they are not.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// What its counts and its share of a slab add to an object.
const HEAP: usize = 16;

/// What a chunk costs in metadata: itself, and its place on the page queues.
pub(crate) const CHUNK_COST: usize = size_of::<Chunk>() + HEAP + 32;

/// A chunk of some object's tree. Reference counted twice: by `Ref` for memory, and by `owners` for the trees that
/// show it, because pageout holding it for a moment must not make a write copy it.
pub(crate) struct Chunk {
    owners: AtomicU32,
    /// The object it was made for: stores may keep each object's data apart.
    object: u32,
    state: Mutex<ChunkState, { rank::CHUNK }>,
    shared: Arc<Shared>,
    /// Whom its pages are charged to: the first owner pays, also when others go on showing it.
    account: std::sync::Arc<Account>,
}

kept!(counted Chunk, "chunk");

/// A tree's reference to a chunk.
pub(crate) struct ChunkRef(Ref<Chunk>);

impl ChunkRef {
    /// # Errors
    /// [`VmError::NoMemory`] when there is none for it.
    pub(crate) fn new(chunk: Chunk) -> Result<ChunkRef, VmError> {
        chunk.owners.store(1, Ordering::Relaxed);
        Ok(ChunkRef(Ref::new(chunk)?))
    }

    /// Whether only the tree this reference is in shows the chunk. Meaningful while that tree is locked and its
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

/// Pages of a chunk that lie in one extent. While it lives, the extent knows that a chunk shows it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) extent: Ref<Extent>,
    /// Which of the extent's pages are still this chunk's; never none, but for a moment.
    pub(crate) live: PageSet,
}

impl Cluster {
    fn new(extent: Ref<Extent>, live: PageSet) -> Cluster {
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

/// What a chunk's lock guards.
#[derive(Debug)]
pub(crate) struct ChunkState {
    resident: PageSet,
    dirty: PageSet,
    writing: PageSet,
    zero: PageSet,
    lost: PageSet,
    /// A cluster of this chunk is on its way to the store, perhaps with no page left that is not written again.
    /// Until it ends there is no second one: its end must not be taken for the second one's.
    going_out: bool,
    /// Read or written again since pageout last looked.
    pub(crate) referenced: bool,
    /// Where on the page queues the chunk is.
    pub(crate) queue: QueueSlot,
    bytes: SmallVec<[Bytes; 1]>,
    clusters: SmallVec<[Cluster; 1]>,
}

/// What a page that is not resident needs before its bytes can be had.
pub(crate) enum PageIn<'a> {
    /// The page's bytes are here.
    Bytes(&'a Bytes),
    /// The page reads as zeros.
    Zero,
    /// The bytes are in this extent.
    Stored(&'a Ref<Extent>),
    Lost,
}

/// Gauges of a chunk, for `stats` and for what its guard keeps up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Gauges {
    resident: i64,
    dirty: i64,
    stored: i64,
}

impl Chunk {
    /// A chunk, which [`CHUNK_COST`] was charged for.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        object: u32,
        account: &std::sync::Arc<Account>,
        charge: Charge,
    ) -> Chunk {
        charge.hand_over();
        Chunk {
            owners: AtomicU32::new(0),
            object,
            state: Mutex::new(ChunkState::empty()),
            shared: shared.clone(),
            account: account.clone(),
        }
    }

    /// Whether some tree still shows the chunk. Once false it stays so.
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

/// What needs the handle of a chunk, not just the chunk: its lock makes weak handles for the page queues.
pub(crate) trait ChunkHandle {
    /// Locks the chunk's state.
    fn lock(&self) -> ChunkGuard<'_>;

    /// A chunk with the same pages, for a tree that is about to change them: frames, small pages and extents are
    /// shared, not copied (R40, R58). `account` pays for the pages from now on; without a `space` it must.
    ///
    /// # Errors
    /// [`VmError::NoSpace`] when the account may not, [`VmError::NoMemory`] when there is none for the chunk.
    fn copy(&self, account: &std::sync::Arc<Account>, space: Option<Space>) -> Result<ChunkRef, VmError>;
}

impl ChunkHandle for Ref<Chunk> {
    fn copy(&self, account: &std::sync::Arc<Account>, space: Option<Space>) -> Result<ChunkRef, VmError> {
        let charge = self.shared.budget.charge_forced(CHUNK_COST);
        // First, because it can fail: nothing is charged to the account then.
        let copy = ChunkRef::new(Chunk::new(&self.shared, self.object, account, charge))?;
        let from = self.lock();
        let count = u64::from(from.existing().count_ones());
        match space {
            Some(space) if !account.try_charge(count, space) => return Err(VmError::NoSpace),
            Some(_) => {}
            None => account.charge_forced(count),
        }
        let mut to = copy.lock();
        to.resident = from.resident;
        // What is on its way out belongs to the original; the copy's pages will be written for themselves.
        to.dirty = from.dirty | from.writing;
        to.zero = from.zero;
        to.lost = from.lost;
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
            self.shared.queues.lock().remove(state.queue);
        }
        state.bytes.clear();
        state.clusters.clear();
        self.shared.counters.adjust(-gauges.resident, -gauges.dirty, -gauges.stored);
        self.account.uncharge(existing);
        self.shared.budget.uncharge_metadata(CHUNK_COST);
    }
}

/// A locked chunk. On unlock it joins or leaves the page queues and the gauges follow.
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
        if queued != (self.state.resident != 0) {
            let mut queues = self.chunk.shared.queues.lock();
            if queued {
                queues.remove(self.state.queue);
                self.state.queue = NOT_QUEUED;
            } else {
                self.state.queue = queues.insert(Ref::downgrade(self.chunk));
            }
        }
        let now = self.state.gauges();
        if now != self.before {
            self.chunk.shared.counters.adjust(
                now.resident - self.before.resident,
                now.dirty - self.before.dirty,
                now.stored - self.before.stored,
            );
        }
    }
}

impl ChunkState {
    fn empty() -> ChunkState {
        ChunkState {
            resident: 0,
            dirty: 0,
            writing: 0,
            zero: 0,
            lost: 0,
            going_out: false,
            referenced: false,
            queue: NOT_QUEUED,
            bytes: SmallVec::new(),
            clusters: SmallVec::new(),
        }
    }

    /// Pages with a copy in a store.
    pub(crate) fn stored(&self) -> PageSet {
        self.clusters.iter().fold(0, |set, cluster| set | cluster.live)
    }

    /// Pages that are not absent.
    pub(crate) fn existing(&self) -> PageSet {
        self.resident | self.zero | self.lost | self.stored()
    }

    pub(crate) fn resident(&self) -> PageSet {
        self.resident
    }

    pub(crate) fn dirty(&self) -> PageSet {
        self.dirty
    }

    pub(crate) fn writing(&self) -> PageSet {
        self.writing
    }

    /// Whether a cluster of the chunk is on its way to the store.
    pub(crate) fn is_going_out(&self) -> bool {
        self.going_out
    }

    pub(crate) fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            resident: i64::from(self.resident.count_ones()),
            dirty: i64::from((self.dirty | self.writing).count_ones()),
            stored: i64::from(self.stored().count_ones()),
        }
    }

    fn rank(&self, page: usize) -> usize {
        (self.resident & pages(0, page)).count_ones() as usize
    }

    /// Where the bytes of `page` are.
    pub(crate) fn page(&self, page: usize) -> PageIn<'_> {
        let bit = 1 << page;
        if self.resident & bit != 0 {
            PageIn::Bytes(&self.bytes[self.rank(page)])
        } else if self.lost & bit != 0 {
            PageIn::Lost
        } else if let Some(cluster) = self.clusters.iter().find(|cluster| cluster.live & bit != 0) {
            PageIn::Stored(&cluster.extent)
        } else {
            PageIn::Zero
        }
    }

    /// Makes `bytes` the contents of a page that has none resident, and forgets where else it was.
    fn put(&mut self, page: usize, bytes: Bytes) {
        let rank = self.rank(page);
        self.bytes.insert(rank, bytes);
        self.resident |= 1 << page;
        self.mark_dirty(page);
    }

    fn mark_dirty(&mut self, page: usize) {
        let bit = 1 << page;
        debug_assert!(self.resident & bit != 0);
        self.dirty |= bit;
        self.writing &= !bit;
        self.zero &= !bit;
        self.lost &= !bit;
        self.forget_slots(bit);
    }

    /// The pages' slots die; an extent goes with its last page (R57).
    fn forget_slots(&mut self, set: PageSet) {
        self.clusters.retain(|cluster| cluster.live & !set != 0);
        for cluster in &mut self.clusters {
            let dying = cluster.live & set;
            if dying != 0 {
                cluster.live &= !set;
                cluster.extent.hide(dying, cluster.live);
            }
        }
    }

    /// Writes `data` at byte `at` of `page`, all inside the page. `filled` is the cluster the page was fetched
    /// from, when an earlier try asked for it.
    ///
    /// # Errors
    /// `Err(Ok(extent))`: the page's other bytes lie there; fetch and try again. `Err(Err(_))`: it cannot be done.
    pub(crate) fn write_page(
        &mut self,
        page: usize,
        at: usize,
        data: &[u8],
        filled: Option<&Unpacked>,
        shared: &Shared,
        reservation: &mut Reservation,
    ) -> Result<(), Result<Ref<Extent>, VmError>> {
        debug_assert!(at + data.len() <= PAGE);
        let bit = 1 << page;
        let whole = data.len() == PAGE;
        if self.resident & bit != 0 {
            let rank = self.rank(page);
            // Bytes that a fork or a batch being packed shares are never changed (R28): this page gets its own.
            if !self.bytes[rank].try_write(at, data) {
                let base: &[u8] = if whole { &[] } else { self.bytes[rank].as_slice() };
                let bytes = Bytes::build(base, at, data, reservation, &shared.arena);
                self.bytes[rank] = bytes;
            }
            self.mark_dirty(page);
            self.referenced = true;
            return Ok(());
        }
        let bytes = match self.page(page) {
            _ if whole => Bytes::build(&[], at, data, reservation, &shared.arena),
            PageIn::Lost => return Err(Err(VmError::Lost)),
            PageIn::Stored(extent) => {
                let base =
                    filled.filter(|cluster| cluster.is_of(extent)).and_then(|cluster| cluster.page(page));
                let Some(base) = base else { return Err(Ok(extent.clone())) };
                Bytes::build(base, at, data, reservation, &shared.arena)
            }
            PageIn::Zero | PageIn::Bytes(_) => Bytes::build(&[], at, data, reservation, &shared.arena),
        };
        self.put(page, bytes);
        Ok(())
    }

    /// The pages become absent. Returns how many existed.
    pub(crate) fn discard(&mut self, set: PageSet) -> u32 {
        let gone = (self.existing() & set).count_ones();
        self.drop_bytes(set & self.resident);
        self.zero &= !set;
        self.lost &= !set;
        self.forget_slots(set);
        gone
    }

    fn drop_bytes(&mut self, set: PageSet) {
        if set == self.resident {
            self.bytes = SmallVec::new();
        } else {
            for page in members(set) {
                let rank = self.rank(page);
                self.bytes.remove(rank);
                self.resident &= !(1 << page);
            }
        }
        self.resident &= !set;
        self.dirty &= !set;
        self.writing &= !set;
    }

    /// Absent pages of `set` begin to exist, as zeros without bytes.
    pub(crate) fn allocate(&mut self, set: PageSet) {
        self.zero |= set & !self.existing();
    }

    /// The pages' contents are gone, and reading them says so.
    pub(crate) fn lose(&mut self, set: PageSet) {
        self.discard(set);
        self.lost |= set;
    }

    /// Shows the pages that lie in `old` from `new` on, which has the same, if `go_ahead` says so under the chunk's lock.
    /// Returns whether it does.
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
        // `old` is the caller's too: it is not dropped here, under the lock.
        *cluster = Cluster::new(new.clone(), cluster.live);
        true
    }

    /// The pages that lie in a strip of `extent` turn out to be unreadable for good; its other strips may be sound.
    pub(crate) fn lose_strip(&mut self, extent: &Ref<Extent>, strip: usize) {
        let hit = self.clusters.iter().filter(|c| Ref::ptr_eq(&c.extent, extent));
        let set = hit.fold(0, |set, cluster| set | cluster.live) & extent.pages_of(strip);
        // A clean page still has its bytes: it loses its slot only.
        self.forget_slots(set);
        self.dirty |= set & self.resident;
        self.lost |= set & !self.resident;
    }

    /// Clean pages give up their bytes: their slot has them. Returns what that frees.
    pub(crate) fn drop_clean(&mut self) -> usize {
        let clean = self.resident & !self.dirty & !self.writing;
        let freed = members(clean).map(|page| self.bytes[self.rank(page)].cost()).sum();
        self.drop_bytes(clean);
        freed
    }

    /// Dirty pages of nothing but zeros give up their bytes: they need none. Returns what that frees.
    pub(crate) fn drop_zeros(&mut self) -> usize {
        let mut zeros = 0;
        let mut freed = 0;
        for page in members(self.dirty) {
            let bytes = &self.bytes[self.rank(page)];
            if is_zero(bytes.as_slice()) {
                zeros |= 1 << page;
                freed += bytes.cost();
            }
        }
        self.drop_bytes(zeros);
        self.zero |= zeros;
        freed
    }

    /// Takes the dirty pages for writing: shares of their bytes, in page order, and what goes free with them. (Bytes that a
    /// fork shows too stay.)
    pub(crate) fn begin_writing(&mut self, out: &mut SmallVec<[Bytes; CHUNK_PAGES]>) -> (PageSet, usize) {
        debug_assert!(!self.going_out);
        let set = self.dirty;
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
        self.writing |= set;
        self.dirty = 0;
        (set, cost)
    }

    /// The write of `set` failed: what was not written again meanwhile is dirty again.
    pub(crate) fn abandon_writing(&mut self, set: PageSet) {
        self.going_out = false;
        self.dirty |= self.writing & set;
        self.writing &= !set;
    }

    /// The write of `set` succeeded. Pages written again meanwhile are left alone; the others live in `extent`
    /// and give up their bytes. The extent goes at once if it holds no page any more.
    pub(crate) fn finish_writing(&mut self, set: PageSet, extent: impl FnOnce() -> Ref<Extent>) {
        self.going_out = false;
        let live = self.writing & set;
        self.writing &= !set;
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
        let stored = self.stored();
        assert_eq!(self.zero & (self.lost | self.resident | stored), 0, "zero excludes the rest: {self:?}");
        assert_eq!(self.lost & (self.resident | stored), 0, "lost excludes the rest: {self:?}");
        assert_eq!(
            (self.dirty | self.writing) & !self.resident,
            0,
            "dirty and writing are resident: {self:?}"
        );
        assert_eq!(self.dirty & self.writing, 0, "{self:?}");
        assert!(self.going_out || self.writing == 0, "{self:?}");
        assert_eq!((self.dirty | self.writing) & stored, 0, "a written page's slot died: {self:?}");
        assert_eq!(self.resident & !(self.dirty | self.writing) & !stored, 0, "clean means stored: {self:?}");
        assert_eq!(self.bytes.len(), self.resident.count_ones() as usize, "{self:?}");
        assert_eq!(self.queue == NOT_QUEUED, self.resident == 0, "queued when resident: {self:?}");
        let sum: u32 = self.clusters.iter().map(|cluster| cluster.live.count_ones()).sum();
        assert_eq!(sum, stored.count_ones(), "clusters do not overlap: {self:?}");
        for cluster in &self.clusters {
            assert_eq!(cluster.live & !cluster.extent.pages(), 0, "live pages are in the extent: {self:?}");
        }
    }

    /// Bytes of the budget that this chunk's resident pages hold, each counted by `seen` once.
    pub(crate) fn bytes(&self) -> &[Bytes] {
        &self.bytes
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    /// What is evicted should cost next to nothing: its chunk and its extent stay in memory.
    #[test]
    fn what_is_evicted_is_small() {
        assert!(size_of::<Chunk>() <= 96 && size_of::<Extent>() <= 48);
    }
}
