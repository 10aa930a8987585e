//! The store's I/O by threads: each has one request at the store.

use std::ops::Range;

use overspill_store::BLOCK;
use overspill_sys::AlignedBuf;
use overspill_vm::{ReadIo, Vm, WriteIo};

use super::signals::Wakeups;
use super::wake::AT_MOST;

/// What one of the reading threads reads at once.
const FETCH_BYTES: usize = 256 << 10;

pub(super) fn run_store(vm: &Vm, wakeups: &Wakeups) {
    let mut woken = true;
    while !wakeups.stopped() {
        let write = vm.next_write();
        wakeups.late.look(woken, write.is_some(), &wakeups.store);
        woken = match write {
            Some(write) => {
                // This one takes a while.
                if vm.has_writes() {
                    wakeups.store.set();
                }
                perform_write(vm, write);
                true
            }
            None => wakeups.store.wait(AT_MOST),
        }
    }
}

pub(super) fn run_fetch(vm: &Vm, wakeups: &Wakeups) {
    let mut reader = Reader::new(FETCH_BYTES);
    let mut woken = true;
    while !wakeups.stopped() {
        vm.next_reads(FETCH_BYTES, &mut reader.reads);
        wakeups.late.look(woken, !reader.reads.is_empty(), &wakeups.fetch);
        if reader.reads.is_empty() {
            woken = wakeups.fetch.wait(AT_MOST);
            continue;
        }
        woken = true;
        if vm.has_reads() {
            wakeups.fetch.set();
        }
        reader.perform(vm);
    }
}

/// Performs neighbouring reads as one.
pub(super) struct Reader {
    pub(super) reads: Vec<ReadIo>,
    buf: AlignedBuf,
}

impl Reader {
    /// For at most `bytes` at once.
    pub(super) fn new(bytes: usize) -> Reader {
        Reader { reads: Vec::new(), buf: AlignedBuf::new(bytes) }
    }

    pub(super) fn perform(&mut self, vm: &Vm) {
        let Reader { reads, buf } = self;
        let (Some(store), Some(start)) = (vm.store(), reads.first().map(ReadIo::start)) else { return };
        let all = extent_of(reads);
        let result = store.read(start, &mut buf[..all.len()]);
        for read in reads.drain(..) {
            let bytes = match &result {
                Ok(()) => Ok(&buf[place_of(&read, all.start)]),
                Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
            };
            vm.complete_read(read, bytes);
        }
    }
}

pub(super) fn perform_write(vm: &Vm, write: WriteIo) {
    let Some(store) = vm.store() else { return };
    let result = store.write(write.start(), write.bytes());
    vm.complete_write(write, result);
}

/// The bytes of the store, counted from its first, that neighbouring reads are of.
pub(super) fn extent_of(reads: &[ReadIo]) -> Range<usize> {
    let start = reads.first().map_or(0, |read| read.start() as usize * BLOCK);
    let end = reads.last().map_or(start, |read| read.start() as usize * BLOCK + read.len());
    start..end
}

/// Where the bytes of one of them lie in what was read from byte `start` on.
pub(super) fn place_of(read: &ReadIo, start: usize) -> Range<usize> {
    let at = read.start() as usize * BLOCK - start;
    at..at + read.len()
}
