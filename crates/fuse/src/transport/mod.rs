//! How requests come from the kernel, and replies go back.

pub(crate) mod classic;
pub mod fake;
pub(crate) mod forgets;
pub(crate) mod uring;

use crate::channel::To;
use crate::reply::Reply;
use crate::request::{Malformed, Request};
use crate::serve::Serve;

const EINVAL: i32 = 22;

/// Serves one message, or refuses it.
pub(crate) fn serve(serve: &dyn Serve, request: Result<Request<'_>, Malformed>, to: impl FnOnce() -> To) {
    match request {
        Ok(request) if request.op.has_no_reply() => serve.note(&request),
        Ok(request) => serve.serve(&request, Reply::new(request.unique, to())),
        Err(Malformed::Arguments { opcode, unique }) => {
            tracing::warn!(opcode, "the kernel sent garbled arguments");
            Reply::new(unique, to()).error(EINVAL);
        }
        Err(error) => tracing::warn!(%error, "the kernel sent a garbled message"),
    }
}
