//! Allocation and free of a verified cache's objects.

use std::ptr::NonNull;

use super::records::{Slab, SlabLayer};
use super::slab::locate;
use crate::OutOfMemory;
use crate::debug::report::Fault;
use crate::debug::trace::Trace;

impl SlabLayer {
    pub(crate) fn alloc_verified(&self) -> Result<NonNull<u8>, OutOfMemory> {
        let object = self.alloc()?;
        // SAFETY: the object is ours alone now.
        unsafe {
            let marks = self.geometry.marks();
            if let Err(fault) = marks.take(object) {
                self.fault(fault, object);
            }
            self.construct(object);
            let trace = Trace::capture();
            // `leaks` reads the trace under the lock.
            let _slabs = self.slabs.lock();
            marks.set_allocated(object, trace);
        }
        Ok(object)
    }

    pub(crate) fn free_verified(&self, object: NonNull<u8>) {
        if let Err(fault) = self.look(object) {
            self.fault(fault, object);
        }
        // SAFETY: an allocated object of this cache, which the caller gives up.
        unsafe {
            let (marks, trace) = (self.geometry.marks(), Trace::capture());
            {
                let _slabs = self.slabs.lock();
                marks.set_freed(object, trace);
            }
            marks.poison(object);
        }
        self.put(&[object.as_ptr()]);
    }

    /// Checks that `object` is an allocated object of this cache with intact red zones.
    fn look(&self, object: NonNull<u8>) -> Result<(), Fault> {
        let slabs = self.slabs.lock();
        let slab = locate(self.this(), object)?;
        // SAFETY: the lock, and then the caller's allocated object, keeps the slab alive.
        unsafe {
            let index = Slab::index(slab, &self.geometry, object)?;
            if Slab::is_free(slab, index) {
                return Err(Fault::DoubleFree);
            }
            drop(slabs);
            self.geometry.marks().check_allocated(object)
        }
    }
}
