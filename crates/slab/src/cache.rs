//! Untyped caches: objects by size and alignment.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::raw::{Config, Constructor, Raw};
use crate::reserve::Reserve;
use crate::slabinfo::CacheInfo;
use crate::source::PageSource;
use crate::verify::Leak;
use crate::{OutOfMemory, slabinfo};

/// The options of a new cache.
#[derive(Clone)]
pub struct Options {
    config: Config,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Config { name, size, align, verify, magazines, guard, .. } = &self.config;
        write!(
            f,
            "Options({name}: {size} bytes, align {align}, verify {verify}, magazines {magazines}, guard {guard})"
        )
    }
}

impl Options {
    /// Objects of `size` bytes, aligned to 8. slabinfo shows the name.
    pub const fn new(name: &'static str, size: usize) -> Self {
        Options { config: Config::new(name, size) }
    }

    /// Alignment: a power of two up to a page.
    #[must_use]
    pub const fn align(mut self, align: usize) -> Self {
        self.config.align = align;
        self
    }

    /// Calls `make` for every object that enters a slab. Callers must free objects in their constructed state.
    ///
    /// # Safety
    /// `make` initialises the object it is given, and does not fail, allocate or block.
    #[must_use]
    pub const unsafe fn constructor(mut self, make: unsafe fn(NonNull<u8>)) -> Self {
        unsafe fn call(with: *const (), object: NonNull<u8>) {
            // SAFETY: `with` was made from a function of this type, below.
            let make: unsafe fn(NonNull<u8>) = unsafe { std::mem::transmute(with) };
            // SAFETY: by the caller's contract.
            unsafe { make(object) };
        }
        self.config.constructor = Some(Constructor { call, with: make as *const () });
        self
    }

    pub(crate) const fn unconstructed(mut self) -> Self {
        self.config.constructor = None;
        self
    }

    pub(crate) const fn sized(mut self, size: usize, align: usize) -> Self {
        self.config.size = size;
        self.config.align = align;
        self
    }

    pub(crate) const fn constructed_by(mut self, constructor: Constructor) -> Self {
        self.config.constructor = Some(constructor);
        self
    }

    /// Takes pages from `source` instead of from [`crate::global`].
    #[must_use]
    pub fn source(mut self, source: Arc<dyn PageSource>) -> Self {
        self.config.source = Some(source);
        self
    }

    /// Checks every object (see the crate's page). Slower, and objects take more memory.
    #[must_use]
    pub const fn verify(mut self, on: bool) -> Self {
        self.config.verify = on;
        self
    }

    /// Guards one in `every` allocations that leave the fast path; 0 guards none.
    #[must_use]
    pub const fn guard(mut self, every: u32) -> Self {
        self.config.guard = every;
        self
    }

    /// Without magazines, every operation takes the cache's lock, and a freed object returns to its slab at once.
    #[must_use]
    pub const fn magazines(mut self, on: bool) -> Self {
        self.config.magazines = on;
        self
    }

    /// Starts the objects of each slab at another offset, so that they fall on different cache lines.
    #[must_use]
    pub const fn colour(mut self, on: bool) -> Self {
        self.config.colour = on;
        self
    }
}

/// True if the environment asks for verification of this cache: `OVERSPILL_SLAB_VERIFY` is `all` or a list of names.
fn verify_asked(name: &str) -> bool {
    std::env::var("OVERSPILL_SLAB_VERIFY")
        .is_ok_and(|names| names.split(',').any(|n| n == "all" || n == name))
}

/// A cache of equal, untyped objects. It is created on first use, so that it can be a static.
///
/// On drop, its memory returns to the source. Objects still allocated keep their slabs, and are reported under verify.
pub struct ObjectCache {
    options: Options,
    raw: AtomicPtr<Raw>,
}

impl std::fmt::Debug for ObjectCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectCache({:?})", self.options)
    }
}

impl ObjectCache {
    /// A cache that is created on first use.
    pub const fn lazy(options: Options) -> Self {
        ObjectCache { options, raw: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Creates a cache now.
    ///
    /// # Errors
    /// When there is no memory, or the alignment is no power of two up to a page.
    pub fn new(options: Options) -> Result<Self, OutOfMemory> {
        let cache = Self::lazy(options);
        cache.raw()?;
        Ok(cache)
    }

    #[inline(always)]
    pub(crate) fn raw(&self) -> Result<&Raw, OutOfMemory> {
        match NonNull::new(self.raw.load(Ordering::Acquire)) {
            // SAFETY: alive until `self` is dropped.
            Some(raw) => Ok(unsafe { raw.as_ref() }),
            None => self.make(),
        }
    }

    #[cold]
    fn make(&self) -> Result<&Raw, OutOfMemory> {
        static MAKING: Mutex<()> = Mutex::new(());
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut raw = self.raw.load(Ordering::Acquire);
        if raw.is_null() {
            let mut config = self.options.config.clone();
            config.verify |= verify_asked(config.name);
            raw = Raw::create(config)?.as_ptr();
            self.raw.store(raw, Ordering::Release);
        }
        // SAFETY: just created or found, and alive until `self` is dropped.
        Ok(unsafe { &*raw })
    }

    /// Allocates an object: uninitialised, or as its constructor or its last user left it.
    ///
    /// # Errors
    /// When no memory is left, even after a reap of every cache.
    #[inline(always)]
    pub fn alloc(&self) -> Result<NonNull<u8>, OutOfMemory> {
        self.raw()?.alloc()
    }

    /// Frees an object.
    ///
    /// # Safety
    /// `object` came from this cache, is in its constructed state if there is a constructor, and is used no more.
    #[inline(always)]
    pub unsafe fn free(&self, object: NonNull<u8>) {
        if let Ok(raw) = self.raw() {
            // SAFETY: by contract.
            unsafe { raw.free(object) };
        }
    }

    /// Sets `n` objects aside; the reserve hands them out without failing.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn reserve(&self, n: usize) -> Result<Reserve<'_>, OutOfMemory> {
        Reserve::new(self.raw()?, n)
    }

    /// Returns empty slabs to the source, unless the last reap is more recent than the interval and `force` is not set.
    /// Returns the bytes.
    pub fn reap(&self, force: bool) -> usize {
        self.raw().map_or(0, |raw| raw.reap(force))
    }

    /// Sets the least time between two unforced reaps ([`crate::REAP_INTERVAL`] by default).
    pub fn set_reap_interval(&self, interval: Duration) {
        if let Ok(raw) = self.raw() {
            raw.interval.store(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// State and counters of the cache; `None` if it cannot be created.
    pub fn info(&self) -> Option<CacheInfo> {
        self.raw().ok().map(slabinfo::info)
    }

    /// Under verify, checks every free object now. If one was written, reports it and aborts the process.
    pub fn check(&self) {
        if let Ok(raw) = self.raw() {
            raw.check();
        }
    }

    /// Under verify, the allocated objects by the call trace of their allocation, most bytes first.
    pub fn leaks(&self) -> Vec<Leak> {
        self.raw().map(Raw::leaks).unwrap_or_default()
    }
}

impl Drop for ObjectCache {
    fn drop(&mut self) {
        if let Some(raw) = NonNull::new(*self.raw.get_mut()) {
            // SAFETY: `&mut self`, so no reference to the cache is left.
            unsafe {
                raw.as_ref().report_leaks();
                Raw::destroy(raw);
            }
        }
    }
}
