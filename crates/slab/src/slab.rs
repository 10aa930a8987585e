//! A slab: pages cut into buffers, with a bit for each buffer, set while it is free.
//!
//! Bits, not links through free buffers: constructed objects keep every byte, a double free is detected, and allocated
//! objects can be enumerated.

use std::ptr::NonNull;

use crate::geometry::Geometry;
use crate::list::{Linked, Links, List};
use crate::pagemap::PageMap;
use crate::raw::Raw;
use crate::report::Fault;

/// Maps every page of any cache to its slab.
pub(crate) static PAGES: PageMap<Slab, 12> = PageMap::new();

/// The header. `objects.div_ceil(64)` words of bits follow it, set where a buffer is free. `cache`, `pages` and `first`
/// never change; the lock around the cache's [`Slabs`] guards all the rest.
#[repr(C)]
pub(crate) struct Slab {
    links: Links<Slab>,
    pub(crate) cache: NonNull<Raw>,
    pub(crate) pages: NonNull<u8>,
    pub(crate) first: NonNull<u8>,
    pub(crate) in_use: u32,
    /// Buffers that are in use only because a magazine holds them: counted during a reap, else 0.
    pub(crate) cached: u32,
}

pub(crate) struct InSlabs;

// SAFETY: `links` always returns the same field.
unsafe impl Linked<Slab> for InSlabs {
    fn links(at: NonNull<Slab>) -> *mut Links<Slab> {
        // SAFETY: the address of a field of `*at`; nothing is read.
        unsafe { &raw mut (*at.as_ptr()).links }
    }
}

impl Slab {
    /// Bytes of a header for `objects` buffers.
    pub(crate) const fn bytes(objects: usize) -> usize {
        size_of::<Slab>() + objects.div_ceil(64) * size_of::<u64>()
    }

    /// Initialises a header with all buffers free.
    ///
    /// # Safety
    /// `at` has room for [`Slab::bytes`] of the geometry's objects, aligned to 8; `pages` is the slab's memory.
    pub(crate) unsafe fn init(
        at: NonNull<Slab>,
        cache: NonNull<Raw>,
        pages: NonNull<u8>,
        geometry: &Geometry,
        colour: usize,
    ) {
        // SAFETY: the geometry allows only colours that keep the buffers inside the slab.
        let first = unsafe { pages.add(colour * geometry.align) };
        // SAFETY: by contract.
        unsafe {
            at.write(Slab { links: Links::new(), cache, pages, first, in_use: 0, cached: 0 });
            for word in 0..geometry.objects.div_ceil(64) {
                let here = geometry.objects - word * 64;
                Self::word(at, word).write(if here >= 64 { u64::MAX } else { (1 << here) - 1 });
            }
        }
    }

    /// # Safety
    /// `at` is a header with more than `word` words.
    unsafe fn word(at: NonNull<Slab>, word: usize) -> *mut u64 {
        // SAFETY: the words follow the header, by contract this many.
        unsafe { at.as_ptr().add(1).cast::<u64>().add(word) }
    }

    /// True if the buffer is free.
    ///
    /// # Safety
    /// `at` is alive, `index` is that of one of its buffers, and the lock around the cache's slabs is held.
    pub(crate) unsafe fn is_free(at: NonNull<Slab>, index: usize) -> bool {
        // SAFETY: by contract.
        unsafe { *Self::word(at, index / 64) >> (index % 64) & 1 == 1 }
    }

    /// The address of a buffer.
    ///
    /// # Safety
    /// `at` is alive, and `index` is that of one of its buffers.
    pub(crate) unsafe fn buffer(at: NonNull<Slab>, geometry: &Geometry, index: usize) -> NonNull<u8> {
        // SAFETY: by contract.
        unsafe { (*at.as_ptr()).first.add(index * geometry.buffer) }
    }

    /// The index of an object in this slab.
    ///
    /// # Safety
    /// `at` is alive, and the object's page belongs to it.
    pub(crate) unsafe fn index(
        at: NonNull<Slab>,
        geometry: &Geometry,
        object: NonNull<u8>,
    ) -> Result<usize, Fault> {
        // SAFETY: by contract; `first` never changes.
        let first = unsafe { (*at.as_ptr()).first }.addr().get() + geometry.front;
        let offset = object.addr().get().checked_sub(first).ok_or(Fault::NotAnObject)?;
        let index = geometry.index(offset);
        if index >= geometry.objects {
            return Err(Fault::UnusedTail);
        }
        if offset == index * geometry.buffer { Ok(index) } else { Err(Fault::NotAnObject) }
    }
}

