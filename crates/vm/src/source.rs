//! Sources: origins of the bytes of pages that were never written.

use std::io;

/// A read-only origin of an object's pages: a file, an image, a remote object. Its bytes never change.
pub trait Source: Send + Sync + 'static {
    /// Its length in bytes. Pages beyond are absent.
    fn len(&self) -> u64;

    /// True if its length is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` with the bytes from `offset` on, a multiple of [`CHUNK`](crate::CHUNK); zeros beyond the end.
    /// Blocks; runs on a thread of the driver that does nothing else, so a source that hangs stops only its own
    /// readers.
    ///
    /// # Errors
    /// The origin's.
    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}
