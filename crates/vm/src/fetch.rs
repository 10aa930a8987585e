//! Page-in: reading a cluster back from the store, once for all who wait for it.
//!
//! What is read is not made resident (design: no promotion on read): readers copy from the unpacked cluster and let
//! it go. Unpacked clusters live outside the budget's pages in a fixed number of slots, so that reading never waits
//! for writers. A slot is held until the last reader has copied.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};

use overspill_slab::{Ref, kept};
use overspill_store::codec::{self, Pages};
use overspill_sys::AlignedBuf;

use crate::CHUNK;
use crate::error::VmError;
use crate::extent::Extent;
use crate::sync::{Arc, Mutex, Weak};
use crate::ticket::{Pending, Sender, ticket};

/// Bytes one slot stands for in the budget.
pub(crate) const SLOT_COST: usize = CHUNK;

/// A cluster's pages, read back.
#[derive(Debug)]
pub(crate) struct Unpacked {
    extent: Ref<Extent>,
    buf: AlignedBuf,
    pages: Pages,
    _slot: FetchSlot,
}

impl Unpacked {
    pub(crate) fn is_of(&self, extent: &Ref<Extent>) -> bool {
        Ref::ptr_eq(&self.extent, extent)
    }

    /// Bytes of a page of the chunk; past them it is zero.
    pub(crate) fn page(&self, page: usize) -> &[u8] {
        let rank = (self.extent.pages() & ((1 << page) - 1)).count_ones() as usize;
        self.pages.get(rank).map_or(&[], |range| &self.buf[range])
    }
}

#[derive(Debug)]
enum State {
    Pending(Vec<Waker>),
    Done(Result<Arc<Unpacked>, VmError>),
}

/// One cluster on its way in.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) extent: Ref<Extent>,
    state: Mutex<State>,
    slot: Mutex<Option<FetchSlot>>,
}

impl Fetch {
    /// Waits for the cluster.
    pub(crate) fn wait(&self) -> impl Future<Output = Result<Arc<Unpacked>, VmError>> + '_ {
        poll_fn(|cx| match &mut *self.state.lock() {
            State::Done(result) => Poll::Ready(result.clone()),
            State::Pending(wakers) => {
                wakers.retain(|waker| !waker.will_wake(cx.waker()));
                wakers.push(cx.waker().clone());
                Poll::Pending
            }
        })
    }

    pub(crate) fn is_of(&self, extent: &Ref<Extent>) -> bool {
        Ref::ptr_eq(&self.extent, extent)
    }

    /// Unpacks `payload` as read from the store.
    pub(crate) fn unpack(&self, payload: &[u8]) -> Result<Arc<Unpacked>, VmError> {
        let slot = self.slot.lock().take().ok_or(VmError::ShutDown)?;
        let mut buf = AlignedBuf::new(CHUNK);
        match codec::decode(payload, self.extent.encoded(), self.extent.tag(), &mut buf) {
            Ok(pages) => Ok(Arc::new(Unpacked { extent: self.extent.clone(), buf, pages, _slot: slot })),
            Err(_) => Err(VmError::Lost),
        }
    }

    /// Ends the fetch and wakes who waits.
    pub(crate) fn finish(&self, result: Result<Arc<Unpacked>, VmError>) {
        let old = std::mem::replace(&mut *self.state.lock(), State::Done(result));
        if let State::Pending(wakers) = old {
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// The fetches under way, by the block they start at, and the slots they may use.
#[derive(Debug)]
pub(crate) struct Fetches {
    under_way: Mutex<HashMap<u32, Weak<Fetch>>>,
    slots: Arc<FetchSlots>,
}

/// What came of asking for a fetch.
pub(crate) enum Begun {
    /// It was under way already.
    Joined(Arc<Fetch>),
    /// It is new: its read must be queued.
    New(Arc<Fetch>),
    /// All slots are taken: wait for one ([`Fetches::slot`]), then ask again.
    NoSlot,
}

impl Fetches {
    pub(crate) fn new(slots: usize) -> Fetches {
        Fetches {
            under_way: Mutex::new(HashMap::new()),
            slots: Arc::new(FetchSlots { inner: Mutex::new((slots, VecDeque::new())) }),
        }
    }

    /// Begins to read `extent`, or joins who did. `slot` is one got earlier from [`Begun::NoSlot`].
    pub(crate) fn begin(&self, extent: &Ref<Extent>, slot: Option<FetchSlot>) -> Begun {
        let mut under_way = self.under_way.lock();
        if let Some(fetch) = under_way.get(&extent.start()).and_then(Weak::upgrade)
            && fetch.is_of(extent)
        {
            return Begun::Joined(fetch);
        }
        let Some(slot) = slot.or_else(|| self.slots.take()) else {
            return Begun::NoSlot;
        };
        let fetch = Arc::new(Fetch {
            extent: extent.clone(),
            state: Mutex::new(State::Pending(Vec::new())),
            slot: Mutex::new(Some(slot)),
        });
        under_way.insert(extent.start(), Arc::downgrade(&fetch));
        Begun::New(fetch)
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when there is none to wait with.
    pub(crate) async fn slot(&self) -> Result<FetchSlot, VmError> {
        let (sender, ticket) = ticket()?;
        if let Some(slot) = self.slots.take_or_queue(sender) {
            return Ok(slot);
        }
        ticket.await.ok_or(VmError::ShutDown)
    }

    /// The fetch is over: later readers begin anew.
    pub(crate) fn end(&self, fetch: &Arc<Fetch>) {
        let mut under_way = self.under_way.lock();
        let start = fetch.extent.start();
        if under_way.get(&start).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(fetch))) {
            under_way.remove(&start);
        }
    }
}

/// A counting semaphore whose waiters are served in order.
#[derive(Debug)]
struct FetchSlots {
    inner: Mutex<(usize, VecDeque<Sender<FetchSlot>>)>,
}

/// The right to have one cluster unpacked.
#[derive(Debug)]
pub(crate) struct FetchSlot(Arc<FetchSlots>);

kept!(counted Pending<FetchSlot>, "ticket for a fetch");

impl FetchSlots {
    fn take(self: &Arc<Self>) -> Option<FetchSlot> {
        let mut inner = self.inner.lock();
        inner.0 = inner.0.checked_sub(1)?;
        Some(FetchSlot(self.clone()))
    }

    /// A slot now, or the next that comes free is sent.
    fn take_or_queue(self: &Arc<Self>, sender: Sender<FetchSlot>) -> Option<FetchSlot> {
        let mut inner = self.inner.lock();
        match inner.0.checked_sub(1) {
            Some(left) => {
                inner.0 = left;
                Some(FetchSlot(self.clone()))
            }
            None => {
                inner.1.push_back(sender);
                None
            }
        }
    }
}

impl Drop for FetchSlot {
    fn drop(&mut self) {
        let next = {
            let mut inner = self.0.inner.lock();
            while inner.1.front().is_some_and(|sender| !sender.is_wanted()) {
                inner.1.pop_front();
            }
            let next = inner.1.pop_front();
            if next.is_none() {
                inner.0 += 1;
            }
            next
        };
        if let Some(next) = next {
            next.send(FetchSlot(self.0.clone()));
        }
    }
}
