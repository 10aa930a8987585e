//! Memory objects: sparse arrays of pages with an identity.
//!
//! An object has no size: pages that were never written are absent and read as zeros. Operations that may have to
//! wait, for memory or for the store, are futures; nothing is locked while they wait, and each page changes in one
//! piece. Who needs larger operations to exclude each other (a truncate and a write) orders them above.
//!
//! ```text
//!   write ─ reserve frames ─► tree (shared; own chunk?) ─► chunk ─► copy once, dirty, old slot dropped
//!                             tree (exclusive: new or shared chunk) ┘
//!   read ── tree (shared) ─► chunk ─► copy; stored pages: fetch the cluster, copy, let go
//! ```

#![expect(clippy::cast_possible_truncation, reason = "what is cast lies within a chunk")]

use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;

use overspill_slab::Ref;
use smallvec::SmallVec;

use crate::account::{Account, Space};
use crate::budget::Reservation;
use crate::chunk::{CHUNK_COST, Chunk, ChunkGuard, ChunkHandle as _, ChunkRef, PageIn};
use crate::error::VmError;
use crate::extent::Extent;
use crate::fetch::{Begun, Coming, Fetch, PageInError, Unpacked};
use crate::pageset::{PageSet, members, pages};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, RwLock, rank};
use crate::tree::{Found, Tree};
use crate::vm::Shared;
use crate::{CHUNK, CHUNK_PAGES, PAGE};

const ALL: PageSet = PageSet::MAX;

/// How many clusters one read asks for ahead of the one it waits for.
const READ_AHEAD: usize = 16;

/// A sparse array of pages. Dropping it frees everything it alone shows.
#[derive(Debug)]
pub struct Object {
    shared: Arc<Shared>,
    number: u32,
    account: std::sync::Arc<Account>,
    tree: RwLock<Tree, { rank::TREE }>,
    /// Pages that are not absent.
    pages: AtomicU64,
}

/// The part of a byte range that lies in one chunk.
#[derive(Debug, Clone, Copy)]
struct Piece {
    chunk: u64,
    /// First byte, from the chunk's start.
    at: usize,
    len: usize,
}

impl Piece {
    fn first(offset: u64, len: usize) -> Piece {
        let at = (offset % CHUNK as u64) as usize;
        Piece { chunk: offset / CHUNK as u64, at, len: len.min(CHUNK - at) }
    }

    fn pages(self) -> PageSet {
        pages(self.at / PAGE, (self.at + self.len).div_ceil(PAGE))
    }

    /// The bytes of the piece in `page`: where in the page, and where in the piece.
    fn in_page(self, page: usize) -> (usize, std::ops::Range<usize>) {
        let start = (page * PAGE).max(self.at);
        let end = ((page + 1) * PAGE).min(self.at + self.len);
        (start - page * PAGE, start - self.at..end - self.at)
    }
}

/// How far a write of one piece came, so that it goes on where it stopped.
struct Progress {
    /// Bytes of the piece written.
    done: usize,
    space: Space,
}

/// Strips of an extent that must be read first.
struct Wanted {
    extent: Ref<Extent>,
    strips: Range<usize>,
}

impl Wanted {
    fn new(extent: &Ref<Extent>, set: PageSet) -> Wanted {
        Wanted { extent: extent.clone(), strips: extent.strips(set) }
    }
}

enum Stop {
    Fetch(Wanted),
    Failed(VmError),
}

impl Object {
    pub(crate) fn new(shared: &Arc<Shared>, account: &std::sync::Arc<Account>) -> Object {
        Object {
            shared: shared.clone(),
            number: shared.next_object.fetch_add(1, Ordering::Relaxed),
            account: account.clone(),
            tree: RwLock::new(Tree::default()),
            pages: AtomicU64::new(0),
        }
    }

