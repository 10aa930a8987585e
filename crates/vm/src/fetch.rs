//! Page-in: reading strips of a cluster back, from compressed memory or from the store, once for all who wait.
//!
//! What is read is not made resident (design: no promotion on read): readers copy from the unpacked strips and let
//! them go. Unpacked strips live in a fixed number of buffers outside the budget's pages, so that reading never waits
//! for writers. A buffer is held until the last reader has copied.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::task::{Poll, Waker};

use overspill_slab::{Ref, kept};
use overspill_store::codec::{MAX_CLUSTER, MAX_PAYLOAD, Pages};
use overspill_sys::AlignedBuf;

use crate::error::VmError;
use crate::extent::{BlocksOfStrips, Extent};
use crate::sync::{Arc, Mutex, Weak};
use crate::ticket::{Pending, Sender, ticket};
use crate::vm::Shared;

/// Bytes one slot stands for in the budget: what is unpacked, and room for what it is unpacked from.
pub(crate) const SLOT_COST: usize = MAX_CLUSTER + MAX_PAYLOAD.next_multiple_of(crate::PAGE);

/// Strips of a cluster, read back.
#[derive(Debug)]
pub(crate) struct Unpacked {
    extent: Ref<Extent>,
    pages: Pages,
    /// Bytes copied before they were unpacked.
    copied: usize,
    slot: FetchSlot,
}

impl Unpacked {
    /// Unpacks strips that are in compressed memory; gives the slot back when they are not.
    pub(crate) fn from_memory(
        extent: &Ref<Extent>,
        strips: Range<usize>,
        mut slot: FetchSlot,
    ) -> Result<Outcome, FetchSlot> {
        let (out, packed) = slot.buffers();
        let Some(len) = extent.copy_held(strips.clone(), packed) else { return Err(slot) };
        let unpacked = extent.unpack(strips, &packed[..len], out);
        Ok(match unpacked {
            Ok(pages) => Ok(Arc::new(Unpacked { extent: extent.clone(), pages, copied: len, slot })),
            Err(strip) => Err(PageInError::Damaged(strip)),
        })
    }

    pub(crate) fn is_of(&self, extent: &Ref<Extent>) -> bool {
        Ref::ptr_eq(&self.extent, extent)
    }

    /// Bytes that were moved to have it: its pages, and from compressed memory what they were packed to.
    pub(crate) fn moved(&self) -> usize {
        self.pages.len() * crate::PAGE + self.copied
    }

    /// How many pages.
    pub(crate) fn count(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Bytes of a page of the chunk; past them it is zero. `None` when it is in none of these strips.
    pub(crate) fn page(&self, page: usize) -> Option<&[u8]> {
        Some(&self.slot.unpacked()[self.pages.get(self.extent.rank(page))?])
    }
}

/// Why strips could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageInError {
    /// The bytes of this strip are not those that were written.
    Damaged(usize),
    /// There are no bytes to look at.
    Failed(VmError),
}

impl From<VmError> for PageInError {
    fn from(error: VmError) -> PageInError {
        PageInError::Failed(error)
    }
}

impl PageInError {
    /// Whether another time may do better.
    fn may_pass(self) -> bool {
        matches!(self, PageInError::Damaged(_) | PageInError::Failed(VmError::StoreRead))
    }
}

type Outcome = Result<Arc<Unpacked>, PageInError>;

/// How long to wait, in nanoseconds, before a read that failed or brought damage is done once more. Trouble passes; what is
/// as bad after the last of these counts as it is.
const PAUSES: [u64; 3] = [10_000_000, 100_000_000, 1_000_000_000];

#[derive(Debug)]
enum State {
    Pending(Vec<Waker>),
    Done(Outcome),
}

/// Strips on their way in.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) extent: Ref<Extent>,
    strips: Range<usize>,
    pub(crate) from: BlocksOfStrips,
    state: Mutex<State>,
    slot: Mutex<Option<FetchSlot>>,
}

