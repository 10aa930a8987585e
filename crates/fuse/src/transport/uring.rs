//! FUSE over io_uring: a queue and a thread for each processor, on which requests are served where their callers run.
//!
//! The threads only serve: whatever must wait becomes a task elsewhere, and its answer comes back through the mailbox.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use overspill_sys::{AlignedBuf, FuseRing, FuseSlot};
use zerocopy::FromBytes as _;

use crate::abi::{InHeader, WriteIn, opcode};
use crate::channel::To;
use crate::channel::mailbox::{Answer, Mailbox, RingReply, SHORT};
use crate::device::Device;
use crate::request::{Malformed, Op, Request, fixed_bytes};
use crate::serve::Serve;

/// A queue that is to be served.
pub(crate) struct Queue {
    pub(crate) cpu: u16,
    /// Places for requests.
    pub(crate) places: usize,
    /// Bytes of each place's payload.
    pub(crate) payload: usize,
}

/// Makes a ring, says whether that worked, waits for the word, and serves until the file system is unmounted.
///
/// # Errors
/// When the ring breaks.
pub(crate) fn run(
    device: &Device,
    serve: &dyn Serve,
    queue: &Queue,
    made: &Sender<io::Result<()>>,
    go: &Receiver<()>,
) -> io::Result<()> {
    settle(queue.cpu);
    let ring = FuseRing::new(device.as_fd(), queue.cpu, queue.places, queue.payload);
    let mut ring = match ring {
        Ok(ring) => {
            let _ = made.send(Ok(()));
            ring
        }
        Err(error) => {
            let _ = made.send(Err(error));
            return Ok(());
        }
    };
    // Another queue may have failed, or the kernel may not want rings.
    if go.recv().is_err() {
        return Ok(());
    }
    let mailbox = Arc::new(Mailbox::new(ring.waker()));
    ring.register()?;
    let held = (0..queue.places).map(|_| None).collect();
    let mut worker = Worker { serve, mailbox, held, scratch: Vec::new(), sent: Vec::new() };
    loop {
        let connected = ring.wait(|ring, slot| {
            worker.handle(slot);
            worker.post(ring);
        })?;
        if !connected {
            return Ok(());
        }
        worker.post(&mut ring);
    }
}

struct Worker<'s> {
    serve: &'s dyn Serve,
    mailbox: Arc<Mailbox>,
    /// Payloads of WRITEs that are not answered yet, by their places.
    held: Vec<Option<AlignedBuf>>,
    scratch: Vec<u8>,
    sent: Vec<Answer>,
}

impl Worker<'_> {
    /// Gives answers to the ring.
    fn post(&mut self, ring: &mut FuseRing) {
        std::mem::swap(&mut *self.mailbox.answers(), &mut self.sent);
        for Answer { mut slot, header, payload_bytes, short } in self.sent.drain(..) {
            if slot.payload.is_none() {
                slot.payload = self.held[slot.place].take();
                if let Some(payload) = &mut slot.payload {
                    payload[..SHORT].copy_from_slice(&short);
                }
            }
            ring.answer(slot, &header, payload_bytes);
        }
    }

    /// Serves a request. The reply owns its place with the payload, so the request is copied out of it first; but the
    /// data of a WRITE stays where it is, and the reply goes without.
    fn handle(&mut self, mut slot: FuseSlot) {
        let Ok((header, _)) = InHeader::read_from_prefix(&slot.header) else { return };
        let (place, bytes) = (slot.place, slot.payload_bytes);
        let mailbox = self.mailbox.clone();
        if header.opcode != opcode::WRITE {
            self.scratch.clear();
            self.scratch.extend_from_slice(&slot.args[..fixed_bytes(header.opcode)]);
            self.scratch.extend_from_slice(slot.payload.as_deref().map_or(&[], |payload| &payload[..bytes]));
            let request = Request::with_header(&header, &self.scratch);
            return super::serve(self.serve, request, || To::Ring(Box::new(RingReply { slot, mailbox })));
        }
        let payload = slot.payload.take();
        let args = WriteIn::read_from_prefix(&slot.args).map(|(args, _)| args).unwrap_or_default();
        let data = payload.as_deref().and_then(|payload| payload[..bytes].get(..args.size as usize));
        let request = data.map(|data| Request::of(&header, Op::Write { args, data }));
        let request = request.ok_or(Malformed::Arguments { opcode: opcode::WRITE, unique: header.unique });
        super::serve(self.serve, request, || To::Ring(Box::new(RingReply { slot, mailbox })));
        self.held[place] = payload;
    }
}

/// Pins this thread to its processor, and asks for precedence where that is allowed: callers wait for it.
fn settle(cpu: u16) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(usize::from(cpu));
    // A processor that is offline now has no callers either.
    let _ = rustix::thread::sched_setaffinity(None, &set);
    let _ = rustix::process::setpriority_process(None, -10);
}
