//! The state and counters of every cache of the process (R49).

use std::fmt::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, RwLock};

use serde::Serialize;

use crate::cpu::Magazine;
use crate::raw::Raw;
use crate::registry;
use crate::slab::{PAGES, Slab};

/// Taken for reading to destroy a slab, and for writing by [`whatis`], which may then read any slab it finds.
pub(crate) static SLABS_STAY: RwLock<()> = RwLock::new(());

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

pub(crate) fn info(raw: &Raw) -> CacheInfo {
    let g = &raw.geometry;
    let depot = raw.depot.lock();
    let slabs = raw.slabs.lock();
    let in_slots = || {
        raw.cpu.slots().iter().flat_map(|slot| {
            use crate::sync::atomic::Ordering::Acquire;
            [slot.loaded.load(Acquire), slot.previous.load(Acquire)]
        })
    };
    // SAFETY: magazines are freed, and leave slots, only under the depot's lock.
    let cached: usize = depot
        .filled
        .iter()
        .chain(in_slots().filter(|m| !m.is_null()))
        .map(|magazine| unsafe { Magazine::count(magazine) })
        .sum();
    // SAFETY: as above.
    let served = |magazine: *mut Magazine| unsafe { Magazine::served(magazine) };
    let gone = raw.cpu.slots().iter().map(|slot| slot.hits.load(crate::sync::atomic::Ordering::Relaxed));
    let hits = gone.chain(in_slots().filter(|m| !m.is_null()).map(served)).sum();
    let memory = slabs.slabs * g.slab;
    let active = slabs.in_use.saturating_sub(cached);
    let lost = memory.saturating_sub(active * g.size);
    CacheInfo {
        name: raw.config.name,
        flags: Flags {
            constructed: raw.config.constructor.is_some(),
            verify: raw.config.verify,
            guard: raw.config.guard > 0,
            magazines: raw.cpu.is_on(),
            off_slab: g.header.is_none(),
            internal: raw.config.internal,
        },
        object_size: g.size,
        buffer_size: g.buffer,
        slab_size: g.slab,
        slab_objects: g.objects,
        slabs: slabs.slabs,
        objects: slabs.slabs * g.objects,
        active: active + raw.guarded.load(Ordering::Relaxed),
        cached,
        memory: memory + raw.own_bytes(),
        reclaimable: slabs.empty.len() * g.slab,
        fragmentation: if memory == 0 { 0.0 } else { ratio(lost, memory) },
        hits,
        fills: depot.fills,
        drains: depot.drains,
        exchanges: depot.exchanges,
        failures: raw.failures.load(Ordering::Relaxed),
        reaps: registry::reaps(raw),
        grown: slabs.grown,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// Every cache, oldest first.
pub fn snapshot() -> Vec<CacheInfo> {
    all().collect()
}

/// Every cache, oldest first. Each is read under the registry's lock and yielded without it, so that the caller may
/// make caches.
fn all() -> impl Iterator<Item = CacheInfo> {
    (0..).map_while(|number| registry::nth(number, info))
}

/// The heading of [`write_line`]'s columns.
pub const HEADING: &str = "NAME                     FLAGS    SIZE    SLAB   SLABS    OBJECTS     ACTIVE   CACHED   MEMORY K  RECLAIM K  FRAG%         HITS     FILLS    DRAINS  FAILED";

/// Writes one line about a cache.
///
/// # Errors
/// When `to` returns an error.
pub fn write_line(to: &mut dyn Write, cache: &CacheInfo) -> fmt::Result {
    let CacheInfo { name, flags, object_size, slab_size, slabs, objects, active, cached, .. } = cache;
    let CacheInfo { memory, reclaimable, hits, fills, drains, failures, .. } = cache;
    writeln!(
        to,
        "{name:<24.24} {flags} {object_size:>7} {slab_size:>7} {slabs:>7} {objects:>10} {active:>10} {cached:>8} {:>10} \
         {:>10} {:>6.1} {hits:>12} {fills:>9} {drains:>9} {failures:>7}",
        memory / 1024,
        reclaimable / 1024,
        cache.fragmentation * 100.0,
    )
}

/// Writes the table of every cache, without allocating: it works when memory is exhausted.
///
/// # Errors
/// When `to` returns an error.
pub fn write_table(to: &mut dyn Write) -> fmt::Result {
    writeln!(to, "{HEADING}")?;
    let mut memory = 0;
    for cache in all() {
        memory += cache.memory;
        write_line(to, &cache)?;
    }
    let arena = crate::global().info();
    writeln!(
        to,
        "caches {} K; arena: imported {} K, used {} K, resident {} K, records {} K",
        memory / 1024,
        arena.imported / 1024,
        arena.used / 1024,
        arena.resident / 1024,
        arena.records / 1024
    )
}

/// Writes the table to a file descriptor, without allocating.
pub fn dump(to: std::os::fd::BorrowedFd<'_>) {
    struct Lines<'f>(std::os::fd::BorrowedFd<'f>);

    impl Write for Lines<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let n = rustix::io::write(self.0, rest).map_err(|_| fmt::Error)?;
                rest = &rest[n..];
            }
            Ok(())
        }
    }

    // A failed write is dropped: it cannot be reported anywhere.
    let _ = write_table(&mut Lines(to));
}

/// The description of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Whatis {
    /// The cache whose slab contains the address.
    pub cache: &'static str,
    /// Start of the object; `None` in a slab's header or unused part.
    pub object: Option<usize>,
    /// Offset of the address in the object, or else in the slab.
    pub offset: usize,
    /// True if the object is allocated or in a magazine.
    pub taken: bool,
}

/// Describes an address; `None` if it lies in no slab. Any number is safe.
pub fn whatis(address: usize) -> Option<Whatis> {
    let _stay = SLABS_STAY.write().unwrap_or_else(PoisonError::into_inner);
    let slab = PAGES.get(address)?;
    // SAFETY: slabs in the map are initialised, and stay while we hold SLABS_STAY; caches outlive their slabs.
    unsafe {
        let raw = (*slab.as_ptr()).cache.as_ref();
        let g = &raw.geometry;
        let slabs = raw.slabs.lock();
        let first = (*slab.as_ptr()).first.addr().get();
        let index = address.checked_sub(first).map(|offset| g.index(offset)).filter(|i| *i < g.objects);
        let object = index.map(|i| first + i * g.buffer + g.front).filter(|start| *start <= address);
        let into = |start: usize| address.wrapping_sub(start);
        Some(Whatis {
            cache: raw.config.name,
            object,
            offset: object.map_or_else(|| into((*slab.as_ptr()).pages.addr().get()), into),
            taken: index.is_some_and(|i| !Slab::is_free(slab, i)),
        })
        .inspect(|_| drop(slabs))
    }
}