/// The slabs of a cache. Full slabs are on no list, except under verify, which enumerates them.
pub(crate) struct Slabs {
    pub(crate) partial: List<Slab, InSlabs>,
    pub(crate) empty: List<Slab, InSlabs>,
    pub(crate) full: List<Slab, InSlabs>,
    keeps_full: bool,
    /// The number of slabs.
    pub(crate) slabs: usize,
    /// Buffers in use: allocated, or in a magazine.
    pub(crate) in_use: usize,
    /// Slabs ever added; selects the colour of the next.
    pub(crate) grown: usize,
    pub(crate) gone: usize,
}

impl Slabs {
    pub(crate) const fn new(keeps_full: bool) -> Self {
        Slabs {
            partial: List::new(),
            empty: List::new(),
            full: List::new(),
            keeps_full,
            slabs: 0,
            in_use: 0,
            grown: 0,
            gone: 0,
        }
    }

    /// Adds an empty slab.
    ///
    /// # Safety
    /// `slab` is initialised, of this cache, and on no list.
    pub(crate) unsafe fn add(&mut self, slab: NonNull<Slab>) {
        // SAFETY: by contract.
        unsafe { self.empty.push_front(slab) };
        self.slabs += 1;
        self.grown += 1;
    }

    /// Takes free buffers into `out` until it is full or none is left; returns their number.
    pub(crate) fn take(&mut self, geometry: &Geometry, out: &mut [*mut u8]) -> usize {
        let mut n = 0;
        while n < out.len() {
            let slab = match self.partial.head() {
                Some(slab) => slab,
                None => {
                    let Some(slab) = self.empty.pop_front() else { break };
                    // SAFETY: just taken off its list.
                    unsafe { self.partial.push_front(slab) };
                    slab
                }
            };
            // SAFETY: listed slabs are alive, and `&mut self` is the lock.
            unsafe {
                let taken = Self::take_from(slab, geometry, &mut out[n..]);
                n += taken;
                self.in_use += taken;
                if (*slab.as_ptr()).in_use as usize == geometry.objects {
                    self.partial.remove(slab);
                    if self.keeps_full {
                        self.full.push_front(slab);
                    }
                }
            }
        }
        n
    }

    /// # Safety
    /// `slab` is alive, and the caller holds the lock.
    unsafe fn take_from(slab: NonNull<Slab>, geometry: &Geometry, out: &mut [*mut u8]) -> usize {
        let mut n = 0;
        for word in 0..geometry.objects.div_ceil(64) {
            // SAFETY: by contract; one word for 64 objects.
            let place = unsafe { &mut *Slab::word(slab, word) };
            while *place != 0 && n < out.len() {
                let index = word * 64 + place.trailing_zeros() as usize;
                *place &= *place - 1;
                // SAFETY: only bits of existing buffers are ever set.
                out[n] = unsafe { Slab::buffer(slab, geometry, index).add(geometry.front) }.as_ptr();
                n += 1;
            }
            if n == out.len() {
                break;
            }
        }
        // SAFETY: by contract.
        unsafe { (*slab.as_ptr()).in_use += u32::try_from(n).expect("at most 512") };
        n
    }

    /// Returns a buffer to its slab.
    ///
    /// # Errors
    /// When the object is not of this cache, or free already; nothing changes then.
    pub(crate) fn put(
        &mut self,
        cache: NonNull<Raw>,
        geometry: &Geometry,
        object: NonNull<u8>,
    ) -> Result<(), Fault> {
        let slab = locate(cache, object)?;
        // SAFETY: a slab in the map is alive as long as one of its objects is out. (A free of an object that is not out
        // breaks the caller's contract; it is detected unless the slab is destroyed at this moment.)
        unsafe {
            let index = Slab::index(slab, geometry, object)?;
            if Slab::is_free(slab, index) {
                return Err(Fault::DoubleFree);
            }
            *Slab::word(slab, index / 64) |= 1 << (index % 64);
            let was_full = (*slab.as_ptr()).in_use as usize == geometry.objects;
            (*slab.as_ptr()).in_use -= 1;
            self.in_use -= 1;
            if was_full && self.keeps_full {
                self.full.remove(slab);
            }
            match ((*slab.as_ptr()).in_use, was_full) {
                (0, true) => self.empty.push_front(slab),
                (0, false) => {
                    self.partial.remove(slab);
                    self.empty.push_front(slab);
                }
                (_, true) => self.partial.push_front(slab),
                (_, false) => {}
            }
        }
        Ok(())
    }
}

/// The slab of an object that the caller says is of `cache`.
pub(crate) fn locate(cache: NonNull<Raw>, object: NonNull<u8>) -> Result<NonNull<Slab>, Fault> {
    let slab = PAGES.get(object.addr().get()).ok_or(Fault::NotAnObject)?;
    // SAFETY: a slab in the map is alive (see `put`), and `cache` never changes.
    let owner = unsafe { (*slab.as_ptr()).cache };
    if owner == cache { Ok(slab) } else { Err(Fault::OtherCache) }
}
