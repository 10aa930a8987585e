//! Requests of page-in to stores and sources. The VM does no I/O itself: a driver takes requests, performs them in any
//! way, and gives them back ([`Pager::complete_read`](crate::Pager::complete_read),
//! [`Pager::complete_fill`](crate::Pager::complete_fill)).

use std::collections::VecDeque;

use overspill_store::BLOCK;

use super::fetch::Fetch;
use crate::memory::extent::{BlocksOfStrips, MAX_READ_BLOCKS};
use crate::memory::records::Place;
use crate::page::CHUNK;
use crate::source::Source;
use crate::sync::{Arc, Mutex};

/// Strips of a cluster to be read from a store.
#[derive(Debug)]
pub struct ReadIo {
    pub(crate) fetch: Arc<Fetch>,
    pub(crate) from: BlocksOfStrips,
}

impl ReadIo {
    /// The most bytes of one request.
    pub const MAX: usize = MAX_READ_BLOCKS * BLOCK;

    /// The store and the first block.
    pub fn place(&self) -> Place {
        self.from.start
    }

    fn end(&self) -> u64 {
        self.place().block + u64::from(self.from.blocks)
    }

    /// Length in bytes: a whole number of blocks, at most [`ReadIo::MAX`].
    pub fn len(&self) -> usize {
        self.from.blocks as usize * BLOCK
    }

    /// Never: strips have at least one block.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// A chunk of a source to be read.
pub struct FillIo {
    pub(crate) fetch: Arc<Fetch>,
    pub(crate) source: std::sync::Arc<dyn Source>,
    pub(crate) chunk: u64,
}

impl std::fmt::Debug for FillIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FillIo(chunk {})", self.chunk)
    }
}

impl FillIo {
    /// Bytes to be read.
    pub const LEN: usize = CHUNK;

    /// The source to read from.
    pub fn source(&self) -> &std::sync::Arc<dyn Source> {
        &self.source
    }

    /// The first byte.
    pub fn offset(&self) -> u64 {
        self.chunk * CHUNK as u64
    }
}

/// Queued requests that are searched for a neighbour.
const LOOK: usize = 32;

/// Requests that no driver has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    reads: Mutex<VecDeque<ReadIo>>,
    fills: Mutex<VecDeque<FillIo>>,
}

impl Requests {
    pub(crate) fn push_read(&self, read: ReadIo) {
        self.reads.lock().push_back(read);
    }

    pub(crate) fn push_fill(&self, fill: FillIo) {
        self.fills.lock().push_back(fill);
    }

    pub(crate) fn next_fill(&self) -> Option<FillIo> {
        self.fills.lock().pop_front()
    }

    pub(crate) fn has_fills(&self) -> bool {
        !self.fills.lock().is_empty()
    }

    pub(crate) fn next_read(&self) -> Option<ReadIo> {
        self.reads.lock().pop_front()
    }

    pub(crate) fn newest_read(&self) -> Option<ReadIo> {
        self.reads.lock().pop_back()
    }

    pub(crate) fn has_reads(&self) -> bool {
        !self.reads.lock().is_empty()
    }

    /// The next read, and queued reads of the same store that continue at its end, together at most `most` blocks.
    pub(crate) fn next_reads(&self, most: u64, out: &mut Vec<ReadIo>) {
        let mut reads = self.reads.lock();
        let Some(first) = reads.pop_front() else { return };
        let (start, mut end) = (first.place(), first.end());
        out.push(first);
        // Neighbours in a file were mostly encoded one after the other, and requested in that order.
        while let Some(i) = reads.iter().take(LOOK).position(|read| {
            read.place().store == start.store
                && (end - 1..=end).contains(&read.place().block)
                && read.end() > end
                && read.end() - start.block <= most
        }) {
            if let Some(next) = reads.remove(i) {
                end = next.end();
                out.push(next);
            }
        }
    }
}
