//! A connection to the kernel: the descriptor of `/dev/fuse` behind a mount.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::IntoBytes as _;

use crate::abi::{NOTIFY_INVAL_INODE, NotifyInvalInode, OutHeader};

/// The descriptor. Any thread may read requests from it and write replies to it.
#[derive(Debug)]
pub struct Device(OwnedFd);

/// The most parts of one message: beside the header, as many as writev(2) takes.
const PARTS: usize = 1024;

impl Device {
    /// A connection on this descriptor.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Device {
        Device(fd)
    }

    /// Waits for a request; returns its bytes. `None`: the file system is unmounted.
    ///
    /// # Errors
    /// When the connection is broken in another way.
    pub(crate) fn receive(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        use rustix::io::Errno;
        loop {
            match rustix::io::read(&self.0, &mut *buf) {
                Ok(n) => return Ok(Some(n)),
                // The request was interrupted before it was read; or a signal came.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes [`Device::try_receive`] return instead of waiting.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.0)?;
        Ok(rustix::fs::fcntl_setfl(&self.0, flags | rustix::fs::OFlags::NONBLOCK)?)
    }

    /// A request, if there is one; no bytes: the file system is unmounted.
    pub(crate) fn try_receive(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        use rustix::io::Errno;
        match rustix::io::read(&self.0, buf) {
            Ok(n) => Ok(Some(n)),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => Ok(None),
            Err(Errno::NODEV) => Ok(Some(0)),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a reply: a header and parts. A request that the kernel has given up meanwhile is no failure.
    pub(crate) fn reply(&self, unique: u64, error: i32, parts: &[IoSlice<'_>]) {
        if let Err(failure) = self.send(unique, error, parts)
            && failure.raw_os_error() != Some(rustix::io::Errno::NOENT.raw_os_error())
            && failure.raw_os_error() != Some(rustix::io::Errno::NODEV.raw_os_error())
        {
            tracing::warn!(%failure, unique, "the kernel takes no reply");
        }
    }

    fn send(&self, unique: u64, error: i32, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(size_of::<OutHeader>() + bytes).unwrap_or(u32::MAX);
        let header = OutHeader { len, error, unique };
        // Most replies have one part, which the compiler keeps on the stack.
        let mut few = [IoSlice::new(header.as_bytes()); 4];
        if let Some(room) = few.get_mut(1..=parts.len()) {
            room.copy_from_slice(parts);
            rustix::io::writev(&self.0, &few[..=parts.len()])?;
        } else {
            debug_assert!(parts.len() < PARTS, "a message of {} parts", parts.len());
            let all: Vec<IoSlice<'_>> =
                std::iter::once(IoSlice::new(header.as_bytes())).chain(parts.iter().copied()).collect();
            rustix::io::writev(&self.0, &all)?;
        }
        Ok(())
    }

    /// Makes the kernel drop its copy of a node's attributes, and of its data in a range: from `offset` on, `len` bytes,
    /// or all for 0; no data for a negative offset. Waits until dirty data is written back, and for reads under way.
    ///
    /// # Errors
    /// ENOENT when the kernel does not know the node.
    pub fn drop_copy(&self, node: u64, offset: i64, len: i64) -> io::Result<()> {
        let notice = NotifyInvalInode { ino: node, off: offset, len };
        self.send(0, NOTIFY_INVAL_INODE, &[IoSlice::new(notice.as_bytes())])
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