    /// Fills `buf` with the bytes at `offset`; absent ones are zeros.
    ///
    /// # Errors
    /// [`VmError::Lost`] and [`VmError::StoreRead`] when a page's bytes cannot be had; never zeros instead.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), VmError> {
        let mut ahead: SmallVec<[Arc<Fetch>; READ_AHEAD]> = SmallVec::new();
        let mut done = 0;
        while done < buf.len() {
            let piece = Piece::first(offset + done as u64, buf.len() - done);
            tracing::trace!(target: "access", object = self.number, chunk = piece.chunk, "read");
            let (out, rest) = buf[done..].split_at_mut(piece.len);
            self.read_piece(piece, out, rest.len(), &mut ahead).await?;
            done += piece.len;
        }
        self.shared.counters.serve(done);
        Ok(())
    }

    async fn read_piece(
        &self,
        piece: Piece,
        out: &mut [u8],
        following: usize,
        ahead: &mut SmallVec<[Arc<Fetch>; READ_AHEAD]>,
    ) -> Result<(), VmError> {
        let mut left = piece.pages();
        let mut cluster: Option<Arc<Unpacked>> = None;
        loop {
            let Some(wanted) = self.copy_out(piece, out, &mut left, cluster.take().as_deref())? else {
                return Ok(());
            };
            let begun = ahead.iter().position(|fetch| fetch.brings(&wanted.extent, &wanted.strips));
            let coming = match begun {
                Some(i) => Coming::Fetch(ahead.swap_remove(i)),
                None => self.shared.fetch(&wanted.extent, wanted.strips.clone(), || ahead.clear()).await?,
            };
            // After this one: with few slots what is ahead must not take them all.
            if ahead.is_empty() && following > 0 {
                self.begin_ahead(piece, following, ahead);
            }
            cluster = self.fetch(piece.chunk, &wanted, Some(coming), ahead).await?;
        }
    }

    /// Copies what pages of `left` can be had, and takes them off it. Answers what holds the first of the others.
    fn copy_out(
        &self,
        piece: Piece,
        out: &mut [u8],
        left: &mut PageSet,
        cluster: Option<&Unpacked>,
    ) -> Result<Option<Wanted>, VmError> {
        let tree = self.tree.read();
        let Some(chunk) = tree.get(piece.chunk) else {
            for page in members(std::mem::take(left)) {
                out[piece.in_page(page).1].fill(0);
            }
            return Ok(None);
        };
        let mut state = chunk.lock();
        state.referenced = true;
        let mut missing = None;
        for page in members(*left) {
            let (at, range) = piece.in_page(page);
            let bytes = match state.page(page) {
                PageIn::Bytes(bytes) => bytes.as_slice(),
                PageIn::Zero => &[],
                PageIn::Lost => return Err(VmError::Lost),
                PageIn::Stored(extent) => {
                    let here = cluster.filter(|cluster| cluster.is_of(extent));
                    match here.and_then(|cluster| cluster.page(page)) {
                        Some(bytes) => bytes,
                        None => {
                            let (first, set) = missing.get_or_insert_with(|| (extent.clone(), 0));
                            // Another extent's pages come next: this one may have had them once.
                            if Ref::ptr_eq(first, extent) {
                                *set |= 1 << page;
                            }
                            continue;
                        }
                    }
                }
            };
            copy_padded(&mut out[range], bytes, at);
            *left &= !(1 << page);
        }
        Ok(missing.map(|(extent, set)| Wanted::new(&extent, set)))
    }

    /// Asks for the clusters the rest of a read will want, as far as there are slots for them now.
    fn begin_ahead(&self, piece: Piece, following: usize, ahead: &mut SmallVec<[Arc<Fetch>; READ_AHEAD]>) {
        let read_end = piece.chunk * CHUNK as u64 + (piece.at + piece.len + following) as u64;
        let end = read_end.div_ceil(CHUNK as u64);
        let mut wanted: SmallVec<[Wanted; READ_AHEAD]> = SmallVec::new();
        {
            let tree = self.tree.read();
            let mut next = piece.chunk + 1;
            while let Some((number, chunk)) = tree.next(next).filter(|&(number, _)| number < end) {
                let state = chunk.lock();
                let base = number * CHUNK as u64;
                let last = (read_end - base).min(CHUNK as u64) as usize;
                let inside = pages(0, last.div_ceil(PAGE)) & !state.resident();
                for cluster in state.clusters().iter().filter(|cluster| cluster.live & inside != 0) {
                    if wanted.len() < READ_AHEAD && cluster.extent.is_stored() {
                        wanted.push(Wanted::new(&cluster.extent, cluster.live & inside));
                    }
                }
                if wanted.len() >= READ_AHEAD {
                    break;
                }
                next = number + 1;
            }
        }
        for Wanted { extent, strips } in &wanted {
            match self.shared.begin_fetch(extent, strips.clone(), None) {
                Begun::Joined(fetch) | Begun::New(fetch) => ahead.push(fetch),
                Begun::Done(_) => {}
                Begun::NoSlot => break,
            }
        }
    }

    /// Waits for strips of a cluster. A strip that stays damaged is lost, and no other; the caller looks again: its pages
    /// may have been written anew meanwhile.
    async fn fetch(
        &self,
        chunk: u64,
        wanted: &Wanted,
        coming: Option<Coming>,
        ahead: &mut SmallVec<[Arc<Fetch>; READ_AHEAD]>,
    ) -> Result<Option<Arc<Unpacked>>, VmError> {
        // A reader that waits for a slot holds none, or readers could wait for each other.
        let outcome =
            self.shared.page_in(&wanted.extent, wanted.strips.clone(), coming, || ahead.clear()).await;
        match outcome {
            Ok(unpacked) => Ok(Some(unpacked)),
            Err(PageInError::Damaged(strip)) => {
                if let Some(chunk) = self.tree.read().get(chunk) {
                    chunk.lock().lose_strip(&wanted.extent, strip);
                }
                Ok(None)
            }
            Err(PageInError::Failed(error)) => Err(error),
        }
    }

    /// Writes `data` at `offset`. Waits for memory when there is too little, and for the store when a page that is
    /// only there is overwritten in part.
    ///
    /// # Errors
    /// The bytes written before it failed (a prefix of `data`), and why: [`VmError::NoSpace`] when the account is
    /// full, [`VmError::NoMemory`] when memory and store are, or what a read may fail with.
    pub async fn write(&self, offset: u64, data: &[u8], space: Space) -> Result<(), (usize, VmError)> {
        let mut done = 0;
        while done < data.len() {
            // No more at once than a reservation may ever be: matters to the smallest budgets only.
            let most = (self.shared.budget.max_reservation() / PAGE).max(2) - 1;
            let piece = Piece::first(offset + done as u64, (data.len() - done).min(most * PAGE));
            tracing::trace!(target: "access", object = self.number, chunk = piece.chunk, "write");
            let part = &data[done..done + piece.len];
            let mut progress = Progress { done: 0, space };
            let result = self.write_piece(piece, part, &mut progress).await;
            done += progress.done;
            result.map_err(|error| (done, error))?;
        }
        self.shared.counters.serve(done);
        self.shared.wrote();
        Ok(())
    }

    async fn write_piece(&self, piece: Piece, data: &[u8], progress: &mut Progress) -> Result<(), VmError> {
        let need = piece.pages().count_ones() as usize * PAGE;
        let mut reservation = self.shared.budget.reserve(need).await?;
        let mut cluster: Option<Arc<Unpacked>> = None;
        loop {
            // A statement of its own: the cluster, and its slot, must go before the next one is waited for.
            let wrote = self.copy_in(piece, data, progress, cluster.take().as_deref(), &mut reservation);
            match wrote {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Fetch(wanted)) => {
                    cluster = self.fetch(piece.chunk, &wanted, None, &mut SmallVec::new()).await?;
                }
            }
        }
    }

    fn copy_in(
        &self,
        piece: Piece,
        data: &[u8],
        progress: &mut Progress,
        cluster: Option<&Unpacked>,
        reservation: &mut Reservation,
    ) -> Result<(), Stop> {
        self.with_own_chunk(piece.chunk, Some(progress.space), |chunk, state| {
            let fresh = piece.pages() & !state.existing();
            let mut credit = u64::from(fresh.count_ones());
            if !chunk.account().try_charge(credit, progress.space) {
                credit = 0;
            }
            let first = (piece.at + progress.done) / PAGE;
            let mut result = Ok(());
            for page in members(piece.pages() & !pages(0, first)) {
                let is_fresh = fresh & (1 << page) != 0;
                if is_fresh && credit == 0 && !chunk.account().try_charge(1, progress.space) {
                    result = Err(Stop::Failed(VmError::NoSpace));
                    break;
                }
                let (at, range) = piece.in_page(page);
                let end = range.end;
                let wrote = state.write_page(page, at, &data[range], cluster, &self.shared, reservation);
                if let Err(stop) = wrote {
                    if is_fresh && credit == 0 {
                        chunk.account().uncharge(1);
                    }
                    let wanted = |extent| Stop::Fetch(Wanted::new(&extent, 1 << page));
                    result = Err(stop.map_or_else(Stop::Failed, wanted));
                    break;
                }
                progress.done = end;
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

    /// Runs `f` on a chunk that only this object shows, made or copied if need be, and locked. The object's tree
    /// stays locked meanwhile, so that a fork comes before or after.
    ///
    /// # Errors
    /// When the chunk cannot be made or copied. `None` as space never fails for want of account or metadata.
    fn with_own_chunk<R>(
        &self,
        number: u64,
        space: Option<Space>,
        f: impl FnOnce(&Chunk, &mut ChunkGuard<'_>) -> R,
    ) -> Result<R, VmError> {
        {
            let tree = self.tree.read();
            if let Found::Own(chunk) = tree.get_own(number) {
                return Ok(f(chunk, &mut chunk.lock()));
            }
        }
        let mut tree = self.tree.write();
        if let Found::Own(chunk) = tree.get_own(number) {
            return Ok(f(chunk, &mut chunk.lock()));
        }
        let chunk = tree.change(number, &self.shared.budget, |shown| match shown {
            Some(shown) => shown.copy(&self.account, space),
            None => {
                let charge = match space {
                    Some(Space::Normal) => self.shared.budget.charge(CHUNK_COST)?,
                    _ => self.shared.budget.charge_forced(CHUNK_COST),
                };
                ChunkRef::new(Chunk::new(&self.shared, self.number, &self.account, charge))
            }
        })?;
        Ok(f(chunk, &mut chunk.lock()))
    }

    /// Bytes `start..end` read as zeros from now on: whole pages are discarded, others written.
    ///
    /// # Errors
    /// As [`Object::write`]; pages that were lost stay so unless wholly in the range.
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
        let has_bytes =
            start < end
                && self.tree.read().get(piece.chunk).is_some_and(|chunk| {
                    matches!(chunk.lock().page(page), PageIn::Bytes(_) | PageIn::Stored(_))
                });
        if !has_bytes {
            return Ok(());
        }
        self.write(start, &ZEROS[..piece.len], Space::Reserve).await.map_err(|(_, error)| error)
    }

    /// Pages `start..end` become absent at once: their frames and slots are free, nothing is written (R8).
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when what other objects show too would have to be copied and there is no memory; the
    /// first part of the range may be absent then.
    pub fn discard(&self, start: u64, end: u64) -> Result<(), VmError> {
        let mut next = start / CHUNK_PAGES as u64;
        loop {
            let tree = self.tree.read();
            let Some((number, _)) = tree.next(next) else { break };
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
        self.shared.budget.grant();
        Ok(())
    }

    /// Discards pages of one chunk, and the chunk when it holds no others.
    fn discard_in_chunk(&self, number: u64, set: PageSet) -> Result<(), VmError> {
        let mut tree = self.tree.write();
        let Some(chunk) = tree.get(number) else { return Ok(()) };
        let existing = chunk.lock().existing();
        if existing & !set == 0 {
            // If nobody else shows it, its pages are free when this returns, also when pageout still holds it.
            let own = if let Found::Own(chunk) = tree.get_own(number) {
                self.drop_pages(chunk, &mut chunk.lock(), ALL);
                true
            } else {
                false
            };
            // Only a path that others show too is copied, and so can fail.
            let gone = tree.remove(number)?;
            if !own {
                self.pages.fetch_sub(u64::from(existing.count_ones()), Ordering::Relaxed);
            }
            drop(tree);
            drop(gone);
        } else if existing & set != 0 {
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

    /// Pages that bytes `start..end` touch become lost: reading them fails until they are wholly overwritten or
    /// discarded. For data that was promised and cannot be kept: an error is better than wrong bytes (rule 2).
    ///
    /// It may use the account's reserve, and metadata beyond its share.
    ///
    /// # Errors
    /// The first byte that could not be marked, when even those are at their end.
    pub fn lose(&self, start: u64, end: u64) -> Result<(), u64> {
        let mut at = start;
        while at < end {
            let piece = Piece::first(at, usize::try_from(end - at).unwrap_or(usize::MAX));
            if !self.shared.budget.has_room_for_notes() {
                return Err(at);
            }
            let marked = self.with_own_chunk(piece.chunk, None, |chunk, state| {
                let new = u64::from((piece.pages() & !state.existing()).count_ones());
                if !chunk.account().try_charge(new, Space::Reserve) {
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

    /// Pages `start..end` exist from now on: absent ones become zeros that are charged but cost no memory.
    ///
    /// # Errors
    /// [`VmError::NoSpace`] or [`VmError::NoMemory`]; pages made before stay.
    pub async fn allocate(&self, start: u64, end: u64) -> Result<(), VmError> {
        let mut at = start;
        let mut turns = 0u32;
        while at < end {
            turns += 1;
            if turns.is_multiple_of(TURNS) {
                // A huge range is long work that waits for nothing: others have the thread in between.
                yield_now().await;
            }
            let number = at / CHUNK_PAGES as u64;
            let base = number * CHUNK_PAGES as u64;
            let to = end.min(base + CHUNK_PAGES as u64);
            let set = pages((at - base) as usize, (to - base) as usize);
            self.with_own_chunk(number, Some(Space::Normal), |chunk, state| {
                let new = u64::from((set & !state.existing()).count_ones());
                if !chunk.account().try_charge(new, Space::Normal) {
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

    /// An object with the same pages, sharing them until one side writes (R40, R58). The first owner goes on paying
    /// for what is shared.
    #[must_use]
    pub fn fork(&self) -> Object {
        // Exclusive: no write is half done in a chunk, and none takes a shared chunk for its own.
        let tree = self.tree.write();
        Object {
            shared: self.shared.clone(),
            number: self.shared.next_object.fetch_add(1, Ordering::Relaxed),
            account: self.account.clone(),
            tree: RwLock::new(tree.clone()),
            pages: AtomicU64::new(self.pages.load(Ordering::Relaxed)),
        }
    }

    /// The first page at or after `page` that is not absent.
    pub fn next_data(&self, page: u64) -> Option<u64> {
        let tree = self.tree.read();
        let mut next = page / CHUNK_PAGES as u64;
        while let Some((number, chunk)) = tree.next(next) {
            let base = number * CHUNK_PAGES as u64;
            let from = page.saturating_sub(base) as usize;
            let found = members(chunk.lock().existing() & pages(from, CHUNK_PAGES)).next();
            if let Some(found) = found {
                return Some(base + found as u64);
            }
            next = number + 1;
        }
        None
    }

    /// The first absent page at or after `page`.
    pub fn next_hole(&self, page: u64) -> u64 {
        let tree = self.tree.read();
        let mut at = page;
        loop {
            let number = at / CHUNK_PAGES as u64;
            let base = number * CHUNK_PAGES as u64;
            let Some(chunk) = tree.get(number) else { return at };
            let absent = !chunk.lock().existing() & pages((at - base) as usize, CHUNK_PAGES);
            if let Some(found) = members(absent).next() {
                return base + found as u64;
            }
            at = base + CHUNK_PAGES as u64;
        }
    }

    /// Pages that are not absent.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Calls `f` with each chunk's number and state. For [`crate::testing`].
    pub(crate) fn for_each_chunk(&self, mut f: impl FnMut(u64, &Ref<Chunk>)) {
        let tree = self.tree.read();
        let mut next = 0;
        while let Some((number, chunk)) = tree.next(next) {
            f(number, chunk);
            next = number + 1;
        }
    }
}

/// How many chunks an operation goes through before it lets others have its thread.
const TURNS: u32 = 256;

/// Is pending once, and ready to be polled again at once.
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

/// Copies bytes `at..` of a page into `out`; the page is zero past `page.len()`.
fn copy_padded(out: &mut [u8], page: &[u8], at: usize) {
    let here = page.get(at..).unwrap_or(&[]);
    let n = here.len().min(out.len());
    out[..n].copy_from_slice(&here[..n]);
    out[n..].fill(0);
}
