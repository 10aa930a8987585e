//! Pageout: choosing, cleaning and freeing pages when the budget runs short.
//!
//! ```text
//!   page queues ──► pack ──► compressed memory (tier.rs)          pages that pack; others while it has room; no I/O
//!                     └────► batch ─────────┐                     pages that do not pack, once it is full
//!   tier, over its share ──► batch ─────────┴──► store ──► complete
//! ```
//! A step looks at a few chunks and packs their dirty pages; when compressed memory is over its share of the budget its
//! oldest clusters go to the store, side by side in one run, written as one request (`batch.rs`). It waits for nobody:
//! where it cannot go on it says what it needs ([`Step`]). Batches, their buffers and the compressor's tables exist before
//! they are needed (iron rule 1); compressed memory that cannot be had makes clusters go to the store at once.

use overspill_slab::RefReserve;
use overspill_store::AllocError;
use overspill_store::codec::{Encoder, Grain, MAX_PAYLOAD, Method};
use smallvec::SmallVec;

use crate::CHUNK_PAGES;
use crate::batch::{Batch, Item};
use crate::bytes::Bytes;
use crate::chunk::ChunkHandle as _;
use crate::error::VmError;
use crate::extent::{EXTENT_COST, Extent, ExtentSpace, Place};
use crate::health::Health;
use crate::io::WriteIo;
use crate::pace::Pace;
use crate::pageset::PageSet;
use crate::repack;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, rank};
use crate::tier::{Leaving, Next, Tier};
use crate::vm::{Shared, VmConfig};

/// What one step of pageout came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Memory is plentiful: nothing to do until the VM signals pageout again.
    Rest,
    /// Something was freed or put on its way: step again.
    Worked,
    /// Writes are under way: step again when one completes.
    AwaitIo,
    /// The store must prepare space: run its `maintain`, then step again.
    AwaitStore,
    /// Nothing can be freed: all is pinned, or the store is full, failing or absent. Who waited for memory has been
    /// told. Step again when the VM signals pageout.
    Stuck,
}

/// How many chunks a step looks at before it lets the queues go and says so.
const SCAN: usize = 64;

/// The packing half of pageout; one thread at a time has it.
struct Packer {
    encoder: Encoder,
    /// For clusters that go to compressed memory.
    extents: RefReserve<Extent>,
}

/// What pageout found out about being stuck.
#[derive(Default)]
struct Search {
    /// Chunks and clusters looked at since something could last be done. All of them in vain: stuck.
    in_vain: usize,
    /// [`Pageout::quiet`] when last stuck.
    stuck_at: Option<(u64, u64)>,
}

/// Pageout's state.
pub(crate) struct Pageout {
    space: Option<Arc<ExtentSpace>>,
    /// What does not pack waits in compressed memory while that has room. Not where nothing packs, or nothing can leave.
    keeps_raw: bool,
    pub(crate) tier: Arc<Tier>,
    /// Who steps has this lock, then perhaps the packer's.
    search: Mutex<Search, { rank::SEARCH }>,
    packer: Mutex<Packer, { rank::PACKER }>,
    /// Who helps when writers wait.
    helper: Mutex<Packer, { rank::PACKER }>,
    next_tag: AtomicU64,
    #[expect(clippy::vec_box, reason = "requests carry a batch by pointer, not by value")]
    idle: Mutex<Vec<Box<Batch>>>,
    /// Bytes of the budget in batches under way.
    coming: AtomicUsize,
    /// Bytes of compressed memory among them.
    leaving: AtomicUsize,
    in_flight: AtomicUsize,
    pace: Pace,
    health: Health,
    /// Helpers at work, and how often one has been: what they hold is not on the queues, and comes back or goes free.
    helping: AtomicUsize,
    helped: AtomicU64,
    /// Evict everything always, for tests and `debug=evict`.
    pub(crate) eager: AtomicBool,
}

impl std::fmt::Debug for Pageout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pageout({} under way, {:?})", self.in_flight.load(Ordering::Relaxed), self.tier)
    }
}

/// What came of packing pages, or of writing out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Something was freed or is on its way.
    Done,
    /// Nothing could be.
    Nothing,
    /// Pages are on their way as they are, past compressed memory.
    Bypassed,
    /// Nothing is free, but pages that do not pack now wait where they can be written out.
    Moved,
    /// All batches are under way.
    NoBatch,
    /// The store must prepare space.
    NotReady,
}

