//! The VM as a whole: what its objects share, and how a driver runs it.

use std::sync::OnceLock;

use overspill_slab::Ref;
use overspill_store::Store;
use overspill_store::codec::Method;
use overspill_sys::{Arena, REGION_FRAMES};

use crate::account::Account;
use crate::budget::{Budget, Charge, Pressure};
use crate::chunk::{CHUNK_COST, Chunk};
use crate::counters::Counters;
use crate::error::VmError;
use crate::extent::{EXTENT_COST, Extent, ExtentSpace, Segment};
use crate::fetch::{Begun, Coming, Fetch, FetchSlot, Fetches, PageInError, SLOT_COST};
use crate::io::{Io, IoQueue, ReadIo};
use crate::object::Object;
use crate::pageout::{Pageout, Step};
use crate::queue::Queues;
use crate::repack::{REPACKER_COST, Repacker};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, Weak, rank};
use crate::tier::Tier;
use crate::timer::Timers;
use crate::tree::NODE_COST;
use crate::{CHUNK, PAGE};

/// How a VM is laid out.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Bytes of RAM the VM may use, everything counted.
    pub memory_bytes: usize,
    /// Bytes of one batch of pageout.
    pub batch_bytes: usize,
    /// How many batches there are: what can be under way to the store at once.
    pub batches: usize,
    /// How many clusters can be held unpacked for readers at once.
    pub fetch_slots: usize,
    /// Whether and how clusters are packed.
    pub method: Method,
    /// Whether what lies in compressed memory for long is packed again by zstd, where a driver calls [`Vm::repack`].
    pub repack: bool,
    /// Whether what writers wait for goes to the store as it is, as if that were found to outrun the compressor: for tests,
    /// which have no say in what is measured.
    pub always_bypass: bool,
}

/// What a page far from all others takes of metadata: its chunk, the nodes above it, and its extent.
const LONE_PAGE_COST: usize = CHUNK_COST + 3 * NODE_COST + EXTENT_COST;

/// Memory from which on repacking is worth its workspaces.
const REPACK_FROM: usize = 64 << 20;

impl VmConfig {
    /// A layout for `memory_bytes`: buffers take at most an eighth of it.
    pub fn new(memory_bytes: usize) -> VmConfig {
        let batch_bytes = (memory_bytes / 128).clamp(3 * CHUNK, 1 << 20).next_multiple_of(PAGE);
        VmConfig {
            memory_bytes,
            batch_bytes,
            batches: 4,
            fetch_slots: (memory_bytes / 32 / SLOT_COST).clamp(2, 64),
            method: Method::Lz4,
            repack: memory_bytes >= REPACK_FROM,
            always_bypass: false,
        }
    }

    /// By zstd there is nothing to gain, and what is not to be packed is not.
    fn repacks(&self) -> bool {
        self.repack && self.method == Method::Lz4
    }

    /// Bytes of `memory_bytes` that its buffers take, with a store or without; the rest is for pages and metadata.
    #[must_use]
    pub fn buffers(&self, with_store: bool) -> usize {
        let batches = if with_store { self.batches * self.batch_bytes } else { 0 };
        let repacker = if self.repacks() { REPACKER_COST } else { 0 };
        batches + self.fetch_slots * SLOT_COST + repacker
    }
}

/// What the VM tells its driver. Called often, also under locks of the VM: must neither block nor call it.
pub trait Signals: Send + Sync {
    /// Memory is short: call [`Vm::pageout`] until it rests.
    fn pageout_wanted(&self);
    /// [`Vm::next_read`] has something.
    fn reads_ready(&self);
    /// The same of [`Vm::next_write`].
    fn writes_ready(&self);
    /// A clock that only grows, to measure the compressor and the store by, and to wait by. By default there is none.
    fn nanoseconds(&self) -> u64 {
        0
    }
    /// Somebody waits until the clock shows `at`: [`Vm::tick`] must be called then, or soon after.
    fn alarm(&self, at: u64);
}

/// Nobody listens: whoever tests the VM looks for itself.
struct Deaf;

impl Signals for Deaf {
    fn pageout_wanted(&self) {}
    fn reads_ready(&self) {}
    fn writes_ready(&self) {}
    fn alarm(&self, _at: u64) {}
}

