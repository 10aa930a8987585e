//! The file system's part.

use crate::reply::Reply;
use crate::request::Request;

/// A file system's part. Threads call it at once.
pub trait Serve: Send + Sync {
    /// Answers a request, now or later. What must wait for more than memory accesses must not wait here if
    /// [`Session::by_ring`](crate::Session::by_ring): all callers of a processor stand behind it.
    fn serve(&self, request: &Request<'_>, reply: Reply);

    /// Takes note of what has no reply: FORGET, BATCH_FORGET, INTERRUPT.
    fn note(&self, request: &Request<'_>);
}
