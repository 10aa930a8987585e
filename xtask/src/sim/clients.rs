//! Clients of the VM: objects with their models, and operations under way.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake};

use overspill_vm::{Object, VmError};

use super::model::Model;
use super::tally::Tally;

pub(super) struct Woken(pub(super) AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// An object, its model, and the operations on it.
pub(super) struct Subject {
    pub(super) object: Rc<Object>,
    pub(super) model: Model,
    /// Changes and reads under way.
    pub(super) changes: usize,
    pub(super) readers: usize,
}

impl Subject {
    pub(super) fn new(object: Object, model: Model) -> Subject {
        Subject { object: Rc::new(object), model, changes: 0, readers: 0 }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.changes == 0 && self.readers == 0
    }
}

pub(super) struct Task {
    /// Describes the operation, for the case that it never ends.
    pub(super) what: String,
    pub(super) future: Pin<Box<dyn Future<Output = ()>>>,
    pub(super) woken: Arc<Woken>,
}

/// Runs an operation; drops its first tries, each after its number of waits in `drops`. Returns true if one was
/// dropped.
pub(super) async fn begun_anew<T, F: Future<Output = T>>(
    mut drops: Vec<u32>,
    tally: &Rc<RefCell<Tally>>,
    begin: impl Fn() -> F,
) -> (T, bool) {
    let mut dropped = false;
    loop {
        let mut waits_left = drops.pop();
        let mut operation = Box::pin(begin());
        let outcome = poll_fn(|cx| match (operation.as_mut().poll(cx), &mut waits_left) {
            (Poll::Ready(value), _) => Poll::Ready(Some(value)),
            (Poll::Pending, Some(0)) => Poll::Ready(None),
            (Poll::Pending, waits) => {
                *waits = waits.map(|left| left - 1);
                Poll::Pending
            }
        })
        .await;
        match outcome {
            Some(value) => return (value, dropped),
            None => dropped = true,
        }
        tally.borrow_mut().begun_anew += 1;
    }
}

/// Discards pages, again if memory was short: a discard may be repeated, and must succeed at last.
pub(super) fn discard(object: &Object, first: usize, end: usize, may_refuse: bool) {
    for _ in 0..10_000 {
        match object.discard(first as u64, end as u64) {
            Ok(()) => return,
            Err(error) => assert!(may_refuse && error == VmError::NoMemory, "{error}"),
        }
    }
    panic!("a discard never ends");
}