/// Extents that a packer has set aside: as many as a step may want.
const EXTENTS: usize = SCAN;

impl Pageout {
    /// # Errors
    /// When there is no memory for its batches.
    pub(crate) fn new(space: Option<Arc<ExtentSpace>>, config: &VmConfig) -> Result<Pageout, VmError> {
        let &VmConfig { method, batches, batch_bytes, always_bypass, .. } = config;
        let count = if space.is_some() { batches } else { 0 };
        let idle: Result<Vec<_>, VmError> =
            (0..count).map(|_| Batch::new(batch_bytes).map(Box::new)).collect();
        let packer = || Packer {
            encoder: Encoder::new(method),
            extents: RefReserve::new(0).expect("none is never too many"),
        };
        Ok(Pageout {
            keeps_raw: space.is_some() && method != Method::None,
            space,
            tier: Tier::new(),
            search: Mutex::default(),
            packer: Mutex::new(packer()),
            helper: Mutex::new(packer()),
            next_tag: AtomicU64::new(1),
            idle: Mutex::new(idle?),
            coming: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            pace: Pace::new(always_bypass),
            health: Health::default(),
            helping: AtomicUsize::new(0),
            helped: AtomicU64::new(0),
            eager: AtomicBool::new(false),
        })
    }

    fn is_eager(&self) -> bool {
        self.eager.load(Ordering::Relaxed)
    }

    fn wanted(&self, shared: &Shared) -> usize {
        let coming = self.coming.load(Ordering::Acquire);
        let wanted = shared.budget.wanted(coming);
        if self.is_eager() {
            // Who waits counts here too, or would wait for ever where nothing is resident.
            let all = shared.counters.resident_pages().saturating_mul(crate::PAGE) + self.tier.bytes();
            return wanted.max(all.saturating_sub(coming));
        }
        wanted
    }

    /// One step. See [`Step`].
    pub(crate) fn step(&self, shared: &Arc<Shared>) -> Step {
        shared.budget.grant();
        let wanted = self.wanted(shared);
        if wanted == 0 {
            if self.in_flight() > 0 {
                return Step::AwaitIo;
            }
            // A swap, not a store: whoever ran short meanwhile either sees it cleared and signals, or is seen below.
            shared.budget.short.swap(false, Ordering::AcqRel);
            if self.wanted(shared) == 0 {
                return Step::Rest;
            }
            shared.budget.short.store(true, Ordering::Release);
        }
        let mut search = self.search.lock();
        let step = self.launder(shared, &mut search, wanted);
        if step == Step::Stuck {
            search.in_vain = 0;
            shared.budget.short.swap(false, Ordering::AcqRel);
            let quiet = self.quiet(shared);
            let before = std::mem::replace(&mut search.stuck_at, quiet);
            drop(search);
            // What is only set aside, or in a helper's hands, comes back or becomes pages to look at: believed when two
            // looks in a row found nothing, and nothing of the kind happened in between.
            if quiet.is_some() && quiet != before {
                return Step::Worked;
            }
            if quiet.is_some() {
                shared.budget.refuse_all(VmError::NoMemory);
            }
        }
        step
    }

    /// Numbers that stay the same while nothing is set aside and no helper works; `None` when something is or one does.
    /// The end of either then asks for pageout again.
    fn quiet(&self, shared: &Shared) -> Option<(u64, u64)> {
        let made = shared.budget.quiet()?;
        let helped = self.helped.load(Ordering::Acquire);
        (self.helping.load(Ordering::Acquire) == 0).then_some((made, helped))
    }

