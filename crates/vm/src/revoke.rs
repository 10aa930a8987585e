//! Revocation: leased memory is asked back when memory runs short.

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, Weak};

/// Nanoseconds that a lessee has to give back the bytes it was asked for, before waiters are refused.
pub(crate) const PATIENCE: u64 = 1_000_000_000;

/// The holder of a [`Lease`](crate::Lease).
pub trait Lessee: Send + Sync {
    /// Memory is short: give `bytes` back soon, by [`Lease::shrink`](crate::Lease::shrink), on another thread or later.
    /// Must neither block nor call the VM.
    fn revoke(&self, bytes: usize);
}

/// A lease, as the budget sees it.
pub(crate) struct Leased {
    bytes: AtomicUsize,
    /// Bytes that were asked back and have not been returned.
    asked: AtomicUsize,
    lessee: std::sync::Arc<dyn Lessee>,
}

impl Leased {
    pub(crate) fn new(lessee: std::sync::Arc<dyn Lessee>) -> Arc<Leased> {
        Arc::new(Leased { bytes: AtomicUsize::new(0), asked: AtomicUsize::new(0), lessee })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Takes off up to `bytes`; returns how many.
    pub(crate) fn sub(&self, bytes: usize) -> usize {
        let less = |now: usize| Some(now.saturating_sub(bytes));
        let before = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).unwrap_or(0);
        let _ = self.asked.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        bytes.min(before)
    }
}

/// All leases of a budget.
#[derive(Default)]
pub(crate) struct Leases(Mutex<Book>);

#[derive(Default)]
struct Book {
    leases: Vec<Weak<Leased>>,
    /// Time at which the bytes not yet returned were first asked back.
    since: Option<u64>,
}

impl Leases {
    pub(crate) fn add(&self, lease: &Arc<Leased>) {
        let mut book = self.0.lock();
        book.leases.retain(|known| known.strong_count() > 0);
        book.leases.push(Arc::downgrade(lease));
    }

    /// Bytes on lease.
    pub(crate) fn bytes(&self) -> usize {
        self.all().iter().map(|lease| lease.bytes()).sum()
    }

    fn all(&self) -> Vec<Arc<Leased>> {
        let book = self.0.lock();
        if book.leases.is_empty() {
            return Vec::new();
        }
        book.leases.iter().filter_map(Weak::upgrade).collect()
    }

    /// Asks lessees for `bytes` in all, less the bytes they were already asked for. Returns true while bytes that were
    /// asked for may still come.
    pub(crate) fn revoke(&self, bytes: usize, now: u64) -> bool {
        let leases = self.all();
        let outstanding: usize = leases.iter().map(|lease| lease.asked()).sum();
        let mut wanted = bytes.saturating_sub(outstanding);
        for lease in &leases {
            let part = lease.bytes().saturating_sub(lease.asked()).min(wanted);
            if part > 0 {
                lease.asked.fetch_add(part, Ordering::AcqRel);
                lease.lessee.revoke(part);
                wanted -= part;
            }
        }
        let outstanding: usize = leases.iter().map(|lease| lease.asked()).sum();
        let mut book = self.0.lock();
        if outstanding == 0 {
            book.since = None;
            return false;
        }
        now.saturating_sub(*book.since.get_or_insert(now)) < PATIENCE
    }
}
