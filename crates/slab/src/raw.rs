//! The record of a cache: configuration, CPU layer, depot, slabs; and the paths between slabs and source.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::cpu::{CpuLayer, Magazine, Slot};
use crate::depot::Depot;
use crate::geometry::{Geometry, OFF_SLAB_OBJECTS};
use crate::list::Links;
use crate::report::{self, Fault};
use crate::slab::{PAGES, Slab, Slabs};
use crate::source::PageSource;
use crate::sync::Mutex;
use crate::{OutOfMemory, PAGE, pagemap, registry};

/// An unforced reap does nothing if the last reap is more recent than this (R46).
pub const REAP_INTERVAL: Duration = Duration::from_secs(15);

/// The largest buffer of each magazine size, and the size: larger objects have smaller magazines, or none.
const MAGAZINES: [(usize, usize); 3] = [(256, 125), (4096, 61), (32768, 5)];

/// Constructs an object. It cannot fail, allocate or block.
#[derive(Clone, Copy)]
pub(crate) struct Constructor {
    /// Called with `with` and the address of the object.
    pub(crate) call: unsafe fn(*const (), NonNull<u8>),
    pub(crate) with: *const (),
}

// SAFETY: `with` is a pointer to a function, not to data.
unsafe impl Send for Constructor {}
// SAFETY: as for Send.
unsafe impl Sync for Constructor {}

/// The configuration of a new cache.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) align: usize,
    pub(crate) constructor: Option<Constructor>,
    pub(crate) source: Option<Arc<dyn PageSource>>,
    pub(crate) verify: bool,
    pub(crate) magazines: bool,
    pub(crate) colour: bool,
    /// One in so many slow allocations is guarded; 0 guards none.
    pub(crate) guard: u32,
    /// A cache of this crate's own, which describes other caches.
    pub(crate) internal: bool,
}

impl Config {
    pub(crate) const fn new(name: &'static str, size: usize) -> Config {
        Config {
            name,
            size,
            align: 8,
            constructor: None,
            source: None,
            verify: false,
            magazines: true,
            colour: false,
            guard: 0,
            internal: false,
        }
    }
}

pub(crate) struct Raw {
    pub(crate) cpu: CpuLayer,
    pub(crate) config: Config,
    pub(crate) geometry: Geometry,
    /// Objects per magazine; 0 without magazines.
    rounds: usize,
    pub(crate) depot: Mutex<Depot>,
    pub(crate) slabs: Mutex<Slabs>,
    pub(crate) registered: Links<Raw>,
    pub(crate) failures: AtomicU64,
    pub(crate) reaps: AtomicU64,
    pub(crate) guards: AtomicU64,
    /// Guarded objects in use.
    pub(crate) guarded: AtomicUsize,
    /// Least time between reaps, in milliseconds.
    pub(crate) interval: AtomicU64,
    /// Layout of the allocation that holds this record and the slots behind it.
    whole: Layout,
}

// SAFETY: the locks, or the rules of the CPU layer, guard everything behind pointers.
unsafe impl Send for Raw {}
// SAFETY: as for Send.
unsafe impl Sync for Raw {}

impl Raw {
    /// Creates a cache and registers it.
    ///
    /// # Errors
    /// When there is no memory, or no slab can hold such objects.
    pub(crate) fn create(config: Config) -> Result<NonNull<Raw>, OutOfMemory> {
        let geometry = Geometry::new(config.size, config.align, config.verify)?;
        let wanted = if config.magazines && !config.verify { CpuLayer::slots_needed() } else { 0 };
        let rounds =
            MAGAZINES.iter().find(|(size, _)| geometry.buffer <= *size).map_or(0, |(_, rounds)| *rounds);
        let slots = if rounds == 0 { 0 } else { wanted };
        let bytes = (size_of::<Raw>().next_multiple_of(align_of::<Slot>()) + slots * size_of::<Slot>())
            .next_multiple_of(PAGE);
        let whole = Layout::from_size_align(bytes, PAGE).map_err(|_| OutOfMemory)?;
        let at = crate::global().grow(whole).ok_or(OutOfMemory)?;
        // SAFETY: the slots lie behind the record, in the memory just grown.
        unsafe {
            let behind = at.add(size_of::<Raw>().next_multiple_of(align_of::<Slot>())).cast::<Slot>();
            let cpu = if slots == 0 { CpuLayer::off() } else { CpuLayer::new(behind.as_ptr()) };
            let keeps_full = config.verify;
            at.cast::<Raw>().write(Raw {
                cpu,
                config,
                geometry,
                rounds: if slots == 0 { 0 } else { rounds },
                depot: Mutex::new(Depot::new()),
                slabs: Mutex::new(Slabs::new(keeps_full)),
                registered: Links::new(),
                failures: AtomicU64::new(0),
                reaps: AtomicU64::new(0),
                guards: AtomicU64::new(0),
                guarded: AtomicUsize::new(0),
                interval: AtomicU64::new(u64::try_from(REAP_INTERVAL.as_millis()).expect("15 s")),
                whole,
            });
        }
        registry::add(at.cast());
        Ok(at.cast())
    }

