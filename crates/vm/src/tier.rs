//! Compressed memory: clusters that are packed and still in RAM, inside the budget (R37).
//!
//! Whole pages of a payload are frames, the rest a block of a slab in steps of 64 bytes: nothing is moved to keep them
//! together, and what dies is free at once. Clusters leave for the store in the order in which they came, but for those
//! that were read meanwhile: they are passed over once. (S3-FIFO's shape, with one bit: what we see of an access is a miss
//! of the kernel's cache.)

use overspill_slab::{Block, Own, Ref, WeakRef, kept};

use crate::PAGE;
use crate::budget::{Budget, PageCharge};
use crate::chunk::Chunk;
use crate::extent::{Extent, Place, Segment};
use crate::queue::{NOT_QUEUED, QueueSlot, Queues};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, rank};
use crate::vm::Shared;
use crate::{Frame, VmError};

/// What compressed memory holds.
pub(crate) struct Tier {
    /// A leaf lock.
    queues: Mutex<Queues<Extent>, { rank::QUEUES }>,
    /// How far who repacks has come in them.
    cold: Mutex<QueueSlot, { rank::COLD }>,
    /// Bytes of the budget.
    bytes: AtomicUsize,
    /// Pages that went in, dead ones too.
    pages: AtomicUsize,
}

impl std::fmt::Debug for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tier({} bytes, {:?})", self.bytes(), self.queues)
    }
}

/// A payload in compressed memory.
#[derive(Debug)]
pub(crate) struct Held {
    frames: Vec<Frame>,
    tail: Option<Block>,
    charge: PageCharge,
    pages: usize,
    /// Whose pages they are: the segment they go to will want to know.
    chunk: WeakRef<Chunk>,
    /// Forks of that chunk, which show them too.
    #[expect(clippy::box_collection, reason = "mostly there are none, and then it takes a word")]
    pub(crate) forks: Option<Box<Vec<WeakRef<Chunk>>>>,
    object: u32,
    tier: Arc<Tier>,
    slot: QueueSlot,
    /// Read since pageout last looked.
    pub(crate) referenced: bool,
    /// It was packed again, or that was tried.
    repacked: bool,
    /// It was tried to rid it of dead pages.
    cleaned: bool,
    /// A batch has its bytes: it becomes stored, or stays.
    pub(crate) going_out: bool,
}

kept!(Held, "compressed slot");

/// What the record of a payload costs beside its bytes.
const HELD_COST: usize = size_of::<Held>() + 32;

impl Held {
    /// A copy of `payload`, charged without waiting: what is packed frees more than this takes.
    ///
    /// # Errors
    /// When there is no memory.
    fn new(
        payload: &[u8],
        pages: usize,
        chunk: &Ref<Chunk>,
        shared: &Shared,
        tier: &Arc<Tier>,
    ) -> Result<Own<Held>, VmError> {
        let Shared { budget, arena, .. } = shared;
        let whole = payload.len() / PAGE;
        let mut frames = Vec::with_capacity(whole);
        for bytes in payload.chunks_exact(PAGE) {
            let mut frame = budget.take_frame_forced(arena)?;
            frame.bytes_mut().expect("just taken").copy_from_slice(bytes);
            frames.push(frame);
        }
        let rest = &payload[whole * PAGE..];
        let tail = if rest.is_empty() { None } else { Some(Block::new(rest)?) };
        let cost = if rest.is_empty() { 0 } else { Block::cost(rest.len()) };
        let charge = budget.charge_page_forced(cost + HELD_COST + whole * size_of::<Frame>());
        Ok(Own::new(Held {
            frames,
            tail,
            charge,
            pages,
            chunk: Ref::downgrade(chunk),
            forks: None,
            object: chunk.object(),
            tier: tier.clone(),
            slot: NOT_QUEUED,
            referenced: false,
            repacked: false,
            cleaned: false,
            going_out: false,
        })?)
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        self.charge.budget()
    }

    /// Bytes of the budget it holds.
    pub(crate) fn cost(&self) -> usize {
        self.frames.len() * PAGE + self.charge.bytes()
    }

    /// Fills `out` from byte `at` of the payload.
    pub(crate) fn copy_to(&self, at: usize, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let (piece, from) = ((at + done) / PAGE, (at + done) % PAGE);
            let bytes = match self.frames.get(piece) {
                Some(frame) => &frame.bytes()[from..],
                None => &self.tail.as_deref().expect("the payload is as long as that")[from..],
            };
            let n = bytes.len().min(out.len() - done);
            out[done..done + n].copy_from_slice(&bytes[..n]);
            done += n;
        }
    }

    /// Leaves its tier. Before it is dropped.
    pub(crate) fn leave(&mut self) {
        if self.slot != NOT_QUEUED {
            self.tier.queues.lock().remove(self.slot);
            self.slot = NOT_QUEUED;
            self.tier.count_out(self);
        }
    }
}

/// How many clusters are looked at for one that was not repacked yet.
const LOOK: usize = 256;

/// What is to be done with the cluster whose turn it is to leave.
pub(crate) enum Next {
    /// Its bytes were copied. Ends with [`Tier::stored`] or [`Tier::stays`].
    Leaves(Leaving),
    /// Much of it is dead: it should be packed again first. Then it is still the next one; it is asked for once only.
    IsStale(Ref<Extent>, WeakRef<Chunk>),
    /// It may not go now, or does not fit.
    Stays,
}

/// When the turn of a cluster comes that could not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    First,
    Last,
}

/// A cluster on its way out.
pub(crate) struct Leaving {
    pub(crate) extent: Ref<Extent>,
    pub(crate) chunk: WeakRef<Chunk>,
    pub(crate) object: u32,
    /// Bytes of the budget that go free when it is stored.
    pub(crate) cost: usize,
}

