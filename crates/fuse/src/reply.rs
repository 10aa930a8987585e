//! Replies. Each request has one; a reply that is dropped refuses the request.

use std::io::IoSlice;

use zerocopy::{Immutable, IntoBytes};

use crate::abi::{Attr, AttrOut, EntryOut, GetxattrOut, LseekOut, OpenOut, WriteOut};
use crate::channel::To;

/// The answer that a request waits for. It may be given by any thread, at any time.
#[derive(Debug)]
pub struct Reply {
    unique: u64,
    /// None when it was given.
    to: Option<To>,
}

const EIO: i32 = 5;

/// For ever: nobody but the kernel changes what it has copied.
const FOREVER: u64 = u32::MAX as u64;

impl Reply {
    pub(crate) fn new(unique: u64, to: To) -> Reply {
        Reply { unique, to: Some(to) }
    }

    /// The kernel's number of the request.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    fn send(mut self, error: i32, parts: &[IoSlice<'_>]) {
        if let Some(to) = self.to.take() {
            to.send(self.unique, error, parts);
        }
    }

    /// A place for `size` bytes of the reply, where the transport has one: then the reply is [`Reply::filled`].
    pub fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        match &mut self.to {
            Some(To::Ring(ring)) => ring.room(size),
            _ => None,
        }
    }

    /// The first bytes of [`Reply::room`].
    pub fn filled(mut self, bytes: usize) {
        if let Some(To::Ring(ring)) = self.to.take() {
            ring.filled(self.unique, bytes);
        }
    }

    /// Refuses the request with an error number.
    pub fn error(self, errno: i32) {
        self.send(-errno, &[]);
    }

    /// Done, and nothing to say.
    pub fn ok(self) {
        self.send(0, &[]);
    }

    /// These bytes.
    pub fn bytes(self, bytes: &[u8]) {
        self.send(0, &[IoSlice::new(bytes)]);
    }

    /// Bytes in several parts.
    pub fn parts(self, parts: &[IoSlice<'_>]) {
        self.send(0, parts);
    }

    fn message(self, message: &(impl IntoBytes + Immutable)) {
        self.bytes(message.as_bytes());
    }

    /// A node, for ever.
    pub fn entry(self, attr: &Attr) {
        self.message(&entry(attr));
    }

    /// There is no such name, for ever.
    pub fn no_entry(self) {
        self.message(&EntryOut { entry_valid: FOREVER, ..EntryOut::default() });
    }

    /// A node that the kernel must not keep.
    pub fn passing_entry(self, attr: &Attr) {
        self.message(&EntryOut { nodeid: attr.ino, attr: *attr, ..EntryOut::default() });
    }

    /// A new node, opened.
    pub fn created(self, attr: &Attr, open: &OpenOut) {
        self.send(0, &[IoSlice::new(entry(attr).as_bytes()), IoSlice::new(open.as_bytes())]);
    }

    /// Attributes, for ever.
    pub fn attr(self, attr: &Attr) {
        self.message(&AttrOut { attr_valid: FOREVER, attr: *attr, ..AttrOut::default() });
    }

    /// So many bytes were written.
    pub fn written(self, bytes: usize) {
        self.message(&WriteOut { size: u32::try_from(bytes).unwrap_or(u32::MAX), padding: 0 });
    }

    /// An offset in a file.
    pub fn offset(self, offset: u64) {
        self.message(&LseekOut { offset });
    }

    /// The size of extended attributes.
    pub fn size(self, bytes: usize) {
        self.message(&GetxattrOut { size: u32::try_from(bytes).unwrap_or(u32::MAX), padding: 0 });
    }

    /// Any other message.
    pub fn with(self, message: &(impl IntoBytes + Immutable)) {
        self.message(message);
    }
}

/// A node's entry, to be kept for ever. Node numbers are never used again: all are of generation 0.
#[must_use]
pub fn entry(attr: &Attr) -> EntryOut {
    EntryOut {
        nodeid: attr.ino,
        entry_valid: FOREVER,
        attr_valid: FOREVER,
        attr: *attr,
        ..EntryOut::default()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.send(self.unique, -EIO, &[]);
        }
    }
}
