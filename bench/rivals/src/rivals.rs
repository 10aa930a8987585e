//! The allocators, each behind the calls that a program would use.

use std::ptr::NonNull;

use overspill_slab::{ObjectCache, Options};

/// The sizes that the rows use.
pub const SIZES: [usize; 7] = [16, 64, 256, 700, 1024, 2048, 4096];

/// Gives an object of 256 bytes its constructed state: a lock, a list head, counters, zeros.
pub fn construct(object: *mut u8) {
    let words = object.cast::<u64>();
    for i in 0..32 {
        // SAFETY: objects of this row have 256 bytes, aligned to 8.
        unsafe { words.add(i).write_volatile(if i < 2 { object.addr() as u64 } else { 0 }) };
    }
}

/// An allocator to measure. Its functions are called from several threads.
pub trait Allocator: 'static {
    /// True if several threads may use it.
    const THREADS: bool = true;
    /// Allocates an object of one of [`SIZES`].
    fn alloc(size: usize) -> *mut u8;
    /// # Safety
    /// `object` came from `alloc` with this size, and is used no more.
    unsafe fn free(object: *mut u8, size: usize);
    /// Allocates a constructed object of 256 bytes.
    #[inline(always)]
    fn get() -> *mut u8 {
        let object = Self::alloc(256);
        construct(object);
        object
    }
    /// # Safety
    /// `object` came from `get`, is in its constructed state, and is used no more.
    #[inline(always)]
    unsafe fn put(object: *mut u8) {
        // SAFETY: by contract.
        unsafe { Self::free(object, 256) };
    }
    /// Returns all unused memory to the system.
    fn purge();
}

unsafe fn make(object: NonNull<u8>) {
    construct(object.as_ptr());
}

const fn caches(magazines: bool, colour: bool) -> [ObjectCache; 7] {
    [
        ObjectCache::lazy(Options::new("16", 16).magazines(magazines)),
        ObjectCache::lazy(Options::new("64", 64).magazines(magazines)),
        ObjectCache::lazy(Options::new("256", 256).magazines(magazines)),
        ObjectCache::lazy(Options::new("700", 700).magazines(magazines).colour(colour)),
        ObjectCache::lazy(Options::new("1024", 1024).magazines(magazines)),
        ObjectCache::lazy(Options::new("2048", 2048).magazines(magazines)),
        ObjectCache::lazy(Options::new("4096", 4096).magazines(magazines)),
    ]
}

#[inline(always)]
fn number(size: usize) -> usize {
    SIZES.iter().position(|s| *s == size).expect("one of the sizes")
}

macro_rules! ours {
    ($name:ident, $magazines:literal, $colour:literal) => {
        /// The object caches of this project, with these options.
        pub struct $name;

        impl $name {
            #[inline(always)]
            fn cache(size: usize) -> &'static ObjectCache {
                static CACHES: [ObjectCache; 7] = caches($magazines, $colour);
                &CACHES[number(size)]
            }

            #[inline(always)]
            fn constructed() -> &'static ObjectCache {
                // SAFETY: `make` writes the 256 bytes and nothing else.
                static CACHE: ObjectCache = ObjectCache::lazy(unsafe {
                    Options::new("constructed", 256).magazines($magazines).constructor(make)
                });
                &CACHE
            }
        }

        impl Allocator for $name {
            #[inline(always)]
            fn alloc(size: usize) -> *mut u8 {
                Self::cache(size).alloc().map_or(std::ptr::null_mut(), NonNull::as_ptr)
            }

            #[inline(always)]
            unsafe fn free(object: *mut u8, size: usize) {
                // SAFETY: by contract; an allocated object is not null.
                unsafe { Self::cache(size).free(NonNull::new_unchecked(object)) };
            }

            #[inline(always)]
            fn get() -> *mut u8 {
                Self::constructed().alloc().map_or(std::ptr::null_mut(), NonNull::as_ptr)
            }

            #[inline(always)]
            unsafe fn put(object: *mut u8) {
                // SAFETY: by contract.
                unsafe { Self::constructed().free(NonNull::new_unchecked(object)) };
            }

            fn purge() {
                overspill_slab::reap_all(true);
            }
        }
    };
}

ours!(Ours, true, false);
ours!(OursPlain, false, false);
ours!(OursColoured, true, true);

macro_rules! malloc {
    ($name:ident, $malloc:path, $free:path, $purge:expr) => {
        /// A rival, called through its C functions.
        pub struct $name;

        impl Allocator for $name {
            #[inline(always)]
            fn alloc(size: usize) -> *mut u8 {
                // SAFETY: `size` is above 0.
                unsafe { $malloc(size).cast() }
            }

            #[inline(always)]
            unsafe fn free(object: *mut u8, size: usize) {
                // SAFETY: by contract.
                unsafe { $free(object.cast(), size) };
            }

            fn purge() {
                $purge
            }
        }
    };
}

/// Frees in the manner of C, which take no size.
macro_rules! unsized_free {
    ($name:ident, $free:path) => {
        #[inline(always)]
        unsafe fn $name(object: *mut u8, _: usize) {
            // SAFETY: by the caller's contract.
            unsafe { $free(object.cast()) };
        }
    };
}

unsized_free!(glibc_free, libc::free);
unsized_free!(je_free, tikv_jemalloc_sys::free);
unsized_free!(mi_free, libmimalloc_sys::mi_free);

#[inline(always)]
unsafe fn sn_free(object: *mut u8, size: usize) {
    // SAFETY: by the caller's contract.
    unsafe { snmalloc_sys::sn_rust_dealloc(object.cast(), 8, size) };
}

malloc!(Glibc, libc::malloc, glibc_free, {
    // SAFETY: may be called at any time.
    unsafe { libc::malloc_trim(0) };
});
malloc!(Jemalloc, tikv_jemalloc_sys::malloc, je_free, {
    // 4096 is MALLCTL_ARENAS_ALL.
    for name in [c"thread.tcache.flush", c"arena.4096.purge"] {
        // SAFETY: these controls take no input and give no output.
        unsafe {
            let null = std::ptr::null_mut();
            assert_eq!(tikv_jemalloc_sys::mallctl(name.as_ptr(), null, null.cast(), null, 0), 0);
        }
    }
});
malloc!(Mimalloc, libmimalloc_sys::mi_malloc, mi_free, {
    // SAFETY: may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
});
unsafe fn sn_malloc(size: usize) -> *mut u8 {
    // SAFETY: the alignment is a power of two, and `size` is above 0.
    unsafe { snmalloc_sys::sn_rust_alloc(8, size).cast() }
}

malloc!(Snmalloc, sn_malloc, sn_free, {
    // It has no function to purge: it decommits by itself.
    std::thread::sleep(std::time::Duration::from_secs(1));
});
