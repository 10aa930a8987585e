//! Accounts: how much data may exist at all (R11), in pages, wherever they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The part of an account that a write may take from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Up to the limit.
    Normal,
    /// Up to the limit and the reserve: for data that a writer was already told is written.
    Reserve,
}

/// A count of pages that exist, with a limit. Chunks hold it; a page leaves it when it is discarded.
#[derive(Debug)]
pub struct Account {
    limit: AtomicU64,
    reserve: AtomicU64,
    used: AtomicU64,
    /// Pages that may still find room: for display.
    room: AtomicU64,
}

impl Account {
    /// An account for at most `limit` pages, with no reserve.
    pub fn new(limit: u64) -> Arc<Account> {
        Arc::new(Account {
            limit: AtomicU64::new(limit),
            reserve: AtomicU64::new(0),
            used: AtomicU64::new(0),
            room: AtomicU64::new(u64::MAX),
        })
    }

    /// The limit, in pages.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit. An account above it keeps its pages.
    pub fn set_limit(&self, pages: u64) {
        self.limit.store(pages, Ordering::Relaxed);
    }

    /// Pages beyond the limit open to [`Allowance::Reserve`].
    pub fn reserve(&self) -> u64 {
        self.reserve.load(Ordering::Relaxed)
    }

    /// Changes the reserve.
    pub fn set_reserve(&self, pages: u64) {
        self.reserve.store(pages, Ordering::Relaxed);
    }

    /// Sets how many more pages may find room, as far as that can be told.
    pub fn set_room(&self, pages: u64) {
        self.room.store(pages, Ordering::Relaxed);
    }

    /// Pages that the limit leaves and that may find room.
    pub fn left(&self) -> u64 {
        self.limit().saturating_sub(self.used()).min(self.room.load(Ordering::Relaxed))
    }

    /// Pages that exist.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn try_charge(&self, pages: u64, allowance: Allowance) -> bool {
        let top = match allowance {
            Allowance::Normal => self.limit(),
            Allowance::Reserve => self.limit().saturating_add(self.reserve()),
        };
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(pages).filter(|&sum| sum <= top)
            })
            .is_ok()
    }

    pub(crate) fn charge_forced(&self, pages: u64) {
        self.used.fetch_add(pages, Ordering::Relaxed);
    }

    pub(crate) fn uncharge(&self, pages: u64) {
        self.used.fetch_sub(pages, Ordering::Relaxed);
    }
}
