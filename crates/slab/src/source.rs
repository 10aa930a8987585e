//! Where pages come from: [`PageSource`], the system as one, and wrappers that limit and that fail.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::PAGE;

/// Gives pages and takes them back (R44). Sources are asked under no lock of a cache, and may be asked by several
/// threads at once.
///
/// # Safety
/// What `grow` returns is readable and writable memory of at least the layout's size and alignment that nobody else
/// uses, zeroed or whatever its last user in this process left, until it is released.
pub unsafe trait PageSource: Send + Sync {
    /// Memory for `layout`, whose size and alignment are multiples of [`PAGE`].
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>>;

    /// Takes memory back.
    ///
    /// # Safety
    /// `at` came from `grow` of this source with this layout, and is used no more.
    unsafe fn release(&self, at: NonNull<u8>, layout: Layout);

    /// Gives the memory of a range up but keeps its addresses; what is read there next is zeros. False where that
    /// cannot be.
    ///
    /// # Safety
    /// `at` and `bytes` are whole pages of what `grow` returned, and nobody needs what is in them.
    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        let _ = (at, bytes);
        false
    }

    /// Gives back to where it came from what the source holds and nobody uses: somebody found no memory. Returns the
    /// bytes that went.
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
        // SAFETY: the caller gives up what `grow` mapped.
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

/// Zeroed address space that uses memory only where it is touched.
pub(crate) fn reserve(bytes: usize) -> Option<NonNull<u8>> {
    let at = map(bytes, MapFlags::NORESERVE)?;
    // SAFETY: the mapping just made; the advice changes no contents.
    let _ = unsafe { rustix::mm::madvise(at.as_ptr().cast(), bytes, Advice::LinuxNoHugepage) };
    Some(at)
}

/// # Safety
/// A whole range of pages that was mapped by this module and is used no more.
pub(crate) unsafe fn unreserve(at: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: by contract.
        let unmapped = unsafe { rustix::mm::munmap(at.as_ptr().cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Another source, up to so many bytes at once.
#[derive(Debug)]
pub struct Limited<S> {
    source: S,
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl<S> Limited<S> {
    /// At most `limit` bytes of `source`.
    pub const fn new(source: S, limit: usize) -> Self {
        Limited { source, limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }
    }

    /// Bytes grown and not released.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Changes the limit; what is in use above it stays.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }
}

// SAFETY: hands through what the inner source promises.
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
        // SAFETY: the caller's promise, handed on.
        unsafe { self.source.release(at, layout) };
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.source.discard(at, bytes) }
    }
}

/// Another source that refuses on demand: fault injection.
#[derive(Debug)]
pub struct Faulty<S> {
    source: S,
    grows: AtomicU64,
    refuse_from: AtomicU64,
    refuse_until: AtomicU64,
}

impl<S> Faulty<S> {
    /// `source`, refusing nothing yet.
    pub const fn new(source: S) -> Self {
        Faulty {
            source,
            grows: AtomicU64::new(0),
            refuse_from: AtomicU64::new(u64::MAX),
            refuse_until: AtomicU64::new(u64::MAX),
        }
    }

    /// How often it was asked to grow.
    pub fn grows(&self) -> u64 {
        self.grows.load(Ordering::Relaxed)
    }

    /// Refuses `count` requests to grow, the first of them after `after` more that succeed.
    pub fn refuse(&self, after: u64, count: u64) {
        let from = self.grows().saturating_add(after);
        self.refuse_from.store(from, Ordering::Relaxed);
        self.refuse_until.store(from.saturating_add(count), Ordering::Relaxed);
    }
}

// SAFETY: hands through what the inner source promises.
unsafe impl<S: PageSource> PageSource for Faulty<S> {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        let n = self.grows.fetch_add(1, Ordering::Relaxed);
        let refused = self.refuse_from.load(Ordering::Relaxed)..self.refuse_until.load(Ordering::Relaxed);
        (!refused.contains(&n)).then(|| self.source.grow(layout)).flatten()
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.source.release(at, layout) };
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.source.discard(at, bytes) }
    }
}

// SAFETY: the same source, shared.
unsafe impl<S: PageSource + ?Sized> PageSource for std::sync::Arc<S> {
    fn grow(&self, layout: Layout) -> Option<NonNull<u8>> {
        (**self).grow(layout)
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { (**self).release(at, layout) };
    }

    unsafe fn discard(&self, at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: the caller's promise, handed on.
        unsafe { (**self).discard(at, bytes) }
    }

    fn trim(&self) -> usize {
        (**self).trim()
    }
}
