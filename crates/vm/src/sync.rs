//! The locks of this crate, so that one feature puts all of them under a model checker.
//!
//! Lock order (design: name, inode, node, queue, account, allocator): who steps pageout, its packer; an object's tree; a
//! chunk; an extent's place; the queues of pages and of clusters; the leaves (budget waiters, fetch table, I/O queue,
//! segments, store allocator). No lock is held across
//! an await; the compiler sees to that, because futures here are `Send` and guards are not.

#[cfg(not(feature = "shuttle"))]
use std::sync as imp;

#[cfg(feature = "shuttle")]
use shuttle::sync as imp;

pub(crate) use imp::atomic;
pub(crate) use imp::{Arc, MutexGuard, RwLockReadGuard, RwLockWriteGuard, Weak};

/// A mutex that does not care whether another thread panicked: invariants are restored before anything that can
/// panic, and a pager that refuses to serve loses more than one that goes on.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Locks it unless somebody else has.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
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
pub(crate) struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(imp::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
