//! The layout of a VM.

use overspill_codec::Method;

use crate::page::{CHUNK, PAGE};
use crate::pagein::slots::SLOT_COST;
use crate::pageout::recompress::RECOMPRESSOR_COST;

/// How a VM is laid out.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Bytes of RAM that the VM may use, everything counted.
    pub memory_bytes: usize,
    /// Upper bound for [`Pager::set_memory`](crate::Pager::set_memory): address space is reserved for it.
    pub most_memory_bytes: usize,
    /// Bytes of one batch of pageout.
    pub batch_bytes: usize,
    /// Batches: the most writes that can be under way to stores at once.
    pub batches: usize,
    /// Clusters that can be held decoded for readers at once.
    pub fetch_slots: usize,
    /// The compressor.
    pub method: Method,
    /// True to recompress clusters by zstd that stay in compressed memory for long, where a driver calls
    /// [`Pager::recompress`](crate::Pager::recompress).
    pub recompress: bool,
    /// True to bypass compressed memory always for pages that writers wait for, as if the store were faster than the
    /// compressor. For tests, which cannot control the measured speeds.
    pub always_bypass: bool,
}

/// The smallest memory for which recompression is worth its workspaces.
const RECOMPRESS_FROM: usize = 64 << 20;

impl VmConfig {
    /// A layout for `memory_bytes`: buffers take at most an eighth of it.
    pub fn new(memory_bytes: usize) -> VmConfig {
        let batch_bytes = (memory_bytes / 128).clamp(3 * CHUNK, 1 << 20).next_multiple_of(PAGE);
        VmConfig {
            memory_bytes,
            most_memory_bytes: memory_bytes,
            batch_bytes,
            batches: 4,
            fetch_slots: (memory_bytes / 32 / SLOT_COST).clamp(2, 64),
            method: Method::Lz4,
            recompress: memory_bytes >= RECOMPRESS_FROM,
            always_bypass: false,
        }
    }

    /// True if clusters are compressed again. Clusters that zstd made would gain nothing.
    pub(crate) fn recompresses(&self) -> bool {
        self.recompress && self.method == Method::Lz4
    }

    /// Bytes of the memory that its buffers take, with a store or without; the rest is for pages and metadata.
    #[must_use]
    pub fn buffers(&self, with_store: bool) -> usize {
        let batches = if with_store { self.batches * self.batch_bytes } else { 0 };
        let recompressor = if self.recompresses() { RECOMPRESSOR_COST } else { 0 };
        batches + self.fetch_slots * SLOT_COST + recompressor
    }
}