impl Tier {
    pub(crate) fn new() -> Arc<Tier> {
        Arc::new(Tier {
            queues: Mutex::new(Queues::new()),
            cold: Mutex::new(NOT_QUEUED),
            bytes: AtomicUsize::new(0),
            pages: AtomicUsize::new(0),
        })
    }

    /// Bytes of the budget it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Pages that went in, dead ones of living clusters too.
    pub(crate) fn pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }

    /// Clusters in it.
    pub(crate) fn len(&self) -> usize {
        self.queues.lock().len()
    }

    /// Memory for a payload that is about to come in.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn hold(
        self: &Arc<Self>,
        payload: &[u8],
        pages: usize,
        chunk: &Ref<Chunk>,
        shared: &Shared,
    ) -> Result<Own<Held>, VmError> {
        Held::new(payload, pages, chunk, shared, self)
    }

    /// Takes an extent in, that was made with what [`Tier::hold`] gave.
    pub(crate) fn insert(&self, extent: &Ref<Extent>) {
        let mut place = extent.place();
        let Place::Memory(held) = &mut *place else { return };
        self.count_in(held);
        held.slot = self.queues.lock().insert(Ref::downgrade(extent));
    }

    /// The next cluster to go to the store, its bytes copied to the start of `out`. `None` when there is none, or it is not
    /// of the object that alone may go.
    pub(crate) fn next_out(&self, out: &mut [u8], eager: bool, only: Option<u32>) -> Option<Next> {
        let victim = self.queues.lock().next_victim()?;
        if let Some(only) = only
            && let Some(extent) = &victim
            && let Place::Memory(held) = &*extent.place()
            && held.object != only
            && held.slot != NOT_QUEUED
        {
            self.queues.lock().put_first(held.slot);
            return None;
        }
        let Some(extent) = victim else { return Some(Next::Stays) };
        let len = extent.len();
        let mut place = extent.place();
        let Place::Memory(held) = &mut *place else { return Some(Next::Stays) };
        if held.going_out || held.slot == NOT_QUEUED || len > out.len() {
            return Some(Next::Stays);
        }
        if std::mem::take(&mut held.referenced) && !eager {
            self.queues.lock().activate(held.slot);
            return Some(Next::Stays);
        }
        let chunk = held.chunk.clone();
        if extent.is_stale() && !std::mem::replace(&mut held.cleaned, true) {
            self.queues.lock().put_first(held.slot);
            drop(place);
            return Some(Next::IsStale(extent, chunk));
        }
        held.copy_to(0, &mut out[..len]);
        held.going_out = true;
        let (cost, object) = (held.cost(), held.object);
        drop(place);
        Some(Next::Leaves(Leaving { extent, chunk, object, cost }))
    }

    /// A cluster that was not looked at by who repacks, from the oldest on; it is now. `None` at the end of all, and `None`
    /// within where some were passed over in vain.
    pub(crate) fn next_cold(&self) -> Option<Option<(Ref<Extent>, WeakRef<Chunk>)>> {
        let mut cold = self.cold.lock();
        for _ in 0..LOOK {
            let next = self.queues.lock().next_oldest(&mut cold)?;
            let Some(extent) = next else { continue };
            let mut place = extent.place();
            let Place::Memory(held) = &mut *place else { continue };
            if held.going_out || held.referenced || held.slot == NOT_QUEUED || held.repacked {
                continue;
            }
            held.repacked = true;
            let chunk = held.chunk.clone();
            drop(place);
            return Some(Some((extent, chunk)));
        }
        Some(None)
    }

    /// Gives the turn of one extent in compressed memory to another, new one. False when it has none any more, or is on
    /// its way out.
    pub(crate) fn replace(&self, old: &Ref<Extent>, new: &Ref<Extent>) -> bool {
        let slot = {
            let mut place = old.place();
            let Place::Memory(held) = &mut *place else { return false };
            if held.going_out || held.slot == NOT_QUEUED {
                return false;
            }
            self.count_out(held);
            std::mem::replace(&mut held.slot, NOT_QUEUED)
        };
        let mut place = new.place();
        let Place::Memory(held) = &mut *place else { unreachable!("made in memory just now") };
        self.count_in(held);
        held.repacked = true;
        held.slot = slot;
        self.queues.lock().replace(slot, Ref::downgrade(new));
        true
    }

    fn count_in(&self, held: &Held) {
        self.bytes.fetch_add(held.cost(), Ordering::Relaxed);
        self.pages.fetch_add(held.pages, Ordering::Relaxed);
    }

    fn count_out(&self, held: &Held) {
        self.bytes.fetch_sub(held.cost(), Ordering::Relaxed);
        self.pages.fetch_sub(held.pages, Ordering::Relaxed);
    }

    /// An extent on its way out is in the store now.
    pub(crate) fn stored(extent: &Ref<Extent>, segment: &Ref<Segment>, at: usize) {
        // Its memory goes back under no lock.
        if let Place::Memory(mut held) = extent.settle(segment, at) {
            held.forks.take().into_iter().flat_map(|forks| *forks).for_each(|fork| segment.add_chunk(fork));
            held.leave();
        }
    }

    /// An extent on its way out stays here after all.
    pub(crate) fn stays(extent: &Ref<Extent>, turn: Turn) {
        if let Place::Memory(held) = &mut *extent.place() {
            held.going_out = false;
            // It went to the end of its queue when it was taken.
            if held.slot != NOT_QUEUED && turn == Turn::First {
                held.tier.queues.lock().put_first(held.slot);
            }
        }
    }
}
