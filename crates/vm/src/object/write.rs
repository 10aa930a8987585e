//! Writing, and all other changes of pages.

use std::future::poll_fn;
use std::task::Poll;

use super::read::Ahead;
use super::tree::Found;
use super::{Object, Piece};
use crate::account::Allowance;
use crate::budget::Reservation;
use crate::error::VmError;
use crate::memory::chunk::{ChunkGuard, ChunkHandle as _};
use crate::memory::records::{Chunk, ChunkState};
use crate::memory::state::{Origin, Unwritten, Where};
use crate::page::{CHUNK, CHUNK_PAGES, PAGE, PageSet, members, pages};
use crate::pagein::fetch::{Decoded, Wanted};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

const ALL: PageSet = PageSet::MAX;

/// Progress of a write of one piece, so that it resumes where it stopped.
struct Progress {
    /// Bytes of the piece written.
    done: usize,
    allowance: Allowance,
}

/// The reason why a change of pages stopped.
pub(super) enum Stop {
    /// These pages must be read first.
    Read(Wanted),
    Failed(VmError),
}

impl Object {
    /// Writes `data` at `offset`. Waits for memory when there is too little, and for the store when a page that is only
    /// there is partly overwritten.
    ///
    /// # Errors
    /// The number of bytes written before it failed (a prefix of `data`), and the cause: [`VmError::NoSpace`] when the
    /// account is full, [`VmError::NoMemory`] when memory and store are, or an error of a read.
    pub async fn write(
        &self,
        offset: u64,
        data: &[u8],
        allowance: Allowance,
    ) -> Result<(), (usize, VmError)> {
        let mut done = 0;
        while done < data.len() {
            // No more at once than one reservation can hold: matters to the smallest budgets only.
            let most = (self.memory().budget.max_reservation() / PAGE).max(2) - 1;
            let piece = Piece::first(offset + done as u64, (data.len() - done).min(most * PAGE));
            tracing::trace!(target: "access", object = self.number, chunk = piece.chunk, "write");
            let part = &data[done..done + piece.len];
            let mut progress = Progress { done: 0, allowance };
            let result = self.write_piece(piece, part, &mut progress).await;
            done += progress.done;
            result.map_err(|error| (done, error))?;
        }
        self.memory().counters.serve(done);
        self.memory().wrote();
        Ok(())
    }

