//! Statistics of a VM.

use crate::memory::records::Memory;
use crate::page::PAGE;

/// A snapshot of a VM. Bytes and counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmStats {
    /// Bytes that pages and metadata may take: the budget less fixed buffers.
    pub limit_bytes: usize,
    /// Bytes of them in use, reservations and leases included.
    pub charged_bytes: usize,
    /// Bytes of `charged_bytes` that are metadata.
    pub metadata_bytes: usize,
    /// Bytes of `charged_bytes` that are on lease.
    pub leased_bytes: usize,
    /// Kernel memory that the frame arena may hold.
    pub arena_bytes: usize,
    /// Bytes of `arena_bytes` that hold no frame in use.
    pub arena_idle_bytes: usize,
    /// Resident pages, at full page size.
    pub resident_bytes: usize,
    /// Resident pages that no store has, at full page size.
    pub dirty_bytes: usize,
    /// Bytes of compressed memory.
    pub compressed_bytes: usize,
    /// Pages in compressed memory, at full size; dead pages of living clusters count.
    pub compressed_page_bytes: usize,
    /// Pages that a store has, at full size.
    pub stored_page_bytes: usize,
    /// Bytes of the store that are not free.
    pub stored_bytes: u64,
    /// Bytes of living pages in `stored_bytes`; the rest is dead, and compacted when it is more than a tenth.
    pub stored_live_bytes: u64,
    /// Bytes given to readers and taken from writers.
    pub served_bytes: u64,
    /// Bytes copied for that within this process: to and from frames, encoded, decoded, gathered for the store. The
    /// kernel's own copies are not counted.
    pub copied_bytes: u64,
    /// Pages that went to compressed memory.
    pub compressed: u64,
    /// Pages that went to the store uncompressed, because it was faster than the compressor.
    pub bypassed: u64,
    /// Pages in compressed memory that were compressed again, smaller.
    pub recompressed: u64,
    /// Segments of the store whose living pages were brought back.
    pub compacted: u64,
    /// Pages read back from the store.
    pub page_ins: u64,
    /// Pages written to the store.
    pub page_outs: u64,
    /// Read requests to the store.
    pub store_reads: u64,
    /// Write requests to the store.
    pub store_writes: u64,
    /// Failed requests and damaged clusters.
    pub errors: u64,
}

impl VmStats {
    pub(crate) fn of(memory: &Memory) -> VmStats {
        let c = &memory.counters;
        let compressed_page_bytes = memory.compressed.pages() * PAGE;
        VmStats {
            limit_bytes: memory.budget.limit(),
            charged_bytes: memory.budget.charged(),
            metadata_bytes: memory.budget.metadata(),
            leased_bytes: memory.budget.leases().bytes(),
            arena_bytes: memory.arena.touched_bytes(),
            arena_idle_bytes: memory.arena.touched_bytes().saturating_sub(memory.arena.live_bytes()),
            resident_bytes: c.resident_pages() * PAGE,
            dirty_bytes: c.dirty_pages() * PAGE,
            compressed_bytes: memory.compressed.bytes(),
            compressed_page_bytes,
            stored_page_bytes: (c.clustered_pages() * PAGE).saturating_sub(compressed_page_bytes),
            stored_bytes: memory.stored_bytes(),
            stored_live_bytes: memory.stored_live_bytes(),
            served_bytes: c.served.get(),
            copied_bytes: c.copied.get(),
            compressed: c.compressed.get(),
            bypassed: c.bypassed.get(),
            recompressed: c.recompressed.get(),
            compacted: c.compacted.get(),
            page_ins: c.page_ins.get(),
            page_outs: c.page_outs.get(),
            store_reads: c.store_reads.get(),
            store_writes: c.store_writes.get(),
            errors: c.errors.get(),
        }
    }
}
