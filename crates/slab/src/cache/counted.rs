//! Reference-counted objects that live in a cache. A handle is one pointer.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::reserve::Reserve;
use super::typed::Cache;
use crate::OutOfMemory;

/// A value and its reference counts: an object of the cache of a [`RefCounted`] type.
pub struct Counted<T> {
    /// Strong handles.
    strong: AtomicU32,
    /// Weak handles, plus one that all strong handles share.
    weak: AtomicU32,
    value: ManuallyDrop<T>,
}

/// A type whose reference-counted objects live in one cache of the process.
pub trait RefCounted: Sized + 'static {
    /// The cache. A constant, so that an object returns to the cache it came from.
    const CACHE: &'static Cache<Counted<Self>>;
}

/// A strong handle to an object in a cache, like an `Arc`. The last one drops the value.
pub struct Ref<T: 'static>(NonNull<Counted<T>>)
where
    T: RefCounted;

/// A weak handle: it keeps the memory, not the value.
pub struct WeakRef<T: 'static>(NonNull<Counted<T>>)
where
    T: RefCounted;

// SAFETY: as for Arc: any thread that has a handle reads the value, and may drop it.
unsafe impl<T: Send + Sync> Send for Ref<T> where T: RefCounted {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for Ref<T> where T: RefCounted {}
// SAFETY: as for Ref, to which it upgrades.
unsafe impl<T: Send + Sync> Send for WeakRef<T> where T: RefCounted {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for WeakRef<T> where T: RefCounted {}

/// So many handles cause a panic, before a count can wrap around to zero.
const MANY: u32 = i32::MAX as u32;
/// The weak count while a thread checks both counts in `is_alone`.
const LOCKED: u32 = u32::MAX;

impl<T> Ref<T>
where
    T: RefCounted,
{
    /// Moves a value into an object of its type's cache.
    ///
    /// # Errors
    /// When there is no memory; the value is dropped.
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        let object = T::CACHE.objects().alloc()?.cast::<Counted<T>>();
        // SAFETY: a fresh object of this size and alignment.
        Ok(unsafe { Self::place(object, value) })
    }

    /// # Safety
    /// `object` was allocated from the type's cache, and nobody else has it.
    unsafe fn place(object: NonNull<Counted<T>>, value: T) -> Self {
        let counted =
            Counted { strong: AtomicU32::new(1), weak: AtomicU32::new(1), value: ManuallyDrop::new(value) };
        // SAFETY: by contract.
        unsafe { object.write(counted) };
        Ref(object)
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: a handle keeps the object alive.
        unsafe { self.0.as_ref() }
    }

    /// True if no other strong or weak handle exists.
    fn is_alone(&self) -> bool {
        let counted = self.counted();
        // The weak count is locked, so that no other handle can downgrade and drop itself between the two loads.
        if counted.weak.compare_exchange(1, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        let alone = counted.strong.load(Ordering::Acquire) == 1;
        counted.weak.store(1, Ordering::Release);
        alone
    }

    /// The value, if no other strong or weak handle exists.
    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        // The only handle, mutably borrowed, stays the only one. SAFETY: nothing else reaches the value.
        this.is_alone().then(|| unsafe { &mut *this.0.as_mut().value })
    }

    /// The value, for writing. If other handles exist, this handle first moves to a copy of its own.
    ///
    /// # Errors
    /// When there is no memory for the copy.
    pub fn make_mut(this: &mut Self) -> Result<&mut T, OutOfMemory>
    where
        T: Clone,
    {
        if !this.is_alone() {
            *this = Self::new((**this).clone())?;
        }
        // SAFETY: this handle was found, or made, the only one.
        Ok(unsafe { &mut this.0.as_mut().value })
    }

    /// A weak handle to the object.
    pub fn downgrade(this: &Self) -> WeakRef<T> {
        let weak = &this.counted().weak;
        let mut now = weak.load(Ordering::Relaxed);
        loop {
            assert!(now == LOCKED || now < MANY, "too many handles");
            if now == LOCKED {
                std::hint::spin_loop();
                now = weak.load(Ordering::Relaxed);
                continue;
            }
            match weak.compare_exchange_weak(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => now = other,
            }
        }
        WeakRef(this.0)
    }

    /// True if both handles refer to the same object.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.0 == other.0
    }

    /// The number of strong handles.
    pub fn handles(this: &Self) -> usize {
        this.counted().strong.load(Ordering::Acquire) as usize
    }

    /// The value's address, to compare objects by identity.
    pub fn as_ptr(this: &Self) -> *const T {
        &raw const *this.counted().value
    }
}

impl<T> Clone for Ref<T>
where
    T: RefCounted,
{
    fn clone(&self) -> Self {
        let before = self.counted().strong.fetch_add(1, Ordering::Relaxed);
        assert!(before < MANY, "too many handles");
        Ref(self.0)
    }
}

