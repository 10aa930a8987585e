//! Allocation and free: from and to the loaded magazine, or past it.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::layers::Layers;
use crate::OutOfMemory;
use crate::debug::{guard, inject, report};

impl Layers {
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
        if inject::strikes() {
            self.slabs.failures.fetch_add(1, Ordering::Relaxed);
            return Err(OutOfMemory);
        }
        if self.slabs.options.guard > 0
            && let Some(object) = self.alloc_guarded()
        {
            return Ok(object);
        }
        if self.slabs.options.verify { self.slabs.alloc_verified() } else { self.alloc_slow() }
    }

    /// # Safety
    /// `object` came from `alloc` of this cache, and is used no more.
    #[inline(always)]
    pub(crate) unsafe fn free(&self, object: NonNull<u8>) {
        // SAFETY: by contract.
        if self.slabs.options.guard > 0 || unsafe { !self.cpu.push(object) } {
            // SAFETY: by contract.
            unsafe { self.free_cold(object) };
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn free_cold(&self, object: NonNull<u8>) {
        if self.slabs.options.guard > 0 && self.free_guarded(object) {
            return;
        }
        if self.slabs.options.verify {
            return self.slabs.free_verified(object);
        }
        // SAFETY: by contract of `free`.
        unsafe { self.free_slow(object) };
    }

    /// Allocates a guarded object if it is this allocation's turn and a place is free.
    fn alloc_guarded(&self) -> Option<NonNull<u8>> {
        let turn = self.guards.fetch_add(1, Ordering::Relaxed);
        if !turn.is_multiple_of(u64::from(self.slabs.options.guard)) {
            return None;
        }
        let (size, align) = (self.slabs.geometry.size, self.slabs.geometry.align);
        let object = guard::allocate(self.slabs.options.name, size, align)?;
        self.guarded.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the object is ours until it is handed out.
        unsafe { self.slabs.construct(object) };
        Some(object)
    }

    /// Frees a guarded object; returns false if the object is not guarded.
    fn free_guarded(&self, object: NonNull<u8>) -> bool {
        match guard::free(self.slabs.options.name, object) {
            Ok(guarded) => {
                self.guarded.fetch_sub(usize::from(guarded), Ordering::Relaxed);
                guarded
            }
            Err(bad) => {
                let mut report = self.slabs.describe(bad.fault, object);
                let (allocated, freed) = bad.traces();
                (report.allocated, report.freed) = (Some(allocated), Some(freed));
                report::fatal(&report)
            }
        }
    }
}