/// What all objects of a VM share.
pub(crate) struct Shared {
    pub(crate) budget: Arc<Budget>,
    pub(crate) arena: std::sync::Arc<Arena>,
    pub(crate) queues: Mutex<Queues<Chunk>, { rank::QUEUES }>,
    pub(crate) counters: Counters,
    pub(crate) io: IoQueue,
    space: Option<Arc<ExtentSpace>>,
    pub(crate) fetches: Fetches,
    pageout: Pageout,
    pub(crate) timers: Timers,
    /// None where nothing is packed twice.
    pub(crate) repacker: Option<Repacker>,
    signals: OnceLock<std::sync::Arc<dyn Signals>>,
    /// The number of the next object. When they begin anew two may have the same: it only says what may lie together.
    pub(crate) next_object: AtomicU32,
    overhead: Mutex<Option<Charge>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("budget", &self.budget)
            .field("queues", &self.queues)
            .field("io", &self.io)
            .field("fetches", &self.fetches)
            .field("pageout", &self.pageout)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn sparse_segment(&self) -> Option<Ref<Segment>> {
        self.space.as_ref().and_then(|space| space.sparse_segment())
    }

    #[cfg(test)]
    pub(crate) fn pageout(&self) -> &Pageout {
        &self.pageout
    }

    pub(crate) fn tier(&self) -> &Arc<Tier> {
        &self.pageout.tier
    }

    /// For a cluster that is about to be packed; never the same again.
    pub(crate) fn next_tag(&self) -> u64 {
        self.pageout.next_tag()
    }

    pub(crate) fn signals(&self) -> &dyn Signals {
        self.signals.get().map_or(&Deaf, |signals| &**signals)
    }

    /// The driver's clock.
    pub(crate) fn now(&self) -> u64 {
        self.timers.now(self.signals().nanoseconds())
    }

    /// Waits for so many nanoseconds.
    pub(crate) async fn sleep(&self, ns: u64) -> Result<(), VmError> {
        let due = self.now() + ns;
        let ticket = self.timers.sleep_until(due)?;
        self.signals().alarm(due);
        ticket.await.ok_or(VmError::ShutDown)
    }

    /// Has pageout look again at that time.
    pub(crate) fn pageout_at(&self, due: u64) {
        self.timers.pageout_at(due);
        self.signals().alarm(due);
    }

    /// Something was written: an eager pageout wants it at once.
    pub(crate) fn wrote(&self) {
        if self.pageout.eager.load(Ordering::Relaxed) {
            self.signals().pageout_wanted();
        }
    }

    /// Begins to read strips of an extent, or joins who did.
    pub(crate) fn begin_fetch(
        &self,
        extent: &Ref<Extent>,
        strips: std::ops::Range<usize>,
        slot: Option<FetchSlot>,
    ) -> Begun {
        let begun = self.fetches.begin(extent, strips, slot);
        match &begun {
            Begun::New(fetch) => {
                self.io.push_read(ReadIo(fetch.clone()));
                self.signals().reads_ready();
            }
            Begun::Done(Ok(unpacked)) => self.counters.copied.add_bytes(unpacked.moved()),
            _ => {}
        }
        begun
    }

    /// The same, waiting for a slot if need be, after `before_waiting`.
    pub(crate) async fn fetch(
        &self,
        extent: &Ref<Extent>,
        strips: std::ops::Range<usize>,
        mut before_waiting: impl FnMut(),
    ) -> Result<Coming, VmError> {
        let mut slot = None;
        loop {
            match self.begin_fetch(extent, strips.clone(), slot.take()) {
                Begun::Joined(fetch) | Begun::New(fetch) => return Ok(Coming::Fetch(fetch)),
                Begun::Done(result) => return Ok(Coming::Done(result)),
                Begun::NoSlot => {
                    before_waiting();
                    slot = Some(self.fetches.slot().await?);
                }
            }
        }
    }

    fn complete_read(&self, fetch: &Arc<Fetch>, result: std::io::Result<&[u8]>) {
        self.counters.store_reads.add(1);
        let unpacked = match result {
            Ok(payload) => fetch.unpack(payload),
            Err(error) => {
                tracing::warn!(%error, start = fetch.from.start, "store read failed");
                Err(VmError::StoreRead.into())
            }
        };
        match &unpacked {
            Ok(unpacked) => {
                self.counters.page_ins.add(unpacked.count());
                self.counters.copied.add_bytes(unpacked.moved());
            }
            Err(_) => self.counters.errors.add(1),
        }
        if matches!(unpacked, Err(PageInError::Damaged(_))) {
            tracing::warn!(start = fetch.from.start, "store returned damaged data");
        }
        self.fetches.end(fetch);
        fetch.finish(unpacked);
    }
}

