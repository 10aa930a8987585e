//! The locks of this crate: their order, and one feature that puts all of them under a model checker.
//!
//! Each lock has a [`rank`]. A thread takes locks of equal or higher rank only than those it holds; debug builds check
//! that at every lock. No lock is held across an await; the compiler sees to that, because futures here are `Send` and
//! guards are not.

use std::ops::{Deref, DerefMut};

#[cfg(not(feature = "shuttle"))]
use std::sync as imp;

#[cfg(feature = "shuttle")]
use shuttle::sync as imp;

pub(crate) use imp::atomic;
pub(crate) use imp::{Arc, Weak};

/// Ranks of locks, in the order in which they may be taken.
pub(crate) mod rank {
    /// The search of the thread that steps pageout.
    pub(crate) const SEARCH: u8 = 0;
    /// A `Packer` (pageout's or a helper's encoder), or the recompressor.
    pub(crate) const PACKER: u8 = 1;
    /// An object's tree.
    pub(crate) const TREE: u8 = 2;
    /// A chunk. Two together only where one is new.
    pub(crate) const CHUNK: u8 = 3;
    /// The recompressor's position in compressed memory.
    pub(crate) const COLD: u8 = 4;
    /// An extent's place.
    pub(crate) const LOCATION: u8 = 5;
    /// The queues of pages and of clusters.
    pub(crate) const QUEUES: u8 = 6;
    /// Waiters, fetches, requests, segments, timers; the store's allocator and the slabs come after.
    pub(crate) const LEAF: u8 = 7;
}

/// A mutex that ignores the panics of other threads: invariants are restored before anything that can
/// panic, and a pager that refuses to serve loses more than one that goes on.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T, const RANK: u8 = { rank::LEAF }>(imp::Mutex<T>);

/// A locked [`Mutex`].
pub(crate) type MutexGuard<'a, T, const RANK: u8 = { rank::LEAF }> = Locked<imp::MutexGuard<'a, T>, RANK>;

impl<T, const RANK: u8> Mutex<T, RANK> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T, RANK> {
        let order = Order::check();
        Locked { guard: self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner), _order: order }
    }

    /// Locks it unless it is locked already.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T, RANK>> {
        let order = Order::check();
        Some(Locked { guard: self.0.try_lock().ok()?, _order: order })
    }

    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[cfg(feature = "shuttle")]
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap()
    }
}

/// See [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct RwLock<T, const RANK: u8>(imp::RwLock<T>);

impl<T, const RANK: u8> RwLock<T, RANK> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(imp::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> Locked<imp::RwLockReadGuard<'_, T>, RANK> {
        let order = Order::check();
        Locked { guard: self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner), _order: order }
    }

    pub(crate) fn write(&self) -> Locked<imp::RwLockWriteGuard<'_, T>, RANK> {
        let order = Order::check();
        Locked { guard: self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner), _order: order }
    }
}

/// A lock that is held.
pub(crate) struct Locked<G, const RANK: u8> {
    guard: G,
    // Dropped after the guard.
    _order: Order<RANK>,
}

impl<G: Deref, const RANK: u8> Deref for Locked<G, RANK> {
    type Target = G::Target;
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut, const RANK: u8> DerefMut for Locked<G, RANK> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// An entry among the ranks that this thread holds. (Under the model checker all threads are one to the real machine.)
struct Order<const RANK: u8>;

#[cfg(all(debug_assertions, not(feature = "shuttle")))]
mod check {
    use super::Order;
    use std::cell::RefCell;

    thread_local! {
        /// How many locks of each rank this thread holds.
        static HELD: RefCell<[u32; 8]> = const { RefCell::new([0; 8]) };
    }

    impl<const RANK: u8> Order<RANK> {
        pub(super) fn check() -> Self {
            HELD.with_borrow_mut(|held| {
                let later = (usize::from(RANK) + 1..8).find(|&rank| held[rank] > 0);
                assert!(
                    later.is_none(),
                    "a lock of rank {RANK} is taken while one of rank {later:?} is held"
                );
                held[usize::from(RANK)] += 1;
            });
            Order
        }
    }

    impl<const RANK: u8> Drop for Order<RANK> {
        fn drop(&mut self) {
            // While the thread ends there is nothing left to check.
            let _ = HELD.try_with(|held| held.borrow_mut()[usize::from(RANK)] -= 1);
        }
    }
}

#[cfg(not(all(debug_assertions, not(feature = "shuttle"))))]
impl<const RANK: u8> Order<RANK> {
    fn check() -> Self {
        Order
    }
}

#[cfg(all(test, debug_assertions, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_in_their_order() {
        let (chunk, queues) = (Mutex::<_, { rank::CHUNK }>::new(1), Mutex::<_, { rank::QUEUES }>::new(2));
        let held = chunk.lock();
        assert_eq!(*held + *queues.lock(), 3);
        drop(held);
        drop(queues.lock());
        assert_eq!(*chunk.lock(), 1);
    }

    #[test]
    #[should_panic(expected = "a lock of rank 3 is taken while one of rank Some(6) is held")]
    fn a_lock_out_of_order_is_found() {
        let (chunk, queues) = (Mutex::<_, { rank::CHUNK }>::new(1), Mutex::<_, { rank::QUEUES }>::new(2));
        let _held = queues.lock();
        let _ = chunk.lock();
    }
}
