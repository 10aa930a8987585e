//! The slabs of a cache, by how full they are: buffers leave and return to them.

use std::ptr::NonNull;

use super::geometry::Geometry;
pub(crate) use super::records::Slabs;
use super::records::{Slab, SlabLayer};
use super::slab::locate;
use crate::debug::report::Fault;
use crate::pages::list::List;

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
        layer: NonNull<SlabLayer>,
        geometry: &Geometry,
        object: NonNull<u8>,
    ) -> Result<(), Fault> {
        let slab = locate(layer, object)?;
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
