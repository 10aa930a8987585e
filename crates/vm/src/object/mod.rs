//! Memory objects: sparse arrays of pages with an identity.
//!
//! An object has no size: pages that were never written are absent and read as zeros, or as the bytes of the object's
//! source. Operations that may wait for memory, a store or a source are futures; they hold no lock while they wait, and
//! each page changes in one piece. Callers whose larger operations must exclude each other (a truncate and a write)
//! order them themselves.
//!
//! ```text
//!   write ─ reserve frames ─► tree (shared; own chunk?) ─► chunk ─► copy once, dirty, old copy dropped
//!                             tree (exclusive: new or shared chunk) ┘
//!   read ── tree (shared) ─► chunk ─► copy; pages that are not resident: page-in, copy, let go
//! ```

#![expect(clippy::cast_possible_truncation, reason = "what is cast lies within a chunk")]

pub(crate) mod frames;
pub(crate) mod lend;
mod read;
pub(crate) mod tree;
mod write;

use std::sync::Arc as StdArc;

use overspill_slab::Ref;

use crate::account::{Account, Allowance};
use crate::error::VmError;
use crate::memory::chunk::{ChunkGuard, ChunkHandle as _, ChunkRef};
use crate::memory::records::{CHUNK_COST, Chunk, Memory};
use crate::page::{CHUNK, CHUNK_PAGES, PAGE, PageSet, members, pages};
use crate::pagein::service::PageIn;
use crate::source::Source;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, RwLock, rank};
use tree::{Found, Tree};

/// A sparse array of pages. Dropping it frees the pages that no other object shows.
pub struct Object {
    pagein: Arc<PageIn>,
    number: u32,
    account: StdArc<Account>,
    /// The origin of pages that were never written.
    source: Option<StdArc<dyn Source>>,
    tree: RwLock<Tree, { rank::TREE }>,
    /// Pages that are charged to the account.
    pages: AtomicU64,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Object({}, {} pages)", self.number, self.pages())
    }
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

    /// The piece's part in `page`: its offset in the page, and its range in the piece.
    fn in_page(self, page: usize) -> (usize, std::ops::Range<usize>) {
        let start = (page * PAGE).max(self.at);
        let end = ((page + 1) * PAGE).min(self.at + self.len);
        (start - page * PAGE, start - self.at..end - self.at)
    }
}

impl Object {
    pub(crate) fn new(
        pagein: &Arc<PageIn>,
        account: &StdArc<Account>,
        source: Option<StdArc<dyn Source>>,
    ) -> Object {
        Object {
            pagein: pagein.clone(),
            number: pagein.memory.next_object(),
            account: account.clone(),
            source,
            tree: RwLock::new(Tree::default()),
            pages: AtomicU64::new(0),
        }
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.pagein.memory
    }

    /// Pages of a chunk that are in the source as long as the chunk is untouched.
    fn sourced(&self, chunk: u64) -> PageSet {
        let Some(source) = &self.source else { return 0 };
        let left = source.len().saturating_sub(chunk.saturating_mul(CHUNK as u64));
        pages(0, left.div_ceil(PAGE as u64).min(CHUNK_PAGES as u64) as usize)
    }

    /// The first chunk at or after `from` that is in the tree, or untouched in the source.
    fn next_chunk<'a>(&self, tree: &'a Tree, from: u64) -> Option<(u64, Option<&'a ChunkRef>)> {
        if self.sourced(from) != 0 {
            return Some((from, tree.get(from)));
        }
        tree.next(from).map(|(number, chunk)| (number, Some(chunk)))
    }

    /// Pages of a chunk that are not absent.
    fn present(&self, number: u64, chunk: Option<&ChunkRef>) -> PageSet {
        match chunk {
            None => self.sourced(number),
            Some(chunk) => {
                let state = chunk.lock();
                state.existing() | state.sourced()
            }
        }
    }

    /// Runs `f` on a locked chunk that only this object shows; makes or copies it if need be. The object's tree stays
    /// locked meanwhile, so that a fork comes before or after.
    ///
    /// # Errors
    /// When the chunk cannot be made or copied. With no allowance it never fails for lack of account or metadata.
    fn with_own_chunk<R>(
        &self,
        number: u64,
        allowance: Option<Allowance>,
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
        let chunk = tree.change(number, &self.memory().budget, |shown| match shown {
            Some(shown) => shown.copy(&self.account, allowance),
            None => {
                let charge = match allowance {
                    Some(Allowance::Normal) => self.memory().budget.charge(CHUNK_COST)?,
                    _ => self.memory().budget.charge_forced(CHUNK_COST),
                };
                let chunk = ChunkRef::new(Chunk::new(self.memory(), self.number, &self.account, charge))?;
                chunk.lock().begin_sourced(self.sourced(number));
                Ok(chunk)
            }
        })?;
        Ok(f(chunk, &mut chunk.lock()))
    }

    /// An object with the same pages, sharing them until one side writes (R40, R58). The first owner goes on paying for
    /// shared pages.
    #[must_use]
    pub fn fork(&self) -> Object {
        // Exclusive: no write is half done in a chunk, and none finds a shared chunk unshared.
        let tree = self.tree.write();
        Object {
            pagein: self.pagein.clone(),
            number: self.memory().next_object(),
            source: self.source.clone(),
            account: self.account.clone(),
            tree: RwLock::new(tree.clone()),
            pages: AtomicU64::new(self.pages.load(Ordering::Relaxed)),
        }
    }

    /// The first page at or after `page` that is not absent.
    pub fn next_data(&self, page: u64) -> Option<u64> {
        let tree = self.tree.read();
        let mut next = page / CHUNK_PAGES as u64;
        while let Some((number, chunk)) = self.next_chunk(&tree, next) {
            let base = number * CHUNK_PAGES as u64;
            let from = page.saturating_sub(base) as usize;
            let found = members(self.present(number, chunk) & pages(from, CHUNK_PAGES)).next();
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
            let present = self.present(number, tree.get(number));
            let absent = !present & pages((at - base) as usize, CHUNK_PAGES);
            if let Some(found) = members(absent).next() {
                return base + found as u64;
            }
            at = base + CHUNK_PAGES as u64;
        }
    }

    /// Pages that are charged to the account: those neither absent nor only in the source.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Calls `f` with each chunk's number and handle. For [`crate::testing`].
    pub(crate) fn for_each_chunk(&self, mut f: impl FnMut(u64, &Ref<Chunk>)) {
        let tree = self.tree.read();
        let mut next = 0;
        while let Some((number, chunk)) = tree.next(next) {
            f(number, chunk);
            next = number + 1;
        }
    }
}
