//! The state of pageout.

use std::collections::VecDeque;

use overspill_codec::{Encoder, Method};
use overspill_slab::RefReserve;

use super::batch::Batch;
use super::pace::Pace;
use super::requests::WriteIo;
use crate::error::VmError;
use crate::memory::records::{Extent, Memory};
use crate::page::PAGE;
use crate::pagein::service::PageIn;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, rank};

/// Chunks that one step checks.
pub(super) const SCAN: usize = 64;

/// Shares of compressed memory in what metadata and the room for writers leave, in 32nds. From this one on,
/// incompressible clusters go to a store.
pub(super) const FULL: usize = 29;
/// From this one on, the oldest clusters are written out.
pub(super) const SHARE: usize = 30;
/// From this one on, no cluster bypasses compression. While clusters do, one in sixteen is still held and none is written
/// out: they would take the rest of memory bit by bit.
pub(super) const OVERFULL: usize = 31;

/// Extents that an encoder has set aside: as many as a step may need.
const EXTENTS: usize = SCAN;

/// An encoder, and the extents for the clusters it makes; used by one thread at a time.
pub(super) struct Packer {
    pub(super) encoder: Encoder,
    pub(super) extents: RefReserve<Extent>,
}

impl Packer {
    fn new(method: Method) -> Packer {
        let extents = RefReserve::new(0).expect("none is never too many");
        Packer { encoder: Encoder::new(method), extents }
    }

    /// Sets extents aside. If there are too few, clusters only go to the store at once.
    pub(super) fn refill(&mut self) {
        let _ = self.extents.fill(EXTENTS);
    }
}

/// Progress of the search for something to evict.
#[derive(Default)]
pub(super) struct Search {
    /// Chunks and clusters checked since the last success. When all were checked in vain, pageout is stuck.
    pub(super) in_vain: usize,
    /// [`Pageout::quiet`] when last stuck.
    pub(super) stuck_at: Option<Quiet>,
}

/// Reservations made and helpers' turns begun: equal counts mean that neither happened in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quiet {
    pub(super) reservations: u64,
    pub(super) turns: u64,
}

/// The outcome of evicting pages, or of writing clusters out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Something was freed or is being written.
    Done,
    /// Nothing could be.
    Nothing,
    /// Raw pages are on their way, past compressed memory.
    Bypassed,
    /// Nothing is free, but incompressible pages moved to where they can be written out.
    Moved,
    /// All batches are under way, or every store rests after a failure.
    NoBatch,
    /// A store must prepare space.
    NotReady,
}

/// Parameters of pageout.
pub(crate) struct Layout {
    pub(crate) method: Method,
    /// Batches, and bytes of each.
    pub(crate) batches: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) always_bypass: bool,
}

/// Pageout for a VM's memory.
pub(crate) struct Pageout {
    pub(super) memory: Arc<Memory>,
    pub(super) pagein: Arc<PageIn>,
    /// Incompressible clusters may stay in compressed memory while it has room. Off without store or compression.
    pub(super) holds_incompressible: bool,
    /// The stepping thread's lock; the thread may then take `packer`.
    pub(super) search: Mutex<Search, { rank::SEARCH }>,
    pub(super) packer: Mutex<Packer, { rank::PACKER }>,
    /// The helper's, for when writers wait.
    pub(super) helper: Mutex<Packer, { rank::PACKER }>,
    #[expect(clippy::vec_box, reason = "requests carry a batch by pointer, not by value")]
    pub(super) idle: Mutex<Vec<Box<Batch>>>,
    /// Writes that no driver has taken yet.
    pub(super) writes: Mutex<VecDeque<WriteIo>>,
    /// Bytes of the budget that batches under way will free.
    pub(super) coming: AtomicUsize,
    /// Bytes of `coming` that belong to compressed memory.
    pub(super) leaving: AtomicUsize,
    pub(super) in_flight: AtomicUsize,
    pub(super) pace: Pace,
    /// Helpers at work, and turns they have begun: their chunks are off the queues, and return or are freed.
    pub(super) helping: AtomicUsize,
    pub(super) turns: AtomicU64,
}

