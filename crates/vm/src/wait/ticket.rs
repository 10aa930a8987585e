//! Tickets: values that come later, for operations that cannot finish now.
//!
//! A [`Ticket`] is a future; the VM's driver decides how operations wait (parked requests in production, a seeded
//! scheduler in the simulation). Either side may be dropped: the value of a dropped ticket is dropped, and a ticket
//! whose sender is gone resolves to `None`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use overspill_slab::{OutOfMemory, Ref, RefCounted};

use crate::sync::Mutex;

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Ready(T),
    Closed,
}

/// The state that a ticket and its sender share. Each type of value has a cache of these.
#[derive(Debug)]
pub(crate) struct Pending<T>(Mutex<State<T>>);

/// Completes its ticket, once.
#[derive(Debug)]
pub(crate) struct Sender<T: 'static>(Ref<Pending<T>>)
where
    Pending<T>: RefCounted;

/// Resolves to the value sent, or to `None` when its sender was dropped without sending.
#[derive(Debug)]
pub(crate) struct Ticket<T: 'static>(Ref<Pending<T>>)
where
    Pending<T>: RefCounted;

/// A ticket and its sender.
///
/// # Errors
/// When there is no memory for them.
pub(crate) fn ticket<T>() -> Result<(Sender<T>, Ticket<T>), OutOfMemory>
where
    Pending<T>: RefCounted,
{
    let state = Ref::new(Pending(Mutex::new(State::Waiting(None))))?;
    Ok((Sender(state.clone()), Ticket(state)))
}

impl<T> Sender<T>
where
    Pending<T>: RefCounted,
{
    /// Hands over the value. The waker runs on the caller's stack and may only make a task runnable: memory comes free,
    /// and so tickets complete, under locks too.
    pub(crate) fn send(self, value: T) {
        self.finish(State::Ready(value));
    }

    fn finish(&self, end: State<T>) {
        let mut state = self.0.0.lock();
        if matches!(*state, State::Waiting(_)) {
            let State::Waiting(waker) = std::mem::replace(&mut *state, end) else { unreachable!() };
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// True if somebody still holds the ticket.
    pub(crate) fn is_wanted(&self) -> bool {
        Ref::handles(&self.0) > 1
    }
}

impl<T> Drop for Sender<T>
where
    Pending<T>: RefCounted,
{
    fn drop(&mut self) {
        self.finish(State::Closed);
    }
}

impl<T> Future for Ticket<T>
where
    Pending<T>: RefCounted,
{
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.0.lock();
        match std::mem::replace(&mut *state, State::Closed) {
            State::Ready(value) => Poll::Ready(Some(value)),
            State::Closed => Poll::Ready(None),
            State::Waiting(_) => {
                *state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}
