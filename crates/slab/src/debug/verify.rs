//! Verify: every object lies between red zones, is poisoned while free, and has a record of its users (R48).
//!
//! ```text
//!   buffer:  red zone │ object │ red zone │ tag: state, allocated by, freed by
//! ```
//! Red zones are written once and checked when an object is freed. A free object is poison, which is checked when it is
//! allocated and when its slab is destroyed. There are no magazines, so a freed object returns to its slab at once.
//! This file has the marks of one buffer; the slab layer decides when they are made and checked.

use std::ptr::NonNull;

use super::report::Fault;
use super::trace::Trace;

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
    pub(crate) trace: Trace,
}

impl std::fmt::Display for Leak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} objects, {} bytes, allocated by {}", self.objects, self.bytes, self.trace)
    }
}

/// The record behind each object of a verified cache, after its red zone.
#[derive(Debug)]
struct Tag {
    /// A state below, mixed with the tag's address so that a copied tag is detected.
    state: u64,
    allocated: Trace,
    freed: Trace,
}

const ALLOCATED: u64 = 0xa110_ca7e_d0b1_ec75;
const FREE: u64 = 0xf4ee_b0f4_0b1e_c75f;

/// Least bytes of red zone behind an object.
const RED_ZONE: usize = 8;

impl Tag {
    /// Offset of the tag from the start of an object of this size.
    const fn behind(size: usize) -> usize {
        (size + RED_ZONE).next_multiple_of(align_of::<Tag>())
    }
}

/// Where the marks of a cache's objects lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    /// Bytes of an object.
    pub(crate) size: usize,
    /// Bytes of the red zone before it.
    pub(crate) front: usize,
}

impl Marks {
    /// Bytes before and behind an object of this size and alignment.
    pub(crate) const fn room(size: usize, align: usize) -> (usize, usize) {
        let front = if align > 16 { align } else { 16 };
        (front, Tag::behind(size) - size + size_of::<Tag>())
    }

    /// # Safety
    /// `object` is of the verified cache of these marks: so for all functions below.
    unsafe fn tag(self, object: NonNull<u8>) -> NonNull<Tag> {
        // SAFETY: by contract there is room behind the object, and the geometry aligns it.
        unsafe { object.add(Tag::behind(self.size)).cast() }
    }

    unsafe fn zones(self, object: NonNull<u8>) -> [(NonNull<u8>, usize); 2] {
        // SAFETY: by contract both lie in the object's buffer.
        unsafe {
            [
                (object.sub(self.front), self.front),
                (object.add(self.size), Tag::behind(self.size) - self.size),
            ]
        }
    }

    /// Marks an object of a new slab as free.
    ///
    /// # Safety
    /// Nobody else uses the object.
    pub(crate) unsafe fn fresh(self, object: NonNull<u8>) {
        // SAFETY: by contract; all of it lies in the buffer.
        unsafe {
            for (zone, bytes) in self.zones(object) {
                zone.write_bytes(RED, bytes);
            }
            object.write_bytes(POISON, self.size);
            let tag = self.tag(object);
            tag.write(Tag { state: 0, allocated: Trace::NONE, freed: Trace::NONE });
            set_state(tag, FREE);
        }
    }

    /// Checks an object that was free until now, and makes it uninitialised.
    ///
    /// # Safety
    /// The caller just took the object from its slab.
    pub(crate) unsafe fn take(self, object: NonNull<u8>) -> Result<(), Fault> {
        // SAFETY: the object is the caller's alone.
        unsafe {
            if state(self.tag(object)) != FREE {
                return Err(Fault::Tag);
            }
            if self.is_written(object) {
                return Err(Fault::WriteAfterFree);
            }
            object.write_bytes(UNINIT, self.size);
        }
        Ok(())
    }

    /// Notes the allocation.
    ///
    /// # Safety
    /// The caller owns the object, and holds the lock under which traces are read.
    pub(crate) unsafe fn set_allocated(self, object: NonNull<u8>, trace: Trace) {
        // SAFETY: by contract.
        unsafe {
            let tag = self.tag(object);
            (*tag.as_ptr()).allocated = trace;
            set_state(tag, ALLOCATED);
        }
    }

    /// Notes the free.
    ///
    /// # Safety
    /// As for [`Marks::set_allocated`].
    pub(crate) unsafe fn set_freed(self, object: NonNull<u8>, trace: Trace) {
        // SAFETY: by contract.
        unsafe {
            let tag = self.tag(object);
            set_state(tag, FREE);
            (*tag.as_ptr()).freed = trace;
        }
    }

    /// Poisons an object that is about to return to its slab.
    ///
    /// # Safety
    /// The caller owns the object.
    pub(crate) unsafe fn poison(self, object: NonNull<u8>) {
        // SAFETY: by contract.
        unsafe { object.write_bytes(POISON, self.size) };
    }

    /// Checks that an object is allocated and its red zones intact.
    ///
    /// # Safety
    /// The object's slab stays alive.
    pub(crate) unsafe fn check_allocated(self, object: NonNull<u8>) -> Result<(), Fault> {
        // SAFETY: by contract.
        unsafe {
            match state(self.tag(object)) {
                ALLOCATED => {}
                FREE => return Err(Fault::DoubleFree),
                _ => return Err(Fault::Tag),
            }
            let whole = self.zones(object).into_iter().all(|(zone, bytes)| is_all(zone, bytes, RED));
            if whole { Ok(()) } else { Err(Fault::RedZone) }
        }
    }

    /// True if a free object is not poison.
    ///
    /// # Safety
    /// The object is free, and stays so during the call.
    pub(crate) unsafe fn is_written(self, object: NonNull<u8>) -> bool {
        // SAFETY: by contract.
        unsafe { !is_all(object, self.size, POISON) }
    }

    /// The calls that allocated and freed an object last; `None` if its tag was overwritten.
    ///
    /// # Safety
    /// The object's slab stays alive.
    pub(crate) unsafe fn traces(self, object: NonNull<u8>) -> Option<(Trace, Trace)> {
        // SAFETY: by contract.
        unsafe {
            let tag = self.tag(object);
            // A tag without a valid state was overwritten, and its traces with it.
            [ALLOCATED, FREE]
                .contains(&state(tag))
                .then(|| ((*tag.as_ptr()).allocated, (*tag.as_ptr()).freed))
        }
    }

    /// The call that allocated an object last.
    ///
    /// # Safety
    /// The caller holds the lock under which traces are read, and the object is allocated.
    pub(crate) unsafe fn allocated_by(self, object: NonNull<u8>) -> Trace {
        // SAFETY: by contract.
        unsafe { (*self.tag(object).as_ptr()).allocated }
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
