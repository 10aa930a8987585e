//! Typed caches, and handles that give their object back when they go.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::raw::Constructor;
use crate::reserve::Reserve;
use crate::slabinfo::CacheInfo;
use crate::{ObjectCache, Options, OutOfMemory};

/// A cache of `T`s.
///
/// Objects come back as their last user left them, so `T` must be one type, lifetimes included:
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
    /// Takes and gives `T`s: a cache of `&'static str`s is no cache of shorter-lived ones.
    marker: std::marker::PhantomData<fn(T) -> T>,
}

impl<T> fmt::Debug for Cache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

impl<T> Cache<T> {
    /// A cache that is made when it is first used.
    pub const fn new(name: &'static str) -> Self {
        Self::with(Options::new(name, size_of::<T>()))
    }

    /// The same with more said; size and alignment are `T`'s whatever the options say, and a constructor is for
    /// [`Cache::constructed`] to give.
    pub const fn with(options: Options) -> Self {
        Self::made(options.unconstructed())
    }

    const fn made(options: Options) -> Self {
        let options = options.sized(size_of::<T>(), align_of::<T>());
        Cache { objects: ObjectCache::lazy(options), marker: std::marker::PhantomData }
    }

    /// A cache of constructed objects: `make` is called when an object enters a slab, never when it is allocated
    /// ([`Cache::get`]). It must not allocate or block; a `T` that needs dropping does not compile, for nobody would.
    /// An object is made on one thread and got by another: `T` is `Send`.
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

    /// The untyped cache under it.
    pub fn objects(&self) -> &ObjectCache {
        &self.objects
    }

    /// Puts a value into an object of the cache.
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

    /// An object as its constructor, or its last user, left it.
    ///
    /// # Errors
    /// When there is no memory.
    ///
    /// # Panics
    /// When the cache has no constructor.
    #[inline]
    pub fn get(&self) -> Result<Slot<'_, T>, OutOfMemory> {
        let raw = self.objects.raw()?;
        assert!(raw.config.constructor.is_some(), "a cache without a constructor has no objects to get");
        Ok(Slot { object: raw.alloc()?.cast(), cache: self })
    }

    /// Sets `n` objects aside.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn reserve(&self, n: usize) -> Result<Reserve<'_>, OutOfMemory> {
        self.objects.reserve(n)
    }

    /// What it holds and did.
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
        // SAFETY: owned; nobody uses it after this. A constructed T needs no drop and stays.
        unsafe { self.object.drop_in_place() };
    }
}

/// Goes back to its cache when it is dropped, also when a value's own drop panics.
struct Memory<'c>(&'c ObjectCache, NonNull<u8>);

impl Drop for Memory<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: made of an object of this cache by who owned it, and gives it up.
        unsafe { self.0.free(self.1) };
    }
}

/// A type whose objects live in one cache of the process: then a handle is a pointer and no more.
pub trait Kept: Sized + 'static {
    /// The cache. A constant, so that an object goes back to where it came from.
    const CACHE: &'static Cache<Self>;
}

/// An owned object of a [`Kept`] type: a `Box` whose memory is in a cache.
pub struct Own<T: Kept>(NonNull<T>);

// SAFETY: owns its T; caches are Sync.
unsafe impl<T: Kept + Send> Send for Own<T> {}
// SAFETY: gives out `&T` only.
unsafe impl<T: Kept + Sync> Sync for Own<T> {}

impl<T: Kept> Own<T> {
    /// Puts a value into the type's cache.
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