impl Fetch {
    /// Waits for the strips.
    pub(crate) fn wait(&self) -> impl Future<Output = Outcome> + '_ {
        poll_fn(|cx| match &mut *self.state.lock() {
            State::Done(result) => Poll::Ready(result.clone()),
            State::Pending(wakers) => {
                wakers.retain(|waker| !waker.will_wake(cx.waker()));
                wakers.push(cx.waker().clone());
                Poll::Pending
            }
        })
    }

    /// Whether these strips of this extent come with it.
    pub(crate) fn brings(&self, extent: &Ref<Extent>, strips: &Range<usize>) -> bool {
        Ref::ptr_eq(&self.extent, extent)
            && self.strips.start <= strips.start
            && strips.end <= self.strips.end
    }

    /// Unpacks the blocks as read from the store.
    pub(crate) fn unpack(&self, blocks: &[u8]) -> Outcome {
        let mut slot = self.slot.lock().take().ok_or(VmError::ShutDown)?;
        let payload = blocks.get(self.from.skip..).unwrap_or(&[]);
        match self.extent.unpack(self.strips.clone(), payload, slot.buffers().0) {
            Ok(pages) => Ok(Arc::new(Unpacked { extent: self.extent.clone(), pages, copied: 0, slot })),
            Err(strip) => Err(PageInError::Damaged(strip)),
        }
    }

    /// Ends the fetch and wakes who waits.
    pub(crate) fn finish(&self, result: Outcome) {
        let old = std::mem::replace(&mut *self.state.lock(), State::Done(result));
        if let State::Pending(wakers) = old {
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Which fetch: of which extent, from which strip on.
type Key = (u64, usize);

/// The fetches under way, and the slots they may use.
#[derive(Debug)]
pub(crate) struct Fetches {
    under_way: Mutex<HashMap<Key, Weak<Fetch>>>,
    slots: Arc<FetchSlots>,
}

/// What came of asking for a fetch.
pub(crate) enum Begun {
    /// It was under way already.
    Joined(Arc<Fetch>),
    /// It is new: its read must be queued.
    New(Arc<Fetch>),
    /// There was nothing to read: the strips are in compressed memory.
    Done(Outcome),
    /// All slots are taken: wait for one ([`Fetches::slot`]), then ask again.
    NoSlot,
}

/// Strips on their way, or here.
pub(crate) enum Coming {
    Fetch(Arc<Fetch>),
    Done(Outcome),
}

impl Coming {
    async fn wait(self) -> Outcome {
        match self {
            Coming::Fetch(fetch) => fetch.wait().await,
            Coming::Done(result) => result,
        }
    }
}

impl Fetches {
    pub(crate) fn new(slots: usize) -> Fetches {
        let buffers = (0..slots).map(|_| AlignedBuf::new(SLOT_COST)).collect();
        Fetches {
            under_way: Mutex::new(HashMap::new()),
            slots: Arc::new(FetchSlots { inner: Mutex::new((buffers, VecDeque::new())) }),
        }
    }

    /// Begins to read strips of `extent`, or joins who did. `slot` is one got earlier from [`Begun::NoSlot`].
    pub(crate) fn begin(&self, extent: &Ref<Extent>, strips: Range<usize>, slot: Option<FetchSlot>) -> Begun {
        let Some(from) = extent.blocks_of(strips.clone()) else {
            let Some(slot) = slot.or_else(|| self.slots.take()) else { return Begun::NoSlot };
            // It may just have left for the store.
            return match Unpacked::from_memory(extent, strips.clone(), slot) {
                Ok(done) => Begun::Done(done),
                Err(slot) => self.begin(extent, strips, Some(slot)),
            };
        };
        let key = (extent.tag(), strips.start);
        let mut under_way = self.under_way.lock();
        if let Some(fetch) = under_way.get(&key).and_then(Weak::upgrade)
            && fetch.brings(extent, &strips)
        {
            return Begun::Joined(fetch);
        }
        let Some(slot) = slot.or_else(|| self.slots.take()) else {
            return Begun::NoSlot;
        };
        let fetch = Arc::new(Fetch {
            extent: extent.clone(),
            strips,
            from,
            state: Mutex::new(State::Pending(Vec::new())),
            slot: Mutex::new(Some(slot)),
        });
        under_way.insert(key, Arc::downgrade(&fetch));
        Begun::New(fetch)
    }

    /// A slot, if one is free.
    pub(crate) fn free_slot(&self) -> Option<FetchSlot> {
        self.slots.take()
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
        let key = (fetch.extent.tag(), fetch.strips.start);
        if under_way.get(&key).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(fetch))) {
            under_way.remove(&key);
        }
    }
}

