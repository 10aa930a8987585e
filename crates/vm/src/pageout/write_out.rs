//! Writing out: clusters of compressed memory fill batches, batches go to stores.

use overspill_codec::MAX_PAYLOAD;
use overspill_store::AllocError;
use overspill_sys::AlignedBuf;

use super::batch::{Batch, Item};
use super::recompress;
use super::requests::{WriteIo, WriteTicket};
use super::state::{Outcome, Pageout, SCAN};
use crate::error::VmError;
use crate::memory::backing::RunGuard;
use crate::memory::compressed::{Leaving, Next};
use crate::memory::records::StoreId;
use crate::sync::atomic::Ordering;

/// The reason why no store takes a batch.
enum NoPlace {
    /// A store must prepare space first.
    NotReady,
    /// A store rests after a failure; the others are full.
    Resting,
    /// All are full, or broken.
    Full,
}

impl Pageout {
    /// Writes the oldest clusters of compressed memory to a store.
    pub(super) fn write_out(&self) -> Outcome {
        let compressed = &self.memory.compressed;
        if !self.has_store() || compressed.bytes() == 0 {
            return Outcome::Nothing;
        }
        let Some(mut batch) = self.take_idle() else { return Outcome::NoBatch };
        let eager = self.memory.is_eager();
        for _ in 0..SCAN * 4 {
            if batch.room().len() < MAX_PAYLOAD {
                break;
            }
            let only = self.only(&batch);
            match compressed.next_out(batch.room(), eager, only) {
                Next::None => break,
                Next::Stays => {}
                Next::IsStale(extent, chunk) => {
                    if let Some(chunk) = chunk.upgrade() {
                        recompress::replace(&self.pagein, &mut self.packer.lock().encoder, &extent, &chunk);
                    }
                }
                Next::Leaves(Leaving { extent, chunk, object, cost }) => {
                    self.memory.counters.copied.add_bytes(extent.len());
                    batch.push_here(object, Item::Held(extent, chunk), cost);
                }
            }
        }
        let leaving = batch.frees;
        self.send(batch, leaving)
    }

    /// Gives a batch its run in a store and queues the write. Clusters that find no place stay in memory. `leaving` of
    /// the bytes it frees are compressed memory's.
    pub(super) fn send(&self, mut batch: Box<Batch>, leaving: usize) -> Outcome {
        if batch.is_empty() {
            self.idle.lock().push(batch);
            return Outcome::Nothing;
        }
        let run = match self.place(&batch, None) {
            Ok(run) => run,
            Err(no_place) => {
                self.pass_over(batch);
                return match no_place {
                    NoPlace::NotReady => Outcome::NotReady,
                    NoPlace::Resting => Outcome::NoBatch,
                    NoPlace::Full => Outcome::Nothing,
                };
            }
        };
        batch.take_run(run, &self.memory);
        if batch.is_empty() {
            self.put_back(batch);
            return Outcome::Nothing;
        }
        batch.leaving = leaving.min(batch.frees);
        self.submit(batch);
        Outcome::Done
    }

    /// A run for a batch in the first store after `after` that has room.
    fn place(&self, batch: &Batch, after: Option<StoreId>) -> Result<RunGuard, NoPlace> {
        let mut no_place = NoPlace::Full;
        let (object, blocks, now) = (batch.object().unwrap_or(0), batch.blocks(), self.memory.now());
        for backing in self.memory.backings.iter().filter(|backing| after.is_none_or(|id| backing.id > id)) {
            if backing.health.rests(now) {
                if !backing.health.is_broken() {
                    no_place = NoPlace::Resting;
                }
                continue;
            }
            let run = match backing.allocate(object, blocks, blocks) {
                // Shorter ones may be left, for the first clusters at least.
                Err(AllocError::Full) => backing.allocate(object, batch.least_blocks(), blocks),
                other => other,
            };
            match run {
                Ok(run) => return Ok(run),
                Err(AllocError::NotReady) => {
                    backing.is_wanted.store(true, Ordering::Release);
                    return Err(NoPlace::NotReady);
                }
                Err(AllocError::Full) => {}
            }
        }
        Err(no_place)
    }

