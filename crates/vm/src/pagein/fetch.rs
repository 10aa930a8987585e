//! Fetches: pages being read in, once for all readers that want them.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::task::{Poll, Waker};

use overspill_codec::Pages;
use overspill_slab::Ref;

use super::slots::{FetchSlot, FetchSlots};
use crate::error::VmError;
use crate::memory::extent::BlocksOfStrips;
use crate::memory::records::Extent;
use crate::memory::state::{Base, Origin};
use crate::page::{CHUNK, CHUNK_PAGES, PAGE, PageSet};
use crate::source::Source;
use crate::sync::{Arc, Mutex, Weak};

/// Pages that must be read.
#[derive(Clone)]
pub(crate) enum Wanted {
    /// Neighbouring strips of an extent.
    Strips(Ref<Extent>, Range<usize>),
    /// A chunk of a source.
    Chunk(std::sync::Arc<dyn Source>, u64),
}

/// Tells fetches apart: an extent's tag and its first strip, or a source's address and the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Strips(u64, usize),
    Chunk(usize, u64),
}

impl Wanted {
    /// Strips that hold the first of these pages of an extent.
    pub(crate) fn strips(extent: &Ref<Extent>, set: PageSet) -> Wanted {
        Wanted::Strips(extent.clone(), extent.strips(set))
    }

    fn key(&self) -> Key {
        match self {
            Wanted::Strips(extent, strips) => Key::Strips(extent.tag(), strips.start),
            Wanted::Chunk(source, chunk) => Key::Chunk(std::sync::Arc::as_ptr(source).addr(), *chunk),
        }
    }

    /// True if a fetch of `self` brings `other` too.
    fn brings(&self, other: &Wanted) -> bool {
        match (self, other) {
            (Wanted::Strips(own, have), Wanted::Strips(extent, want)) => {
                Ref::ptr_eq(own, extent) && have.start <= want.start && want.end <= have.end
            }
            _ => self.key() == other.key(),
        }
    }
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.key().fmt(f)
    }
}

/// Pages that were read, in a slot.
#[derive(Debug)]
pub(crate) struct Decoded {
    origin: Origin,
    pages: Pages,
    /// Bytes copied before decoding.
    copied: usize,
    slot: FetchSlot,
}

impl Decoded {
    /// Decodes strips that are in compressed memory; gives the slot back if they are not.
    fn from_memory(
        extent: &Ref<Extent>,
        strips: Range<usize>,
        mut slot: FetchSlot,
    ) -> Result<Fetched, FetchSlot> {
        let (out, payload) = slot.buffers();
        let Some(len) = extent.copy_payload(strips.clone(), payload) else { return Err(slot) };
        let decoded = extent.decode(strips, &payload[..len], out);
        let origin = Origin::Extent(extent.clone());
        Ok(match decoded {
            Ok(pages) => Ok(Arc::new(Decoded { origin, pages, copied: len, slot })),
            Err(strip) => Err(PageInError::Damaged(strip)),
        })
    }

    /// Bytes copied to obtain it: its pages, and from compressed memory their payload.
    pub(crate) fn copied(&self) -> usize {
        self.pages.len() * PAGE + self.copied
    }

    /// The number of pages.
    pub(crate) fn count(&self) -> u64 {
        self.pages.len() as u64
    }

    /// The bytes of a page of the chunk, and their origin; the page is zero beyond them. `None` if these strips do not
    /// hold it.
    pub(crate) fn page(&self, page: usize) -> Option<Base<'_>> {
        let rank = match &self.origin {
            Origin::Extent(extent) => extent.rank(page),
            Origin::Source => page,
        };
        let bytes = &self.slot.decoded()[self.pages.get(rank)?];
        Some(Base { origin: &self.origin, bytes })
    }
}

/// The reason why pages could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageInError {
    /// The bytes of this strip differ from those that were written.
    Damaged(usize),
    /// The read failed: there are no bytes.
    Failed(VmError),
}

impl From<VmError> for PageInError {
    fn from(error: VmError) -> PageInError {
        PageInError::Failed(error)
    }
}

impl PageInError {
    /// True if another try may succeed.
    pub(crate) fn may_pass(self) -> bool {
        use VmError::{SourceRead, StoreRead};
        matches!(self, PageInError::Damaged(_) | PageInError::Failed(StoreRead(_) | SourceRead(_)))
    }
}

/// The outcome of a fetch.
pub(crate) type Fetched = Result<Arc<Decoded>, PageInError>;

#[derive(Debug)]
enum State {
    Pending(Vec<Waker>),
    Done(Fetched),
}

