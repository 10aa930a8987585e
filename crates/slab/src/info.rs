//! State and counters of one cache, as slabinfo shows them.

use std::fmt::{self, Write};

use serde::Serialize;

/// One cache. The counts are close, not exact, while other threads use the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CacheInfo {
    /// Name of the cache.
    pub name: &'static str,
    /// One letter per flag: `c` constructed, `v` verify, `g` guard, `m` magazines, `o` header off slab, `i` internal.
    #[serde(serialize_with = "as_text")]
    pub flags: Flags,
    /// Bytes of an object.
    pub object_size: usize,
    /// Bytes from one object to the next.
    pub buffer_size: usize,
    /// Bytes of a slab.
    pub slab_size: usize,
    /// Objects of a slab.
    pub slab_objects: usize,
    /// Number of slabs.
    pub slabs: usize,
    /// Objects for which the slabs have room.
    pub objects: usize,
    /// Objects in use.
    pub active: usize,
    /// Free objects in magazines.
    pub cached: usize,
    /// Bytes of memory: slabs and the cache's own record.
    pub memory: usize,
    /// Bytes of that in slabs whose buffers are all free.
    pub reclaimable: usize,
    /// Share of the bytes of slabs that holds no object in use; 0 is none.
    pub fragmentation: f64,
    /// Allocations that a loaded magazine served.
    pub hits: u64,
    /// Magazines filled from slabs.
    pub fills: u64,
    /// Magazines drained into slabs.
    pub drains: u64,
    /// Magazines exchanged with the depot.
    pub exchanges: u64,
    /// Allocations that failed.
    pub failures: u64,
    /// Number of reaps.
    pub reaps: u64,
    /// Slabs ever made.
    pub grown: usize,
}

impl CacheInfo {
    /// Fills in the fragmentation, from the slabs' bytes and the objects in use; nothing else may be in `memory` yet.
    pub(crate) fn with_fragmentation(mut self) -> Self {
        let lost = self.memory.saturating_sub(self.active * self.object_size);
        self.fragmentation = if self.memory == 0 { 0.0 } else { ratio(lost, self.memory) };
        self
    }
}

/// Properties of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags")]
pub struct Flags {
    /// Objects are constructed.
    pub constructed: bool,
    /// Objects are verified.
    pub verify: bool,
    /// Some objects are guarded.
    pub guard: bool,
    /// The cache has magazines.
    pub magazines: bool,
    /// Slab headers lie off slab.
    pub off_slab: bool,
    /// The cache describes others.
    pub internal: bool,
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [
            (self.constructed, 'c'),
            (self.verify, 'v'),
            (self.guard, 'g'),
            (self.magazines, 'm'),
            (self.off_slab, 'o'),
            (self.internal, 'i'),
        ];
        letters.iter().try_for_each(|(set, letter)| f.write_char(if *set { *letter } else { '-' }))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde passes")]
fn as_text<S: serde::Serializer>(flags: &Flags, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(flags)
}

#[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
