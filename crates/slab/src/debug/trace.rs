//! Call traces.

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
                let ours = ["backtrace::", "<overspill_slab::", "overspill_slab::"];
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