/// The budget's way to the driver.
struct ToDriver(OnceLock<Weak<Shared>>);

struct PressureOf(std::sync::Arc<ToDriver>);

impl Pressure for PressureOf {
    fn memory_is_short(&self) {
        if let Some(shared) = self.0.0.get().and_then(Weak::upgrade) {
            shared.signals().pageout_wanted();
        }
    }
}

/// Virtual memory: objects whose pages live in memory or in a store, under one budget. A cheap handle.
///
/// It owns no thread and never blocks. A driver runs it: [`Vm::pageout`] when memory is short, [`Vm::next_io`] and
/// [`Vm::complete_write`], [`Vm::complete_read`] for the store's I/O, the store's `maintain` when pageout asks for it.
#[derive(Debug, Clone)]
pub struct Vm(pub(crate) Arc<Shared>);

impl Vm {
    /// A VM that pages to `store`, or keeps everything in memory when there is none.
    ///
    /// # Errors
    /// [`VmError::Arena`] when address space cannot be had, [`VmError::NoMemory`] when `memory_bytes` does not
    /// even hold the buffers.
    pub fn new(config: &VmConfig, store: Option<std::sync::Arc<dyn Store>>) -> Result<Vm, VmError> {
        let buffers = config.buffers(store.is_some());
        let limit = config.memory_bytes.checked_sub(buffers).filter(|&left| left >= 4 * PAGE);
        let limit = limit.ok_or(VmError::NoMemory)?;
        let charged = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        // A region more than the budget can take: one may be out of sight while its memory is given back.
        let arena = Arena::new(limit.div_ceil(PAGE) + REGION_FRAMES, charged.clone()).map_err(|error| {
            tracing::error!(%error, "no arena");
            VmError::Arena
        })?;
        let to_driver = std::sync::Arc::new(ToDriver(OnceLock::new()));
        let budget = Budget::new(charged, limit, Box::new(PressureOf(to_driver.clone())));
        let space = store.map(|store| ExtentSpace::new(store, &budget));
        let shared = Arc::new(Shared {
            budget,
            arena,
            queues: Mutex::new(Queues::new()),
            counters: Counters::default(),
            io: IoQueue::default(),
            fetches: Fetches::new(config.fetch_slots),
            pageout: Pageout::new(space.clone(), config)?,
            timers: Timers::default(),
            repacker: config.repacks().then(Repacker::default),
            space,
            signals: OnceLock::new(),
            next_object: AtomicU32::new(0),
            overhead: Mutex::new(None),
        });
        let _ = to_driver.0.set(Arc::downgrade(&shared));
        Ok(Vm(shared))
    }

    /// Names who is told when there is work. Once; later calls are ignored.
    pub fn set_signals(&self, signals: std::sync::Arc<dyn Signals>) {
        let _ = self.0.signals.set(signals);
    }

    /// A new, empty object, charged to `account`.
    pub fn object(&self, account: &std::sync::Arc<Account>) -> Object {
        Object::new(&self.0, account)
    }

    /// Counts wired metadata of the caller's (inodes, names) in the budget while the guard lives. Never waits.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when metadata takes too large a part of the budget already.
    pub fn charge(&self, bytes: usize) -> Result<Charge, VmError> {
        self.0.budget.charge(bytes)
    }

    /// Bytes that [`Vm::charge`] would still give.
    pub fn metadata_left(&self) -> usize {
        self.0.budget.metadata_left()
    }

    /// Whether metadata is so near its share that `promised` pages, which somebody was told are written and which must be
    /// taken in, might not find room for theirs: each may be the only one of its chunk.
    pub fn is_metadata_short(&self, promised: u64) -> bool {
        let pages = usize::try_from(promised).unwrap_or(usize::MAX);
        self.0.budget.metadata_is_short(pages.saturating_mul(LONE_PAGE_COST))
    }

    /// One step of pageout.
    pub fn pageout(&self) -> Step {
        self.0.pageout.step(&self.0)
    }

