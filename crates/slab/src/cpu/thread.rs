//! Slots of threads, for machines without restartable sequences. A thread takes a number for its life; the next thread
//! with that number inherits the slot's magazines. A reaper takes the magazine out of another thread's slot, makes
//! every thread see that (membarrier), and waits until the owner has left its fast path.

use std::cell::Cell;
use std::sync::atomic::{Ordering as Plain, compiler_fence};

use super::magazine::{Magazine, Slot};
use crate::sync::atomic::Ordering;

/// Threads that can have a slot at once; any other thread uses the slabs directly.
pub(super) const THREADS: usize = 32;

#[cfg(not(feature = "shuttle"))]
mod number {
    use super::{Cell, THREADS};
    use std::sync::atomic::{AtomicU32, Ordering};

    const NOT_YET: usize = usize::MAX;
    const NONE: usize = usize::MAX - 1;

    /// Bit set: the number is taken.
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    const _: () = assert!(THREADS == u32::BITS as usize);

    /// Returns the number when its thread ends.
    struct Keeper(usize);

    impl Drop for Keeper {
        fn drop(&mut self) {
            NUMBER.set(NONE);
            TAKEN.fetch_and(!(1 << self.0), Ordering::Release);
        }
    }

    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(NOT_YET) };
        static KEEPER: Cell<Option<Keeper>> = const { Cell::new(None) };
    }

    /// This thread's number; no slot has it if it is `NOT_YET` or `NONE`.
    #[inline(always)]
    pub(super) fn get() -> usize {
        NUMBER.get()
    }

    /// Takes a number, unless this thread has tried before.
    pub(super) fn take() {
        if NUMBER.get() != NOT_YET {
            return;
        }
        let lowest = |taken: u32| (taken != u32::MAX).then(|| taken | (taken + 1));
        let before = TAKEN.fetch_update(Ordering::Acquire, Ordering::Relaxed, lowest);
        let number = before.map(|taken| taken.trailing_ones() as usize).unwrap_or(NONE);
        NUMBER.set(number);
        // A thread that has destroyed its locals has no keeper to return the number: it takes none.
        if number != NONE && KEEPER.try_with(|keeper| keeper.set(Some(Keeper(number)))).is_err() {
            drop(Keeper(number));
        }
    }
}

#[cfg(feature = "shuttle")]
mod number {
    use super::{Cell, THREADS};
    use shuttle::sync::atomic::{AtomicUsize, Ordering};

    shuttle::lazy_static! {
        static ref NEXT: AtomicUsize = AtomicUsize::new(0);
    }
    shuttle::thread_local! {
        static NUMBER: Cell<usize> = Cell::new(usize::MAX);
    }

    pub(super) fn get() -> usize {
        NUMBER.with(Cell::get)
    }

    pub(super) fn take() {
        if get() == usize::MAX {
            let number = NEXT.fetch_add(1, Ordering::SeqCst);
            assert!(number < THREADS);
            NUMBER.with(|n| n.set(number));
        }
    }
}

/// This thread's number; [`THREADS`] or more if it has none.
pub(super) fn number() -> usize {
    number::take();
    number::get()
}

/// Runs `work` on this thread's loaded magazine, as its owner.
///
/// # Safety
/// `slots` points to `count` slots of threads.
#[inline(always)]
unsafe fn with_loaded<R>(
    slots: *mut Slot,
    count: usize,
    work: impl FnOnce(&Slot, *mut Magazine) -> Option<R>,
) -> Option<R> {
    let number = number::get();
    if number >= count {
        return None;
    }
    // SAFETY: `number` is below `count`.
    let slot = unsafe { &*slots.add(number) };
    slot.busy.store(1, Ordering::Relaxed);
    // The reaper's membarrier(2) turns this into a barrier of the CPU when one is needed.
    compiler_fence(Plain::SeqCst);
    let result = work(slot, slot.loaded.load(Ordering::Acquire));
    slot.busy.store(0, Ordering::Release);
    result
}

/// See [`super::rseq::pop`].
///
/// # Safety
/// As for [`with_loaded`].
#[inline(always)]
pub(super) unsafe fn pop(slots: *mut Slot, count: usize) -> *mut u8 {
    let take = |_: &Slot, magazine: *mut Magazine| {
        // SAFETY: a loaded magazine is alive, and only the owner touches its contents while `busy` is set.
        unsafe {
            let left = Magazine::count(magazine).checked_sub(1)?;
            Magazine::served_one(magazine);

            Some(*Magazine::object(magazine, left))
        }
    };
    // SAFETY: by contract.
    unsafe { with_loaded(slots, count, take) }.unwrap_or(std::ptr::null_mut())
}

/// See [`super::rseq::push`].
///
/// # Safety
/// As for [`with_loaded`]; the caller owns the object.
#[inline(always)]
pub(super) unsafe fn push(slots: *mut Slot, count: usize, object: *mut u8) -> bool {
    let put = |_: &Slot, magazine: *mut Magazine| {
        // SAFETY: as in `pop`; a count below the capacity leaves room for one more.
        unsafe {
            let n = Magazine::count(magazine);
            if n >= (*magazine).capacity as usize {
                return None;
            }
            *Magazine::object(magazine, n) = object;
            Magazine::set_count(magazine, n + 1);
            Some(())
        }
    };
    // SAFETY: by contract.
    unsafe { with_loaded(slots, count, put) }.is_some()
}
