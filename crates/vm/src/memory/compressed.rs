//! Compressed memory: clusters that are compressed and still in RAM, inside the budget (R37).
//!
//! Clusters leave for the store in the order in which they came. A cluster that was read meanwhile is passed over once.
//! (As in S3-FIFO, with one bit: an access that we see is a miss of the kernel's cache.)

use overspill_slab::{Ref, WeakRef};

use super::queue::{NOT_QUEUED, Queues, Victim};
use super::records::{Chunk, Compressed, Extent, Location, Segment};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

impl std::fmt::Debug for Compressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compressed({} bytes, {:?})", self.bytes(), self.queues)
    }
}

/// Clusters that are checked to find one not yet recompressed.
const LOOK: usize = 256;

/// The next step for the cluster whose turn it is to leave.
pub(crate) enum Next {
    /// Its bytes were copied. Ends with [`Compressed::stored`] or [`Compressed::stays`].
    Leaves(Leaving),
    /// Much of it is dead: it should be encoded again first. It stays the next one; this is reported only once.
    IsStale(Ref<Extent>, WeakRef<Chunk>),
    /// It cannot leave now, or does not fit.
    Stays,
    /// No cluster can leave.
    None,
}

/// The result of asking for a cluster to recompress.
pub(crate) enum Cold {
    Cluster(Ref<Extent>, WeakRef<Chunk>),
    /// Some were checked, none found: ask again.
    PassedOver,
    /// All were checked.
    End,
}

/// The next turn of a cluster that could not leave.
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
    /// Bytes of the budget that come free when it is stored.
    pub(crate) cost: usize,
}

impl Compressed {
    pub(crate) fn new() -> Compressed {
        Compressed {
            queues: Mutex::new(Queues::new()),
            cold: Mutex::new(NOT_QUEUED),
            bytes: AtomicUsize::new(0),
            pages: AtomicUsize::new(0),
        }
    }

    /// Bytes of the budget it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Pages that were encoded into it, dead ones of living clusters too.
    pub(crate) fn pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }

    /// Clusters in it.
    pub(crate) fn len(&self) -> usize {
        self.queues.lock().len()
    }

    /// Takes in an extent whose payload is in memory.
    pub(crate) fn insert(&self, extent: &Ref<Extent>) {
        let mut location = extent.location();
        let Location::Memory(payload) = &mut *location else { return };
        self.count_in(payload);
        payload.slot = self.queues.lock().insert(Ref::downgrade(extent));
    }

    /// The next cluster to go to the store, its bytes copied to the start of `out`. `only` names the one object whose
    /// clusters may go.
    pub(crate) fn next_out(&self, out: &mut [u8], eager: bool, only: Option<u32>) -> Next {
        let extent = match self.queues.lock().next_victim() {
            Victim::Found(extent) => extent,
            Victim::Dying => return Next::Stays,
            Victim::None => return Next::None,
        };
        if let Some(only) = only
            && let Location::Memory(payload) = &*extent.location()
            && payload.object != only
            && payload.slot != NOT_QUEUED
        {
            self.queues.lock().put_first(payload.slot);
            return Next::None;
        }
        let len = extent.len();
        let mut location = extent.location();
        let Location::Memory(payload) = &mut *location else { return Next::Stays };
        if payload.going_out || payload.slot == NOT_QUEUED || len > out.len() {
            return Next::Stays;
        }
        if std::mem::take(&mut payload.referenced) && !eager {
            self.queues.lock().activate(payload.slot);
            return Next::Stays;
        }
        let chunk = payload.chunk.clone();
        if extent.is_stale() && !std::mem::replace(&mut payload.cleaned, true) {
            self.queues.lock().put_first(payload.slot);
            drop(location);
            return Next::IsStale(extent, chunk);
        }
        payload.copy_to(0, &mut out[..len]);
        payload.going_out = true;
        let (cost, object) = (payload.cost(), payload.object);
        drop(location);
        Next::Leaves(Leaving { extent, chunk, object, cost })
    }

    /// The oldest cluster that the recompressor has not checked yet; marks it as checked.
    pub(crate) fn next_cold(&self) -> Cold {
        let mut cold = self.cold.lock();
        for _ in 0..LOOK {
            let extent = match self.queues.lock().next_oldest(&mut cold) {
                Victim::Found(extent) => extent,
                Victim::Dying => continue,
                Victim::None => return Cold::End,
            };
            let mut location = extent.location();
            let Location::Memory(payload) = &mut *location else { continue };
            if payload.going_out || payload.referenced || payload.slot == NOT_QUEUED || payload.recompressed {
                continue;
            }
            payload.recompressed = true;
            let chunk = payload.chunk.clone();
            drop(location);
            return Cold::Cluster(extent, chunk);
        }
        Cold::PassedOver
    }

    /// Gives the queue position of an extent in compressed memory to a new one. False if the old one has none any more,
    /// or is on its way out.
    pub(crate) fn replace(&self, old: &Ref<Extent>, new: &Ref<Extent>) -> bool {
        let slot = {
            let mut location = old.location();
            let Location::Memory(payload) = &mut *location else { return false };
            if payload.going_out || payload.slot == NOT_QUEUED {
                return false;
            }
            self.count_out(payload);
            std::mem::replace(&mut payload.slot, NOT_QUEUED)
        };
        let mut location = new.location();
        let Location::Memory(payload) = &mut *location else { unreachable!("made in memory just now") };
        self.count_in(payload);
        payload.recompressed = true;
        payload.slot = slot;
        self.queues.lock().replace(slot, Ref::downgrade(new));
        true
    }

    /// An extent on its way out is in the store now.
    pub(crate) fn stored(extent: &Ref<Extent>, segment: &Ref<Segment>, at: usize) {
        // Its memory is freed under no lock.
        if let Location::Memory(mut payload) = extent.settle(segment, at) {
            payload
                .forks
                .take()
                .into_iter()
                .flat_map(|forks| *forks)
                .for_each(|fork| segment.add_chunk(fork));
            payload.leave();
        }
    }

    /// An extent on its way out stays in compressed memory after all.
    pub(crate) fn stays(&self, extent: &Ref<Extent>, turn: Turn) {
        if let Location::Memory(payload) = &mut *extent.location() {
            payload.going_out = false;
            // `next_out` moved it to the end of its queue.
            if payload.slot != NOT_QUEUED && turn == Turn::First {
                self.queues.lock().put_first(payload.slot);
            }
        }
    }
}