    /// Destroys a cache: its magazines, its empty slabs and its record. Slabs with allocated objects stay, and with
    /// them the record, unregistered; returns false then.
    ///
    /// # Safety
    /// Nobody uses the cache any more, except to read objects that are still allocated.
    pub(crate) unsafe fn destroy(at: NonNull<Raw>) -> bool {
        registry::remove(at);
        // SAFETY: by contract.
        let raw = unsafe { at.as_ref() };
        raw.flush();
        raw.release_empty();
        let left = raw.slabs.lock().slabs;
        if left > 0 {
            return false;
        }
        let whole = raw.whole;
        // SAFETY: no slab names the cache and nobody else uses it. It was grown with this layout.
        unsafe {
            at.drop_in_place();
            crate::global().release(at.cast(), whole);
        }
        true
    }

    pub(crate) fn this(&self) -> NonNull<Raw> {
        NonNull::from(self)
    }

    /// # Errors
    /// When there is no memory, even after a reap of every cache.
    #[inline(always)]
    pub(crate) fn alloc(&self) -> Result<NonNull<u8>, OutOfMemory> {
        match self.cpu.pop() {
            Some(object) => Ok(object),
            None => self.alloc_cold(),
        }
    }

    #[cold]
    #[inline(never)]
    fn alloc_cold(&self) -> Result<NonNull<u8>, OutOfMemory> {
        if crate::inject::strikes() {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return Err(OutOfMemory);
        }
        if self.config.guard > 0
            && let Some(object) = self.alloc_guarded()
        {
            return Ok(object);
        }
        if self.config.verify { self.alloc_verified() } else { self.alloc_slow() }
    }