/// Pages on their way in.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) wanted: Wanted,
    state: Mutex<State>,
    slot: Mutex<Option<FetchSlot>>,
}

impl Fetch {
    /// Waits for the pages.
    pub(crate) fn wait(&self) -> impl Future<Output = Fetched> + '_ {
        poll_fn(|cx| match &mut *self.state.lock() {
            State::Done(result) => Poll::Ready(result.clone()),
            State::Pending(wakers) => {
                wakers.retain(|waker| !waker.will_wake(cx.waker()));
                wakers.push(cx.waker().clone());
                Poll::Pending
            }
        })
    }

    pub(crate) fn brings(&self, wanted: &Wanted) -> bool {
        self.wanted.brings(wanted)
    }

    /// Decodes the bytes that were read: the strips' payload, or the source's bytes.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Fetched {
        let mut slot = self.slot.lock().take().ok_or(VmError::ShutDown)?;
        let out = slot.buffers().0;
        let (origin, pages) = match &self.wanted {
            Wanted::Strips(extent, strips) => {
                let pages = extent.decode(strips.clone(), bytes, out).map_err(PageInError::Damaged)?;
                (Origin::Extent(extent.clone()), pages)
            }
            Wanted::Chunk(..) => {
                let (bytes, n) = (bytes.get(..CHUNK).unwrap_or(bytes), bytes.len().min(CHUNK));
                out[..n].copy_from_slice(bytes);
                out[n..].fill(0);
                (Origin::Source, Pages::side_by_side(CHUNK_PAGES))
            }
        };
        Ok(Arc::new(Decoded { origin, pages, copied: 0, slot }))
    }

    /// Ends the fetch and wakes its readers.
    fn finish(&self, result: Fetched) {
        let old = std::mem::replace(&mut *self.state.lock(), State::Done(result));
        if let State::Pending(wakers) = old {
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// The result of asking for a fetch.
pub(crate) enum Begun {
    /// It was under way already.
    Joined(Arc<Fetch>),
    /// It is new: its request must be queued. The strips lie in these blocks; a source's chunk in none.
    New(Arc<Fetch>, Option<BlocksOfStrips>),
    /// There was nothing to read: the strips are in compressed memory.
    Done(Fetched),
    /// All slots are taken: wait for one, then ask again.
    NoSlot,
}

/// The fetches under way.
#[derive(Debug)]
pub(crate) struct Fetches {
    under_way: Mutex<HashMap<Key, Weak<Fetch>>>,
    pub(crate) slots: Arc<FetchSlots>,
}

impl Fetches {
    pub(crate) fn new(slots: usize) -> Fetches {
        Fetches { under_way: Mutex::new(HashMap::new()), slots: FetchSlots::new(slots) }
    }

    /// Begins to read pages, or joins a fetch that brings them. `slot` is one received after [`Begun::NoSlot`].
    pub(crate) fn begin(&self, wanted: &Wanted, slot: Option<FetchSlot>) -> Begun {
        let blocks = match wanted {
            Wanted::Chunk(..) => None,
            Wanted::Strips(extent, strips) => match extent.blocks_of(strips.clone()) {
                Some(blocks) => Some(blocks),
                None => {
                    let Some(slot) = slot.or_else(|| self.slots.take()) else { return Begun::NoSlot };
                    // The extent may just have left for a store.
                    return match Decoded::from_memory(extent, strips.clone(), slot) {
                        Ok(done) => Begun::Done(done),
                        Err(slot) => self.begin(wanted, Some(slot)),
                    };
                }
            },
        };
        let mut under_way = self.under_way.lock();
        if let Some(fetch) = under_way.get(&wanted.key()).and_then(Weak::upgrade)
            && fetch.brings(wanted)
        {
            return Begun::Joined(fetch);
        }
        let Some(slot) = slot.or_else(|| self.slots.take()) else {
            return Begun::NoSlot;
        };
        let fetch = Arc::new(Fetch {
            wanted: wanted.clone(),
            state: Mutex::new(State::Pending(Vec::new())),
            slot: Mutex::new(Some(slot)),
        });
        under_way.insert(wanted.key(), Arc::downgrade(&fetch));
        Begun::New(fetch, blocks)
    }

    /// Ends the fetch: its readers are served, later ones begin anew.
    pub(crate) fn end(&self, fetch: &Arc<Fetch>, result: Fetched) {
        {
            let mut under_way = self.under_way.lock();
            let key = fetch.wanted.key();
            if under_way.get(&key).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(fetch))) {
                under_way.remove(&key);
            }
        }
        fetch.finish(result);
    }
}
