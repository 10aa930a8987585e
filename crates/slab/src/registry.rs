//! Every cache of the process.

use std::ptr::NonNull;
use std::sync::RwLock;
use std::sync::atomic::Ordering;

use crate::list::{Linked, Links, List};
use crate::raw::Raw;

struct Registered;

// SAFETY: always the same field.
unsafe impl Linked<Raw> for Registered {
    fn links(at: NonNull<Raw>) -> *mut Links<Raw> {
        // SAFETY: a place inside what `at` points to; nothing is read.
        unsafe { &raw mut (*at.as_ptr()).registered }
    }
}

/// First of the locks. Not one of the model checker's: it is taken for reading but by who makes or ends caches.
static CACHES: RwLock<List<Raw, Registered>> = RwLock::new(List::new());

// SAFETY: readers only follow links, which change under the write lock alone.
unsafe impl Sync for List<Raw, Registered> {}

pub(crate) fn add(raw: NonNull<Raw>) {
    let mut caches = CACHES.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: alive until removed, and on no list.
    unsafe { caches.push_back(raw) };
}

pub(crate) fn remove(raw: NonNull<Raw>) {
    let mut caches = CACHES.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: added when it was made.
    unsafe { caches.remove(raw) };
}

/// Shows every cache, oldest first. No cache comes or goes meanwhile.
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

/// Shows the cache that so many are older than. The registry is locked meanwhile.
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

/// Reaps every cache, and gives unused pages of the global arena back. Without `force`, caches that were reaped less than
/// their interval ago are left alone. Returns the bytes of RAM that went back to the system.
pub fn reap_all(force: bool) -> usize {
    let reaped = reap_caches(force);
    if reaped > 0 || force { crate::global().trim() } else { 0 }
}

fn reap_caches(force: bool) -> usize {
    let mut reaped = 0;
    // Internal ones last: reaping others returns magazines and headers to them.
    for internal in [false, true] {
        each(|raw| {
            if raw.config.internal == internal {
                reaped += raw.reap(force);
            }
        });
    }
    reaped
}

/// Reaps everything for who found no memory, and would fail; `source` is what refused.
pub(crate) fn reap_for_want(source: Option<&dyn crate::PageSource>) {
    reap_caches(true);
    // Spans without a page in use may be all that stands between us and a limit.
    crate::global().trim();
    if let Some(source) = source {
        source.trim();
    }
}

/// What all caches have been reaped, for tests of the interval.
pub(crate) fn reaps(raw: &Raw) -> u64 {
    raw.reaps.load(Ordering::Relaxed)
}
