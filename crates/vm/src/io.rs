//! Store I/O that the VM wants done. It never does any itself: a driver takes requests with [`crate::Vm::next_io`],
//! performs them however it likes, and gives them back with [`crate::Vm::complete_write`]
//! or [`crate::Vm::complete_read`].

use std::collections::VecDeque;

use overspill_store::BLOCK;
use overspill_sys::AlignedBuf;

use crate::batch::Batch;
use crate::extent::MAX_READ_BLOCKS;
use crate::fetch::Fetch;
use crate::sync::{Arc, Mutex};

/// A request to the store.
#[derive(Debug)]
pub enum Io {
    /// Write [`WriteIo::bytes`] at block [`WriteIo::start`].
    Write(WriteIo),
    /// Read [`ReadIo::len`] bytes from block [`ReadIo::start`].
    Read(ReadIo),
}

/// Clusters to be written in one piece.
#[derive(Debug)]
pub struct WriteIo(pub(crate) Box<Batch>);

impl WriteIo {
    /// The first block.
    pub fn start(&self) -> u32 {
        self.0.start()
    }

    /// The buffer that [`WriteIo::bytes`] are the beginning of, and how many they are: for a driver that must keep it while
    /// the kernel reads it. It lets go before it completes the write.
    pub fn share(&self) -> (std::sync::Arc<AlignedBuf>, usize) {
        (self.0.buffer(), self.bytes().len())
    }

    /// Page-aligned bytes, a whole number of blocks.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Strips of a cluster to be read.
#[derive(Debug)]
pub struct ReadIo(pub(crate) Arc<Fetch>);

impl ReadIo {
    /// The most bytes one asks for.
    pub const MAX: usize = MAX_READ_BLOCKS * BLOCK;

    /// The first block.
    pub fn start(&self) -> u32 {
        self.0.from.start
    }

    fn end(&self) -> u32 {
        self.start() + self.0.from.blocks
    }

    /// How many bytes: a whole number of blocks, at most [`ReadIo::MAX`].
    pub fn len(&self) -> usize {
        self.0.from.blocks as usize * BLOCK
    }

    /// Never: strips have at least one block.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// How far into the queue is looked for a neighbour.
const LOOK: usize = 32;

/// Requests that no driver has taken yet.
#[derive(Debug, Default)]
pub(crate) struct IoQueue {
    reads: Mutex<VecDeque<ReadIo>>,
    writes: Mutex<VecDeque<WriteIo>>,
}

impl IoQueue {
    pub(crate) fn push_read(&self, read: ReadIo) {
        self.reads.lock().push_back(read);
    }

    pub(crate) fn push_write(&self, write: WriteIo) {
        self.writes.lock().push_back(write);
    }

    pub(crate) fn next(&self) -> Option<Io> {
        self.next_read().map(Io::Read).or_else(|| self.next_write().map(Io::Write))
    }

    pub(crate) fn next_write(&self) -> Option<WriteIo> {
        self.writes.lock().pop_front()
    }

    pub(crate) fn newest_read(&self) -> Option<ReadIo> {
        self.reads.lock().pop_back()
    }

    pub(crate) fn has_reads(&self) -> bool {
        !self.reads.lock().is_empty()
    }

    pub(crate) fn has_writes(&self) -> bool {
        !self.writes.lock().is_empty()
    }

    pub(crate) fn next_read(&self) -> Option<ReadIo> {
        self.reads.lock().pop_front()
    }

    /// The next read, and queued ones that go on where it ends, together at most `most` blocks.
    pub(crate) fn next_reads(&self, most: u32, out: &mut Vec<ReadIo>) {
        let mut reads = self.reads.lock();
        let Some(first) = reads.pop_front() else { return };
        let (start, mut end) = (first.start(), first.end());
        out.push(first);
        // Neighbours in a file were mostly packed one after the other, and asked for in that order.
        while let Some(i) = reads.iter().take(LOOK).position(|read| {
            (end - 1..=end).contains(&read.start()) && read.end() > end && read.end() - start <= most
        }) {
            if let Some(next) = reads.remove(i) {
                end = next.end();
                out.push(next);
            }
        }
    }
}
