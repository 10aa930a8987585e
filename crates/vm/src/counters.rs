//! Counters and gauges of the VM, for `stats`. They decide only how much an eager pageout has left to do.

use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_bytes(&self, bytes: usize) {
        self.add(bytes as u64);
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    resident_pages: AtomicI64,
    dirty_pages: AtomicI64,
    clustered_pages: AtomicI64,
    /// Bytes given to readers and taken from writers.
    pub(crate) served: Counter,
    /// Bytes copied for that within this process: to and from frames, encoded and decoded, into batches (R30).
    pub(crate) copied: Counter,
    pub(crate) compressed: Counter,
    pub(crate) bypassed: Counter,
    pub(crate) recompressed: Counter,
    pub(crate) compacted: Counter,
    pub(crate) page_ins: Counter,
    pub(crate) page_outs: Counter,
    pub(crate) store_reads: Counter,
    pub(crate) store_writes: Counter,
    pub(crate) errors: Counter,
}

impl Counters {
    pub(crate) fn adjust(&self, resident: i64, dirty: i64, stored: i64) {
        for (gauge, by) in
            [(&self.resident_pages, resident), (&self.dirty_pages, dirty), (&self.clustered_pages, stored)]
        {
            if by != 0 {
                gauge.fetch_add(by, Ordering::Relaxed);
            }
        }
    }

    /// Bytes went to a reader or came from a writer, which copies them once.
    pub(crate) fn serve(&self, bytes: usize) {
        self.served.add_bytes(bytes);
        self.copied.add_bytes(bytes);
    }

    pub(crate) fn resident_pages(&self) -> usize {
        read(&self.resident_pages)
    }

    pub(crate) fn dirty_pages(&self) -> usize {
        read(&self.dirty_pages)
    }

    pub(crate) fn clustered_pages(&self) -> usize {
        read(&self.clustered_pages)
    }
}

/// Gauges are read while others move them, so a moment's sum may be below zero.
fn read(gauge: &AtomicI64) -> usize {
    usize::try_from(gauge.load(Ordering::Relaxed)).unwrap_or(0)
}
