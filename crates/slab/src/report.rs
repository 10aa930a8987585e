//! What is wrong, and who did it.

use std::fmt;
use std::io::Write as _;
use std::sync::OnceLock;

use crate::trace::Trace;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Freed: an address that is no object's.
    NotAnObject,
    /// Freed: an address in the part of a slab that holds no objects.
    UnusedTail,
    /// Freed: an object of another cache.
    OtherCache,
    /// Freed, and freed again.
    DoubleFree,
    /// Bytes before or after an object were written.
    RedZone,
    /// The record behind an object was overwritten: an overrun beyond the red zone.
    Tag,
    /// An object was written after it was freed.
    WriteAfterFree,
    /// Objects were left when their cache ended.
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

/// One fault. Displayed over several lines, traces with names where the program has them.
#[derive(Debug, Clone)]
pub struct Report {
    /// What.
    pub fault: Fault,
    /// The cache that found it.
    pub cache: &'static str,
    /// The cache the object is of, where that is another.
    pub owner: Option<&'static str>,
    /// The address in question.
    pub address: usize,
    /// Bytes of the cache's objects.
    pub size: usize,
    /// Objects concerned.
    pub objects: usize,
    /// Who allocated it last.
    pub(crate) allocated: Option<Trace>,
    /// Who freed it last.
    pub(crate) freed: Option<Trace>,
    /// Who asked now.
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

/// Has reports given to `handler` instead of stderr. The process still ends after one that means that memory is corrupt,
/// also when the handler panics. It may be called while the cache's locks are held: it must not use caches.
///
/// Returns false when another was set before.
pub fn set_fault_handler(handler: Handler) -> bool {
    HANDLER.set(handler).is_ok()
}

/// Reports what does not end the process.
pub(crate) fn tell(report: &Report) {
    match HANDLER.get() {
        Some(handler) => handler(report),
        // A stderr that nobody reads any more is no reason to panic.
        None => drop(write!(std::io::stderr(), "{report}")),
    }
}

/// Reports corrupt memory, and ends the process: to go on would be to invent data.
pub(crate) fn fatal(report: &Report) -> ! {
    /// Whatever reporting comes to.
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
