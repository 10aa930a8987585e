//! Typed caches, and handles that free their object on drop.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::object::ObjectCache;
use super::reserve::Reserve;
use crate::OutOfMemory;
use crate::info::CacheInfo;
use crate::options::{Constructor, Options};

/// A cache of `T`s.
///
/// An object is reused as its last user left it, so `T` must be one type, lifetimes included:
///
/// ```compile_fail
/// static NAMES: overspill_slab::Cache<&'static str> = overspill_slab::Cache::constructed("name", || "");
/// fn shorten<'a>(cache: &overspill_slab::Cache<&'a str>, name: &'a str) {
///     *cache.get().unwrap() = name;
/// }
/// shorten(&NAMES, &String::from("gone soon"));
/// ```
pub struct Cache<T> {
    objects: ObjectCache,
    /// Invariant in `T`: a cache of `&'static str`s is no cache of shorter-lived ones.
    marker: std::marker::PhantomData<fn(T) -> T>,
}

impl<T> fmt::Debug for Cache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

impl<T> Cache<T> {
    /// A cache that is created on first use.
    pub const fn new(name: &'static str) -> Self {
        Self::with(Options::new(name, size_of::<T>()))
    }

    /// The same with options. Size and alignment are always `T`'s, and a constructor in the options is ignored in
    /// favour of [`Cache::constructed`].
    pub const fn with(options: Options) -> Self {
        Self::made(options.unconstructed())
    }

    const fn made(options: Options) -> Self {
        let options = options.sized(size_of::<T>(), align_of::<T>());
        Cache { objects: ObjectCache::lazy(options), marker: std::marker::PhantomData }
    }

    /// A cache of constructed objects: `make` is called when an object enters a slab, never when it is allocated
    /// ([`Cache::get`]). It must not allocate or block. `T` must not need Drop: constructed objects are never dropped.
    /// `T` is `Send`, because one thread may construct an object and another get it.
    pub const fn constructed(name: &'static str, make: fn() -> T) -> Self
    where
        T: Send,
    {
        const { assert!(!std::mem::needs_drop::<T>(), "a constructed object is never dropped") };
        unsafe fn call<T>(with: *const (), object: NonNull<u8>) {
            // SAFETY: `with` was made from a function of this type, below; a buffer has T's size and alignment.
            unsafe {
                let make: fn() -> T = std::mem::transmute(with);
                object.cast::<T>().write(make());
            }
        }
        let constructor = Constructor { call: call::<T>, with: make as *const () };
        Self::made(Options::new(name, size_of::<T>()).constructed_by(constructor))
    }

    /// The untyped cache below this one.
    pub fn objects(&self) -> &ObjectCache {
        &self.objects
    }

    /// Moves a value into an object of the cache.
    ///
    /// # Errors
    /// When there is no memory; the value is dropped.
    #[inline]
    pub fn insert(&self, value: T) -> Result<Slot<'_, T>, OutOfMemory> {
        let object = self.objects.alloc()?.cast::<T>();
        // SAFETY: a fresh object of T's size and alignment. A constructed T needs no drop, so it can be overwritten.
        unsafe { object.write(value) };
        Ok(Slot { object, cache: self })
    }

    /// Allocates an object, as its constructor or its last user left it.
    ///
    /// # Errors
    /// When there is no memory.
    ///
    /// # Panics
    /// When the cache has no constructor.
    #[inline]
    pub fn get(&self) -> Result<Slot<'_, T>, OutOfMemory> {
        let layers = self.objects.layers()?;
        assert!(
            layers.slabs.options.constructor.is_some(),
            "a cache without a constructor has no objects to get"
        );
        Ok(Slot { object: layers.alloc()?.cast(), cache: self })
    }

    /// Sets `n` objects aside; the reserve hands them out without failing.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn reserve(&self, n: usize) -> Result<Reserve<'_>, OutOfMemory> {
        self.objects.reserve(n)
    }

    /// State and counters of the cache; `None` if it cannot be created.
    pub fn info(&self) -> Option<CacheInfo> {
        self.objects.info()
    }
}

/// An owned object of a cache.
pub struct Slot<'c, T> {
    object: NonNull<T>,
    cache: &'c Cache<T>,
}

// SAFETY: owns its T; the cache is Sync.
unsafe impl<T: Send> Send for Slot<'_, T> {}
// SAFETY: gives out `&T` only.
unsafe impl<T: Sync> Sync for Slot<'_, T> {}

impl<T> Deref for Slot<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: owned and initialised.
        unsafe { self.object.as_ref() }
    }
}

impl<T> DerefMut for Slot<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: owned and initialised.
        unsafe { self.object.as_mut() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Slot<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Slot<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let _memory = Memory(&self.cache.objects, self.object.cast());
        // SAFETY: owned, and used no more. A constructed T needs no drop and keeps its state.
        unsafe { self.object.drop_in_place() };
    }
}

/// Frees an object when it is dropped, even if the value's own drop panics.
struct Memory<'c>(&'c ObjectCache, NonNull<u8>);

impl Drop for Memory<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: made from an object of this cache by its owner, who gives it up.
        unsafe { self.0.free(self.1) };
    }
}

/// A type whose owned objects live in one cache of the process, so that a handle is only a pointer.
pub trait Kept: Sized + 'static {
    /// The cache. A constant, so that an object returns to the cache it came from.
    const CACHE: &'static Cache<Self>;
}

/// An owned object of a [`Kept`] type: a `Box` whose memory is in the type's cache.
pub struct Own<T: Kept>(NonNull<T>);

// SAFETY: owns its T; caches are Sync.
unsafe impl<T: Kept + Send> Send for Own<T> {}
// SAFETY: gives out `&T` only.
unsafe impl<T: Kept + Sync> Sync for Own<T> {}

impl<T: Kept> Own<T> {
    /// Moves a value into an object of the type's cache.
    ///
    /// # Errors
    /// When there is no memory; the value is dropped.
    #[inline]
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        let slot = T::CACHE.insert(value)?;
        let object = slot.object;
        std::mem::forget(slot);
        Ok(Own(object))
    }
}

impl<T: Kept> Deref for Own<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: owned and initialised.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Kept> DerefMut for Own<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: owned and initialised.
        unsafe { self.0.as_mut() }
    }
}

impl<T: Kept + fmt::Debug> fmt::Debug for Own<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Kept> Drop for Own<T> {
    #[inline]
    fn drop(&mut self) {
        let _memory = Memory(&T::CACHE.objects, self.0.cast());
        // SAFETY: owned, and used no more.
        unsafe { self.0.drop_in_place() };
    }
}