    /// Packs some pages beside who steps pageout, while writers wait: for a second thread. Returns whether it did.
    pub fn help_pageout(&self) -> bool {
        self.0.pageout.help(&self.0)
    }

    /// Whether somebody waits for memory.
    pub fn has_waiters(&self) -> bool {
        self.0.budget.has_waiters()
    }

    /// Whether memory is below its low watermark: pageout is at work or should be.
    pub fn is_short(&self) -> bool {
        self.0.budget.below_low()
    }

    /// Evicts every page as soon as it can be, whatever the budget, for tests and debugging.
    pub fn set_eager(&self, eager: bool) {
        self.0.pageout.eager.store(eager, Ordering::Relaxed);
        self.0.signals().pageout_wanted();
    }

    /// The clock shows `now`: wakes those that waited for that time.
    pub fn tick(&self, now: u64) {
        if self.0.timers.take_due(now) {
            self.0.signals().pageout_wanted();
        }
    }

    /// When [`Vm::tick`] should be called next, if anybody waits.
    pub fn next_alarm(&self) -> Option<u64> {
        self.0.timers.next()
    }

    /// Whether the store has refused all writes since one last went through.
    pub fn is_store_failing(&self) -> bool {
        self.0.pageout.health().is_failing()
    }

    /// Whether it has done so for so long that nobody is left waiting for it.
    pub fn is_store_broken(&self) -> bool {
        self.0.pageout.health().is_broken()
    }

    /// Pageout's batches that are at the store now.
    pub fn writes_in_flight(&self) -> usize {
        self.0.pageout.in_flight()
    }

    /// A request to the store that nobody has taken yet.
    pub fn next_io(&self) -> Option<Io> {
        self.0.io.next()
    }

    /// As [`Vm::next_io`], but writes only: for a driver's threads that readers must not keep from pageout.
    pub fn next_write(&self) -> Option<crate::WriteIo> {
        self.0.io.next_write()
    }

    /// As [`Vm::next_io`], but reads only: for a driver's threads that must stay free of slow writes.
    pub fn next_read(&self) -> Option<ReadIo> {
        self.0.io.next_read()
    }

    /// As [`Vm::next_read`], with what else is asked for right behind it: reads that one request to the store can serve, in
    /// order, each beginning where the one before ends or in its last block. At most `bytes` altogether, and at least one.
    pub fn next_reads(&self, bytes: usize, out: &mut Vec<ReadIo>) {
        let blocks = u32::try_from(bytes / overspill_store::BLOCK).unwrap_or(u32::MAX);
        self.0.io.next_reads(blocks, out);
    }

    /// The read that was asked for last: for who asked, and waits.
    pub fn newest_read(&self) -> Option<ReadIo> {
        self.0.io.newest_read()
    }

    /// Whether there are reads that no driver has taken.
    pub fn has_reads(&self) -> bool {
        self.0.io.has_reads()
    }

    /// Whether there are writes that no driver has taken.
    pub fn has_writes(&self) -> bool {
        self.0.io.has_writes()
    }

    /// Ends a write.
    pub fn complete_write(&self, io: crate::WriteIo, result: std::io::Result<()>) {
        self.0.pageout.complete(&self.0, io, result);
        // It waited for this, or has come to rest meanwhile and is asked once more than it need be.
        self.0.signals().pageout_wanted();
    }

    /// Ends a read with the bytes read, [`ReadIo::len`] of them. Unpacks them here, on the driver's thread.
    #[expect(clippy::needless_pass_by_value, reason = "a request ends once")]
    pub fn complete_read(&self, io: ReadIo, result: std::io::Result<&[u8]>) {
        self.0.complete_read(&io.0, result);
    }

    /// Work to be done now and then, and often under pressure, off the pageout path: gives free memory back to the
    /// kernel. Frames that fell free leave their memory in the arena; where the heap has taken their share of the
    /// budget, that much goes back at once (iron rule 3), the rest when it has rested.
    pub fn maintain(&self) {
        let shared = &self.0;
        let heap = shared.budget.charged().saturating_sub(shared.arena.live_bytes());
        let excess = (shared.arena.touched_bytes() + heap).saturating_sub(shared.budget.limit());
        if excess > 0 {
            shared.arena.trim(excess);
        }
        if !self.is_short() {
            shared.arena.release();
        }
        shared.budget.grant();
    }

