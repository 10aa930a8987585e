//! Where operations go that must wait.

use std::future::Future;
use std::pin::Pin;

/// Runs parked operations. The driver does.
pub trait Spawn: Send + Sync {
    /// Runs `task` to its end, some time, on some thread.
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>);

    /// This thread is about to begin an operation. Reads that the operation asks for need wake no thread before
    /// [`Spawn::begun`].
    fn begin(&self) {}

    /// The operation has begun. If it waits, `help` says that this thread can do the read it waits for; the thread may then
    /// be busy with it for as long as the store takes.
    fn begun(&self, help: bool) {
        let _ = help;
    }
}
