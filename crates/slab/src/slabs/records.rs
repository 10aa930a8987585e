//! The records of the slab layer, which point at each other: a slab at its layer, the layer at its slabs.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::geometry::{Geometry, HEADER};
use crate::options::Options;
use crate::pages::list::{Linked, Links, List};
use crate::sync::Mutex;

/// The header. `objects.div_ceil(64)` words of bits follow it, set where a buffer is free. `layer`, `pages` and `first`
/// never change; the lock around the cache's [`Slabs`] guards all the rest.
#[repr(C)]
pub(crate) struct Slab {
    pub(super) links: Links<Slab>,
    pub(crate) layer: NonNull<SlabLayer>,
    pub(crate) pages: NonNull<u8>,
    pub(crate) first: NonNull<u8>,
    pub(crate) in_use: u32,
    /// Buffers that are in use only because a magazine holds them: counted during a reap, else 0.
    pub(crate) cached: u32,
}

const _: () = assert!(size_of::<Slab>() == HEADER);

pub(crate) struct InSlabs;

// SAFETY: `links` always returns the same field.
unsafe impl Linked<Slab> for InSlabs {
    fn links(at: NonNull<Slab>) -> *mut Links<Slab> {
        // SAFETY: the address of a field of `*at`; nothing is read.
        unsafe { &raw mut (*at.as_ptr()).links }
    }
}

/// The slabs of a cache. Full slabs are on no list, except under verify, which enumerates them.
pub(crate) struct Slabs {
    pub(crate) partial: List<Slab, InSlabs>,
    pub(crate) empty: List<Slab, InSlabs>,
    pub(crate) full: List<Slab, InSlabs>,
    pub(super) keeps_full: bool,
    /// The number of slabs.
    pub(crate) slabs: usize,
    /// Buffers in use: allocated, or in a magazine.
    pub(crate) in_use: usize,
    /// Slabs ever added; selects the colour of the next.
    pub(crate) grown: usize,
    pub(crate) gone: usize,
}

/// The slab layer of a cache.
pub(crate) struct SlabLayer {
    pub(crate) options: Options,
    pub(crate) geometry: Geometry,
    pub(crate) slabs: Mutex<Slabs>,
    /// Allocations that failed.
    pub(crate) failures: AtomicU64,
}

// SAFETY: the lock guards everything behind pointers.
unsafe impl Send for SlabLayer {}
// SAFETY: as for Send.
unsafe impl Sync for SlabLayer {}
