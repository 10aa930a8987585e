//! Shared objects of a cache: reference counted, one pointer a handle.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::OutOfMemory;
use crate::typed::Kept;

/// A value and how many [`Shared`] handles it has: what the cache of a shared type holds.
pub struct Counted<T> {
    handles: AtomicUsize,
    value: T,
}

/// A handle on an object in a cache that goes with its last handle: an `Arc` without weak references.
pub struct Shared<T: 'static>(NonNull<Counted<T>>)
where
    Counted<T>: Kept;

// SAFETY: as for Arc: the value is reached from, and dropped by, any thread that has a handle.
unsafe impl<T: Send + Sync> Send for Shared<T> where Counted<T>: Kept {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for Shared<T> where Counted<T>: Kept {}

impl<T> Shared<T>
where
    Counted<T>: Kept,
{
    /// Puts a value into its type's cache.
    ///
    /// # Errors
    /// When there is no memory; the value is dropped.
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        let object = Counted::<T>::cache().objects().alloc()?.cast::<Counted<T>>();
        // SAFETY: a fresh object of this size and alignment.
        unsafe { object.write(Counted { handles: AtomicUsize::new(1), value }) };
        Ok(Shared(object))
    }

    /// The value, if this is its only handle.
    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        // SAFETY: alive while there is a handle; with one handle, which is borrowed, nobody else can reach it.
        unsafe {
            if this.0.as_ref().handles.load(Ordering::Acquire) != 1 {
                return None;
            }
            Some(&mut this.0.as_mut().value)
        }
    }

    /// Whether two handles are on one object.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.0 == other.0
    }

    /// How many handles there are.
    pub fn handles(this: &Self) -> usize {
        // SAFETY: alive while there is a handle.
        unsafe { this.0.as_ref() }.handles.load(Ordering::Acquire)
    }

    /// The value's address, for who tells objects apart.
    pub fn as_ptr(this: &Self) -> *const T {
        // SAFETY: alive while there is a handle.
        unsafe { &raw const (*this.0.as_ptr()).value }
    }
}

impl<T> Clone for Shared<T>
where
    Counted<T>: Kept,
{
    fn clone(&self) -> Self {
        // SAFETY: alive while there is a handle.
        let before = unsafe { self.0.as_ref() }.handles.fetch_add(1, Ordering::Relaxed);
        // Handles that are forgotten without being dropped must not wrap the count around to a free.
        assert!(before < isize::MAX as usize, "too many handles");
        Shared(self.0)
    }
}

impl<T> Deref for Shared<T>
where
    Counted<T>: Kept,
{
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: alive while there is a handle.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T>
where
    Counted<T>: Kept,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Shared<T>
where
    Counted<T>: Kept,
{
    fn drop(&mut self) {
        // SAFETY: alive while there is a handle; the last to go, having seen all others go, takes the object with it.
        unsafe {
            if self.0.as_ref().handles.fetch_sub(1, Ordering::Release) == 1 {
                fence(Ordering::Acquire);
                self.0.drop_in_place();
                Counted::<T>::cache().objects().free(self.0.cast());
            }
        }
    }
}