    /// Packs some pages beside whoever steps, while writers wait. Returns whether it did.
    pub(crate) fn help(&self, shared: &Arc<Shared>) -> bool {
        let wanted = self.wanted(shared);
        if !shared.budget.has_waiters() || wanted == 0 {
            return false;
        }
        let Some(mut packer) = self.helper.try_lock() else { return false };
        self.helping.fetch_add(1, Ordering::AcqRel);
        self.helped.fetch_add(1, Ordering::AcqRel);
        let outcome = self.pack(shared, &mut packer, wanted);
        self.helping.fetch_sub(1, Ordering::AcqRel);
        // Pageout may have come to rest because of this helper.
        if shared.budget.has_waiters() {
            shared.signals().pageout_wanted();
        }
        matches!(outcome, Outcome::Done | Outcome::Bypassed)
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    pub(crate) fn next_tag(&self) -> u64 {
        self.next_tag.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Packs pages, and writes out what compressed memory has too much of.
    fn launder(&self, shared: &Arc<Shared>, search: &mut Search, wanted: usize) -> Step {
        let packed = self.pack(shared, &mut self.packer.lock(), wanted);
        let mut outcomes = [packed, Outcome::Nothing];
        // Before its share is full only where a whole look at the pages found none to pack.
        let looked_at_all = search.in_vain > shared.queues.lock().len();
        let full = packed != Outcome::Bypassed && self.is_over_share(shared);
        if self.is_eager() || looked_at_all || packed == Outcome::Moved || full {
            outcomes[1] = self.write_out(shared);
        }
        if outcomes.contains(&Outcome::Done) || packed == Outcome::Bypassed {
            search.in_vain = 0;
            shared.budget.grant();
            return Step::Worked;
        }
        if outcomes.contains(&Outcome::NotReady) {
            return Step::AwaitStore;
        }
        if outcomes.contains(&Outcome::NoBatch) && (self.in_flight() > 0 || self.health.rests(shared.now())) {
            return Step::AwaitIo;
        }
        // Look on, until all there is was looked at twice in vain.
        search.in_vain += SCAN;
        if search.in_vain <= 2 * (shared.queues.lock().len() + self.tier.len()) + SCAN {
            return Step::Worked;
        }
        search.in_vain = 0;
        if self.in_flight() > 0 { Step::AwaitIo } else { Step::Stuck }
    }

    /// Whether compressed memory holds more than its share: what is left to it by metadata, the room that writers are
    /// kept, and a sixteenth for pages as they are.
    fn is_over_share(&self, shared: &Shared) -> bool {
        self.beyond(shared.budget.pageable() / 16 * 15)
    }

    /// Whether it has that much, or nearly so.
    fn has_share(&self, shared: &Shared) -> bool {
        self.beyond(shared.budget.pageable() / 32 * 29)
    }

    fn beyond(&self, share: usize) -> bool {
        let staying = || self.tier.bytes().saturating_sub(self.leaving.load(Ordering::Relaxed));
        self.space.is_some() && staying() > share
    }

    /// Takes chunks in queue order and packs their pages, until enough is free.
    fn pack(&self, shared: &Arc<Shared>, packer: &mut Packer, wanted: usize) -> Outcome {
        // Fewer than wanted only mean that clusters go to the store at once.
        let _ = packer.extents.fill(EXTENTS);
        let is_full = self.has_share(shared);
        // What is packed now and then all the same must not take the rest of memory, bit by bit.
        let overfull = self.beyond(shared.budget.pageable() / 32 * 31);
        let (mut moved, mut as_they_are) = (false, false);
        let mut batch: Option<Box<Batch>> = None;
        let mut freed = 0;
        let mut outcome = Outcome::Nothing;
        for _ in 0..SCAN {
            if freed + batch.as_ref().map_or(0, |batch| batch.frees) >= wanted.max(1) {
                break;
            }
            let Some(victim) = shared.queues.lock().next_victim() else { break };
            let Some(chunk) = victim else { continue };
            let mut shares: SmallVec<[Bytes; CHUNK_PAGES]> = SmallVec::new();
            let mut state = chunk.lock();
            // It may have lost its pages, and its place on the queues, since we were given it.
            if !chunk.is_owned() || state.is_going_out() || state.resident() == 0 {
                continue;
            }
            if std::mem::take(&mut state.referenced) && !self.is_eager() {
                shared.queues.lock().activate(state.queue);
                continue;
            }
            freed += state.drop_clean() + state.drop_zeros();
            let (pages, cost) = state.begin_writing(&mut shares);
            drop(state);
            if pages == 0 {
                continue;
            }
            let tag = self.next_tag();
            let list = shares.iter().map(Bytes::as_slice);
            // Compressed memory is full and writers wait: what is fastest.
            let as_it_is = is_full && !overfull && shared.budget.has_waiters() && self.pace.skips_packing();
            let began = shared.signals().nanoseconds();
            let encoder = &mut packer.encoder;
            let (encoded, payload) = if as_it_is {
                encoder.encode_unpacked(tag, grain_of(pages), list)
            } else {
                encoder.encode(tag, grain_of(pages), list)
            };
            if !as_it_is {
                self.pace.packed(cost, shared.signals().nanoseconds().saturating_sub(began));
            }
            // Once to be packed, once to where it goes.
            shared.counters.copied.add_bytes(cost + payload.len());
            drop(shares);
            // Worth keeping in memory where that saves a ninth and more. What does not pack waits there for its turn too, but
            // only while there is room: it takes as much as before, and what packs holds more pages in the same memory.
            let packs = payload.len() + payload.len() / 8 <= cost;
            let waits = !is_full && self.keeps_raw && payload.len() <= cost + cost / 64;
            if (packs || waits)
                && packer.extents.left() > 0
                && let Ok(held) = self.tier.hold(payload, pages.count_ones() as usize, &chunk, shared)
            {
                freed += cost.saturating_sub(held.cost());
                moved |= !packs;
                let charge = shared.budget.charge_forced(EXTENT_COST);
                let extent = Extent::new(Place::Memory(held), encoded, tag, pages, charge);
                let extent = packer.extents.make(extent).expect("looked at above");
                self.tier.insert(&extent);
                chunk.lock().finish_writing(pages, || extent);
                shared.counters.packed.add(u64::from(pages.count_ones()));
                shared.budget.grant();
                continue;
            }
            if batch.is_none() && self.space.is_some() {
                batch = self.take_idle(shared);
                outcome = if batch.is_none() { Outcome::NoBatch } else { outcome };
            }
            let object = chunk.object();
            let fits = |batch: &&mut Box<Batch>| {
                batch.has_room_for_another(payload.len())
                    && self.only(batch).is_none_or(|only| only == object)
            };
            let Some(batch) = batch.as_mut().filter(fits) else {
                chunk.lock().abandon_writing(pages);
                break;
            };
            batch.push(object, Item::Fresh { chunk, pages, encoded, tag }, payload, cost);
            if as_it_is {
                as_they_are = true;
                shared.counters.unpacked.add(u64::from(pages.count_ones()));
            }
        }
        let sent = batch.map_or(outcome, |batch| self.send(shared, batch, 0));
        match sent {
            Outcome::Done if as_they_are => Outcome::Bypassed,
            _ if freed > 0 => Outcome::Done,
            Outcome::Nothing if moved => Outcome::Moved,
            sent => sent,
        }
    }

    /// Writes the oldest clusters of compressed memory to the store.
    fn write_out(&self, shared: &Arc<Shared>) -> Outcome {
        if self.space.is_none() || self.tier.bytes() == 0 {
            return Outcome::Nothing;
        }
        let Some(mut batch) = self.take_idle(shared) else { return Outcome::NoBatch };
        let eager = self.is_eager();
        for _ in 0..SCAN * 4 {
            if batch.room().len() < MAX_PAYLOAD {
                break;
            }
            let only = self.only(&batch);
            match self.tier.next_out(batch.room(), eager, only) {
                None => break,
                Some(Next::Stays) => {}
                Some(Next::IsStale(extent, chunk)) => {
                    if let Some(chunk) = chunk.upgrade() {
                        repack::replace(shared, &mut self.packer.lock().encoder, &extent, &chunk);
                    }
                }
                Some(Next::Leaves(Leaving { extent, chunk, object, cost })) => {
                    shared.counters.copied.add_bytes(extent.len());
                    batch.push_here(object, Item::Held(extent, chunk), cost);
                }
            }
        }
        let leaving = batch.frees;
        self.send(shared, batch, leaving)
    }

    /// The only object whose clusters a batch may still take, where the store keeps objects apart.
    fn only(&self, batch: &Batch) -> Option<u32> {
        batch.object().filter(|_| self.space.as_ref().is_some_and(|space| space.store.separates()))
    }

    /// None while all are under way, and while the store is left alone.
    fn take_idle(&self, shared: &Shared) -> Option<Box<Batch>> {
        if self.health.rests(shared.now()) {
            return None;
        }
        let mut batch = self.idle.lock().pop()?;
        // Usually full: it was brought up when its last write ended.
        let _ = batch.refill();
        if !batch.is_ready() {
            self.idle.lock().push(batch);
            return None;
        }
        Some(batch)
    }

    /// Gives a batch its place in the store and asks for the write. What finds no place stays where it was. `leaving` of
    /// the bytes it frees are compressed memory's.
    fn send(&self, shared: &Arc<Shared>, mut batch: Box<Batch>, leaving: usize) -> Outcome {
        let Some(space) = self.space.as_ref().filter(|_| !batch.is_empty()) else {
            self.idle.lock().push(batch);
            return Outcome::Nothing;
        };
        let blocks = batch.blocks();
        let object = batch.object().unwrap_or(0);
        let run = match space.allocate(object, blocks, blocks) {
            // Shorter ones may be left.
            Err(AllocError::Full) => space.allocate(object, 1, blocks),
            other => other,
        };
        match run {
            Ok(run) => batch.take_run(run),
            Err(error) => {
                self.pass_over(batch, space);
                return if error == AllocError::NotReady { Outcome::NotReady } else { Outcome::Nothing };
            }
        }
        if batch.is_empty() {
            self.put_back(batch);
            return Outcome::Nothing;
        }
        batch.leaving = leaving.min(batch.frees);
        self.coming.fetch_add(batch.frees, Ordering::AcqRel);
        self.leaving.fetch_add(batch.leaving, Ordering::AcqRel);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.pace.write_begins(shared.signals().nanoseconds());
        shared.io.push_write(WriteIo(batch));
        shared.signals().writes_ready();
        Outcome::Done
    }

    /// The batch finds no place. Where objects lie apart others may find one: they come first from now on.
    fn pass_over(&self, mut batch: Box<Batch>, space: &ExtentSpace) {
        if space.store.separates() {
            batch.pass_over();
            self.idle.lock().push(batch);
        } else {
            self.put_back(batch);
        }
    }

    /// The batch cannot be written: its pages are dirty again, its clusters stay in memory.
    fn put_back(&self, mut batch: Box<Batch>) {
        batch.put_back();
        self.idle.lock().push(batch);
    }

    /// Ends a batch: its clusters become stored, or stay where they were.
    pub(crate) fn complete(&self, shared: &Arc<Shared>, io: WriteIo, result: std::io::Result<()>) {
        let mut batch = io.0;
        let (frees, leaving) = (batch.frees, batch.leaving);
        self.pace.write_ends(shared.signals().nanoseconds(), batch.bytes().len());
        match result {
            Ok(()) => {
                self.health.wrote();
                let pages = batch.written(&shared.budget);
                shared.counters.page_outs.add(pages);
                shared.counters.store_writes.add(1);
                // Memory has just come free. Were there none all the same, the next batch is shorter.
                let _ = batch.refill();
                self.idle.lock().push(batch);
            }
            Err(error) => {
                tracing::warn!(%error, start = batch.start(), "store write failed; its pages stay in memory");
                shared.counters.errors.add(1);
                self.put_back(batch);
                let failure = self.health.failed(shared.now());
                shared.pageout_at(failure.again_at);
                if failure.is_broken {
                    shared.budget.refuse_all(VmError::NoMemory);
                }
            }
        }
        self.coming.fetch_sub(frees, Ordering::AcqRel);
        self.leaving.fetch_sub(leaving, Ordering::AcqRel);
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        shared.budget.grant();
    }
}

/// How a cluster of these pages is packed. Whole chunks are parts of large files, read here and there as often as not; a
/// part of a chunk is mostly the end of a small file, which is read as a whole and packs better so.
pub(crate) fn grain_of(pages: PageSet) -> Grain {
    if pages == PageSet::MAX { Grain::Fine } else { Grain::Whole }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::{Account, Space, Vm};
    use std::future::Future as _;

    /// What a helper holds is not on the queues: a pageout that finds nothing must not take that for the end of all memory.
    #[test]
    fn nobody_is_refused_while_a_helper_works() {
        let vm = Vm::new(&VmConfig::new(4 << 20), None).unwrap();
        let object = vm.object(&Account::new(1 << 20));
        // Nothing can leave memory, so this one waits for it.
        let mut word = 1_u64;
        let noise = std::iter::repeat_with(|| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()[3]
        });
        let data: Vec<u8> = noise.take(5 << 20).collect();
        let mut writing = Box::pin(object.write(0, &data, Space::Normal));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(writing.as_mut().poll(&mut cx).is_pending());
        let pageout = &vm.0.pageout();
        pageout.helping.fetch_add(1, Ordering::AcqRel);
        for _ in 0..1000 {
            vm.pageout();
            assert!(writing.as_mut().poll(&mut cx).is_pending(), "refused while a helper is at work");
        }
        // It ends, with nothing to show.
        pageout.helping.fetch_sub(1, Ordering::AcqRel);
        for _ in 0..1000 {
            vm.pageout();
        }
        assert!(writing.as_mut().poll(&mut cx).is_ready(), "left waiting for ever");
    }
}