impl Shared {
    /// Waits for strips of an extent, which may be `coming` already. What fails or is damaged is asked for again after a
    /// while: only what stays so is an error. `before_waiting` is called before each wait but the first.
    pub(crate) async fn page_in(
        &self,
        extent: &Ref<Extent>,
        strips: Range<usize>,
        mut coming: Option<Coming>,
        mut before_waiting: impl FnMut(),
    ) -> Outcome {
        let mut pauses = PAUSES.into_iter();
        loop {
            let next = match coming.take() {
                Some(coming) => coming,
                None => self.fetch(extent, strips.clone(), &mut before_waiting).await?,
            };
            let error = match next.wait().await {
                Err(error) if error.may_pass() => error,
                outcome => return outcome,
            };
            let Some(pause) = pauses.next() else {
                if let PageInError::Damaged(strip) = error {
                    tracing::error!(
                        tag = extent.tag(),
                        strip,
                        "the store keeps returning damaged data: lost"
                    );
                }
                return Err(error);
            };
            before_waiting();
            self.sleep(pause).await?;
        }
    }
}

/// Buffers to unpack into. Who waits for one is served in order.
#[derive(Debug)]
struct FetchSlots {
    inner: Mutex<(Vec<AlignedBuf>, VecDeque<Sender<FetchSlot>>)>,
}

/// A buffer to unpack into; returns when it is dropped.
#[derive(Debug)]
pub(crate) struct FetchSlot {
    /// There until it is dropped.
    buf: Option<AlignedBuf>,
    slots: Arc<FetchSlots>,
}

kept!(counted Pending<FetchSlot>, "ticket for a fetch");

impl FetchSlot {
    /// Room for what is unpacked, and for what it is unpacked from.
    pub(crate) fn buffers(&mut self) -> (&mut [u8], &mut [u8]) {
        self.buf.as_mut().expect("there until dropped").split_at_mut(MAX_CLUSTER)
    }

    fn unpacked(&self) -> &[u8] {
        &self.buf.as_ref().expect("there until dropped")[..MAX_CLUSTER]
    }
}

impl FetchSlots {
    fn slot(self: &Arc<Self>, buf: AlignedBuf) -> FetchSlot {
        FetchSlot { buf: Some(buf), slots: self.clone() }
    }

    fn take(self: &Arc<Self>) -> Option<FetchSlot> {
        let buf = self.inner.lock().0.pop()?;
        Some(self.slot(buf))
    }

    /// A slot now, or the next that comes free is sent.
    fn take_or_queue(self: &Arc<Self>, sender: Sender<FetchSlot>) -> Option<FetchSlot> {
        let mut inner = self.inner.lock();
        if let Some(buf) = inner.0.pop() {
            return Some(self.slot(buf));
        }
        inner.1.push_back(sender);
        None
    }
}

impl Drop for FetchSlot {
    fn drop(&mut self) {
        let Some(buf) = self.buf.take() else { return };
        let next = {
            let mut inner = self.slots.inner.lock();
            while inner.1.front().is_some_and(|sender| !sender.is_wanted()) {
                inner.1.pop_front();
            }
            match inner.1.pop_front() {
                Some(next) => Some((next, buf)),
                None => {
                    inner.0.push(buf);
                    None
                }
            }
        };
        if let Some((next, buf)) = next {
            next.send(self.slots.slot(buf));
        }
    }
}
