//! Answers on their way to a ring: any thread leaves them, the ring's own thread gives them to the kernel.

use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use overspill_sys::{FuseSlot, RingWaker};
use zerocopy::IntoBytes as _;

use crate::abi::OutHeader;

/// An answer on its way to its ring.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) slot: FuseSlot,
    pub(crate) header: [u8; 16],
    pub(crate) payload_bytes: usize,
    /// The payload of an answer to a WRITE, whose place's buffer holds its data until then.
    pub(crate) short: [u8; SHORT],
}

/// Most bytes of an answer to a WRITE.
pub(crate) const SHORT: usize = 8;

/// Answers that a ring's thread has not given to the kernel yet.
#[derive(Debug)]
pub(crate) struct Mailbox {
    answers: Mutex<Vec<Answer>>,
    thread: ThreadId,
    waker: RingWaker,
}

impl Mailbox {
    /// The mailbox of a ring of this thread.
    pub(crate) fn new(waker: RingWaker) -> Mailbox {
        Mailbox { answers: Mutex::default(), thread: std::thread::current().id(), waker }
    }

    pub(crate) fn answers(&self) -> MutexGuard<'_, Vec<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reply to a request that came by a ring.
#[derive(Debug)]
pub(crate) struct RingReply {
    pub(crate) slot: FuseSlot,
    pub(crate) mailbox: Arc<Mailbox>,
}

const E2BIG: i32 = 7;

impl RingReply {
    pub(crate) fn send(self, unique: u64, mut error: i32, parts: &[IoSlice<'_>]) {
        let RingReply { mut slot, mailbox } = self;
        let (mut bytes, mut short) = (0, [0; SHORT]);
        let room = slot.payload.as_deref_mut().unwrap_or(&mut short);
        for part in parts {
            match room.get_mut(bytes..bytes + part.len()) {
                Some(room) => room.copy_from_slice(part),
                // Longer than the kernel asked for.
                None => {
                    (bytes, error) = (0, -E2BIG);
                    break;
                }
            }
            bytes += part.len();
        }
        Self { slot, mailbox }.put(unique, error, bytes, short);
    }

    pub(crate) fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.slot.payload.as_deref_mut()?.get_mut(..size)
    }

    pub(crate) fn filled(self, unique: u64, bytes: usize) {
        self.put(unique, 0, bytes, [0; SHORT]);
    }

    fn put(self, unique: u64, error: i32, payload_bytes: usize, short: [u8; SHORT]) {
        let RingReply { slot, mailbox } = self;
        let len = u32::try_from(size_of::<OutHeader>() + payload_bytes).unwrap_or(u32::MAX);
        let mut header = [0; 16];
        header.copy_from_slice(OutHeader { len, error, unique }.as_bytes());
        let first = {
            let mut answers = mailbox.answers();
            answers.push(Answer { slot, header, payload_bytes, short });
            answers.len() == 1
        };
        if first && mailbox.thread != std::thread::current().id() {
            mailbox.waker.wake();
        }
    }
}