    /// Hands a batch that has a run to the driver.
    fn submit(&self, batch: Box<Batch>) {
        self.coming.fetch_add(batch.frees, Ordering::AcqRel);
        self.leaving.fetch_add(batch.leaving, Ordering::AcqRel);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.pace.write_begins(self.memory.driver.get().nanoseconds());
        let write = WriteIo::new(batch).expect("it has its place and its buffer");
        self.writes.lock().push_back(write);
        self.memory.driver.get().writes_ready();
    }

    /// The batch finds no place. Where stores keep objects apart, others may find one: they come first from now on.
    fn pass_over(&self, mut batch: Box<Batch>) {
        if self.only(&batch).is_some() {
            batch.pass_over(&self.memory);
            self.idle.lock().push(batch);
        } else {
            self.put_back(batch);
        }
    }

    /// The batch cannot be written: its pages are dirty again, its clusters stay in memory.
    fn put_back(&self, mut batch: Box<Batch>) {
        batch.put_back(&self.memory);
        self.idle.lock().push(batch);
    }

    /// The next write that no driver has taken.
    pub(crate) fn next_write(&self) -> Option<WriteIo> {
        self.writes.lock().pop_front()
    }

    pub(crate) fn has_writes(&self) -> bool {
        !self.writes.lock().is_empty()
    }

    /// Ends a write: the batch's clusters become stored, go to the next store, or stay where they were.
    pub(crate) fn complete(&self, ticket: WriteTicket, buf: AlignedBuf, result: std::io::Result<()>) {
        let mut batch = ticket.batch;
        batch.give_buf(buf);
        let (frees, leaving) = (batch.frees, batch.leaving);
        self.pace.write_ends(self.memory.driver.get().nanoseconds(), batch.bytes());
        match result {
            Ok(()) => {
                if let Some(backing) = batch.backing() {
                    backing.health.wrote();
                }
                let pages = batch.written(&self.memory.budget);
                self.memory.counters.page_outs.add(pages);
                self.memory.counters.store_writes.add(1);
                // Memory has just come free. If there is none all the same, the next batch is shorter.
                let _ = batch.refill();
                self.idle.lock().push(batch);
            }
            Err(error) => self.fail_over(batch, &error),
        }
        self.coming.fetch_sub(frees, Ordering::AcqRel);
        self.leaving.fetch_sub(leaving, Ordering::AcqRel);
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.memory.budget.grant();
    }

    /// A store has failed a write: the next store gets the batch unchanged (R17), else its pages stay in memory. The
    /// failed store is left alone for a while.
    fn fail_over(&self, mut batch: Box<Batch>, error: &std::io::Error) {
        self.memory.counters.errors.add(1);
        let failed = batch.backing();
        let next = failed.as_ref().and_then(|backing| {
            let failure = backing.health.failed(self.memory.now());
            self.memory.pageout_at(failure.again_at);
            self.place(&batch, Some(backing.id)).ok()
        });
        let place = batch.place();
        batch.leave_run();
        match next {
            Some(run) => {
                tracing::warn!(%error, ?place, to = ?run.place(), "store write failed; the next store takes it");
                let leaving = batch.leaving;
                batch.take_run(run, &self.memory);
                if batch.is_empty() {
                    self.put_back(batch);
                } else {
                    batch.leaving = leaving.min(batch.frees);
                    self.submit(batch);
                }
            }
            None => {
                tracing::warn!(%error, ?place, "store write failed; its pages stay in memory");
                self.put_back(batch);
            }
        }
        if self.memory.backings.iter().all(|backing| backing.health.is_broken()) {
            self.memory.budget.refuse_all(VmError::NoMemory);
        }
    }
}
