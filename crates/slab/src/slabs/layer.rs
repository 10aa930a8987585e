//! The slab layer's work: objects leave and return, slabs are made and destroyed; and the caches of this crate's own,
//! which have no other layer.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::geometry::{Geometry, OFF_SLAB_OBJECTS, header_bytes};
use super::lists::Slabs;
pub(crate) use super::records::SlabLayer;
use super::slab::{PAGES, SLABS_STAY, Slab};
use crate::debug::inject;
use crate::info::{CacheInfo, Flags};
use crate::options::Options;
use crate::pages::source::PageSource as _;
use crate::pages::{arena, pagemap};
use crate::registry::{self, Listed, Member};
use crate::sync::{Leaf, Mutex};
use crate::{OutOfMemory, PAGE};

impl SlabLayer {
    /// # Errors
    /// When no slab can hold such objects.
    pub(crate) fn new(options: Options) -> Result<Self, OutOfMemory> {
        let geometry = Geometry::new(options.size, options.align, options.verify)?;
        let slabs = Mutex::new(Slabs::new(options.verify));
        Ok(SlabLayer { options, geometry, slabs, failures: AtomicU64::new(0) })
    }

    /// Allocates one object from the slabs, past the magazines.
    pub(crate) fn alloc(&self) -> Result<NonNull<u8>, OutOfMemory> {
        let mut one = [std::ptr::null_mut()];
        self.take(&mut one);
        NonNull::new(one[0]).ok_or(OutOfMemory)
    }

    /// Fills at least half of `out` from the slabs, or less for lack of memory. Returns the number of objects.
    pub(crate) fn take(&self, out: &mut [*mut u8]) -> usize {
        let mut n = 0;
        loop {
            n += self.slabs.lock().take(&self.geometry, &mut out[n..]);
            // Half a magazine is enough: another slab for the rest would waste memory.
            if n * 2 >= out.len() {
                return n;
            }
            // The lock is not held while growing. The next iteration sees slabs that other threads added meanwhile.
            match self.grow() {
                // SAFETY: the slab was just made, and is on no list.
                Ok(slab) => unsafe { self.slabs.lock().add(slab) },
                Err(OutOfMemory) => {
                    if n == 0 {
                        self.failures.fetch_add(1, Ordering::Relaxed);
                    }
                    return n;
                }
            }
        }
    }

    /// Returns objects to their slabs. A pointer to no such object is reported and ends the process: memory is corrupt.
    pub(crate) fn put(&self, objects: &[*mut u8]) {
        if objects.len() > 1 {
            // With millions of objects every header is a cache miss: prefetching makes the misses overlap.
            objects.iter().for_each(|object| PAGES.prefetch(object.addr()));
            objects.iter().filter_map(|object| PAGES.get(object.addr())).for_each(pagemap::prefetch);
        }
        let mut slabs = self.slabs.lock();
        for object in objects.iter().filter_map(|object| NonNull::new(*object)) {
            if let Err(fault) = slabs.put(self.this(), &self.geometry, object) {
                drop(slabs);
                self.fault(fault, object);
            }
        }
    }

    fn pages(&self) -> Option<NonNull<u8>> {
        let layout = self.slab_layout();
        match &self.options.source {
            Some(source) => source.grow(layout),
            None => arena::global().grow(layout),
        }
    }

    fn slab_layout(&self) -> Layout {
        Layout::from_size_align(self.geometry.slab, PAGE).expect("checked when the cache was made")
    }

    /// # Safety
    /// `pages` came from [`SlabLayer::pages`], and is used no more.
    unsafe fn give_pages(&self, pages: NonNull<u8>) {
        // SAFETY: by contract.
        unsafe {
            match &self.options.source {
                Some(source) => source.release(pages, self.slab_layout()),
                None => arena::global().release(pages, self.slab_layout()),
            }
        }
    }

    /// Makes a slab of constructed objects (poisoned under verify). Reaps every cache before it gives up.
    fn grow(&self) -> Result<NonNull<Slab>, OutOfMemory> {
        self.try_grow().or_else(|_| {
            registry::reap_for_want(self.options.source.as_deref());
            self.try_grow()
        })
    }

