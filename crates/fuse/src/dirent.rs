//! Directory entries, packed into the buffer of a READDIR or READDIRPLUS.

use zerocopy::IntoBytes as _;

use crate::abi::{Attr, Dirent, EntryOut};
use crate::reply::entry;

/// A buffer that entries are added to, up to the size that the kernel asked for.
#[derive(Debug)]
pub struct Dirents<'b> {
    buf: &'b mut Vec<u8>,
    room: usize,
}

impl<'b> Dirents<'b> {
    /// Entries in at most `size` bytes. What is in `buf` is lost.
    pub fn new(buf: &'b mut Vec<u8>, size: usize) -> Self {
        buf.clear();
        Dirents { buf, room: size }
    }

    /// Adds a name. False if it does not fit.
    pub fn add(&mut self, ino: u64, cookie: u64, kind: u32, name: &[u8]) -> bool {
        self.push(None, Dirent { ino, off: cookie, namelen: 0, kind }, name)
    }

    /// Adds a name with its node's attributes; `counts` says that the kernel takes a reference to the node. False if it
    /// does not fit.
    pub fn add_plus(&mut self, attr: &Attr, counts: bool, cookie: u64, kind: u32, name: &[u8]) -> bool {
        // Without a node number the kernel makes a plain entry of it.
        let node = if counts { entry(attr) } else { EntryOut::default() };
        self.push(Some(node), Dirent { ino: attr.ino, off: cookie, namelen: 0, kind }, name)
    }

    fn push(&mut self, node: Option<EntryOut>, mut dirent: Dirent, name: &[u8]) -> bool {
        let head = if node.is_some() { size_of::<EntryOut>() } else { 0 };
        let whole = (head + size_of::<Dirent>() + name.len()).next_multiple_of(8);
        if whole > self.room - self.buf.len() {
            return false;
        }
        let end = self.buf.len() + whole;
        if let Some(node) = node {
            self.buf.extend_from_slice(node.as_bytes());
        }
        dirent.namelen = u32::try_from(name.len()).unwrap_or(u32::MAX);
        self.buf.extend_from_slice(dirent.as_bytes());
        self.buf.extend_from_slice(name);
        self.buf.resize(end, 0);
        true
    }

    /// The entries.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_stop_at_the_size() {
        let mut buf = Vec::new();
        let mut entries = Dirents::new(&mut buf, 100);
        assert!(entries.add(5, 1, 4, b"a") && entries.add(6, 2, 8, b"eight888"));
        assert_eq!(entries.bytes().len(), 64);
        assert!(entries.add(7, 3, 8, b"12345678") && !entries.add(8, 4, 8, b""), "96 of 100 bytes are taken");
        assert_eq!(&entries.bytes()[24..32], b"a\0\0\0\0\0\0\0");
        let attr = Attr { ino: 9, ..Attr::default() };
        let mut plus = Dirents::new(&mut buf, 160);
        assert!(plus.add_plus(&attr, true, 1, 8, b"n") && !plus.add_plus(&attr, true, 2, 8, b"m"));
        assert_eq!(plus.bytes()[..8], 9u64.to_ne_bytes());
    }
}