    /// # Safety
    /// `object` came from `alloc` of this cache, and is used no more.
    #[inline(always)]
    pub(crate) unsafe fn free(&self, object: NonNull<u8>) {
        // SAFETY: by contract.
        if self.config.guard > 0 || unsafe { !self.cpu.push(object) } {
            // SAFETY: by contract.
            unsafe { self.free_cold(object) };
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn free_cold(&self, object: NonNull<u8>) {
        if self.config.guard > 0 && self.free_guarded(object) {
            return;
        }
        if self.config.verify {
            return self.free_verified(object);
        }
        // SAFETY: by contract of `free`.
        unsafe { self.free_slow(object) };
    }

    /// Allocates one object from the slabs, past the magazines.
    pub(crate) fn alloc_from_slabs(&self) -> Result<NonNull<u8>, OutOfMemory> {
        let mut one = [std::ptr::null_mut()];
        self.take_from_slabs(&mut one);
        NonNull::new(one[0]).ok_or(OutOfMemory)
    }

    /// Fills at least half of `out` from the slabs, or less for lack of memory. Returns the number of objects.
    pub(crate) fn take_from_slabs(&self, out: &mut [*mut u8]) -> usize {
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
    pub(crate) fn put_into_slabs(&self, objects: &[*mut u8]) {
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

    /// Reports a fault of an object, and ends the process.
    #[cold]
    pub(crate) fn fault(&self, fault: Fault, object: NonNull<u8>) -> ! {
        report::fatal(&self.describe(fault, object))
    }

    fn pages(&self) -> Option<NonNull<u8>> {
        let layout = self.slab_layout();
        match &self.config.source {
            Some(source) => source.grow(layout),
            None => crate::global().grow(layout),
        }
    }

    fn slab_layout(&self) -> Layout {
        Layout::from_size_align(self.geometry.slab, PAGE).expect("checked when the cache was made")
    }

    /// # Safety
    /// `pages` came from [`Raw::pages`], and is used no more.
    unsafe fn give_pages(&self, pages: NonNull<u8>) {
        // SAFETY: by contract.
        unsafe {
            match &self.config.source {
                Some(source) => source.release(pages, self.slab_layout()),
                None => crate::global().release(pages, self.slab_layout()),
            }
        }
    }

    /// Makes a slab of constructed objects (poisoned under verify). Reaps every cache before it gives up.
    fn grow(&self) -> Result<NonNull<Slab>, OutOfMemory> {
        self.try_grow().or_else(|_| {
            registry::reap_for_want(self.config.source.as_deref());
            self.try_grow()
        })
    }

    fn try_grow(&self) -> Result<NonNull<Slab>, OutOfMemory> {
        let pages = self.pages().ok_or(OutOfMemory)?;
        // SAFETY: an on-slab header lies inside the pages. Pages go back only while nobody else has seen them.
        unsafe {
            let header = match self.geometry.header {
                Some(at) => Ok(pages.add(at)),
                None => headers().and_then(Raw::alloc),
            };
            let colour = if self.config.colour { self.slabs.lock().grown % self.geometry.colours } else { 0 };
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
                if self.config.verify {
                    self.mark_fresh(buffer);
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
        if let Some(constructor) = self.config.constructor {
            // SAFETY: by contract, and `with` is the function that `call` expects.
            unsafe { (constructor.call)(constructor.with, object) };
        }
    }

    /// Destroys a slab.
    ///
    /// # Safety
    /// `slab` is empty and on no list.
    pub(crate) unsafe fn shrink(&self, slab: NonNull<Slab>) {
        // SAFETY: by contract; the header is not read after it has been given back.
        unsafe {
            let pages = (*slab.as_ptr()).pages;
            {
                // Once this thread has the lock, no `whatis` reads the slab. The source is called without it.
                let _stay =
                    crate::slabinfo::SLABS_STAY.read().unwrap_or_else(std::sync::PoisonError::into_inner);
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
            // SAFETY: allocated from this cache when the slab was made.
            unsafe { headers.free(header.cast()) };
        }
    }

    /// Allocates a magazine of this cache's size; `None` for lack of memory.
    pub(crate) fn new_magazine(&self) -> Option<*mut Magazine> {
        let at = magazines(self.rounds)?.alloc().ok()?.cast::<Magazine>().as_ptr();
        // SAFETY: allocated with room for `rounds` objects.
        unsafe { Magazine::init(at, self.rounds) };
        Some(at)
    }

    /// Frees an empty magazine that the caller holds.
    pub(crate) fn drop_magazine(&self, magazine: *mut Magazine) {
        if let (Some(cache), Some(at)) = (magazines(self.rounds), NonNull::new(magazine)) {
            // SAFETY: `new_magazine` allocated it from this cache, and the caller gives it up.
            unsafe { cache.free(at.cast()) };
        }
    }

    /// Bytes of this cache's own record.
    pub(crate) fn own_bytes(&self) -> usize {
        self.whole.size()
    }
}

/// Creates a cache that describes others: without magazines, in the global arena, never destroyed once in use.
fn internal(name: &'static str, size: usize) -> Result<NonNull<Raw>, OutOfMemory> {
    Raw::create(Config { magazines: false, internal: true, ..Config::new(name, size) })
}

struct Internal(NonNull<Raw>);

// SAFETY: a cache is Sync.
unsafe impl Send for Internal {}
// SAFETY: as for Send.
unsafe impl Sync for Internal {}

/// The cache in `place`, created on first use.
#[cfg(not(feature = "shuttle"))]
fn internal_in(
    place: &'static OnceLock<Internal>,
    name: &'static str,
    size: usize,
) -> Result<&'static Raw, OutOfMemory> {
    let there = match place.get() {
        Some(there) => there,
        None => {
            let fresh = internal(name, size)?;
            if let Err(Internal(unused)) = place.set(Internal(fresh)) {
                // SAFETY: another thread set its cache first, and nobody has seen this one.
                unsafe { Raw::destroy(unused) };
            }
            place.get().ok_or(OutOfMemory)?
        }
    };
    // SAFETY: never destroyed once set.
    Ok(unsafe { there.0.as_ref() })
}

/// The same for the model checker, whose locks do not outlive a run: each run has its own.
#[cfg(feature = "shuttle")]
fn internal_in(
    _: &'static OnceLock<Internal>,
    name: &'static str,
    size: usize,
) -> Result<&'static Raw, OutOfMemory> {
    shuttle::lazy_static! {
        static ref MADE: crate::sync::Leaf<Vec<(&'static str, Internal)>> = crate::sync::Leaf::new(Vec::new());
    }
    let mut made = MADE.lock();
    if made.iter().all(|(n, _)| *n != name) {
        let fresh = Internal(internal(name, size)?);
        made.push((name, fresh));
    }
    let there = made.iter().find(|(n, _)| *n == name).ok_or(OutOfMemory)?;
    // SAFETY: never destroyed.
    Ok(unsafe { there.1.0.as_ref() })
}

/// The cache of headers that lie off slab. Its own slabs have theirs on slab.
fn headers() -> Result<&'static Raw, OutOfMemory> {
    static HEADERS: OnceLock<Internal> = OnceLock::new();
    internal_in(&HEADERS, "slab header", Slab::bytes(OFF_SLAB_OBJECTS))
}

/// The cache of magazines with so many rounds.
fn magazines(rounds: usize) -> Option<&'static Raw> {
    static CACHES: [OnceLock<Internal>; 3] = [const { OnceLock::new() }; 3];
    const NAMES: [&str; 3] = ["magazine 125", "magazine 61", "magazine 5"];
    let i = MAGAZINES.iter().position(|(_, r)| *r == rounds)?;
    internal_in(&CACHES[i], NAMES[i], Magazine::bytes(rounds)).ok()
}
