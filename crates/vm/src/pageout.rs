//! Pageout: choosing, cleaning and freeing pages when the budget runs short.
//!
//! A step looks at a few chunks, drops pages whose slot is good, and packs dirty ones into a batch: clusters side by
//! side in one run of the store, written as one request. It waits for nobody: where it cannot go on it says what it
//! needs ([`Step`]). Batches, their buffers and the compressor's tables exist before they are needed (iron rule 1);
//! what is still taken from the heap here is one small record per cluster, until the slab allocator can reserve
//! them.

use overspill_slab::{Ref, RefReserve};
use overspill_store::codec::{Encoded, Encoder, MAX_CLUSTER};
use overspill_store::{AllocError, BLOCK};
use overspill_sys::AlignedBuf;
use smallvec::SmallVec;

use crate::CHUNK_PAGES;
use crate::bytes::Bytes;
use crate::chunk::{Chunk, ChunkHandle as _, PageSet};
use crate::error::VmError;
use crate::extent::{EXTENT_COST, Extent, ExtentSpace, RunGuard};
use crate::io::WriteIo;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};
use crate::vm::Shared;

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

/// A page takes a block at most.
const MAX_CLUSTER_BLOCKS: u32 = 16;
const _: () = assert!(MAX_CLUSTER == 16 * BLOCK);

/// How many chunks a step looks at before it lets the queues go and says so.
const SCAN: usize = 64;

struct Packed {
    chunk: Ref<Chunk>,
    pages: PageSet,
    encoded: Encoded,
    tag: u64,
    blocks: u32,
}

/// Clusters going out together.
pub(crate) struct Batch {
    buf: AlignedBuf,
    run: Option<RunGuard>,
    clusters: Vec<Packed>,
    /// One for each cluster: a write that has ended needs no memory (iron rule 1).
    extents: RefReserve<Extent>,
    /// Bytes of the budget that go free when it is written.
    frees: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} clusters at {:?})", self.clusters.len(), self.run)
    }
}

impl Batch {
    fn new(bytes: usize) -> Result<Batch, VmError> {
        let most = bytes / BLOCK;
        let (clusters, extents) = (Vec::with_capacity(most), RefReserve::new(most)?);
        Ok(Batch { buf: AlignedBuf::new(bytes), run: None, clusters, extents, frees: 0 })
    }

    pub(crate) fn start(&self) -> u32 {
        self.run.as_ref().map_or(0, RunGuard::start)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let blocks = self.run.as_ref().map_or(0, RunGuard::blocks);
        &self.buf[..blocks as usize * BLOCK]
    }
}

/// The packing half of pageout; one thread at a time.
struct Packer {
    encoder: Encoder,
    next_tag: u64,
    /// Chunks looked at since something could last be done. All of them in vain: stuck.
    in_vain: usize,
    /// [`Budget::quiet`](crate::budget::Budget::quiet) when last stuck.
    stuck_at: Option<u64>,
}

/// Pageout's state.
pub(crate) struct Pageout {
    space: Option<Arc<ExtentSpace>>,
    packer: Mutex<Packer>,
    #[expect(clippy::vec_box, reason = "requests carry a batch by pointer, not by value")]
    idle: Mutex<Vec<Box<Batch>>>,
    /// Bytes of the budget in batches under way.
    coming: AtomicUsize,
    in_flight: AtomicUsize,
    failures_in_row: AtomicU64,
    /// Evict everything always, for tests and `debug=evict`.
    pub(crate) eager: AtomicBool,
}

impl std::fmt::Debug for Pageout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pageout({} under way)", self.in_flight.load(Ordering::Relaxed))
    }
}

/// After so many failed writes in a row, who waits for memory is told rather than left waiting.
const FAILURES_TOLERATED: u64 = 8;

