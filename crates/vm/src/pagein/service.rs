//! The service: readers request pages here that are not resident.

use super::fetch::{Begun, Fetch, Fetched, Fetches, PageInError, Wanted};
use super::requests::{FillIo, ReadIo, Requests};
use super::slots::FetchSlot;
use crate::error::{IoFailure, VmError};
use crate::memory::records::Memory;
use crate::sync::Arc;

/// Pauses, in nanoseconds, before a read that failed or brought damage is tried again. Trouble may pass; the result of
/// the try after the last pause is final.
const PAUSES: [u64; 3] = [10_000_000, 100_000_000, 1_000_000_000];

/// Pages on their way, or already read.
pub(crate) enum Coming {
    Fetch(Arc<Fetch>),
    Done(Fetched),
}

impl Coming {
    async fn wait(self) -> Fetched {
        match self {
            Coming::Fetch(fetch) => fetch.wait().await,
            Coming::Done(result) => result,
        }
    }
}

/// Page-in for a VM's memory.
#[derive(Debug)]
pub(crate) struct PageIn {
    pub(crate) memory: Arc<Memory>,
    pub(crate) requests: Requests,
    fetches: Fetches,
}

impl PageIn {
    pub(crate) fn new(memory: &Arc<Memory>, slots: usize) -> PageIn {
        PageIn { memory: memory.clone(), requests: Requests::default(), fetches: Fetches::new(slots) }
    }

    /// A slot, if one is free.
    pub(crate) fn free_slot(&self) -> Option<FetchSlot> {
        self.fetches.slots.take()
    }

    /// Begins to read pages, or joins a fetch that brings them; never waits.
    pub(crate) fn begin(&self, wanted: &Wanted, slot: Option<FetchSlot>) -> Begun {
        let begun = self.fetches.begin(wanted, slot);
        match &begun {
            Begun::New(fetch, Some(from)) => {
                self.requests.push_read(ReadIo { fetch: fetch.clone(), from: *from });
                self.memory.driver.get().reads_ready();
            }
            Begun::New(fetch, None) => {
                let Wanted::Chunk(source, chunk) = &fetch.wanted else {
                    unreachable!("strips lie in blocks")
                };
                let fill = FillIo { fetch: fetch.clone(), source: source.clone(), chunk: *chunk };
                self.requests.push_fill(fill);
                self.memory.driver.get().fills_ready();
            }
            Begun::Done(Ok(decoded)) => self.memory.counters.copied.add_bytes(decoded.copied()),
            _ => {}
        }
        begun
    }

    /// As [`PageIn::begin`], but waits for a slot if need be; calls `before_waiting` before that.
    pub(crate) async fn fetch(
        &self,
        wanted: &Wanted,
        mut before_waiting: impl FnMut(),
    ) -> Result<Coming, VmError> {
        let mut slot = None;
        loop {
            match self.begin(wanted, slot.take()) {
                Begun::Joined(fetch) | Begun::New(fetch, _) => return Ok(Coming::Fetch(fetch)),
                Begun::Done(result) => return Ok(Coming::Done(result)),
                Begun::NoSlot => {
                    before_waiting();
                    slot = Some(self.fetches.slots.wait().await?);
                }
            }
        }
    }

    /// Waits for pages, which may be `coming` already. Pages that cannot be read or are damaged are requested again
    /// after a while: only trouble that lasts is an error. `before_waiting` is called before each wait but the first.
    pub(crate) async fn page_in(
        &self,
        wanted: &Wanted,
        mut coming: Option<Coming>,
        mut before_waiting: impl FnMut(),
    ) -> Fetched {
        let mut pauses = PAUSES.into_iter();
        loop {
            let next = match coming.take() {
                Some(coming) => coming,
                None => self.fetch(wanted, &mut before_waiting).await?,
            };
            let error = match next.wait().await {
                Err(error) if error.may_pass() => error,
                outcome => return outcome,
            };
            let Some(pause) = pauses.next() else {
                if let PageInError::Damaged(strip) = error {
                    tracing::error!(?wanted, strip, "the store keeps returning damaged data: lost");
                }
                return Err(error);
            };
            before_waiting();
            self.memory.sleep(pause).await?;
        }
    }

    /// A read of a store has ended.
    pub(crate) fn complete_read(&self, read: &ReadIo, result: std::io::Result<&[u8]>) {
        self.memory.counters.store_reads.add(1);
        let decoded = match result {
            Ok(blocks) => read.fetch.decode(blocks.get(read.from.skip..).unwrap_or(&[])),
            Err(error) => {
                tracing::warn!(%error, place = ?read.place(), "store read failed");
                Err(VmError::StoreRead(IoFailure::of(&error)).into())
            }
        };
        if matches!(decoded, Err(PageInError::Damaged(_))) {
            tracing::warn!(place = ?read.place(), "store returned damaged data");
        }
        self.end(&read.fetch, decoded);
    }

    /// A read of a source has ended.
    pub(crate) fn complete_fill(&self, fill: &FillIo, result: std::io::Result<&[u8]>) {
        let decoded = match result {
            Ok(bytes) => fill.fetch.decode(bytes),
            Err(error) => {
                tracing::warn!(%error, offset = fill.offset(), "source read failed");
                Err(VmError::SourceRead(IoFailure::of(&error)).into())
            }
        };
        self.end(&fill.fetch, decoded);
    }

    fn end(&self, fetch: &Arc<Fetch>, decoded: Fetched) {
        match &decoded {
            Ok(decoded) => {
                self.memory.counters.page_ins.add(decoded.count());
                self.memory.counters.copied.add_bytes(decoded.copied());
            }
            Err(_) => self.memory.counters.errors.add(1),
        }
        self.fetches.end(fetch, decoded);
    }
}
