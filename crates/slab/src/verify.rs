//! Verify: every object lies between red zones, is poisoned while free, and has a record of its users (R48).
//!
//! ```text
//!   buffer:  red zone │ object │ red zone │ tag: state, allocated by, freed by
//! ```
//! Red zones are written once and checked when an object is freed. A free object is poison, which is checked when it is
//! allocated and when its slab is destroyed. There are no magazines, so a freed object returns to its slab at once.

use std::ptr::NonNull;

use crate::OutOfMemory;
use crate::raw::Raw;
use crate::report::{self, Fault, Report};
use crate::slab::{Slab, locate};
use crate::trace::{ALLOCATED, FREE, Tag, Trace};

/// Fill bytes of free objects, of allocated objects before initialisation, and of red zones.
const POISON: u8 = 0xde;
const UNINIT: u8 = 0xba;
const RED: u8 = 0xfb;

/// Objects allocated by one call and not freed: see [`crate::ObjectCache::leaks`].
#[derive(Debug, Clone)]
pub struct Leak {
    /// Number of objects.
    pub objects: usize,
    /// Bytes of these objects.
    pub bytes: usize,
    trace: Trace,
}

impl std::fmt::Display for Leak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} objects, {} bytes, allocated by {}", self.objects, self.bytes, self.trace)
    }
}

impl Raw {
    /// # Safety
    /// `object` is of this verified cache.
    unsafe fn tag(&self, object: NonNull<u8>) -> NonNull<Tag> {
        // SAFETY: by contract there is room behind the object, and the geometry aligns it.
        unsafe { object.add(Tag::behind(self.geometry.size)).cast() }
    }

    fn zones(&self, object: NonNull<u8>) -> [(NonNull<u8>, usize); 2] {
        let (front, size) = (self.geometry.front, self.geometry.size);
        // SAFETY: both lie in the object's buffer.
        unsafe { [(object.sub(front), front), (object.add(size), Tag::behind(size) - size)] }
    }

    /// Marks a buffer of a new slab as free.
    ///
    /// # Safety
    /// `buffer` is of this cache, and nobody else uses it.
    pub(crate) unsafe fn mark_fresh(&self, buffer: NonNull<u8>) {
        // SAFETY: by contract; all of it lies in the buffer.
        unsafe {
            let object = buffer.add(self.geometry.front);
            for (zone, bytes) in self.zones(object) {
                zone.write_bytes(RED, bytes);
            }
            object.write_bytes(POISON, self.geometry.size);
            let tag = self.tag(object);
            tag.write(Tag { state: 0, allocated: Trace::NONE, freed: Trace::NONE });
            set_state(tag, FREE);
        }
    }

    pub(crate) fn alloc_verified(&self) -> Result<NonNull<u8>, OutOfMemory> {
        let object = self.alloc_from_slabs()?;
        // SAFETY: the object is ours alone now.
        unsafe {
            let tag = self.tag(object);
            if state(tag) != FREE {
                self.fault(Fault::Tag, object);
            }
            if !is_all(object, self.geometry.size, POISON) {
                self.fault(Fault::WriteAfterFree, object);
            }
            object.write_bytes(UNINIT, self.geometry.size);
            self.construct(object);
            let trace = Trace::capture();
            // `leaks` reads the trace under the lock.
            let _slabs = self.slabs.lock();
            (*tag.as_ptr()).allocated = trace;
            set_state(tag, ALLOCATED);
        }
        Ok(object)
    }

