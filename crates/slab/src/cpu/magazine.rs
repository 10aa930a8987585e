//! Magazines: arrays of objects that are free for whoever holds the magazine.

use std::ptr::null_mut;

use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Objects follow the header, `capacity` of them; as many as the count says are there.
#[repr(C)]
pub(crate) struct Magazine {
    /// The count in the lowest 16 bits, and above them how many allocations it served: both change with one store.
    /// Atomic because snapshots read it while the owner changes it; nothing is ordered by it.
    word: AtomicU64,
    pub(crate) capacity: u32,
    /// The next in a depot's list.
    pub(crate) next: *mut Magazine,
}

/// Bytes before the objects; the rseq paths know this number.
#[cfg(not(feature = "shuttle"))]
const HEADER: usize = 24;

#[cfg(not(feature = "shuttle"))]
const _: () = assert!(size_of::<Magazine>() == HEADER);

// SAFETY: a magazine belongs to one holder at a time; `next` is the depot's, under its lock.
unsafe impl Sync for Magazine {}

/// What is loaded where no magazine is: empty and full at once, so that both ways lead to the slow path.
#[cfg(not(feature = "shuttle"))]
pub(crate) fn nothing() -> *mut Magazine {
    static NOTHING: Magazine = Magazine { word: AtomicU64::new(0), capacity: 0, next: null_mut() };
    (&raw const NOTHING).cast_mut()
}

#[cfg(feature = "shuttle")]
pub(crate) fn nothing() -> *mut Magazine {
    // An atomic of shuttle's belongs to one execution: one for each thread that asks, leaked by the test's process.
    shuttle::lazy_static! {
        static ref NOTHING: usize = Box::leak(Box::new(Magazine {
            word: AtomicU64::new(0),
            capacity: 0,
            next: null_mut(),
        })) as *mut Magazine as usize;
    }
    *NOTHING as *mut Magazine
}

/// What an allocation adds to a magazine's word: one served, one object less.
const POP: u64 = (1 << 16) - 1;

impl Magazine {
    /// Bytes of a magazine for so many objects.
    pub(crate) const fn bytes(capacity: usize) -> usize {
        size_of::<Magazine>() + capacity * size_of::<*mut u8>()
    }

    /// # Safety
    /// `at` has room for [`Magazine::bytes`] of the capacity.
    pub(crate) unsafe fn init(at: *mut Magazine, capacity: usize) {
        let capacity = u32::try_from(capacity).expect("small");
        // SAFETY: by contract.
        unsafe { at.write(Magazine { word: AtomicU64::new(0), capacity, next: null_mut() }) };
    }

    /// The place of an object.
    ///
    /// # Safety
    /// `at` is a magazine and `index` below its capacity.
    pub(crate) unsafe fn object(at: *mut Magazine, index: usize) -> *mut *mut u8 {
        // SAFETY: by contract.
        unsafe { at.add(1).cast::<*mut u8>().add(index) }
    }

    /// How many objects are there.
    ///
    /// # Safety
    /// `at` is a magazine.
    pub(crate) unsafe fn count(at: *mut Magazine) -> usize {
        // SAFETY: by contract.
        (unsafe { (*at).word.load(Ordering::Relaxed) } & 0xffff) as usize
    }

    /// How many allocations it has served.
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

    /// Counts an allocation, and an object less.
    ///
    /// # Safety
    /// The caller holds the magazine, and it is not empty.
    pub(crate) unsafe fn served_one(at: *mut Magazine) {
        // SAFETY: by contract.
        unsafe { (*at).word.store((*at).word.load(Ordering::Relaxed) + POP, Ordering::Relaxed) };
    }

    /// Takes the count of allocations out of it.
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

    /// The objects that are there.
    ///
    /// # Safety
    /// The caller holds the magazine, as long as it holds the slice.
    pub(crate) unsafe fn objects<'a>(at: *mut Magazine) -> &'a mut [*mut u8] {
        // SAFETY: by contract, and the first `count` are initialised.
        unsafe { std::slice::from_raw_parts_mut(Self::object(at, 0), Self::count(at)) }
    }
}

/// What one CPU, or one thread, has. A line of its own.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// Never null. Its contents change only on this CPU or thread; which magazine it is, only under the depot's lock.
    pub(crate) loaded: AtomicPtr<Magazine>,
    /// Or null. Under the depot's lock.
    pub(crate) previous: AtomicPtr<Magazine>,
    /// Allocations that magazines served which were loaded here. Under the depot's lock.
    pub(crate) hits: AtomicU64,
    /// The owner is inside a fast path (threads only).
    pub(crate) busy: AtomicU32,
    /// What a reaper took out of `loaded` for a moment, else nothing. Under the depot's lock.
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
