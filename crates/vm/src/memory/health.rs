//! Health of a store's writes. After a failed write the store is left alone for a while, longer each time; operations
//! that need memory go on waiting. Waiters are told only when it has refused all writes for [`PATIENCE`].

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

const MS: u64 = 1_000_000;
/// The first pause after a failed write; each further one is twice as long, up to the longest.
const FIRST_PAUSE: u64 = 50 * MS;
const LONGEST_PAUSE: u64 = 2_000 * MS;
/// A store that has refused all writes for so long counts as broken.
const PATIENCE: u64 = 15_000 * MS;

/// The meaning of a failed write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The time at which to try the store again.
    pub(crate) again_at: u64,
    /// True if it counts as broken: then nobody should be left waiting for it.
    pub(crate) is_broken: bool,
}

#[derive(Debug)]
struct Trouble {
    since: u64,
    again_at: u64,
    pause: u64,
}

/// A leaf lock.
#[derive(Debug, Default)]
pub(crate) struct Health {
    trouble: Mutex<Option<Trouble>>,
    /// `trouble.is_some()` and broken, readable without the lock.
    is_failing: AtomicBool,
    is_broken: AtomicBool,
}

impl Health {
    /// A write went through.
    pub(crate) fn wrote(&self) {
        if self.is_failing() {
            *self.trouble.lock() = None;
            self.is_failing.store(false, Ordering::Release);
            self.is_broken.store(false, Ordering::Release);
        }
    }

    /// A write failed at `now`.
    pub(crate) fn failed(&self, now: u64) -> Failure {
        let mut trouble = self.trouble.lock();
        let trouble = trouble.get_or_insert(Trouble { since: now, again_at: now, pause: FIRST_PAUSE / 2 });
        // Writes that fail together count as one failure.
        if trouble.again_at <= now {
            trouble.pause = (trouble.pause * 2).min(LONGEST_PAUSE);
            trouble.again_at = now + trouble.pause;
        }
        let is_broken = now - trouble.since >= PATIENCE;
        self.is_failing.store(true, Ordering::Release);
        self.is_broken.store(is_broken, Ordering::Release);
        Failure { again_at: trouble.again_at, is_broken }
    }

    /// True if it has refused all writes for so long that nobody should wait for it.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// True if the last write failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Acquire)
    }

    /// True if the store is left alone just now.
    pub(crate) fn rests(&self, now: u64) -> bool {
        self.is_failing() && self.trouble.lock().as_ref().is_some_and(|trouble| now < trouble.again_at)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_failures_together_are_one() {
        let health = Health::default();
        assert!(!health.rests(0));
        let first = health.failed(100 * MS);
        assert_eq!(first, Failure { again_at: 150 * MS, is_broken: false });
        assert_eq!(health.failed(101 * MS), first);
        assert!(health.rests(149 * MS) && !health.rests(150 * MS));
        assert_eq!(health.failed(150 * MS).again_at, 250 * MS);
        let mut now = 250 * MS;
        (0..10).for_each(|_| now = health.failed(now).again_at);
        assert_eq!(health.failed(now).again_at, now + LONGEST_PAUSE);
    }

    #[test]
    fn only_time_without_a_single_success_breaks_it() {
        let health = Health::default();
        for n in 0..1000 {
            assert!(!health.failed(n).is_broken);
        }
        health.wrote();
        assert!(!health.is_failing() && !health.failed(PATIENCE).is_broken && !health.is_broken());
        assert!(health.failed(2 * PATIENCE).is_broken && health.is_broken());
        health.wrote();
        assert!(!health.is_broken());
    }
}
