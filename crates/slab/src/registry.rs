//! The list of every cache of the process. A cache registers what the list needs of it ([`Listed`]): so growth, at the
//! bottom, can ask all caches for memory back.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::{PoisonError, RwLock};

use crate::info::CacheInfo;
use crate::pages::arena;
use crate::pages::list::{Linked, Links, List};
use crate::pages::source::PageSource;

/// A cache, as the list sees it.
pub(crate) trait Listed: Sync {
    /// True for a cache of this crate's own, which describes others.
    fn is_internal(&self) -> bool;

    /// Returns empty slabs to the source, unless the last reap is recent and not `force`. Returns their bytes.
    fn reap(&self, force: bool) -> usize;

    fn info(&self) -> CacheInfo;
}

/// The place of a cache in the list.
pub(crate) struct Member {
    links: UnsafeCell<Links<Member>>,
    /// Set by [`add`].
    cache: UnsafeCell<Option<NonNull<dyn Listed>>>,
}

// SAFETY: the registry's lock guards both cells, and a listed cache is Sync.
unsafe impl Send for Member {}
// SAFETY: as for Send.
unsafe impl Sync for Member {}

impl Member {
    pub(crate) const fn new() -> Self {
        Member { links: UnsafeCell::new(Links::new()), cache: UnsafeCell::new(None) }
    }
}

struct Registered;

// SAFETY: `links` always returns the same field.
unsafe impl Linked<Member> for Registered {
    fn links(at: NonNull<Member>) -> *mut Links<Member> {
        // SAFETY: a member lives while it is listed.
        unsafe { at.as_ref() }.links.get()
    }
}

/// First in the lock order. The model checker does not see it: only making or ending a cache takes it for writing.
static CACHES: RwLock<List<Member, Registered>> = RwLock::new(List::new());

// SAFETY: readers only follow links, which change only under the write lock.
unsafe impl Sync for List<Member, Registered> {}

/// Lists a cache.
///
/// # Safety
/// `member` is on no list; it and `cache` live until [`remove`].
pub(crate) unsafe fn add(member: NonNull<Member>, cache: NonNull<dyn Listed>) {
    let mut caches = CACHES.write().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: by contract.
    unsafe {
        *member.as_ref().cache.get() = Some(cache);
        caches.push_back(member);
    }
}

/// # Safety
/// `member` was added.
pub(crate) unsafe fn remove(member: NonNull<Member>) {
    let mut caches = CACHES.write().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: by contract.
    unsafe { caches.remove(member) };
}

/// Visits every cache, oldest first, under the registry's lock: no cache is added or removed meanwhile.
fn each(mut visit: impl FnMut(&dyn Listed)) {
    let caches = CACHES.read().unwrap_or_else(PoisonError::into_inner);
    let mut at = caches.head();
    while let Some(member) = at {
        // SAFETY: listed caches are alive.
        unsafe {
            if let Some(cache) = *member.as_ref().cache.get() {
                visit(cache.as_ref());
            }
            at = caches.next(member);
        }
    }
}

/// Visits the cache at position `number`, the oldest first, under the registry's lock.
pub(crate) fn nth<R>(number: usize, visit: impl FnOnce(&dyn Listed) -> R) -> Option<R> {
    let caches = CACHES.read().unwrap_or_else(PoisonError::into_inner);
    let mut at = caches.head();
    for _ in 0..number {
        // SAFETY: listed caches are alive.
        at = unsafe { caches.next(at?) };
    }
    // SAFETY: as above.
    unsafe { (*at?.as_ref().cache.get()).map(|cache| visit(cache.as_ref())) }
}

/// Reaps every cache, then trims the global arena if that freed anything. Without `force`, skips caches that were
/// reaped less than their interval ago; with it, always trims. Returns the bytes of RAM that the arena gave back.
pub fn reap_all(force: bool) -> usize {
    let reaped = reap_caches(force);
    if reaped > 0 || force { arena::global().trim() } else { 0 }
}

fn reap_caches(force: bool) -> usize {
    let mut reaped = 0;
    // Internal caches come last: reaping the others frees magazines and headers into them.
    for internal in [false, true] {
        each(|cache| {
            if cache.is_internal() == internal {
                reaped += cache.reap(force);
            }
        });
    }
    reaped
}

/// Reaps everything for an allocation that would fail. `source` is the source that refused, if not the global arena.
pub(crate) fn reap_for_want(source: Option<&dyn PageSource>) {
    reap_caches(true);
    // Empty spans may be all that keeps the allocation over a limit.
    arena::global().trim();
    if let Some(source) = source {
        source.trim();
    }
}
