//! Slots: the buffers that strips are decoded into. Their number is fixed.

use std::collections::VecDeque;

use overspill_codec::{MAX_CLUSTER, MAX_PAYLOAD};
use overspill_slab::kept;
use overspill_sys::AlignedBuf;

use crate::error::VmError;
use crate::page::PAGE;
use crate::sync::{Arc, Mutex};
use crate::wait::ticket::{Pending, Sender, ticket};

/// Bytes of the budget for one slot: decoded pages, and room for the payload they are decoded from.
pub(crate) const SLOT_COST: usize = MAX_CLUSTER + MAX_PAYLOAD.next_multiple_of(PAGE);

/// Buffers to decode into. Waiters are served in order.
#[derive(Debug)]
pub(crate) struct FetchSlots {
    inner: Mutex<(Vec<AlignedBuf>, VecDeque<Sender<FetchSlot>>)>,
}

/// A buffer to decode into; returns when it is dropped.
#[derive(Debug)]
pub(crate) struct FetchSlot {
    /// Some until it is dropped.
    buf: Option<AlignedBuf>,
    slots: Arc<FetchSlots>,
}

kept!(counted Pending<FetchSlot>, "ticket for a fetch");

impl FetchSlot {
    /// Room for decoded pages, and for a payload to decode.
    pub(crate) fn buffers(&mut self) -> (&mut [u8], &mut [u8]) {
        self.buf.as_mut().expect("there until dropped").split_at_mut(MAX_CLUSTER)
    }

    pub(crate) fn decoded(&self) -> &[u8] {
        &self.buf.as_ref().expect("there until dropped")[..MAX_CLUSTER]
    }
}

impl FetchSlots {
    pub(crate) fn new(count: usize) -> Arc<FetchSlots> {
        let buffers = (0..count).map(|_| AlignedBuf::new(SLOT_COST)).collect();
        Arc::new(FetchSlots { inner: Mutex::new((buffers, VecDeque::new())) })
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when there is no memory for the wait itself.
    pub(crate) async fn wait(self: &Arc<Self>) -> Result<FetchSlot, VmError> {
        let (sender, ticket) = ticket()?;
        if let Some(slot) = self.take_or_queue(sender) {
            return Ok(slot);
        }
        ticket.await.ok_or(VmError::ShutDown)
    }

    fn slot(self: &Arc<Self>, buf: AlignedBuf) -> FetchSlot {
        FetchSlot { buf: Some(buf), slots: self.clone() }
    }

    pub(crate) fn take(self: &Arc<Self>) -> Option<FetchSlot> {
        let buf = self.inner.lock().0.pop()?;
        Some(self.slot(buf))
    }

    /// Takes a slot now, or queues `sender` for the next that is free.
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
