//! The count of inodes, and its limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of inodes, and its limit.
#[derive(Debug)]
pub(crate) struct Slots {
    used: AtomicU64,
    limit: u64,
}

/// One inode's place in the count; returned on drop.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Slots>);

impl Slots {
    pub(crate) fn new(limit: u64) -> Arc<Slots> {
        Arc::new(Slots { used: AtomicU64::new(0), limit })
    }

    pub(crate) fn take(self: &Arc<Slots>) -> Option<Slot> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.limit).then_some(used + 1)
            })
            .ok()
            .map(|_| Slot(self.clone()))
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}
