//! The options of a new cache.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::pages::source::PageSource;

/// Constructs an object. It cannot fail, allocate or block.
#[derive(Clone, Copy)]
pub(crate) struct Constructor {
    /// Called with `with` and the address of the object.
    pub(crate) call: unsafe fn(*const (), NonNull<u8>),
    pub(crate) with: *const (),
}

// SAFETY: `with` is a pointer to a function, not to data.
unsafe impl Send for Constructor {}
// SAFETY: as for Send.
unsafe impl Sync for Constructor {}

/// The options of a new cache.
#[derive(Clone)]
pub struct Options {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) align: usize,
    pub(crate) constructor: Option<Constructor>,
    pub(crate) source: Option<Arc<dyn PageSource>>,
    pub(crate) verify: bool,
    pub(crate) magazines: bool,
    pub(crate) colour: bool,
    /// One in so many slow allocations is guarded; 0 guards none.
    pub(crate) guard: u32,
}

impl Options {
    /// Objects of `size` bytes, aligned to 8. slabinfo shows the name.
    pub const fn new(name: &'static str, size: usize) -> Self {
        Options {
            name,
            size,
            align: 8,
            constructor: None,
            source: None,
            verify: false,
            magazines: true,
            colour: false,
            guard: 0,
        }
    }

    /// Alignment: a power of two up to a page.
    #[must_use]
    pub const fn align(mut self, align: usize) -> Self {
        self.align = align;
        self
    }

    /// Calls `make` for every object that enters a slab. Callers must free objects in their constructed state.
    ///
    /// # Safety
    /// `make` initialises the object it is given, and does not fail, allocate or block.
    #[must_use]
    pub const unsafe fn constructor(mut self, make: unsafe fn(NonNull<u8>)) -> Self {
        unsafe fn call(with: *const (), object: NonNull<u8>) {
            // SAFETY: `with` was made from a function of this type, below.
            let make: unsafe fn(NonNull<u8>) = unsafe { std::mem::transmute(with) };
            // SAFETY: by the caller's contract.
            unsafe { make(object) };
        }
        self.constructor = Some(Constructor { call, with: make as *const () });
        self
    }

    pub(crate) const fn unconstructed(mut self) -> Self {
        self.constructor = None;
        self
    }

    pub(crate) const fn sized(mut self, size: usize, align: usize) -> Self {
        self.size = size;
        self.align = align;
        self
    }

    pub(crate) const fn constructed_by(mut self, constructor: Constructor) -> Self {
        self.constructor = Some(constructor);
        self
    }

    /// Takes pages from `source` instead of from [`crate::global`].
    #[must_use]
    pub fn source(mut self, source: Arc<dyn PageSource>) -> Self {
        self.source = Some(source);
        self
    }

    /// Checks every object (see the crate's page). Slower, and objects take more memory.
    #[must_use]
    pub const fn verify(mut self, on: bool) -> Self {
        self.verify = on;
        self
    }

    /// Guards one in `every` allocations that leave the fast path; 0 guards none.
    #[must_use]
    pub const fn guard(mut self, every: u32) -> Self {
        self.guard = every;
        self
    }

    /// Without magazines, every operation takes the cache's lock, and a freed object returns to its slab at once.
    #[must_use]
    pub const fn magazines(mut self, on: bool) -> Self {
        self.magazines = on;
        self
    }

    /// Starts the objects of each slab at another offset, so that they fall on different cache lines.
    #[must_use]
    pub const fn colour(mut self, on: bool) -> Self {
        self.colour = on;
        self
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Options { name, size, align, verify, magazines, guard, .. } = self;
        write!(
            f,
            "{name}: {size} bytes, align {align}, verify {verify}, magazines {magazines}, guard {guard}"
        )
    }
}
