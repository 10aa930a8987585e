//! The list of every cache of the process.

use std::ptr::NonNull;
use std::sync::RwLock;
use std::sync::atomic::Ordering;

use crate::list::{Linked, Links, List};
use crate::raw::Raw;

struct Registered;

// SAFETY: `links` always returns the same field.
unsafe impl Linked<Raw> for Registered {
    fn links(at: NonNull<Raw>) -> *mut Links<Raw> {
        // SAFETY: the address of a field of `*at`; nothing is read.
        unsafe { &raw mut (*at.as_ptr()).registered }
    }
}

/// First in the lock order. The model checker does not see it: only making or ending a cache takes it for writing.
static CACHES: RwLock<List<Raw, Registered>> = RwLock::new(List::new());

// SAFETY: readers only follow links, which change only under the write lock.
unsafe impl Sync for List<Raw, Registered> {}

pub(crate) fn add(raw: NonNull<Raw>) {
    let mut caches = CACHES.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: the cache is alive until it is removed, and on no list.
    unsafe { caches.push_back(raw) };
}

pub(crate) fn remove(raw: NonNull<Raw>) {
    let mut caches = CACHES.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: `add` put it on this list.
    unsafe { caches.remove(raw) };
}

/// Visits every cache, oldest first, under the registry's lock: no cache is added or removed meanwhile.
pub(crate) fn each(mut visit: impl FnMut(&Raw)) {
    let caches = CACHES.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut at = caches.head();
    while let Some(raw) = at {
        // SAFETY: listed caches are alive.
        unsafe {
            visit(raw.as_ref());
            at = caches.next(raw);
        }
    }
}

/// Visits the cache at position `number`, the oldest first, under the registry's lock.
pub(crate) fn nth<R>(number: usize, visit: impl FnOnce(&Raw) -> R) -> Option<R> {
    let caches = CACHES.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut at = caches.head();
    for _ in 0..number {
        // SAFETY: listed caches are alive.
        at = unsafe { caches.next(at?) };
    }
    // SAFETY: as above.
    at.map(|raw| visit(unsafe { raw.as_ref() }))
}

/// Reaps every cache, then trims the global arena if that freed anything. Without `force`, skips caches that were
/// reaped less than their interval ago; with it, always trims. Returns the bytes of RAM that the arena gave back.
pub fn reap_all(force: bool) -> usize {
    let reaped = reap_caches(force);
    if reaped > 0 || force { crate::global().trim() } else { 0 }
}

fn reap_caches(force: bool) -> usize {
    let mut reaped = 0;
    // Internal caches come last: reaping the others frees magazines and headers into them.
    for internal in [false, true] {
        each(|raw| {
            if raw.config.internal == internal {
                reaped += raw.reap(force);
            }
        });
    }
    reaped
}

/// Reaps everything for an allocation that would fail. `source` is the source that refused, if not the global arena.
pub(crate) fn reap_for_want(source: Option<&dyn crate::PageSource>) {
    reap_caches(true);
    // Empty spans may be all that keeps the allocation over a limit.
    crate::global().trim();
    if let Some(source) = source {
        source.trim();
    }
}

/// The number of reaps of a cache.
pub(crate) fn reaps(raw: &Raw) -> u64 {
    raw.reaps.load(Ordering::Relaxed)
}