    fn try_grow(&self) -> Result<NonNull<Slab>, OutOfMemory> {
        let pages = self.pages().ok_or(OutOfMemory)?;
        // SAFETY: an on-slab header lies inside the pages. Pages go back only while nobody else has seen them.
        unsafe {
            let header = match self.geometry.header {
                Some(at) => Ok(pages.add(at)),
                None if inject::strikes() => Err(OutOfMemory),
                None => headers().and_then(SlabLayer::alloc),
            };
            let colour =
                if self.options.colour { self.slabs.lock().grown % self.geometry.colours } else { 0 };
            let named = header.and_then(|header| {
                let slab = header.cast::<Slab>();
                // The header comes first: `whatis` reads it as soon as the map names it.
                Slab::init(slab, self.this(), pages, &self.geometry, colour);
                PAGES
                    .set(pages.addr().get(), self.geometry.slab, Some(slab))
                    .inspect_err(|_| self.drop_header(slab))?;
                Ok(slab)
            });
            let slab = named.inspect_err(|_| self.give_pages(pages))?;
            for index in 0..self.geometry.objects {
                let buffer = Slab::buffer(slab, &self.geometry, index);
                if self.options.verify {
                    self.geometry.marks().fresh(buffer.add(self.geometry.front));
                } else {
                    self.construct(buffer.add(self.geometry.front));
                }
            }
            Ok(slab)
        }
    }

    /// # Safety
    /// `object` is in a buffer of this cache, and nobody else uses it.
    pub(crate) unsafe fn construct(&self, object: NonNull<u8>) {
        if let Some(constructor) = self.options.constructor {
            // SAFETY: by contract, and `with` is the function that `call` expects.
            unsafe { (constructor.call)(constructor.with, object) };
        }
    }

    /// Destroys a slab.
    ///
    /// # Safety
    /// `slab` is empty and on no list.
    unsafe fn shrink(&self, slab: NonNull<Slab>) {
        // SAFETY: by contract; the header is not read after it has been given back.
        unsafe {
            let pages = (*slab.as_ptr()).pages;
            {
                // Once this thread has the lock, no `whatis` reads the slab. The source is called without it.
                let _stay = SLABS_STAY.read().unwrap_or_else(PoisonError::into_inner);
                let cleared = PAGES.set(pages.addr().get(), self.geometry.slab, None);
                debug_assert!(cleared.is_ok());
            }
            self.drop_header(slab);
            self.give_pages(pages);
        }
    }

    /// # Safety
    /// `header` belongs to a slab that is used no more.
    unsafe fn drop_header(&self, header: NonNull<Slab>) {
        if self.geometry.header.is_none()
            && let Ok(headers) = headers()
        {
            headers.put(&[header.as_ptr().cast()]);
        }
    }

    /// Releases empty slabs. Returns their bytes.
    pub(crate) fn release_empty(&self) -> usize {
        let mut detached = {
            let mut slabs = self.slabs.lock();
            let detached = slabs.empty.take();
            slabs.slabs -= detached.len();
            slabs.gone += detached.len();
            detached
        };
        let bytes = detached.len() * self.geometry.slab;
        while let Some(slab) = detached.pop_front() {
            // SAFETY: the slab is empty, and off the cache's lists.
            unsafe {
                if self.options.verify {
                    self.check_free_buffers(slab);
                }
                self.shrink(slab);
            }
        }
        bytes
    }