    async fn write_piece(&self, piece: Piece, data: &[u8], progress: &mut Progress) -> Result<(), VmError> {
        let need = piece.pages().count_ones() as usize * PAGE;
        let mut reservation = self.memory().budget.reserve(need).await?;
        let mut decoded: Option<Arc<Decoded>> = None;
        loop {
            // A statement of its own: the decoded pages and their slot are freed before the write waits for the next
            // ones.
            let wrote = self.copy_in(piece, data, progress, decoded.take().as_deref(), &mut reservation);
            match wrote {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Read(wanted)) => {
                    decoded = self.page_in(piece, &wanted, 0, &mut Ahead::new()).await?;
                }
            }
        }
    }

    fn copy_in(
        &self,
        piece: Piece,
        data: &[u8],
        progress: &mut Progress,
        decoded: Option<&Decoded>,
        reservation: &mut Reservation,
    ) -> Result<(), Stop> {
        let first = (piece.at + progress.done) / PAGE;
        let set = piece.pages() & !pages(0, first);
        let allowance = progress.allowance;
        self.change(piece.chunk, set, allowance, |state, page| {
            let (at, range) = piece.in_page(page);
            let end = range.end;
            let base = decoded.and_then(|decoded| decoded.page(page));
            let wrote = state.write_page(page, at, &data[range], base, self.memory(), reservation);
            wrote.map_err(|unwritten| self.stop(piece, page, unwritten))?;
            progress.done = end;
            Ok(())
        })
    }

    /// Changes pages of one chunk, in order, up to the first that cannot be changed. Charges new ones to the account.
    pub(super) fn change(
        &self,
        number: u64,
        set: PageSet,
        allowance: Allowance,
        mut change: impl FnMut(&mut ChunkState, usize) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        self.with_own_chunk(number, Some(allowance), |chunk, state| {
            let fresh = set & !state.existing();
            let mut credit = u64::from(fresh.count_ones());
            if !chunk.account().try_charge(credit, allowance) {
                credit = 0;
            }
            let mut result = Ok(());
            for page in members(set) {
                let is_fresh = fresh & (1 << page) != 0;
                if is_fresh && credit == 0 && !chunk.account().try_charge(1, allowance) {
                    result = Err(Stop::Failed(VmError::NoSpace));
                    break;
                }
                if let Err(stop) = change(state, page) {
                    if is_fresh && credit == 0 {
                        chunk.account().uncharge(1);
                    }
                    result = Err(stop);
                    break;
                }
                if is_fresh {
                    credit = credit.saturating_sub(1);
                    self.pages.fetch_add(1, Ordering::Relaxed);
                }
            }
            chunk.account().uncharge(credit);
            result
        })
        .map_err(Stop::Failed)?
    }

    /// Makes a page resident and dirty, with its present bytes.
    pub(super) async fn touch(&self, page: u64, allowance: Allowance) -> Result<(), VmError> {
        let piece = Piece::first(page * PAGE as u64, 0);
        let mut reservation = self.memory().budget.reserve(PAGE).await?;
        let mut decoded: Option<Arc<Decoded>> = None;
        loop {
            let here = decoded.take();
            let set = pages(piece.at / PAGE, piece.at / PAGE + 1);
            let touched = self.change(piece.chunk, set, allowance, |state, page| {
                let base = here.as_deref().and_then(|decoded| decoded.page(page));
                let touched = state.write_page(page, 0, &[], base, self.memory(), &mut reservation);
                touched.map_err(|unwritten| self.stop(piece, page, unwritten))
            });
            drop(here);
            match touched {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Read(wanted)) => {
                    decoded = self.page_in(piece, &wanted, 0, &mut Ahead::new()).await?;
                }
            }
        }
    }

    /// The step that must come before a page can be written.
    fn stop(&self, piece: Piece, page: usize, unwritten: Unwritten) -> Stop {
        match unwritten {
            Unwritten::Failed(error) => Stop::Failed(error),
            Unwritten::Needs(Origin::Extent(extent)) => Stop::Read(Wanted::strips(&extent, 1 << page)),
            Unwritten::Needs(Origin::Source) => Stop::Read(self.wanted_of_source(piece.chunk)),
        }
    }

    /// Keeps pages that were read from the source, if there is memory for them now: later reads need not ask the source
    /// again, even after the pages went to a store (R29).
    pub(super) fn keep(&self, number: u64, decoded: &Decoded) {
        let Some(mut reservation) = self.memory().budget.reserve_now(CHUNK) else { return };
        let sourced = match self.tree.read().get(number) {
            None => self.sourced(number),
            Some(chunk) => chunk.lock().sourced(),
        };
        // A page that was written or discarded meanwhile is not in the source any more.
        let _ = self.change(number, sourced, Allowance::Normal, |state, page| {
            let base = decoded.page(page).filter(|_| state.sourced() & 1 << page != 0);
            let Some(base) = base else { return Err(Stop::Failed(VmError::Lost)) };
            let kept = state.write_page(page, 0, &[], Some(base), self.memory(), &mut reservation);
            kept.map_err(|_| Stop::Failed(VmError::Lost))
        });
    }

    /// Makes bytes `start..end` read as zeros: whole pages are discarded, others written.
    ///
    /// # Errors
    /// As [`Object::write`]; lost pages stay lost unless wholly in the range.
    pub async fn zero(&self, start: u64, end: u64) -> Result<(), VmError> {
        if start >= end {
            return Ok(());
        }
        let page = PAGE as u64;
        let (first_whole, end_whole) = (start.div_ceil(page), end / page);
        if first_whole > end_whole {
            return self.zero_part(start, end).await;
        }
        self.zero_part(start, first_whole * page).await?;
        self.zero_part(end_whole * page, end).await?;
        self.discard(first_whole, end_whole)?;
        Ok(())
    }

    /// Zeros bytes inside one page, if it has any.
    async fn zero_part(&self, start: u64, end: u64) -> Result<(), VmError> {
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let piece = Piece::first(start, (end - start) as usize);
        let page = piece.at / PAGE;
        let has_bytes = start < end
            && match self.tree.read().get(piece.chunk) {
                None => self.sourced(piece.chunk) & 1 << page != 0,
                Some(chunk) => {
                    matches!(chunk.lock().page(page), Where::Bytes(_) | Where::Cluster(_) | Where::Source)
                }
            };
        if !has_bytes {
            return Ok(());
        }
        self.write(start, &ZEROS[..piece.len], Allowance::Reserve).await.map_err(|(_, error)| error)
    }

    /// Makes pages `start..end` absent at once: their frames and copies in clusters are freed, nothing is written (R8).
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when nodes or chunks that other objects show too must be copied and there is no memory;
    /// the first part of the range may be absent then.
    pub fn discard(&self, start: u64, end: u64) -> Result<(), VmError> {
        let mut next = start / CHUNK_PAGES as u64;
        loop {
            let tree = self.tree.read();
            let Some((number, _)) = self.next_chunk(&tree, next) else { break };
            drop(tree);
            let base = number * CHUNK_PAGES as u64;
            if base >= end {
                break;
            }
            let from = start.saturating_sub(base) as usize;
            let to = (end - base).min(CHUNK_PAGES as u64) as usize;
            self.discard_in_chunk(number, pages(from, to))?;
            next = number + 1;
        }
        self.memory().budget.grant();
        Ok(())
    }

    /// Discards pages of one chunk, and the chunk if no page is left.
    fn discard_in_chunk(&self, number: u64, set: PageSet) -> Result<(), VmError> {
        let mut tree = self.tree.write();
        let existing = tree.get(number).map_or(0, |chunk| chunk.lock().existing());
        let present = self.present(number, tree.get(number));
        // A chunk that the source has must stay, to record that its pages are absent.
        if present & !set == 0 && self.sourced(number) == 0 {
            if tree.get(number).is_none() {
                return Ok(());
            }
            // If no other tree shows it, its pages are free when this returns, even if pageout still holds it.
            let own = if let Found::Own(chunk) = tree.get_own(number) {
                self.drop_pages(chunk, &mut chunk.lock(), ALL);
                true
            } else {
                false
            };
            // Only a path that other trees show too is copied, and so can fail.
            let gone = tree.remove(number)?;
            if !own {
                self.pages.fetch_sub(u64::from(existing.count_ones()), Ordering::Relaxed);
            }
            drop(tree);
            drop(gone);
        } else if present & set != 0 {
            drop(tree);
            self.with_own_chunk(number, None, |chunk, state| self.drop_pages(chunk, state, set))?;
        }
        Ok(())
    }

    fn drop_pages(&self, chunk: &Chunk, state: &mut ChunkGuard<'_>, set: PageSet) {
        let count = u64::from(state.discard(set));
        chunk.account().uncharge(count);
        self.pages.fetch_sub(count, Ordering::Relaxed);
    }

    /// Marks pages that bytes `start..end` touch as lost: reads fail until they are wholly overwritten or discarded.
    /// For data that was promised and cannot be kept: an error is better than wrong bytes (rule 2).
    ///
    /// It may use the account's reserve, and metadata beyond its share.
    ///
    /// # Errors
    /// The first byte that could not be marked, when even those are used up.
    pub fn lose(&self, start: u64, end: u64) -> Result<(), u64> {
        let mut at = start;
        while at < end {
            let piece = Piece::first(at, usize::try_from(end - at).unwrap_or(usize::MAX));
            if !self.memory().budget.has_room_for_notes() {
                return Err(at);
            }
            let marked = self.with_own_chunk(piece.chunk, None, |chunk, state| {
                let new = u64::from((piece.pages() & !state.existing()).count_ones());
                if !chunk.account().try_charge(new, Allowance::Reserve) {
                    return false;
                }
                state.lose(piece.pages());
                self.pages.fetch_add(new, Ordering::Relaxed);
                true
            });
            if marked != Ok(true) {
                return Err(at);
            }
            at += piece.len as u64;
        }
        Ok(())
    }

    /// Makes pages `start..end` exist: absent ones become zeros that are charged but cost no memory.
    ///
    /// # Errors
    /// [`VmError::NoSpace`] or [`VmError::NoMemory`]; pages made before stay.
    pub async fn allocate(&self, start: u64, end: u64) -> Result<(), VmError> {
        let mut at = start;
        let mut turns = 0u32;
        while at < end {
            turns += 1;
            if turns.is_multiple_of(TURNS) {
                // A huge range is long work without a wait: let other tasks have the thread in between.
                yield_now().await;
            }
            let number = at / CHUNK_PAGES as u64;
            let base = number * CHUNK_PAGES as u64;
            let to = end.min(base + CHUNK_PAGES as u64);
            let set = pages((at - base) as usize, (to - base) as usize);
            self.with_own_chunk(number, Some(Allowance::Normal), |chunk, state| {
                let new = u64::from((set & !state.existing() & !state.sourced()).count_ones());
                if !chunk.account().try_charge(new, Allowance::Normal) {
                    return Err(VmError::NoSpace);
                }
                state.allocate(set);
                self.pages.fetch_add(new, Ordering::Relaxed);
                Ok(())
            })??;
            at = to;
        }
        Ok(())
    }
}

/// Chunks that an operation handles before it yields its thread.
const TURNS: u32 = 256;

/// Pending once, then ready at once.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
