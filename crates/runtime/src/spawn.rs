//! Parking of operations that must wait.

use std::future::Future;
use std::pin::Pin;

/// Runs parked operations. The driver implements it.
pub trait Spawn: Send + Sync {
    /// Runs `task` until it is done, later, on any thread.
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>);

    /// This thread is about to begin an operation. Reads that the operation asks for need wake no thread before
    /// [`Spawn::begun`].
    fn begin(&self) {}

    /// The operation has begun. If it waits, `help` means that this thread can do the read it waits for; that may keep
    /// the thread busy for as long as the store takes.
    fn begun(&self, help: bool) {
        let _ = help;
    }
}
