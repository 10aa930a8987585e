//! Sources of pages: [`PageSource`], the system as one, and wrappers that limit or fail.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::PAGE;

/// Hands out pages and takes them back (R44). Several threads may call it at once. No lock of a cache is held;
/// `release` may run under the registry's lock, so it must not create caches.
///
/// # Safety
/// `grow` returns readable and writable memory of at least the layout's size and alignment, which nobody else uses
/// until it is released. It is zeroed, or holds what its last user in this process left.
pub unsafe trait PageSource: Send + Sync {
    /// Returns memory for `layout`, whose size and alignment are multiples of [`PAGE`]; `None` if there is none.
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>>;

    /// Takes memory back.
    ///
    /// # Safety
    /// `at` came from `grow` of this source with this layout, and is used no more.
    unsafe fn release(&self, at: NonNull<u8>, layout: Layout);

    /// Gives up the memory of a range but keeps its addresses, which then read as zeros. Returns false if the source
    /// cannot do that.
    ///
    /// # Safety
    /// `at` and `bytes` are whole pages of memory from `grow`, and nobody needs their contents.
    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        let _ = (at, bytes);
        false
    }

    /// Gives unused memory back to where the source got it, because an allocation found none. Returns the bytes given
    /// back.
    fn trim(&self) -> usize {
        0
    }
}

/// The system: anonymous private mappings, without huge pages, which would commit 2 MiB for one object.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

// SAFETY: a fresh private anonymous mapping is nobody else's, and is zeroed.
unsafe impl PageSource for System {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        let (bytes, align) = (layout.size(), layout.align().max(PAGE));
        let mapped = bytes.checked_add(align - PAGE)?;
        let at = map(mapped, MapFlags::empty())?;
        let lead = at.as_ptr().align_offset(align);
        let tail = mapped - lead - bytes;
        // SAFETY: head and tail of the mapping just made, which nobody has seen yet.
        unsafe {
            unreserve(at, lead);
            unreserve(at.add(lead + bytes), tail);
            let at = at.add(lead);
            let _ = rustix::mm::madvise(at.as_ptr().cast(), bytes, Advice::LinuxNoHugepage);
            Some(at)
        }
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller gives up memory that `grow` mapped.
        unsafe { unreserve(at, layout.size()) };
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: whole pages of a private anonymous mapping whose contents the caller gives up.
        unsafe { rustix::mm::madvise(at.as_ptr().cast(), bytes, Advice::LinuxDontNeed) }.is_ok()
    }
}

fn map(bytes: usize, flags: MapFlags) -> Option<NonNull<u8>> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
    let at =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, prot, MapFlags::PRIVATE | flags) };
    NonNull::new(at.ok()?.cast())
}

/// Reserves zeroed address space; its pages use memory once touched.
pub(crate) fn reserve(bytes: usize) -> Option<NonNull<u8>> {
    let at = map(bytes, MapFlags::NORESERVE)?;
    // SAFETY: the mapping just made; the advice changes no contents.
    let _ = unsafe { rustix::mm::madvise(at.as_ptr().cast(), bytes, Advice::LinuxNoHugepage) };
    Some(at)
}

/// # Safety
/// The range is whole pages, mapped by this module and used no more.
pub(crate) unsafe fn unreserve(at: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: by contract.
        let unmapped = unsafe { rustix::mm::munmap(at.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Another source, limited to so many bytes at once.
#[derive(Debug)]
pub struct Limited<S> {
    source: S,
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl<S> Limited<S> {
    /// Limits `source` to `limit` bytes.
    pub const fn new(source: S, limit: usize) -> Self {
        Limited { source, limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }
    }

    /// Bytes grown and not yet released.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Changes the limit. Memory in use above it stays.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }
}

// SAFETY: the inner source keeps the contract.
unsafe impl<S: PageSource> PageSource for Limited<S> {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |used: usize| used.checked_add(layout.size()).filter(|sum| *sum <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let at = self.source.grow(layout);
        if at.is_none() {
            self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        at
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { self.source.release(at, layout) };
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: by the caller's contract.
        unsafe { self.source.discard(at, bytes) }
    }

    fn trim(&self) -> usize {
        self.source.trim()
    }
}

/// Fault injection: another source that refuses on demand.
#[derive(Debug)]
pub struct Faulty<S> {
    source: S,
    grows: AtomicU64,
    refuse_from: AtomicU64,
    refuse_until: AtomicU64,
}

impl<S> Faulty<S> {
    /// Wraps `source`, and refuses nothing yet.
    pub const fn new(source: S) -> Self {
        Faulty {
            source,
            grows: AtomicU64::new(0),
            refuse_from: AtomicU64::new(u64::MAX),
            refuse_until: AtomicU64::new(u64::MAX),
        }
    }

    /// Number of calls of `grow`.
    pub fn grows(&self) -> u64 {
        self.grows.load(Ordering::Relaxed)
    }

    /// Lets `after` more calls of `grow` pass, and refuses the next `count`.
    pub fn refuse(&self, after: u64, count: u64) {
        let from = self.grows().saturating_add(after);
        self.refuse_from.store(from, Ordering::Relaxed);
        self.refuse_until.store(from.saturating_add(count), Ordering::Relaxed);
    }
}

// SAFETY: the inner source keeps the contract.
unsafe impl<S: PageSource> PageSource for Faulty<S> {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        let n = self.grows.fetch_add(1, Ordering::Relaxed);
        let refused = self.refuse_from.load(Ordering::Relaxed)..self.refuse_until.load(Ordering::Relaxed);
        (!refused.contains(&n)).then(|| self.source.grow(layout)).flatten()
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { self.source.release(at, layout) };
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: by the caller's contract.
        unsafe { self.source.discard(at, bytes) }
    }

    fn trim(&self) -> usize {
        self.source.trim()
    }
}

// SAFETY: the inner source keeps the contract.
unsafe impl<S: PageSource + ?Sized> PageSource for std::sync::Arc<S> {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        (**self).grow(layout)
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { (**self).release(at, layout) };
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: by the caller's contract.
        unsafe { (**self).discard(at, bytes) }
    }

    fn trim(&self) -> usize {
        (**self).trim()
    }
}