impl<T> Deref for Ref<T>
where
    T: RefCounted,
{
    type Target = T;

    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<T>
where
    T: RefCounted,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Ref<T>
where
    T: RefCounted,
{
    fn drop(&mut self) {
        if self.counted().strong.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // All strong handles share one weak count, which is released after the value.
        let _memory = WeakRef(self.0);
        // SAFETY: the last strong handle drops the value, once, after all others have gone; weak handles do not read
        // it. Only the value is borrowed: weak handles go on using the counts.
        unsafe { ManuallyDrop::drop(&mut (*self.0.as_ptr()).value) };
    }
}

impl<T> WeakRef<T>
where
    T: RefCounted,
{
    /// A strong handle, if the value is still alive.
    pub fn upgrade(&self) -> Option<Ref<T>> {
        // SAFETY: a handle of either kind keeps the memory, and the counts are atomics.
        let strong = unsafe { &(*self.0.as_ptr()).strong };
        let more = |n: u32| (n != 0 && n < MANY).then(|| n + 1);
        strong.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Ref(self.0))
    }

    /// True if the value is alive at this moment.
    pub fn is_alive(&self) -> bool {
        // SAFETY: as in `upgrade`.
        unsafe { &(*self.0.as_ptr()).strong }.load(Ordering::Relaxed) > 0
    }

    /// The value's address, even after the value was dropped.
    pub fn as_ptr(&self) -> *const T {
        // SAFETY: an address inside memory that this handle keeps; nothing is read.
        unsafe { (&raw const (*self.0.as_ptr()).value).cast() }
    }
}

impl<T> Clone for WeakRef<T>
where
    T: RefCounted,
{
    fn clone(&self) -> Self {
        // SAFETY: as in `upgrade`.
        let before = unsafe { &(*self.0.as_ptr()).weak }.fetch_add(1, Ordering::Relaxed);
        assert!(before < MANY, "too many handles");
        WeakRef(self.0)
    }
}

impl<T> fmt::Debug for WeakRef<T>
where
    T: RefCounted,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(WeakRef)")
    }
}

impl<T> Drop for WeakRef<T>
where
    T: RefCounted,
{
    fn drop(&mut self) {
        // SAFETY: as in `upgrade`. The last weak count frees memory whose value is dropped: strong handles hold one.
        unsafe {
            if (*self.0.as_ptr()).weak.fetch_sub(1, Ordering::Release) == 1 {
                fence(Ordering::Acquire);
                T::CACHE.objects().free(self.0.cast());
            }
        }
    }
}

/// Objects set aside for values to come: [`RefReserve::make`] cannot fail while some are left.
pub struct RefReserve<T: RefCounted>(Reserve<'static>, std::marker::PhantomData<fn(T)>);

impl<T: RefCounted> fmt::Debug for RefReserve<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: RefCounted> RefReserve<T> {
    /// Sets aside `n` objects of the type's cache.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(n: usize) -> Result<Self, OutOfMemory> {
        Ok(RefReserve(T::CACHE.reserve(n)?, std::marker::PhantomData))
    }

    /// The number of objects left.
    pub fn left(&self) -> usize {
        self.0.left()
    }

    /// Refills the reserve to `n` objects.
    ///
    /// # Errors
    /// When there is no memory; objects already in the reserve stay.
    pub fn fill(&mut self, n: usize) -> Result<(), OutOfMemory> {
        self.0.fill(n)
    }

    /// Moves a value into an object of the reserve.
    ///
    /// # Errors
    /// Returns the value when the reserve is empty.
    pub fn make(&mut self, value: T) -> Result<Ref<T>, T> {
        match self.0.take() {
            // SAFETY: an object of the type's cache that nobody else has.
            Some(object) => Ok(unsafe { Ref::place(object.cast(), value) }),
            None => Err(value),
        }
    }
}

/// Declares the cache of a type, for [`crate::Own`] and [`Ref`]: `kept!(Chunk, "vm chunk")` for owned objects,
/// `kept!(counted Chunk, "vm chunk")` for counted ones.
#[macro_export]
macro_rules! kept {
    (counted $type:ty, $name:literal) => {
        impl $crate::RefCounted for $type {
            const CACHE: &'static $crate::Cache<$crate::Counted<Self>> = {
                static CACHE: $crate::Cache<$crate::Counted<$type>> = $crate::Cache::new($name);
                &CACHE
            };
        }
    };
    ($type:ty, $name:literal) => {
        impl $crate::Kept for $type {
            const CACHE: &'static $crate::Cache<Self> = {
                static CACHE: $crate::Cache<$type> = $crate::Cache::new($name);
                &CACHE
            };
        }
    };
}
