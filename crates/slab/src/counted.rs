//! Ref objects of a cache: reference counted, one pointer a handle.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use crate::{Cache, OutOfMemory};

/// A value and its counts: what the cache of a shared type holds.
pub struct Counted<T> {
    /// Handles.
    strong: AtomicU32,
    /// WeakRef handles, and one for all handles together.
    weak: AtomicU32,
    value: ManuallyDrop<T>,
}

/// A type whose shared objects live in one cache of the process.
pub trait RefCounted: Sized + 'static {
    /// The cache. A constant, so that an object goes back to where it came from.
    const CACHE: &'static Cache<Counted<Self>>;
}

/// A handle on an object in a cache; the value goes with the last one. An `Arc` whose memory is in a cache.
pub struct Ref<T: 'static>(NonNull<Counted<T>>)
where
    T: RefCounted;

/// A handle that does not keep the value, only its memory.
pub struct WeakRef<T: 'static>(NonNull<Counted<T>>)
where
    T: RefCounted;

// SAFETY: as for Arc: the value is reached from, and dropped by, any thread that has a handle.
unsafe impl<T: Send + Sync> Send for Ref<T> where T: RefCounted {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for Ref<T> where T: RefCounted {}
// SAFETY: as for Ref, which it can become.
unsafe impl<T: Send + Sync> Send for WeakRef<T> where T: RefCounted {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for WeakRef<T> where T: RefCounted {}

/// So many handles are a panic: they must not wrap a count around to a free.
const MANY: u32 = i32::MAX as u32;
/// The weak count while somebody looks whether it is alone.
const LOCKED: u32 = u32::MAX;

impl<T> Ref<T>
where
    T: RefCounted,
{
    /// Puts a value into its type's cache.
    ///
    /// # Errors
    /// When there is no memory; the value is dropped.
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        let object = T::CACHE.objects().alloc()?.cast::<Counted<T>>();
        // SAFETY: a fresh object of this size and alignment.
        Ok(unsafe { Self::place(object, value) })
    }

    /// # Safety
    /// `object` is one of the type's cache, and nobody else's.
    unsafe fn place(object: NonNull<Counted<T>>, value: T) -> Self {
        let counted =
            Counted { strong: AtomicU32::new(1), weak: AtomicU32::new(1), value: ManuallyDrop::new(value) };
        // SAFETY: by contract.
        unsafe { object.write(counted) };
        Ref(object)
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: alive while there is a handle.
        unsafe { self.0.as_ref() }
    }

    /// Whether this is the only handle of either kind.
    fn is_alone(&self) -> bool {
        let counted = self.counted();
        // Locked, so that another handle cannot make a weak one and go between our two looks.
        if counted.weak.compare_exchange(1, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        let alone = counted.strong.load(Ordering::Acquire) == 1;
        counted.weak.store(1, Ordering::Release);
        alone
    }

    /// The value, if nobody else has a handle of either kind.
    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        // Alone and borrowed, it stays alone. SAFETY: nobody else can reach the value.
        this.is_alone().then(|| unsafe { &mut *this.0.as_mut().value })
    }

    /// The value for writing; a copy of it takes its place here first if others have handles.
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
        // SAFETY: it was found, or made, to be only ours.
        Ok(unsafe { &mut this.0.as_mut().value })
    }

    /// A handle that does not keep the value.
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

    /// Whether two handles are on one object.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.0 == other.0
    }

    /// How many handles there are, weak ones not counted.
    pub fn handles(this: &Self) -> usize {
        this.counted().strong.load(Ordering::Acquire) as usize
    }

    /// The value's address, for who tells objects apart.
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
        // All handles together had one weak: it goes after the value.
        let _memory = WeakRef(self.0);
        // SAFETY: the last handle, having seen all others go, drops the value, once; weak ones do not look at it.
        // Only the value is borrowed: weak handles go on using the counts.
        unsafe { ManuallyDrop::drop(&mut (*self.0.as_ptr()).value) };
    }
}

impl<T> WeakRef<T>
where
    T: RefCounted,
{
    /// A handle on the value, if it is still there.
    pub fn upgrade(&self) -> Option<Ref<T>> {
        // SAFETY: the memory is there while there is a handle of either kind; counts are atomics.
        let strong = unsafe { &(*self.0.as_ptr()).strong };
        let more = |n: u32| (n != 0 && n < MANY).then(|| n + 1);
        strong.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).ok()?;
        Some(Ref(self.0))
    }

    /// Whether the value is still there, just now.
    pub fn is_alive(&self) -> bool {
        // SAFETY: as in `upgrade`.
        unsafe { &(*self.0.as_ptr()).strong }.load(Ordering::Relaxed) > 0
    }

    /// The value's address, also when it is gone.
    pub fn as_ptr(&self) -> *const T {
        // SAFETY: a place inside memory that is there; nothing is read.
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
        // SAFETY: as in `upgrade`; the last of all frees the memory, and its value has been dropped: handles hold a weak.
        unsafe {
            if (*self.0.as_ptr()).weak.fetch_sub(1, Ordering::Release) == 1 {
                fence(Ordering::Acquire);
                T::CACHE.objects().free(self.0.cast());
            }
        }
    }
}

/// Objects set aside for values that will be shared: [`RefReserve::make`] cannot fail while some are left.
pub struct RefReserve<T: RefCounted>(crate::Reserve<'static>, std::marker::PhantomData<fn(T)>);

impl<T: RefCounted> fmt::Debug for RefReserve<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: RefCounted> RefReserve<T> {
    /// `n` objects of the type's cache.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(n: usize) -> Result<Self, OutOfMemory> {
        Ok(RefReserve(T::CACHE.reserve(n)?, std::marker::PhantomData))
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.0.left()
    }

    /// Brings it up to `n` again.
    ///
    /// # Errors
    /// When there is no memory; what was there before is still there.
    pub fn fill(&mut self, n: usize) -> Result<(), OutOfMemory> {
        self.0.fill(n)
    }

    /// Puts a value into an object that was set aside.
    ///
    /// # Errors
    /// The value, when none is left.
    pub fn make(&mut self, value: T) -> Result<Ref<T>, T> {
        match self.0.take() {
            // SAFETY: an object of the type's cache that nobody else has.
            Some(object) => Ok(unsafe { Ref::place(object.cast(), value) }),
            None => Err(value),
        }
    }
}

/// Makes the cache of a type, for [`crate::Own`] and [`Ref`]: `kept!(Chunk, "vm chunk")` for owned objects,
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
