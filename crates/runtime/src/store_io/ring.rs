//! Store I/O by io_uring: a client of each reactor thread. There is more than one such thread because the thread that
//! completes a read also decodes it.
//!
//! A request that does not end whole (the end of the file, an error, a file system that takes no direct I/O after all, a store
//! without a file) is done again by threads of their own, which use `Backend::read` and `Backend::write`.

use std::sync::mpsc::Sender;

use overspill_store::Store;
use overspill_sys::{Ring, RingBuf, RingDone, RingFile, RingOp, RingSize};
use overspill_vm::{Pager, ReadIo, StoreId, WriteTicket};

use super::threads::{Reader, blocks_of, bytes_of, perform_write};
use crate::reactor::{Client, Reactor, Requests};
use crate::signals::Wakeups;
use crate::wake::{self, READS, WRITES};

/// Concurrent reads of a ring, and bytes of one of them: neighbours together.
const READS_AT_ONCE: usize = 4;
const READ_BYTES: usize = 128 << 10;
/// Concurrent writes of a ring. With more, writers wait longer for the first of them.
const WRITES_AT_ONCE: usize = 1;

/// Does the reads that a ring could not do.
pub(crate) fn read_again(pager: &Pager, wakeups: &Wakeups) {
    let mut reader = Reader::new(READ_BYTES);
    while !wakeups.stopped() {
        if let Some(mut reads) = wakeups.reads_again.next(&wakeups.late) {
            reader.reads.append(&mut reads);
            reader.perform(pager);
        }
    }
}

/// Does the writes that a ring could not do.
pub(crate) fn write_again(pager: &Pager, wakeups: &Wakeups) {
    while !wakeups.stopped() {
        if let Some(write) = wakeups.writes_again.next(&wakeups.late) {
            perform_write(pager, write);
        }
    }
}

/// A ring for this thread.
pub(crate) fn new(files: usize) -> std::io::Result<Ring> {
    let requests = READS_AT_ONCE + WRITES_AT_ONCE;
    Ring::new(RingSize { requests, files, buffers: READS_AT_ONCE, buffer_bytes: READ_BYTES })
}

/// Runs store I/O on a ring; reports first if the ring could be made.
pub(crate) fn run(pager: &Pager, wakeups: &Wakeups, made: &Sender<std::io::Result<()>>) {
    let client = new(pager.stores().count()).and_then(|mut ring| {
        let client = StoreClient::new(pager, wakeups, &mut ring)?;
        Ok((ring, client))
    });
    let (ring, client) = match client {
        Ok(both) => both,
        Err(error) => {
            let _ = made.send(Err(error));
            return;
        }
    };
    let Some(bell) = wakeups.bells.add(ring.waker()) else { return };
    let _ = made.send(Ok(()));
    let mut reactor = Reactor::new(ring);
    reactor.add(Box::new(client));
    wake::serve(&wakeups.bells, bell, &mut reactor, || wakeups.stopped());
}

/// The requests of one ring to stores.
struct StoreClient<'a> {
    pager: &'a Pager,
    wakeups: &'a Wakeups,
    /// The file of each store, by number, if it has one.
    files: Vec<Option<RingFile>>,
    /// Neighbouring reads that are one request, by the request's number.
    reads: [Vec<ReadIo>; READS_AT_ONCE],
    write: Option<WriteTicket>,
}

/// The write's token; a read's token is its index.
const WRITE: u32 = u32::MAX;

