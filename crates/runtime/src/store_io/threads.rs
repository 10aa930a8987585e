//! Store I/O by threads: each has one request at a store.

use std::ops::Range;

use overspill_store::BLOCK;
use overspill_sys::AlignedBuf;
use overspill_vm::{FillIo, Pager, ReadIo, WriteIo};

use crate::signals::Wakeups;
use crate::wake::AT_MOST;

/// Bytes that a reading thread reads at once.
const FETCH_BYTES: usize = 256 << 10;

pub(crate) fn run_store(pager: &Pager, wakeups: &Wakeups) {
    let mut woken = true;
    while !wakeups.stopped() {
        let write = pager.next_write();
        wakeups.late.look(woken, write.is_some(), &wakeups.store);
        woken = match write {
            Some(write) => {
                // This write takes a while.
                if pager.has_writes() {
                    wakeups.store.set();
                }
                perform_write(pager, write);
                true
            }
            None => wakeups.store.wait(AT_MOST),
        }
    }
}

pub(crate) fn run_fetch(pager: &Pager, wakeups: &Wakeups) {
    let mut reader = Reader::new(FETCH_BYTES);
    let mut woken = true;
    while !wakeups.stopped() {
        pager.next_reads(FETCH_BYTES, &mut reader.reads);
        wakeups.late.look(woken, !reader.reads.is_empty(), &wakeups.fetch);
        if reader.reads.is_empty() {
            woken = wakeups.fetch.wait(AT_MOST);
            continue;
        }
        woken = true;
        if pager.has_reads() {
            wakeups.fetch.set();
        }
        reader.perform(pager);
    }
}

/// Performs neighbouring reads as one.
pub(crate) struct Reader {
    pub(crate) reads: Vec<ReadIo>,
    buf: AlignedBuf,
}

impl Reader {
    /// A reader of at most `bytes` at once.
    pub(crate) fn new(bytes: usize) -> Reader {
        Reader { reads: Vec::new(), buf: AlignedBuf::new(bytes) }
    }

    pub(crate) fn perform(&mut self, pager: &Pager) {
        let Reader { reads, buf } = self;
        let Some(place) = reads.first().map(ReadIo::place) else { return };
        let Some(store) = pager.store(place.store) else { return };
        let all = blocks_of(reads);
        let result = store.read(place.block, &mut buf[..all.len()]);
        for read in reads.drain(..) {
            let bytes = match &result {
                Ok(()) => Ok(&buf[bytes_of(&read, all.start)]),
                Err(error) => Err(again(error)),
            };
            pager.complete_read(read, bytes);
        }
    }
}

/// A copy of the error for one more reader.
fn again(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(errno) => std::io::Error::from_raw_os_error(errno),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

pub(crate) fn perform_write(pager: &Pager, write: WriteIo) {
    let place = write.place();
    let result = match pager.store(place.store) {
        Some(store) => store.write(place.block, write.bytes()),
        None => Err(std::io::ErrorKind::NotFound.into()),
    };
    let (ticket, buf) = write.into_parts();
    pager.complete_write(ticket, buf, result);
}

/// Reads from sources: a source that hangs blocks its thread.
pub(crate) fn run_fill(pager: &Pager, wakeups: &Wakeups) {
    let mut buf = vec![0; FillIo::LEN];
    let mut woken = true;
    while !wakeups.stopped() {
        let fill = pager.next_fill();
        wakeups.late.look(woken, fill.is_some(), &wakeups.fill);
        let Some(fill) = fill else {
            woken = wakeups.fill.wait(AT_MOST);
            continue;
        };
        woken = true;
        if pager.has_fills() {
            wakeups.fill.set();
        }
        let result = fill.source().fill(fill.offset(), &mut buf);
        pager.complete_fill(fill, result.map(|()| &buf[..]));
    }
}

/// The byte range of neighbouring reads in their store.
pub(crate) fn blocks_of(reads: &[ReadIo]) -> Range<usize> {
    let at = |read: &ReadIo| usize::try_from(read.place().block).unwrap_or(0) * BLOCK;
    let start = reads.first().map_or(0, at);
    let end = reads.last().map_or(start, |read| at(read) + read.len());
    start..end
}

/// The range of one of them in the bytes that were read from byte `start` on.
pub(crate) fn bytes_of(read: &ReadIo, start: usize) -> Range<usize> {
    let at = usize::try_from(read.place().block).unwrap_or(0) * BLOCK - start;
    at..at + read.len()
}
