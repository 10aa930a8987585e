//! Reports of faults: the object, and the call traces that allocated and freed it.

use std::fmt;
use std::io::Write as _;
use std::sync::OnceLock;

use super::trace::Trace;

/// Kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A free of an address that is no object's.
    NotAnObject,
    /// A free of an address in the part of a slab that holds no objects.
    UnusedTail,
    /// A free of an object of another cache.
    OtherCache,
    /// A second free of an object.
    DoubleFree,
    /// Bytes before or after an object were written.
    RedZone,
    /// The record behind an object was overwritten: an overrun beyond the red zone.
    Tag,
    /// An object was written after it was freed.
    WriteAfterFree,
    /// Objects were still allocated when their cache was dropped.
    Leak,
    /// A guard page was touched: an overrun, or a use after free.
    Guard,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::NotAnObject => "invalid free: not the start of an object",
            Fault::UnusedTail => "invalid free: an address in a slab's unused part",
            Fault::OtherCache => "invalid free: an object of another cache",
            Fault::DoubleFree => "double free",
            Fault::RedZone => "overrun: a red zone was written",
            Fault::Tag => "overrun: the record behind an object was written",
            Fault::WriteAfterFree => "write after free",
            Fault::Leak => "leak: objects left when their cache ended",
            Fault::Guard => "guard page touched",
        })
    }
}

/// One fault. It displays over several lines, with function names in traces where the program has symbols.
#[derive(Debug, Clone)]
pub struct Report {
    /// The kind of fault.
    pub fault: Fault,
    /// The cache that found the fault.
    pub cache: &'static str,
    /// The cache of the object, if that is another.
    pub owner: Option<&'static str>,
    /// The address of the object or of the bad free; 0 for a leak.
    pub address: usize,
    /// Bytes of an object of the cache.
    pub size: usize,
    /// The number of objects concerned.
    pub objects: usize,
    /// The call that allocated the object last.
    pub(crate) allocated: Option<Trace>,
    /// The call that freed it last.
    pub(crate) freed: Option<Trace>,
    /// The call that found the fault.
    pub(crate) here: Option<Trace>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "slab: {} in cache '{}', {} bytes at {:#x}",
            self.fault, self.cache, self.size, self.address
        )?;
        if let Some(owner) = self.owner {
            write!(f, ", of cache '{owner}'")?;
        }
        if self.objects > 1 {
            write!(f, ", {} objects", self.objects)?;
        }
        writeln!(f)?;
        for (what, trace) in
            [("found by", &self.here), ("allocated by", &self.allocated), ("freed by", &self.freed)]
        {
            if let Some(trace) = trace.as_ref().filter(|trace| !trace.is_empty()) {
                write!(f, "  {what} {trace}")?;
            }
        }
        Ok(())
    }
}

type Handler = fn(&Report);

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// Sends reports to `handler` instead of stderr. A report of corrupt memory still ends the process afterwards, even if
/// the handler panics. Locks of the cache may be held while the handler runs: it must not use caches.
///
/// Returns false if a handler was set before.
pub fn set_fault_handler(handler: Handler) -> bool {
    HANDLER.set(handler).is_ok()
}

/// Reports a fault, without ending the process.
pub(crate) fn tell(report: &Report) {
    match HANDLER.get() {
        Some(handler) => handler(report),
        // Writing to a closed stderr must not panic.
        None => drop(write!(std::io::stderr(), "{report}")),
    }
}

/// Reports corrupt memory, and aborts the process: continuing would invent data.
pub(crate) fn fatal(report: &Report) -> ! {
    /// Aborts the process when it is dropped, even if the handler panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    let _end = End;
    tell(report);
    std::process::abort()
}
