//! Untyped caches: objects by size and alignment.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layers::Layers;
use super::life::Lazy;
use super::reserve::Reserve;
use crate::OutOfMemory;
use crate::debug::verify::Leak;
use crate::info::CacheInfo;
use crate::options::Options;
use crate::registry::Listed as _;

/// A cache of equal, untyped objects. It is created on first use, so that it can be a static.
///
/// On drop, its memory returns to the source. Objects still allocated keep their slabs, and are reported under verify.
pub struct ObjectCache {
    cache: Lazy,
}

impl std::fmt::Debug for ObjectCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectCache({:?})", self.cache.options)
    }
}

impl ObjectCache {
    /// A cache that is created on first use.
    pub const fn lazy(options: Options) -> Self {
        ObjectCache { cache: Lazy::new(options) }
    }

    /// Creates a cache now.
    ///
    /// # Errors
    /// When there is no memory, or the alignment is no power of two up to a page.
    pub fn new(options: Options) -> Result<Self, OutOfMemory> {
        let cache = Self::lazy(options);
        cache.layers()?;
        Ok(cache)
    }

    #[inline(always)]
    pub(crate) fn layers(&self) -> Result<&Layers, OutOfMemory> {
        self.cache.layers()
    }

    /// Allocates an object: uninitialised, or as its constructor or its last user left it.
    ///
    /// # Errors
    /// When no memory is left, even after a reap of every cache.
    #[inline(always)]
    pub fn alloc(&self) -> Result<NonNull<u8>, OutOfMemory> {
        self.layers()?.alloc()
    }

    /// Frees an object.
    ///
    /// # Safety
    /// `object` came from this cache, is in its constructed state if there is a constructor, and is used no more.
    #[inline(always)]
    pub unsafe fn free(&self, object: NonNull<u8>) {
        if let Ok(layers) = self.layers() {
            // SAFETY: by contract.
            unsafe { layers.free(object) };
        }
    }

    /// Sets `n` objects aside; the reserve hands them out without failing.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn reserve(&self, n: usize) -> Result<Reserve<'_>, OutOfMemory> {
        Reserve::new(self.layers()?, n)
    }

    /// Returns empty slabs to the source, unless the last reap is more recent than the interval and `force` is not set.
    /// Returns the bytes.
    pub fn reap(&self, force: bool) -> usize {
        self.layers().map_or(0, |layers| layers.reap(force))
    }

    /// Sets the least time between two unforced reaps ([`crate::REAP_INTERVAL`] by default).
    pub fn set_reap_interval(&self, interval: Duration) {
        if let Ok(layers) = self.layers() {
            layers.interval.store(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// State and counters of the cache; `None` if it cannot be created.
    pub fn info(&self) -> Option<CacheInfo> {
        self.layers().ok().map(Layers::info)
    }

    /// Under verify, checks every free object now. If one was written, reports it and aborts the process.
    pub fn check(&self) {
        if let Ok(layers) = self.layers() {
            layers.slabs.check();
        }
    }

    /// Under verify, the allocated objects by the call trace of their allocation, most bytes first.
    pub fn leaks(&self) -> Vec<Leak> {
        self.layers().map(|layers| layers.slabs.leaks()).unwrap_or_default()
    }
}
