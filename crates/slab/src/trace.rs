//! Call traces, and the tag behind each object of a verified cache.

use std::ffi::c_void;
use std::fmt;

const FRAMES: usize = 16;

/// A call trace: return addresses, and the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Trace {
    thread: u32,
    len: u32,
    frames: [usize; FRAMES],
}

impl Trace {
    pub(crate) const NONE: Trace = Trace { thread: 0, len: 0, frames: [0; FRAMES] };

    /// The trace of the current call.
    #[inline(never)]
    pub(crate) fn capture() -> Trace {
        let mut trace = Trace::NONE;
        trace.thread = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap_or(0);
        backtrace::trace(|frame| {
            let at = trace.len as usize;
            trace.frames[at] = frame.ip().addr();
            trace.len += 1;
            (trace.len as usize) < FRAMES
        });
        trace
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes addresses only, without allocating.
    pub(crate) fn write_raw(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        write!(to, "thread {}:", self.thread)?;
        self.frames[..self.len as usize].iter().try_for_each(|frame| write!(to, " {frame:#x}"))?;
        writeln!(to)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "thread {}:", self.thread)?;
        for frame in &self.frames[..self.len as usize] {
            let mut result = Ok(());
            let mut named = false;
            // A return address lies behind its call. Functions inlined at the call are named too, innermost first.
            let call = std::ptr::without_provenance_mut::<c_void>(frame.saturating_sub(1));
            backtrace::resolve(call, |symbol| {
                let Some(name) = symbol.name() else { return };
                named = true;
                let name = format!("{name:#}");
                // Frames of this crate and of the tracer say nothing about the fault.
                let ours =
                    ["backtrace::", "<overspill_slab::", "overspill_slab::trace", "overspill_slab::raw"];
                if result.is_ok() && !ours.iter().any(|module| name.starts_with(module)) {
                    result = writeln!(f, "    {frame:#x} {name}");
                }
            });
            result?;
            if !named {
                writeln!(f, "    {frame:#x}")?;
            }
        }
        Ok(())
    }
}

/// The record behind each object of a verified cache, after its red zone.
#[derive(Debug)]
pub(crate) struct Tag {
    /// A state below, mixed with the tag's address so that a copied tag is detected.
    pub(crate) state: u64,
    pub(crate) allocated: Trace,
    pub(crate) freed: Trace,
}

pub(crate) const ALLOCATED: u64 = 0xa110_ca7e_d0b1_ec75;
pub(crate) const FREE: u64 = 0xf4ee_b0f4_0b1e_c75f;

/// Least bytes of red zone behind an object.
const RED: usize = 8;

impl Tag {
    /// Offset of the tag from the start of an object of this size.
    pub(crate) const fn behind(size: usize) -> usize {
        (size + RED).next_multiple_of(align_of::<Tag>())
    }

    /// Bytes that a buffer needs behind an object of this size.
    pub(crate) const fn room(size: usize) -> usize {
        Tag::behind(size) - size + size_of::<Tag>()
    }
}