    /// The slab layer's part of a cache's state; the other layers are said to be empty.
    pub(crate) fn info(&self) -> CacheInfo {
        let g = &self.geometry;
        let slabs = self.slabs.lock();
        CacheInfo {
            name: self.options.name,
            flags: Flags {
                constructed: self.options.constructor.is_some(),
                verify: self.options.verify,
                off_slab: g.header.is_none(),
                ..Flags::default()
            },
            object_size: g.size,
            buffer_size: g.buffer,
            slab_size: g.slab,
            slab_objects: g.objects,
            slabs: slabs.slabs,
            objects: slabs.slabs * g.objects,
            active: slabs.in_use,
            cached: 0,
            memory: slabs.slabs * g.slab,
            reclaimable: slabs.empty.len() * g.slab,
            fragmentation: 0.0,
            hits: 0,
            fills: 0,
            drains: 0,
            exchanges: 0,
            failures: self.failures.load(Ordering::Relaxed),
            reaps: 0,
            grown: slabs.grown,
        }
        .with_fragmentation()
    }
}

/// A cache of this crate's own, which describes other caches: a slab layer alone, never destroyed.
pub(crate) struct Internal {
    layer: SlabLayer,
    member: Member,
    reaps: AtomicU64,
    last_reap: Leaf<Option<Instant>>,
}

impl Internal {
    fn new(name: &'static str, size: usize) -> Result<Internal, OutOfMemory> {
        let layer = SlabLayer::new(Options::new(name, size))?;
        Ok(Internal { layer, member: Member::new(), reaps: AtomicU64::new(0), last_reap: Leaf::new(None) })
    }
}

/// An unforced reap does nothing if the last reap is more recent than this (R46).
pub const REAP_INTERVAL: Duration = Duration::from_secs(15);

impl Listed for Internal {
    fn is_internal(&self) -> bool {
        true
    }

    fn reap(&self, force: bool) -> usize {
        let now = Instant::now();
        {
            let mut last = self.last_reap.lock();
            if !force && last.is_some_and(|last| now.saturating_duration_since(last) < REAP_INTERVAL) {
                return 0;
            }
            *last = Some(now);
        }
        self.reaps.fetch_add(1, Ordering::Relaxed);
        self.layer.release_empty()
    }

    fn info(&self) -> CacheInfo {
        let mut info = self.layer.info();
        info.flags.internal = true;
        info.reaps = self.reaps.load(Ordering::Relaxed);
        info
    }
}

/// A place for an internal cache.
pub(crate) type InternalPlace = OnceLock<Internal>;

/// The internal cache in `place`, created on first use.
///
/// # Errors
/// When no slab can hold such objects.
#[cfg(not(feature = "shuttle"))]
pub(crate) fn internal(
    place: &'static InternalPlace,
    name: &'static str,
    size: usize,
) -> Result<&'static SlabLayer, OutOfMemory> {
    if place.get().is_none() && place.set(Internal::new(name, size)?).is_ok() {
        let there = place.get().ok_or(OutOfMemory)?;
        // SAFETY: a static; only the thread that set it comes here.
        unsafe { registry::add(NonNull::from(&there.member), NonNull::from(there)) };
    }
    place.get().map(|there| &there.layer).ok_or(OutOfMemory)
}

/// The same for the model checker, whose locks do not outlive a run: each run has its own.
#[cfg(feature = "shuttle")]
pub(crate) fn internal(
    _: &'static InternalPlace,
    name: &'static str,
    size: usize,
) -> Result<&'static SlabLayer, OutOfMemory> {
    shuttle::lazy_static! {
        static ref MADE: crate::sync::Leaf<Vec<&'static Internal>> = crate::sync::Leaf::new(Vec::new());
    }
    let mut made = MADE.lock();
    if let Some(there) = made.iter().find(|there| there.layer.options.name == name) {
        return Ok(&there.layer);
    }
    let fresh: &'static Internal = Box::leak(Box::new(Internal::new(name, size)?));
    // SAFETY: leaked, and just made.
    unsafe { registry::add(NonNull::from(&fresh.member), NonNull::from(fresh)) };
    made.push(fresh);
    Ok(&fresh.layer)
}

/// The cache of headers that lie off slab. Its own slabs have theirs on slab.
fn headers() -> Result<&'static SlabLayer, OutOfMemory> {
    static HEADERS: InternalPlace = OnceLock::new();
    internal(&HEADERS, "slab header", header_bytes(OFF_SLAB_OBJECTS))
}
