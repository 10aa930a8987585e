//! The VM as its faces see it: objects, and their cost.

use std::sync::Arc as StdArc;

use overspill_store::Usage;

use crate::account::Account;
use crate::budget::Charge;
use crate::error::VmError;
use crate::lease::Lease;
use crate::memory::records::{CHUNK_COST, EXTENT_COST};
use crate::object::Object;
use crate::object::frames::Frames;
use crate::object::tree::NODE_COST;
use crate::page::PAGE;
use crate::pagein::service::PageIn;
use crate::revoke::Lessee;
use crate::source::Source;
use crate::stats::VmStats;
use crate::sync::Arc;

/// Metadata of a page that is far from all others: its chunk, the nodes above it, and its extent.
const LONE_PAGE_COST: usize = CHUNK_COST + 3 * NODE_COST + EXTENT_COST;

/// Bytes that [`Vm::write_ahead`] may take.
const WRITE_AHEAD: usize = 256 << 10;

/// Bytes of compressed memory that tell how data packs.
const PACKING_KNOWN: u64 = 1 << 20;

/// Virtual memory: objects whose pages live in memory or in a store, under one budget. A cheap handle, for the faces:
/// it cannot page out. [`crate::Pager`] can.
#[derive(Debug, Clone)]
pub struct Vm {
    pub(crate) pagein: Arc<PageIn>,
}

impl Vm {
    /// A new, empty object, charged to `account`.
    pub fn object(&self, account: &StdArc<Account>) -> Object {
        Object::new(&self.pagein, account, None)
    }

    /// An object that has the bytes of `source` until they are changed.
    pub fn object_from(&self, source: StdArc<dyn Source>, account: &StdArc<Account>) -> Object {
        Object::new(&self.pagein, account, Some(source))
    }

    /// Frames to be filled and installed ([`Object::install`]). Waits for memory.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when pageout can free no more, or for more than [`Frames::MOST`].
    pub async fn frames(&self, count: usize) -> Result<Frames, VmError> {
        Frames::reserve(&self.pagein.memory, count).await
    }

    /// A lease of no bytes yet ([`Lease::grow`]). When memory is short, `lessee` is asked to give some back.
    pub fn lease(&self, lessee: StdArc<dyn Lessee>) -> Lease {
        Lease::new(&self.pagein.memory.budget, lessee)
    }

    /// Counts wired metadata of the caller's (inodes, names) in the budget while the guard lives. Never waits.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when metadata takes too large a part of the budget already.
    pub fn charge(&self, bytes: usize) -> Result<Charge, VmError> {
        self.pagein.memory.budget.charge(bytes)
    }

    /// Bytes that [`Vm::charge`] would still give.
    pub fn metadata_left(&self) -> usize {
        self.pagein.memory.budget.metadata_left()
    }

    /// True if metadata is so near its share that `promised` pages, which a writer was told are written, might not find
    /// room for their metadata: each may be the only page of its chunk.
    pub fn is_metadata_short(&self, promised: u64) -> bool {
        let pages = usize::try_from(promised).unwrap_or(usize::MAX);
        self.pagein.memory.budget.metadata_is_short(pages.saturating_mul(LONE_PAGE_COST))
    }

    /// True if memory is below its low watermark: pageout is at work or should be.
    pub fn is_short(&self) -> bool {
        self.pagein.memory.budget.below_low()
    }

    /// True if every store has refused all writes since one last went through.
    pub fn is_store_failing(&self) -> bool {
        let backings = &self.pagein.memory.backings;
        !backings.is_empty() && backings.iter().all(|backing| backing.health.is_failing())
    }

    /// True if every store has failed for so long that no operation is left waiting for them.
    pub fn is_store_broken(&self) -> bool {
        let backings = &self.pagein.memory.backings;
        !backings.is_empty() && backings.iter().all(|backing| backing.health.is_broken())
    }

    /// The most pages that `account` could hold, given memory and the stores' disks: a writer must hear of a full disk
    /// from write(2), not from a pager that cannot evict.
    pub fn capacity(&self, account: &Account) -> u64 {
        let page = PAGE as u64;
        let stats = self.stats();
        let memory = (stats.limit_bytes.saturating_sub(stats.metadata_bytes) / 16 * 15) as u64 / page;
        let backings = &self.pagein.memory.backings;
        if backings.is_empty() {
            return memory.saturating_sub(account.reserve());
        }
        let reserve = account.reserve() * page;
        let mut room = 0;
        for backing in backings {
            // A broken store takes nothing.
            if backing.health.is_broken() {
                continue;
            }
            let usage = backing.store.usage();
            // The space prepared in one object's file is of no use to another.
            let prepared =
                if backing.store.separates() { 0 } else { usage.file_bytes.saturating_sub(backing.bytes()) };
            room += usage.disk_free_bytes + prepared;
        }
        let room = room.saturating_sub(reserve) / page;
        // Incompressible pages take a little more than their own size.
        let room = room - room / 32;
        let memory = memory.saturating_sub(reserve / page);
        // Pages in memory take their part of the disk only when they are written out; compressed ones at their
        // compressed size.
        let left = room.max(memory).saturating_sub(stats.compressed_bytes as u64 / page);
        account.used().saturating_sub(stats.dirty_bytes as u64 / page) + left
    }

    /// Has the kernel zero some memory that the next writes will take, if there is room for it: for a thread that has just
    /// answered a long write, while its writer is busy with the next one.
    pub fn write_ahead(&self) {
        let memory = &self.pagein.memory;
        if memory.arena.touched_bytes() + WRITE_AHEAD <= memory.budget.limit() {
            memory.arena.populate_ahead();
        }
    }

    /// True if there is any store.
    pub fn has_store(&self) -> bool {
        !self.pagein.memory.backings.is_empty()
    }

    /// Pages that memory alone could still take, by the packing seen so far.
    pub fn room_in_memory(&self) -> u64 {
        let stats = self.stats();
        let limit = stats.limit_bytes / 16 * 15;
        let free = limit.saturating_sub(stats.charged_bytes) as u64;
        let (packed, payload) = (stats.compressed_page_bytes as u64, stats.compressed_bytes as u64);
        let page = PAGE as u64;
        if payload < PACKING_KNOWN {
            return free / page;
        }
        // Packing a resident page gives room for as much as that saves.
        let saved = stats.resident_bytes as u64 * packed.saturating_sub(payload) / packed.max(1);
        (free + saved) * packed.max(payload) / payload / page
    }

    /// The space of all stores together. Asks their disks.
    pub fn store_usage(&self) -> Usage {
        let usages = self.pagein.memory.backings.iter().map(|backing| backing.store.usage());
        usages.fold(Usage::default(), |all, usage| Usage {
            allocated_blocks: all.allocated_blocks + usage.allocated_blocks,
            capacity_blocks: all.capacity_blocks + usage.capacity_blocks,
            file_bytes: all.file_bytes + usage.file_bytes,
            disk_free_bytes: all.disk_free_bytes + usage.disk_free_bytes,
        })
    }

    /// Statistics.
    pub fn stats(&self) -> VmStats {
        VmStats::of(&self.pagein.memory)
    }
}