    /// Gives up to `bytes` of memory that no frame in use holds back to the kernel at once.
    pub fn trim(&self, bytes: usize) {
        self.0.arena.trim(bytes);
    }

    /// Counts `bytes` of the process's memory that nobody charged, such as holes in the heap, in the budget; instead of
    /// what was said before. Pageout then makes room for them.
    pub fn set_overhead(&self, bytes: usize) {
        let charge = (bytes > 0).then(|| self.0.budget.charge_forced(bytes));
        // The old one goes after the new one came, and outside the lock.
        let old = std::mem::replace(&mut *self.0.overhead.lock(), charge);
        drop(old);
    }

    /// The store, for its `maintain` and `usage`.
    pub fn store(&self) -> Option<&std::sync::Arc<dyn Store>> {
        self.0.space.as_ref().map(|space| &space.store)
    }

    /// What it holds and has done.
    pub fn stats(&self) -> VmStats {
        let shared = &self.0;
        let c = &shared.counters;
        VmStats {
            limit_bytes: shared.budget.limit(),
            charged_bytes: shared.budget.charged(),
            metadata_bytes: shared.budget.metadata(),
            arena_bytes: shared.arena.touched_bytes(),
            arena_idle_bytes: shared.arena.touched_bytes().saturating_sub(shared.arena.live_bytes()),
            resident_bytes: c.resident_pages() * PAGE,
            dirty_bytes: c.dirty_pages() * PAGE,
            compressed_bytes: shared.pageout.tier.bytes(),
            compressed_page_bytes: shared.pageout.tier.pages() * PAGE,
            stored_page_bytes: (c.stored_pages() * PAGE).saturating_sub(shared.pageout.tier.pages() * PAGE),
            stored_bytes: shared.space.as_ref().map_or(0, |space| space.bytes()),
            stored_live_bytes: shared.space.as_ref().map_or(0, |space| space.live_bytes()),
            served_bytes: c.served.get(),
            copied_bytes: c.copied.get(),
            packed: c.packed.get(),
            unpacked: c.unpacked.get(),
            repacked: c.repacked.get(),
            compacted: c.compacted.get(),
            page_ins: c.page_ins.get(),
            page_outs: c.page_outs.get(),
            store_reads: c.store_reads.get(),
            store_writes: c.store_writes.get(),
            errors: c.errors.get(),
        }
    }
}

/// A snapshot of a VM. Bytes and counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmStats {
    /// What pages and metadata may take: the budget less fixed buffers.
    pub limit_bytes: usize,
    /// What they take, reservations included.
    pub charged_bytes: usize,
    /// Metadata's part of that.
    pub metadata_bytes: usize,
    /// Memory of the kernel's that the frame arena may hold.
    pub arena_bytes: usize,
    /// Of that, what no frame in use holds.
    pub arena_idle_bytes: usize,
    /// Resident pages, each counted as a whole one.
    pub resident_bytes: usize,
    /// Resident pages that no store has, each counted as a whole one.
    pub dirty_bytes: usize,
    /// What compressed memory takes.
    pub compressed_bytes: usize,
    /// Pages in it, as many bytes as they were; dead ones of living clusters count.
    pub compressed_page_bytes: usize,
    /// Pages that a store has, as many bytes as they were.
    pub stored_page_bytes: usize,
    /// Bytes of the store that are not free.
    pub stored_bytes: u64,
    /// What living pages take of them; the rest is dead, and compacted when it is more than a tenth.
    pub stored_live_bytes: u64,
    /// Bytes that readers were given and writers gave.
    pub served_bytes: u64,
    /// Bytes that were moved for it within this process: to and from frames, packed, unpacked, gathered for the store. The
    /// kernel's own copies are not in it.
    pub copied_bytes: u64,
    /// Pages that went to compressed memory.
    pub packed: u64,
    /// Pages that went to the store as they are, because it outran the compressor.
    pub unpacked: u64,
    /// Pages in compressed memory that were packed again, smaller.
    pub repacked: u64,
    /// Segments of the store whose living pages were brought back.
    pub compacted: u64,
    /// Pages read back from the store.
    pub page_ins: u64,
    /// Pages written to the store.
    pub page_outs: u64,
    /// Read requests to the store.
    pub store_reads: u64,
    /// Write requests to the store.
    pub store_writes: u64,
    /// Failed requests and damaged clusters.
    pub errors: u64,
}
