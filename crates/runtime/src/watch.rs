//! Keeps the process within its memory.

use std::time::{Duration, Instant};

use overspill_vm::Pager;

/// Metadata that must have been freed before the heap is trimmed.
const TRIM_ABOVE: usize = 4 << 20;
/// How often the process's memory is measured, at most.
const MEASURE: Duration = Duration::from_millis(50);
/// Interval of searching the heap for free pages, at least.
const TRIM: Duration = Duration::from_secs(2);

/// Keeps the process within its memory (iron rule 3): memory that the budget does not count, mostly holes in heap and
/// slabs, is measured and counted as overhead.
pub(crate) struct MemoryWatch {
    memory: usize,
    overhead: usize,
    /// Peak of metadata since the heap was last trimmed.
    metadata: usize,
    measured: Instant,
    trimmed: Instant,
}

impl MemoryWatch {
    pub(crate) fn new(memory: usize) -> MemoryWatch {
        let now = Instant::now();
        // Somewhat lower, because it is checked only now and then.
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
            // Other parts need it now: reserves are allocated again soon enough. Deleted files leave their compressed
            // pages' slabs empty, and later writers have their share of the budget already.
            overspill_slab::reap_all(true);
            pager.trim((resident - self.memory).min(idle));
        }
        let needed = resident.saturating_sub(idle);
        if needed > self.memory {
            self.overhead += needed - self.memory;
        } else {
            self.overhead -= ((self.memory - needed) / 8).min(self.overhead);
        }
        // A bound, so that some memory is left to work with.
        self.overhead = self.overhead.min(stats.limit_bytes / 4);
        pager.set_overhead(self.overhead);
    }
}

/// This process's resident memory; `None` if it cannot be read just now.
fn resident_bytes() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size())
}
