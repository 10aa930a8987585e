//! The store's I/O by io_uring: each thread has a ring, and as many requests at the store as its ring has buffers. There is
//! more than one because who reads unpacks.
//!
//! What ends otherwise than whole (the end of the file, an error, a file system that takes no direct I/O after all) is
//! done again by threads of their own, the plain way, which say what came of it.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::Sender;

use overspill_sys::{Ring, RingEvent, RingSize};
use overspill_vm::{ReadIo, Vm, WriteIo};

use super::signals::Wakeups;
use super::threads::{Reader, extent_of, perform_write, place_of};
use super::wake::{self, AT_MOST, Worker};

/// Reads at once of a ring, and what one of them brings: neighbours together.
const READS: usize = 4;
const READ_BYTES: usize = 128 << 10;
/// Writes at once of a ring. More, and who waits for memory waits longer for the first of them.
const WRITES: usize = 1;

/// Does the reads that a ring could not.
pub(super) fn read_again(vm: &Vm, wakeups: &Wakeups) {
    let mut reader = Reader::new(READ_BYTES);
    while !wakeups.stopped() {
        if let Some(mut reads) = wakeups.reads_again.next(&wakeups.late) {
            reader.reads.append(&mut reads);
            reader.perform(vm);
        }
    }
}

/// Does the writes that a ring could not.
pub(super) fn write_again(vm: &Vm, wakeups: &Wakeups) {
    while !wakeups.stopped() {
        if let Some(write) = wakeups.writes_again.next(&wakeups.late) {
            perform_write(vm, write);
        }
    }
}

/// A ring for this thread.
pub(super) fn new(file: BorrowedFd<'_>) -> std::io::Result<Ring> {
    Ring::new(file, RingSize { reads: READS, read_bytes: READ_BYTES, writes: WRITES })
}

/// Runs the store's I/O on a ring; says first whether there is one.
pub(super) fn run(vm: &Vm, wakeups: &Wakeups, made: &Sender<std::io::Result<()>>) {
    let store = vm.store().and_then(|store| store.direct(0, 0));
    let Some(ring) = store.map(|(file, _)| new(file)) else { return };
    let ring = match ring {
        Ok(ring) => ring,
        Err(error) => {
            let _ = made.send(Err(error));
            return;
        }
    };
    let Some(bell) = wakeups.bells.add(ring.waker()) else { return };
    let _ = made.send(Ok(()));
    let mut worker = RingWorker { vm, wakeups, ring, under_way: UnderWay::default() };
    wake::serve(&wakeups.bells, bell, &mut worker, || wakeups.stopped());
}

/// A thread with a ring.
struct RingWorker<'a> {
    vm: &'a Vm,
    wakeups: &'a Wakeups,
    ring: Ring,
    under_way: UnderWay,
}

impl Worker for RingWorker<'_> {
    fn begin(&mut self) {
        self.under_way.begin(self.vm, &mut self.ring, self.wakeups);
    }

    fn ready(&self) -> u8 {
        let reads = if self.vm.has_reads() { wake::READS } else { 0 };
        let writes = if self.vm.has_writes() { wake::WRITES } else { 0 };
        reads | writes
    }

    fn room(&self) -> u8 {
        let reads = if self.ring.free_read().is_some() { wake::READS } else { 0 };
        let writes = if self.ring.free_write().is_some() { wake::WRITES } else { 0 };
        reads | writes
    }

    fn wait(&mut self, is_up: &dyn Fn()) {
        let RingWorker { vm, wakeups, ring, under_way } = self;
        let waited = ring.wait(AT_MOST, |ring, event| {
            is_up();
            under_way.end(vm, ring, event, wakeups);
        });
        if let Err(error) = waited {
            // Nothing is lost: what is under way still ends, and is seen with the next wait.
            tracing::warn!(%error, "io_uring does not wait");
            std::thread::sleep(AT_MOST / 10);
        }
    }
}

/// What is at the store, by slot of the ring.
#[derive(Default)]
struct UnderWay {
    reads: [Vec<ReadIo>; READS],
    writes: [Option<WriteIo>; WRITES],
}

impl UnderWay {
    /// Hands requests over, reads first, as long as there are slots.
    fn begin(&mut self, vm: &Vm, ring: &mut Ring, wakeups: &Wakeups) {
        let Some(store) = vm.store() else { return };
        while let Some(slot) = ring.free_read() {
            let reads = &mut self.reads[slot];
            vm.next_reads(READ_BYTES, reads);
            let Some(first) = reads.first() else { break };
            let len = extent_of(reads).len();
            match store.direct(first.start(), len) {
                Some((_, offset)) => ring.read(slot, offset, len),
                None => wakeups.reads_again.push(std::mem::take(reads)),
            }
        }
        while let Some(slot) = ring.free_write() {
            let Some(write) = vm.next_write() else { break };
            let (buf, len) = write.share();
            match store.direct(write.start(), len) {
                Some((_, offset)) => {
                    ring.write(slot, offset, buf, len);
                    self.writes[slot] = Some(write);
                }
                None => {
                    drop(buf);
                    wakeups.writes_again.push(write);
                }
            }
        }
    }

    fn end(&mut self, vm: &Vm, ring: &mut Ring, event: RingEvent, wakeups: &Wakeups) {
        match event {
            RingEvent::Read(slot, result) => {
                let reads = &mut self.reads[slot];
                let all = extent_of(reads);
                if result.ok() != Some(all.len()) {
                    return wakeups.reads_again.push(std::mem::take(reads));
                }
                for read in reads.drain(..) {
                    let bytes = place_of(&read, all.start);
                    vm.complete_read(read, Ok(&ring.read_buffer(slot)[bytes]));
                }
            }
            RingEvent::Write(slot, result) => {
                let Some(write) = self.writes[slot].take() else { return };
                if result.ok() != Some(write.bytes().len()) {
                    return wakeups.writes_again.push(write);
                }
                vm.complete_write(write, Ok(()));
            }
        }
    }
}
