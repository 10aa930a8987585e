//! FORGET and INTERRUPT still come by `/dev/fuse` when requests come by io_uring. They are read lazily, many at
//! once: nobody waits for a FORGET, and each wake-up takes a processor from those who wait for something.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::channel::To;
use crate::device::Device;
use crate::request::Request;
use crate::serve::Serve;
use crate::transport::classic::BESIDE;

/// The time that the first of them waits for others.
const LAZY: Duration = Duration::from_millis(5);

/// Reads until the file system is unmounted.
///
/// # Errors
/// When the connection breaks.
pub(crate) fn run(device: &Arc<Device>, serve: &dyn Serve, max_write: usize) -> io::Result<()> {
    device.set_nonblocking()?;
    // The kernel gives nothing to a reader who has no room for its largest request, even where none can come.
    let mut buf = vec![0; max_write + BESIDE];
    loop {
        match poll(&mut [PollFd::new(&device.as_fd(), PollFlags::IN)], None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => drop(other?),
        }
        std::thread::sleep(LAZY);
        while let Some(len) = device.try_receive(&mut buf)? {
            if len == 0 {
                return Ok(());
            }
            super::serve(serve, Request::decode(&buf[..len]), || To::Device(device.clone()));
        }
    }
}
