//! Holding the process to its memory.

use std::time::{Duration, Instant};

use overspill_vm::Pager;

/// Metadata that may have gone before the heap is trimmed.
const TRIM_ABOVE: usize = 4 << 20;
/// How often the process's memory is measured, at most.
const MEASURE: Duration = Duration::from_millis(50);
/// How often the heap is gone through for pages that are free, at most.
const TRIM: Duration = Duration::from_secs(2);

/// Holds the process to its memory, whatever it went to (iron rule 3): what the budget's own counting misses, mostly
/// holes in heap and slabs, is measured and counted as overhead.
pub(crate) struct MemoryWatch {
    memory: usize,
    overhead: usize,
    /// The most metadata there was since the heap was last trimmed.
    metadata: usize,
    measured: Instant,
    trimmed: Instant,
}

impl MemoryWatch {
    pub(crate) fn new(memory: usize) -> MemoryWatch {
        let now = Instant::now();
        // Some way below, because it is looked at now and then and not always.
        MemoryWatch { memory: memory / 16 * 15, overhead: 0, metadata: 0, measured: now, trimmed: now }
    }

    pub(crate) fn look(&mut self, pager: &Pager) {
        if self.measured.elapsed() < MEASURE {
            return;
        }
        self.measured = Instant::now();
        let Some(resident) = resident_bytes() else { return };
        let stats = pager.stats();
        // Memory that is free here but not given back is no reason to page out.
        let idle = stats.arena_idle_bytes;
        let metadata = stats.metadata_bytes - self.overhead.min(stats.metadata_bytes);
        self.metadata = self.metadata.max(metadata);
        let much_freed = metadata + TRIM_ABOVE < self.metadata;
        if (resident > self.memory || much_freed) && self.trimmed.elapsed() > TRIM {
            self.trimmed = Instant::now();
            self.metadata = metadata;
            overspill_sys::process::trim_heap();
        }
        if resident > self.memory {
            // Others need it now: what is held in reserve is asked for again soon enough. Files that were deleted leave
            // their compressed pages' slabs empty, and whoever writes next has their share of the budget already.
            overspill_slab::reap_all(true);
            pager.trim((resident - self.memory).min(idle));
        }
        let needed = resident.saturating_sub(idle);
        if needed > self.memory {
            self.overhead += needed - self.memory;
        } else {
            self.overhead -= ((self.memory - needed) / 8).min(self.overhead);
        }
        // Not so much that there is nothing left to work with.
        self.overhead = self.overhead.min(stats.limit_bytes / 4);
        pager.set_overhead(self.overhead);
    }
}

/// This process's resident memory; `None` where it cannot be told just now.
fn resident_bytes() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size())
}
