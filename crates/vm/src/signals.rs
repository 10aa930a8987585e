//! How the VM wakes its driver.

use std::sync::{Arc, OnceLock};

/// Calls from the VM to its driver. Called often, also under locks of the VM: a method must neither block nor call the VM.
pub trait Signals: Send + Sync {
    /// Memory is short: call [`Pager::pageout`](crate::Pager::pageout) until it rests.
    fn pageout_wanted(&self);
    /// [`Pager::next_reads`](crate::Pager::next_reads) has something.
    fn reads_ready(&self);
    /// [`Pager::next_write`](crate::Pager::next_write) has something.
    fn writes_ready(&self);
    /// [`Pager::next_fill`](crate::Pager::next_fill) has something.
    fn fills_ready(&self) {}
    /// A clock that only grows, in nanoseconds: measures the compressor and the store, and times waits. By default
    /// there is none.
    fn nanoseconds(&self) -> u64 {
        0
    }
    /// An operation waits until the clock shows `at`: [`Pager::tick`](crate::Pager::tick) must be called then, or soon
    /// after.
    fn alarm(&self, at: u64);
}

/// A driver that hears nothing: tests look for work by themselves.
struct Deaf;

impl Signals for Deaf {
    fn pageout_wanted(&self) {}
    fn reads_ready(&self) {}
    fn writes_ready(&self) {}
    fn alarm(&self, _at: u64) {}
}

/// The driver, once it has introduced itself.
#[derive(Default)]
pub(crate) struct DriverSlot(OnceLock<Arc<dyn Signals>>);

impl DriverSlot {
    /// The first driver stays; later ones are ignored.
    pub(crate) fn set(&self, signals: Arc<dyn Signals>) {
        let _ = self.0.set(signals);
    }

    pub(crate) fn get(&self) -> &dyn Signals {
        self.0.get().map_or(&Deaf, |signals| &**signals)
    }
}