impl Pageout {
    /// # Errors
    /// When there is no memory for its batches.
    pub(crate) fn new(
        space: Option<Arc<ExtentSpace>>,
        batches: usize,
        batch_bytes: usize,
    ) -> Result<Pageout, VmError> {
        let count = if space.is_some() { batches } else { 0 };
        let idle: Result<Vec<_>, VmError> =
            (0..count).map(|_| Batch::new(batch_bytes).map(Box::new)).collect();
        Ok(Pageout {
            space,
            packer: Mutex::new(Packer { encoder: Encoder::new(), next_tag: 1, in_vain: 0, stuck_at: None }),
            idle: Mutex::new(idle?),
            coming: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            failures_in_row: AtomicU64::new(0),
            eager: AtomicBool::new(false),
        })
    }

    fn wanted(&self, shared: &Shared) -> usize {
        let coming = self.coming.load(Ordering::Acquire);
        let wanted = shared.budget.wanted(coming);
        if self.eager.load(Ordering::Relaxed) {
            // Who waits counts here too, or would wait for ever where nothing is resident.
            let all = shared.counters.resident_pages().saturating_mul(crate::PAGE);
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
        let mut packer = self.packer.lock();
        let step = self.launder(shared, &mut packer, wanted);
        if step == Step::Stuck {
            packer.in_vain = 0;
            shared.budget.short.swap(false, Ordering::AcqRel);
            let quiet = shared.budget.quiet();
            let before = std::mem::replace(&mut packer.stuck_at, quiet);
            drop(packer);
            // What is only set aside comes back, or becomes pages to look at: believed when two looks in a row
            // found nothing, and nothing was set aside in between.
            if quiet.is_some() && quiet != before {
                return Step::Worked;
            }
            if quiet.is_some() {
                shared.budget.refuse_all(VmError::NoMemory);
            }
        }
        step
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Frees clean pages and fills one batch with dirty ones.
    fn launder(&self, shared: &Arc<Shared>, packer: &mut Packer, wanted: usize) -> Step {
        let Some(space) = &self.space else {
            return Step::Stuck;
        };
        let Some(mut batch) = self.idle.lock().pop() else {
            return Step::AwaitIo;
        };
        let capacity = u32::try_from(batch.buf.len() / BLOCK).expect("batches are small");
        // Usually full: it was brought up when its last write ended.
        if batch.extents.fill(capacity as usize).is_err() && batch.extents.left() == 0 {
            self.idle.lock().push(batch);
            return if self.in_flight() > 0 { Step::AwaitIo } else { Step::Stuck };
        }
        let run = match space.allocate(MAX_CLUSTER_BLOCKS.min(capacity), capacity) {
            Ok(run) => Ok(run),
            // No long run: a single cluster may still fit a short one, once its length is known.
            Err(AllocError::Full) => Err(()),
            Err(AllocError::NotReady) => {
                self.idle.lock().push(batch);
                return Step::AwaitStore;
            }
        };
        let room = run.as_ref().map_or(MAX_CLUSTER_BLOCKS, RunGuard::blocks);
        let looked = packer.in_vain.saturating_add(1);
        let freed = self.fill(shared, packer, &mut batch, room, wanted);
        if batch.clusters.is_empty() {
            self.idle.lock().push(batch);
            return self.nothing_done(shared, packer, freed);
        }
        let used: u32 = batch.clusters.iter().map(|packed| packed.blocks).sum();
        let run = match run {
            Ok(mut run) => Ok(run.split_front(used)),
            Err(()) => space.allocate(used, used),
        };
        match run {
            Ok(run) => batch.run = Some(run),
            Err(AllocError::NotReady) => {
                self.put_back(batch);
                return Step::AwaitStore;
            }
            Err(AllocError::Full) => {
                // This cluster finds no room; another may be shorter.
                self.put_back(batch);
                packer.in_vain = looked;
                return self.nothing_done(shared, packer, freed);
            }
        }
        packer.in_vain = 0;
        self.coming.fetch_add(batch.frees, Ordering::AcqRel);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        shared.io.push_write(WriteIo(batch));
        shared.signals().writes_ready();
        Step::Worked
    }

    /// What to do when no batch came together: look on, until all there is was looked at twice in vain.
    fn nothing_done(&self, shared: &Arc<Shared>, packer: &mut Packer, freed: usize) -> Step {
        if freed > 0 {
            packer.in_vain = 0;
            shared.budget.grant();
            return Step::Worked;
        }
        if packer.in_vain <= 2 * shared.queues.lock().len() {
            return Step::Worked;
        }
        packer.in_vain = 0;
        if self.in_flight() > 0 { Step::AwaitIo } else { Step::Stuck }
    }

    /// Takes chunks in queue order until the batch has no room for another cluster or enough will be free.
    /// Returns the bytes freed at once.
    fn fill(
        &self,
        shared: &Arc<Shared>,
        packer: &mut Packer,
        batch: &mut Batch,
        room: u32,
        wanted: usize,
    ) -> usize {
        let mut used = 0;
        let mut freed = 0;
        for _ in 0..SCAN {
            if batch.extents.left() == batch.clusters.len()
                || room - used < MAX_CLUSTER_BLOCKS
                || freed + batch.frees >= wanted.max(1)
            {
                break;
            }
            let Some(victim) = shared.queues.lock().next_victim() else {
                packer.in_vain = usize::MAX / 2;
                break;
            };
            packer.in_vain = packer.in_vain.saturating_add(1);
            let Some(chunk) = victim else { continue };
            let mut shares: SmallVec<[Bytes; CHUNK_PAGES]> = SmallVec::new();
            let mut state = chunk.lock();
            // It may have lost its pages, and its place on the queues, since we were given it.
            if !chunk.is_owned() || state.is_going_out() || state.resident() == 0 {
                continue;
            }
            if std::mem::take(&mut state.referenced) && !self.eager.load(Ordering::Relaxed) {
                shared.queues.lock().activate(state.queue);
                continue;
            }
            freed += state.drop_clean();
            let (pages, cost) = state.begin_writing(&mut shares);
            drop(state);
            if pages == 0 {
                continue;
            }
            let at = used as usize * BLOCK;
            let tag = packer.next_tag;
            packer.next_tag += 1;
            let encoded =
                packer.encoder.encode(tag, shares.iter().map(Bytes::as_slice), &mut batch.buf[at..]);
            let blocks = encoded.blocks();
            batch.clusters.push(Packed { chunk, pages, encoded, tag, blocks });
            batch.frees += cost;
            used += blocks;
        }
        freed
    }

    /// The batch cannot be written: its pages are dirty again.
    fn put_back(&self, mut batch: Box<Batch>) {
        for packed in batch.clusters.drain(..) {
            packed.chunk.lock().abandon_writing(packed.pages);
        }
        batch.run = None;
        batch.frees = 0;
        self.idle.lock().push(batch);
    }

    /// Ends a batch: its clusters become stored, or dirty again.
    pub(crate) fn complete(&self, shared: &Arc<Shared>, io: WriteIo, result: std::io::Result<()>) {
        let mut batch = io.0;
        let frees = batch.frees;
        match result {
            Ok(()) => {
                self.failures_in_row.store(0, Ordering::Relaxed);
                let mut run = batch.run.take().expect("a batch under way has its run");
                let Batch { clusters, extents, .. } = &mut *batch;
                for packed in clusters.drain(..) {
                    let run = run.split_front(packed.blocks);
                    let charge = shared.budget.charge_forced(EXTENT_COST);
                    let extent = Extent::new(run, packed.encoded, packed.tag, packed.pages, charge);
                    let extent = || extents.make(extent).expect("one is set aside for each cluster");
                    packed.chunk.lock().finish_writing(packed.pages, extent);
                    shared.counters.page_outs.add(u64::from(packed.pages.count_ones()));
                }
                shared.counters.store_writes.add(1);
                batch.frees = 0;
                // Memory has just come free. Were there none all the same, the next batch is shorter.
                let _ = batch.extents.fill(batch.buf.len() / BLOCK);
                self.idle.lock().push(batch);
            }
            Err(error) => {
                tracing::warn!(%error, start = batch.start(), "store write failed; its pages stay in memory");
                shared.counters.errors.add(1);
                self.put_back(batch);
                if self.failures_in_row.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_TOLERATED {
                    self.failures_in_row.store(0, Ordering::Relaxed);
                    shared.budget.refuse_all(VmError::NoMemory);
                }
            }
        }
        self.coming.fetch_sub(frees, Ordering::AcqRel);
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        shared.budget.grant();
    }
}