    pub(crate) fn free_verified(&self, object: NonNull<u8>) {
        if let Err(fault) = self.look(object) {
            self.fault(fault, object);
        }
        // SAFETY: an allocated object of this cache, which the caller gives up.
        unsafe {
            let (tag, trace) = (self.tag(object), Trace::capture());
            {
                let _slabs = self.slabs.lock();
                set_state(tag, FREE);
                (*tag.as_ptr()).freed = trace;
            }
            object.write_bytes(POISON, self.geometry.size);
        }
        self.put_into_slabs(&[object.as_ptr()]);
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
            match state(self.tag(object)) {
                ALLOCATED => {}
                FREE => return Err(Fault::DoubleFree),
                _ => return Err(Fault::Tag),
            }
            let whole = self.zones(object).into_iter().all(|(zone, bytes)| is_all(zone, bytes, RED));
            if whole { Ok(()) } else { Err(Fault::RedZone) }
        }
    }

    /// A report about an object.
    pub(crate) fn describe(&self, fault: Fault, object: NonNull<u8>) -> Report {
        let mut report = Report {
            fault,
            cache: self.config.name,
            owner: None,
            address: object.addr().get(),
            size: self.geometry.size,
            objects: 1,
            allocated: None,
            freed: None,
            here: Some(Trace::capture()),
        };
        match locate(self.this(), object) {
            Ok(slab) if self.config.verify => {
                // SAFETY: the slab is alive: it was found to be of this cache, and a fault ends the process.
                unsafe {
                    if Slab::index(slab, &self.geometry, object).is_ok() {
                        let tag = self.tag(object);
                        // A tag without a valid state was overwritten, and its traces with it.
                        if [ALLOCATED, FREE].contains(&state(tag)) {
                            report.allocated = Some((*tag.as_ptr()).allocated);
                            report.freed = Some((*tag.as_ptr()).freed);
                        }
                    }
                }
            }
            Err(Fault::OtherCache) => report.owner = crate::slabinfo::whatis(report.address).map(|w| w.cache),
            _ => {}
        }
        report
    }

    /// A free object of a slab that was written after its free.
    ///
    /// # Safety
    /// `slab` is alive, and its free buffers stay free during the call.
    unsafe fn written_after_free(&self, slab: NonNull<Slab>) -> Option<NonNull<u8>> {
        // SAFETY: by contract.
        (0..self.geometry.objects).find_map(|index| unsafe {
            let object = Slab::buffer(slab, &self.geometry, index).add(self.geometry.front);
            let written = Slab::is_free(slab, index) && !is_all(object, self.geometry.size, POISON);
            written.then_some(object)
        })
    }

    /// Reports a free buffer of a slab that was written, if there is one.
    ///
    /// # Safety
    /// As [`Raw::written_after_free`].
    pub(crate) unsafe fn check_free_buffers(&self, slab: NonNull<Slab>) {
        // SAFETY: by contract.
        if let Some(object) = unsafe { self.written_after_free(slab) } {
            self.fault(Fault::WriteAfterFree, object);
        }
    }

    /// Visits every slab of a verified cache, with the lock held.
    fn each_slab(&self, mut visit: impl FnMut(NonNull<Slab>)) {
        let slabs = self.slabs.lock();
        for list in [&slabs.partial, &slabs.empty, &slabs.full] {
            let mut at = list.head();
            while let Some(slab) = at {
                visit(slab);
                // SAFETY: a member of this list, which the lock keeps.
                at = unsafe { list.next(slab) };
            }
        }
    }

    /// Checks every free object now; aborts the process if one was written.
    pub(crate) fn check(&self) {
        if !self.config.verify {
            return;
        }
        let mut written = None;
        self.each_slab(|slab| {
            // SAFETY: the lock is held, so free buffers stay free. Each was poisoned before its bit was set.
            written = written.or_else(|| unsafe { self.written_after_free(slab) });
        });
        if let Some(object) = written {
            self.fault(Fault::WriteAfterFree, object);
        }
    }

    /// Allocated objects by the call that allocated them, most bytes first. Empty without verify: no traces exist.
    pub(crate) fn leaks(&self) -> Vec<Leak> {
        let mut leaks: Vec<Leak> = Vec::new();
        if !self.config.verify {
            return leaks;
        }
        self.each_slab(|slab| {
            for index in 0..self.geometry.objects {
                // SAFETY: the lock is held, so slabs stay and no trace is being written.
                unsafe {
                    if Slab::is_free(slab, index) {
                        continue;
                    }
                    let object = Slab::buffer(slab, &self.geometry, index).add(self.geometry.front);
                    let trace = (*self.tag(object).as_ptr()).allocated;
                    match leaks.iter_mut().find(|leak| leak.trace == trace) {
                        Some(leak) => {
                            leak.objects += 1;
                            leak.bytes += self.geometry.size;
                        }
                        None => leaks.push(Leak { objects: 1, bytes: self.geometry.size, trace }),
                    }
                }
            }
        });
        leaks.sort_by_key(|leak| std::cmp::Reverse(leak.bytes));
        leaks
    }

    /// Reports objects still allocated when their cache is dropped.
    pub(crate) fn report_leaks(&self) {
        for leak in self.leaks() {
            report::tell(&Report {
                fault: Fault::Leak,
                cache: self.config.name,
                owner: None,
                address: 0,
                size: self.geometry.size,
                objects: leak.objects,
                allocated: Some(leak.trace),
                freed: None,
                here: None,
            });
        }
    }
}

/// # Safety
/// `tag` is the tag of an object.
unsafe fn state(tag: NonNull<Tag>) -> u64 {
    // SAFETY: by contract.
    unsafe { (*tag.as_ptr()).state ^ tag.addr().get() as u64 }
}

/// # Safety
/// `tag` is the tag of a buffer that the caller owns.
unsafe fn set_state(tag: NonNull<Tag>, state: u64) {
    // SAFETY: by contract.
    unsafe { (*tag.as_ptr()).state = state ^ tag.addr().get() as u64 };
}

/// # Safety
/// `bytes` from `at` are readable.
unsafe fn is_all(at: NonNull<u8>, bytes: usize, value: u8) -> bool {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(at.as_ptr(), bytes) }.iter().all(|byte| *byte == value)
}
