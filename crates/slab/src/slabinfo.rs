//! The state and counters of every cache of the process (R49).

use std::fmt::{self, Write};

pub use crate::info::{CacheInfo, Flags};
pub use crate::slabs::whatis::{Whatis, whatis};
use crate::{pages, registry};

/// Every cache, oldest first.
pub fn snapshot() -> Vec<CacheInfo> {
    all().collect()
}

/// Every cache, oldest first. Each is read under the registry's lock and yielded without it, so that the caller may
/// make caches.
fn all() -> impl Iterator<Item = CacheInfo> {
    (0..).map_while(|number| registry::nth(number, |cache| cache.info()))
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
    let arena = pages::arena::global().info();
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