impl std::fmt::Debug for Pageout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pageout({} writes under way, {:?})", self.in_flight(), self.memory)
    }
}

impl Pageout {
    /// # Errors
    /// When there is no memory for its batches.
    pub(crate) fn new(pagein: &Arc<PageIn>, layout: &Layout) -> Result<Pageout, VmError> {
        let memory = pagein.memory.clone();
        let has_store = !memory.backings.is_empty();
        let count = if has_store { layout.batches } else { 0 };
        let idle: Result<Vec<_>, VmError> =
            (0..count).map(|_| Batch::new(layout.batch_bytes).map(Box::new)).collect();
        Ok(Pageout {
            holds_incompressible: has_store && layout.method != Method::None,
            memory,
            pagein: pagein.clone(),
            search: Mutex::default(),
            packer: Mutex::new(Packer::new(layout.method)),
            helper: Mutex::new(Packer::new(layout.method)),
            idle: Mutex::new(idle?),
            writes: Mutex::default(),
            coming: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            pace: Pace::new(layout.always_bypass),
            helping: AtomicUsize::new(0),
            turns: AtomicU64::new(0),
        })
    }

    pub(super) fn has_store(&self) -> bool {
        !self.memory.backings.is_empty()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Bytes that pageout should free.
    pub(super) fn wanted(&self) -> usize {
        let coming = self.coming.load(Ordering::Acquire);
        let wanted = self.memory.budget.wanted(coming);
        if self.memory.is_eager() {
            // Waiters count here too, or they would wait for ever when nothing is resident.
            let pages = self.memory.counters.resident_pages().saturating_mul(PAGE);
            return wanted.max((pages + self.memory.compressed.bytes()).saturating_sub(coming));
        }
        wanted
    }

    /// `None` while a reservation is alive or a helper works; the end of either asks for pageout again.
    pub(super) fn quiet(&self) -> Option<Quiet> {
        let reservations = self.memory.budget.quiet()?;
        let turns = self.turns.load(Ordering::Acquire);
        (self.helping.load(Ordering::Acquire) == 0).then_some(Quiet { reservations, turns })
    }

    /// True if compressed memory holds more than `parts` 32nds of what metadata and the room for writers leave.
    pub(super) fn holds_more_than(&self, parts: usize) -> bool {
        let share = self.memory.budget.pageable() / 32 * parts;
        let leaving = self.leaving.load(Ordering::Relaxed);
        self.has_store() && self.memory.compressed.bytes().saturating_sub(leaving) > share
    }

    /// The only object whose clusters the batch can still take, if a store keeps objects apart.
    pub(super) fn only(&self, batch: &Batch) -> Option<u32> {
        let separates = || self.memory.backings.iter().any(|backing| backing.store.separates());
        batch.object().filter(|_| separates())
    }

    /// True while every store rests after a failure.
    pub(super) fn all_stores_rest(&self) -> bool {
        let now = self.memory.now();
        self.has_store() && self.memory.backings.iter().all(|backing| backing.health.rests(now))
    }

    /// True while some store rests after a failure.
    pub(super) fn a_store_rests(&self) -> bool {
        let now = self.memory.now();
        self.memory.backings.iter().any(|backing| backing.health.rests(now))
    }

    /// An empty batch; `None` while all are under way, or every store rests.
    pub(super) fn take_idle(&self) -> Option<Box<Batch>> {
        if self.all_stores_rest() {
            return None;
        }
        let mut batch = self.idle.lock().pop()?;
        // Usually full already: `refill` ran when its last write ended.
        let _ = batch.refill();
        if !batch.is_ready() {
            self.idle.lock().push(batch);
            return None;
        }
        Some(batch)
    }
}
