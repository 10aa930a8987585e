//! Requests of pageout to stores. A driver takes one, owns its buffer while the store has it, and gives both back.

use overspill_sys::AlignedBuf;

use super::batch::Batch;
use crate::memory::records::Place;

/// Clusters to be written in one piece, and the buffer they lie in.
#[derive(Debug)]
pub struct WriteIo {
    ticket: WriteTicket,
    buf: AlignedBuf,
}

impl WriteIo {
    /// The request for a batch that has a run.
    pub(crate) fn new(mut batch: Box<Batch>) -> Option<WriteIo> {
        let place = batch.place()?;
        let len = batch.bytes();
        let buf = batch.take_buf()?;
        Some(WriteIo { ticket: WriteTicket { batch, place, len }, buf })
    }

    /// The store and the first block.
    pub fn place(&self) -> Place {
        self.ticket.place
    }

    /// Page-aligned bytes, a whole number of blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[..self.ticket.len]
    }

    /// The buffer, for as long as the store needs it, and the ticket that goes back with it. The first
    /// [`WriteTicket::len`] bytes are to be written.
    pub fn into_parts(self) -> (WriteTicket, AlignedBuf) {
        (self.ticket, self.buf)
    }
}

/// A write under way. Its buffer is with the store.
#[derive(Debug)]
pub struct WriteTicket {
    pub(crate) batch: Box<Batch>,
    place: Place,
    len: usize,
}

impl WriteTicket {
    /// The store and the first block.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Bytes to be written: a whole number of blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a batch that is written has a cluster.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The request restored: for a driver that retries it in another way.
    pub fn with(self, buf: AlignedBuf) -> WriteIo {
        WriteIo { ticket: self, buf }
    }
}
