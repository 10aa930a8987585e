//! The classic transport: threads that read requests from `/dev/fuse`.

use std::io;
use std::sync::Arc;

use crate::channel::To;
use crate::device::Device;
use crate::request::Request;
use crate::serve::Serve;

/// Bytes of a message beside the data of a WRITE: headers, and names.
pub(crate) const BESIDE: usize = 8192;

/// Reads and serves requests until the file system is unmounted.
///
/// # Errors
/// When the connection breaks.
pub(crate) fn run(device: &Arc<Device>, serve: &dyn Serve, max_write: usize) -> io::Result<()> {
    let mut buf = vec![0; max_write + BESIDE];
    while let Some(len) = device.receive(&mut buf)? {
        super::serve(serve, Request::decode(&buf[..len]), || To::Device(device.clone()));
    }
    Ok(())
}
