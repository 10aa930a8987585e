//! A payload in compressed memory: its whole pages are frames, the rest a slab block in steps of 64 bytes. Nothing is
//! moved to keep payloads contiguous, and a dead payload is free at once.

use overspill_slab::{Block, Own, Ref};
use overspill_sys::Frame;

use super::queue::NOT_QUEUED;
use super::records::{Chunk, Compressed, Memory, Payload};
use crate::budget::Budget;
use crate::error::VmError;
use crate::page::PAGE;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes of object {})", self.cost(), self.object)
    }
}

/// A payload's metadata, beside its bytes.
const PAYLOAD_COST: usize = size_of::<Payload>() + 32;

impl Payload {
    /// A copy of `payload`, charged without waiting: the evicted pages free more than it takes.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn new(
        payload: &[u8],
        pages: usize,
        chunk: &Ref<Chunk>,
        memory: &Arc<Memory>,
    ) -> Result<Own<Payload>, VmError> {
        let Memory { budget, arena, .. } = &**memory;
        let whole = payload.len() / PAGE;
        let mut frames = Vec::with_capacity(whole);
        for bytes in payload.chunks_exact(PAGE) {
            let mut frame = budget.take_frame_forced(arena)?;
            frame.bytes_mut().expect("just taken").copy_from_slice(bytes);
            frames.push(frame);
        }
        let rest = &payload[whole * PAGE..];
        let tail = if rest.is_empty() { None } else { Some(Block::new(rest)?) };
        let cost = if rest.is_empty() { 0 } else { Block::cost(rest.len()) };
        let charge = budget.charge_page_forced(cost + PAYLOAD_COST + whole * size_of::<Frame>());
        Ok(Own::new(Payload {
            frames,
            tail,
            charge,
            pages,
            chunk: Ref::downgrade(chunk),
            forks: None,
            object: chunk.object,
            memory: memory.clone(),
            slot: NOT_QUEUED,
            referenced: false,
            recompressed: false,
            cleaned: false,
            going_out: false,
        })?)
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        self.charge.budget()
    }

    /// Bytes of the budget it holds.
    pub(crate) fn cost(&self) -> usize {
        self.frames.len() * PAGE + self.charge.bytes()
    }

    /// Fills `out` from byte `at` of the payload.
    pub(crate) fn copy_to(&self, at: usize, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let (piece, from) = ((at + done) / PAGE, (at + done) % PAGE);
            let bytes = match self.frames.get(piece) {
                Some(frame) => &frame.bytes()[from..],
                None => &self.tail.as_deref().expect("the payload is as long as that")[from..],
            };
            let n = bytes.len().min(out.len() - done);
            out[done..done + n].copy_from_slice(&bytes[..n]);
            done += n;
        }
    }

    /// Takes it off the queues of compressed memory. To be called before it is dropped.
    pub(crate) fn leave(&mut self) {
        if self.slot != NOT_QUEUED {
            self.memory.compressed.queues.lock().remove(self.slot);
            self.slot = NOT_QUEUED;
            self.memory.compressed.count_out(self);
        }
    }
}

impl Compressed {
    pub(super) fn count_in(&self, held: &Payload) {
        self.bytes.fetch_add(held.cost(), Ordering::Relaxed);
        self.pages.fetch_add(held.pages, Ordering::Relaxed);
    }

    pub(super) fn count_out(&self, held: &Payload) {
        self.bytes.fetch_sub(held.cost(), Ordering::Relaxed);
        self.pages.fetch_sub(held.pages, Ordering::Relaxed);
    }
}