impl<'a> StoreClient<'a> {
    fn new(pager: &'a Pager, wakeups: &'a Wakeups, ring: &mut Ring) -> std::io::Result<StoreClient<'a>> {
        let mut file = |store: &dyn Store| store.direct(0, 0).map(|(fd, _)| ring.add_file(fd)).transpose();
        let files: std::io::Result<Vec<_>> = pager.stores().map(|(_, store)| file(&**store)).collect();
        Ok(StoreClient { pager, wakeups, files: files?, reads: Default::default(), write: None })
    }

    /// The file, and the offset in it, of `len` bytes of a store.
    fn file(&self, store: StoreId, block: u64, len: usize) -> Option<(RingFile, u64)> {
        let file = (*self.files.get(usize::from(store.0))?)?;
        let (_, offset) = self.pager.store(store)?.direct(block, len)?;
        Some((file, offset))
    }

    fn free_read(&self) -> Option<usize> {
        self.reads.iter().position(Vec::is_empty)
    }

    fn begin_reads(&mut self, ring: &mut Requests<'_>) {
        while let Some(place) = self.free_read().filter(|_| ring.ring().has_buf()) {
            self.pager.next_reads(READ_BYTES, &mut self.reads[place]);
            let Some(first) = self.reads[place].first().map(ReadIo::place) else { break };
            let len = blocks_of(&self.reads[place]).len();
            let Some((file, offset)) = self.file(first.store, first.block, len) else {
                self.wakeups.reads_again.push(std::mem::take(&mut self.reads[place]));
                continue;
            };
            let buf = ring.ring().take_buf().expect("looked at above");
            let token = u32::try_from(place).unwrap_or(0);
            if let Err(RingOp::Read { buf, .. }) = ring.begin(token, RingOp::Read { file, offset, buf, len })
            {
                ring.ring().give_buf(buf);
                self.wakeups.reads_again.push(std::mem::take(&mut self.reads[place]));
            }
        }
    }

    fn begin_write(&mut self, ring: &mut Requests<'_>) {
        while self.write.is_none() {
            let Some(write) = self.pager.next_write() else { break };
            let (place, len) = (write.place(), write.bytes().len());
            let Some((file, offset)) = self.file(place.store, place.block, len) else {
                self.wakeups.writes_again.push(write);
                continue;
            };
            let (ticket, buf) = write.into_parts();
            match ring.begin(WRITE, RingOp::Write { file, offset, buf, len }) {
                Ok(()) => self.write = Some(ticket),
                Err(RingOp::Write { buf, .. }) => self.wakeups.writes_again.push(ticket.with(buf)),
                Err(_) => unreachable!("the request comes back as it was"),
            }
        }
    }

    fn end_reads(&mut self, place: usize, buf: &RingBuf, result: std::io::Result<usize>) {
        let reads = &mut self.reads[place];
        let all = blocks_of(reads);
        if result.ok() != Some(all.len()) {
            return self.wakeups.reads_again.push(std::mem::take(reads));
        }
        for read in reads.drain(..) {
            let bytes = bytes_of(&read, all.start);
            self.pager.complete_read(read, Ok(&buf[bytes]));
        }
    }
}

impl Client for StoreClient<'_> {
    /// Reads first: readers wait for them, and pageout's writes are many.
    fn begin(&mut self, ring: &mut Requests<'_>) {
        self.begin_reads(ring);
        self.begin_write(ring);
    }

    fn ready(&self) -> u8 {
        let reads = if self.pager.has_reads() { READS } else { 0 };
        let writes = if self.pager.has_writes() { WRITES } else { 0 };
        reads | writes
    }

    fn room(&self, ring: &Ring) -> u8 {
        let reads = if self.free_read().is_some() && ring.has_buf() { READS } else { 0 };
        let writes = if self.write.is_none() { WRITES } else { 0 };
        reads | writes
    }

    fn done(&mut self, ring: &mut Requests<'_>, done: RingDone) {
        match done.op {
            RingOp::Read { buf, .. } => {
                self.end_reads(usize::try_from(done.token).unwrap_or(0), &buf, done.result);
                ring.ring().give_buf(buf);
            }
            RingOp::Write { buf, .. } => {
                let Some(ticket) = self.write.take() else { return };
                if done.result.ok() == Some(ticket.len()) {
                    self.pager.complete_write(ticket, buf, Ok(()));
                } else {
                    self.wakeups.writes_again.push(ticket.with(buf));
                }
            }
            _ => {}
        }
    }
}
