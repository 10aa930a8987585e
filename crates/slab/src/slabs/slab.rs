//! A slab: pages cut into buffers, with a bit for each buffer, set while it is free.
//!
//! Bits, not links through free buffers: constructed objects keep every byte, a double free is detected, and allocated
//! objects can be enumerated.

use std::ptr::NonNull;
use std::sync::RwLock;

use super::geometry::Geometry;
pub(crate) use super::records::Slab;
use super::records::SlabLayer;
use crate::debug::report::Fault;
use crate::pages::list::Links;
use crate::pages::pagemap::PageMap;

/// Maps every page of any cache to its slab.
pub(crate) static PAGES: PageMap<Slab, 12> = PageMap::new();

/// Taken for reading to destroy a slab, and for writing by [`whatis`](super::whatis::whatis), which may then read any
/// slab it finds.
pub(crate) static SLABS_STAY: RwLock<()> = RwLock::new(());

impl Slab {
    /// Initialises a header with all buffers free.
    ///
    /// # Safety
    /// `at` has room for [`header_bytes`](super::geometry::header_bytes) of the geometry's objects, aligned to 8; `pages` is the slab's memory.
    pub(crate) unsafe fn init(
        at: NonNull<Slab>,
        layer: NonNull<SlabLayer>,
        pages: NonNull<u8>,
        geometry: &Geometry,
        colour: usize,
    ) {
        // SAFETY: the geometry allows only colours that keep the buffers inside the slab.
        let first = unsafe { pages.add(colour * geometry.align) };
        // SAFETY: by contract.
        unsafe {
            at.write(Slab { links: Links::new(), layer, pages, first, in_use: 0, cached: 0 });
            for word in 0..geometry.objects.div_ceil(64) {
                let here = geometry.objects - word * 64;
                Self::word(at, word).write(if here >= 64 { u64::MAX } else { (1 << here) - 1 });
            }
        }
    }

    /// # Safety
    /// `at` is a header with more than `word` words.
    pub(super) unsafe fn word(at: NonNull<Slab>, word: usize) -> *mut u64 {
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

/// The slab of an object that the caller says is of `layer`.
pub(crate) fn locate(layer: NonNull<SlabLayer>, object: NonNull<u8>) -> Result<NonNull<Slab>, Fault> {
    let slab = PAGES.get(object.addr().get()).ok_or(Fault::NotAnObject)?;
    // SAFETY: a slab in the map is alive (see `Slabs::put`), and `layer` never changes.
    let owner = unsafe { (*slab.as_ptr()).layer };
    if owner == layer { Ok(slab) } else { Err(Fault::OtherCache) }
}
