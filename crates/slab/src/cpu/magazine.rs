//! Magazines: arrays of free objects. Only the holder of a magazine adds or takes objects.

use std::ptr::null_mut;

use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The header. `capacity` pointers to objects follow it, of which the first `count` are valid.
#[repr(C)]
pub(crate) struct Magazine {
    /// The count in the lowest 16 bits, and above them the allocations served: one store changes both. Atomic because
    /// snapshots read it while the holder writes it; it orders nothing.
    word: AtomicU64,
    pub(crate) capacity: u32,
    /// The next magazine in a stack of the depot.
    pub(crate) next: *mut Magazine,
}

/// Bytes before the objects; the assembly in `rseq` contains this number.
#[cfg(not(feature = "shuttle"))]
const HEADER: usize = 24;

#[cfg(not(feature = "shuttle"))]
const _: () = assert!(size_of::<Magazine>() == HEADER);

// SAFETY: a magazine has one holder at a time; `next` changes only under the depot's lock.
unsafe impl Sync for Magazine {}

/// Loaded in a slot without a magazine: empty and full at once, so that allocation and free take the slow path.
#[cfg(not(feature = "shuttle"))]
pub(crate) fn nothing() -> *mut Magazine {
    static NOTHING: Magazine = Magazine { word: AtomicU64::new(0), capacity: 0, next: null_mut() };
    (&raw const NOTHING).cast_mut()
}

#[cfg(feature = "shuttle")]
pub(crate) fn nothing() -> *mut Magazine {
    // An atomic of shuttle's belongs to one execution: each execution gets a magazine, which the test's process leaks.
    shuttle::lazy_static! {
        static ref NOTHING: usize = Box::leak(Box::new(Magazine {
            word: AtomicU64::new(0),
            capacity: 0,
            next: null_mut(),
        })) as *mut Magazine as usize;
    }
    *NOTHING as *mut Magazine
}

/// Added to a magazine's word by an allocation: one more served, one object less.
const POP: u64 = (1 << 16) - 1;

impl Magazine {
    /// Bytes of a magazine for `capacity` objects.
    pub(crate) const fn bytes(capacity: usize) -> usize {
        size_of::<Magazine>() + capacity * size_of::<*mut u8>()
    }

    /// # Safety
    /// `at` has room for [`Magazine::bytes`] of `capacity`.
    pub(crate) unsafe fn init(at: *mut Magazine, capacity: usize) {
        let capacity = u32::try_from(capacity).expect("small");
        // SAFETY: by contract.
        unsafe { at.write(Magazine { word: AtomicU64::new(0), capacity, next: null_mut() }) };
    }

    /// The address of the pointer at `index`.
    ///
    /// # Safety
    /// `at` is a magazine and `index` below its capacity.
    pub(crate) unsafe fn object(at: *mut Magazine, index: usize) -> *mut *mut u8 {
        // SAFETY: by contract.
        unsafe { at.add(1).cast::<*mut u8>().add(index) }
    }

    /// The number of objects in the magazine.
    ///
    /// # Safety
    /// `at` is a magazine.
    pub(crate) unsafe fn count(at: *mut Magazine) -> usize {
        // SAFETY: by contract.
        (unsafe { (*at).word.load(Ordering::Relaxed) } & 0xffff) as usize
    }

    /// Allocations served since [`Magazine::take_served`].
    ///
    /// # Safety
    /// `at` is a magazine.
    pub(crate) unsafe fn served(at: *mut Magazine) -> u64 {
        // SAFETY: by contract.
        unsafe { (*at).word.load(Ordering::Relaxed) >> 16 }
    }

    /// # Safety
    /// The caller holds the magazine.
    pub(crate) unsafe fn set_count(at: *mut Magazine, count: usize) {
        // SAFETY: by contract.
        unsafe {
            let served = Self::served(at);
            (*at).word.store(served << 16 | count as u64, Ordering::Relaxed);
        }
    }

    /// Counts one allocation: one more served, one object less.
    ///
    /// # Safety
    /// The caller holds the magazine, and it is not empty.
    pub(crate) unsafe fn served_one(at: *mut Magazine) {
        // SAFETY: by contract.
        unsafe { (*at).word.store((*at).word.load(Ordering::Relaxed) + POP, Ordering::Relaxed) };
    }

    /// Returns the number of allocations served, and resets it.
    ///
    /// # Safety
    /// The caller holds the magazine.
    pub(crate) unsafe fn take_served(at: *mut Magazine) -> u64 {
        // SAFETY: by contract.
        unsafe {
            let served = Self::served(at);
            (*at).word.store(Self::count(at) as u64, Ordering::Relaxed);
            served
        }
    }

    /// The objects in the magazine.
    ///
    /// # Safety
    /// The caller holds the magazine for as long as it uses the slice.
    pub(crate) unsafe fn objects<'a>(at: *mut Magazine) -> &'a mut [*mut u8] {
        // SAFETY: by contract, and the first `count` are initialised.
        unsafe { std::slice::from_raw_parts_mut(Self::object(at, 0), Self::count(at)) }
    }
}

/// The magazines of one CPU or thread. It has a cache line to itself.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// Never null. Only this CPU or thread changes the magazine; the pointer changes only under the depot's lock.
    pub(crate) loaded: AtomicPtr<Magazine>,
    /// May be null. Guarded by the depot's lock.
    pub(crate) previous: AtomicPtr<Magazine>,
    /// Allocations served by magazines that have left this slot. Guarded by the depot's lock.
    pub(crate) hits: AtomicU64,
    /// Not 0 while the owner is in a fast path (threads only).
    pub(crate) busy: AtomicU32,
    /// The magazine that a reaper took out of `loaded` for a moment, else `nothing()`. Guarded by the depot's lock.
    pub(crate) held: AtomicPtr<Magazine>,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Slot {
            loaded: AtomicPtr::new(nothing()),
            previous: AtomicPtr::new(null_mut()),
            hits: AtomicU64::new(0),
            busy: AtomicU32::new(0),
            held: AtomicPtr::new(nothing()),
        }
    }
}
