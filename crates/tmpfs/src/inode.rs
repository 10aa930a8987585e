//! Inodes: their kinds, attributes and life.
//!
//! An inode lives while it has a name or a reference to its number from outside (`nlookup`); then it leaves the
//! table, and its memory and pages are freed when the last operation on it ends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, RwLock};

use overspill_vm::{Charge, Object};

use crate::dir::Dir;
use crate::error::FsError;
use crate::lost::Lost;
use crate::slots::Slot;
use crate::sync::lock;
use crate::types::{Attr, FileKind, GROUP_EXEC, MODE_BITS, SET_GID, SET_UID, StaleAttributes, Timestamp};

/// Amount by which each entry grows a directory's size.
const ENTRY_SIZE: u64 = 20;
/// Blocks of 512 bytes in a page, the units of `blocks`.
const BLOCKS_PER_PAGE: u64 = overspill_vm::PAGE as u64 / 512;
/// The extended attribute that any change of a file's data or owner removes.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// Fields without a letter never change; `m` is guarded by `meta`, `g` by the file's gate, `d` by the directory's
/// own lock.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) ino: u64,
    pub(crate) node: Node,
    rdev: u32,
    btime: Timestamp,
    meta: Mutex<Meta>, // m
    _slot: Slot,
    _charge: Charge,
}

overspill_slab::kept!(counted Inode, "inode");

#[derive(Debug)]
pub(crate) enum Node {
    File(File),
    Dir(Directory),
    Symlink(Box<[u8]>),
    /// Fifo, socket or device.
    Special(FileKind),
}

/// A regular file's data.
#[derive(Debug)]
pub(crate) struct File {
    /// Created by the first write (R9).
    pub(crate) object: OnceLock<Object>,
    /// Reads and writes share it; truncation and fallocate take it exclusively.
    pub(crate) gate: async_lock::RwLock<()>,
    /// Bytes at and after it are zeros. Grows under the shared gate, otherwise changes under the exclusive one.
    size: AtomicU64, // g
    lost: Mutex<Lost>, // g, as the size
    /// A write was dropped half way: bytes of it may lie beyond the end of the file, where zeros are promised.
    pub(crate) has_remains: AtomicBool,
    /// The mode and the page count that attributes showed last, packed; see [`Inode::stale_attributes`].
    shown: AtomicU64,
}

/// [`File::shown`] while no attributes are handed out.
const NOTHING_SHOWN: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) entries: RwLock<Dir>, // d
    /// Inode number of `..`. Changes under the rename mutex.
    parent: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    /// Number of entries of a directory.
    pub(crate) entries: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    /// Number of references from outside.
    pub(crate) nlookup: u64,
    /// The inode has left the table: no new reference can be taken.
    pub(crate) gone: bool,
    pub(crate) xattrs: Option<Box<Xattrs>>,
}

/// Extended attributes by name.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Xattr>;

#[derive(Debug)]
pub(crate) struct Xattr {
    pub(crate) value: Box<[u8]>,
    pub(crate) _charge: Charge,
}

/// The initial state of a new inode.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) ino: u64,
    pub(crate) node: Node,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) now: Timestamp,
    pub(crate) slot: Slot,
    pub(crate) charge: Charge,
}

impl Node {
    pub(crate) fn file() -> Node {
        Node::File(File {
            object: OnceLock::new(),
            gate: async_lock::RwLock::new(()),
            size: AtomicU64::new(0),
            lost: Mutex::default(),
            has_remains: AtomicBool::new(false),
            shown: AtomicU64::new(NOTHING_SHOWN),
        })
    }

    pub(crate) fn dir(parent: u64) -> Node {
        Node::Dir(Directory { entries: RwLock::new(Dir::new()), parent: AtomicU64::new(parent) })
    }

    /// Bytes that the node takes beside the inode.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Node::Symlink(target) => target.len() + 16,
            Node::File(_) | Node::Dir(_) | Node::Special(_) => 0,
        }
    }
}

impl File {
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Grows the size to `end`, up to which bytes are written.
    pub(crate) fn grow(&self, end: u64) {
        self.size.fetch_max(end, Ordering::AcqRel);
    }

    /// Returns true if bytes of this range cannot be read.
    pub(crate) fn is_lost(&self, range: &Range<u64>) -> bool {
        lock(&self.lost).touches(range)
    }

    /// Makes `range` unreadable until the file is truncated below it.
    pub(crate) fn lose(&self, range: Range<u64>) {
        lock(&self.lost).add(range);
    }

    /// Sets the size; the gate must be held exclusively. Bytes that are cut off are lost no more.
    pub(crate) fn set_size(&self, size: u64) {
        lock(&self.lost).cut(size);
        self.size.store(size, Ordering::Release);
    }
}

impl Directory {
    pub(crate) fn parent(&self) -> u64 {
        self.parent.load(Ordering::Acquire)
    }

    /// Moves the directory; the rename mutex must be held.
    pub(crate) fn set_parent(&self, parent: u64) {
        self.parent.store(parent, Ordering::Release);
    }
}

impl Inode {
    pub(crate) fn new(birth: Birth) -> Inode {
        let nlink = if matches!(birth.node, Node::Dir(_)) { 2 } else { 1 };
        Inode {
            ino: birth.ino,
            node: birth.node,
            rdev: birth.rdev,
            btime: birth.now,
            meta: Mutex::new(Meta {
                mode: birth.mode & MODE_BITS,
                uid: birth.uid,
                gid: birth.gid,
                nlink,
                entries: 0,
                atime: birth.now,
                mtime: birth.now,
                ctime: birth.now,
                nlookup: 0,
                gone: false,
                xattrs: None,
            }),
            _slot: birth.slot,
            _charge: birth.charge,
        }
    }

    pub(crate) fn meta(&self) -> MutexGuard<'_, Meta> {
        lock(&self.meta)
    }

    pub(crate) fn kind(&self) -> FileKind {
        match self.node {
            Node::File(_) => FileKind::Regular,
            Node::Dir(_) => FileKind::Directory,
            Node::Symlink(_) => FileKind::Symlink,
            Node::Special(kind) => kind,
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.node, Node::Dir(_))
    }

    pub(crate) fn file(&self) -> Result<&File, FsError> {
        match &self.node {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(FsError::IsDirectory),
            Node::Symlink(_) | Node::Special(_) => Err(FsError::Invalid),
        }
    }

    pub(crate) fn dir(&self) -> Result<&Directory, FsError> {
        match &self.node {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) | Node::Symlink(_) | Node::Special(_) => Err(FsError::NotDirectory),
        }
    }

    /// Pages of data that exist.
    pub(crate) fn pages(&self) -> u64 {
        match &self.node {
            Node::File(file) => file.object.get().map_or(0, Object::pages),
            Node::Dir(_) | Node::Symlink(_) | Node::Special(_) => 0,
        }
    }

    pub(crate) fn attr(&self) -> Attr {
        let meta = self.meta();
        let pages = self.show(meta.mode);
        let size = match &self.node {
            Node::File(file) => file.size(),
            Node::Dir(_) => meta.entries * ENTRY_SIZE,
            Node::Symlink(target) => target.len() as u64,
            Node::Special(_) => 0,
        };
        Attr {
            ino: self.ino,
            kind: self.kind(),
            mode: meta.mode,
            nlink: meta.nlink,
            uid: meta.uid,
            gid: meta.gid,
            rdev: self.rdev,
            size,
            blocks: pages * BLOCKS_PER_PAGE,
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
            btime: self.btime,
        }
    }
}

/// Attributes that an operation on data changes although the holder of a copy did not ask for it.
impl Inode {
    /// Returns the page count for attributes that are handed out. A later change of it, or of the mode, makes these
    /// stale.
    fn show(&self, mode: u32) -> u64 {
        let Node::File(file) = &self.node else { return 0 };
        loop {
            let pages = self.pages();
            file.shown.store(shown(pages, mode), Ordering::SeqCst);
            // A concurrent write either sees the value stored here, or its pages are seen here.
            if self.pages() == pages {
                return pages;
            }
        }
    }

    /// Reports, once, which of the attributes handed out are stale: then none until they are handed out again.
    pub(crate) fn stale_attributes(&self) -> StaleAttributes {
        let Node::File(file) = &self.node else { return StaleAttributes::None };
        let now = shown(self.pages(), self.meta().mode);
        let before = file.shown.load(Ordering::SeqCst);
        let exchange = (Ordering::SeqCst, Ordering::SeqCst);
        if before == NOTHING_SHOWN
            || before == now
            || file.shown.compare_exchange(before, NOTHING_SHOWN, exchange.0, exchange.1).is_err()
        {
            return StaleAttributes::None;
        }
        let mode = u64::from(MODE_BITS);
        if before & mode == now & mode { StaleAttributes::Blocks } else { StaleAttributes::Mode }
    }
}

/// Packs page count and mode. No pages count as one, because the kernel is shown a page at least (see the shim): a
/// file's first page makes nothing stale.
fn shown(pages: u64, mode: u32) -> u64 {
    pages.max(1) << 12 | u64::from(mode & MODE_BITS)
}

impl Meta {
    /// Updates the times after a change of data.
    pub(crate) fn modified(&mut self, now: Timestamp) {
        self.mtime = now;
        self.ctime = now;
    }

    /// Clears the bits that let the file run as its owner or group; returns true if that changed the mode.
    /// Set-group-id without execution by the group is not such a bit.
    pub(crate) fn clear_set_ids(&mut self) -> bool {
        let before = self.mode;
        self.mode &= !SET_UID;
        if self.mode & GROUP_EXEC != 0 {
            self.mode &= !SET_GID;
        }
        self.mode != before
    }

    /// Removes an extended attribute. Drop it when no lock is held.
    pub(crate) fn take_xattr(&mut self, name: &[u8]) -> Option<Xattr> {
        let xattrs = self.xattrs.as_mut()?;
        let taken = xattrs.remove(name)?;
        if xattrs.is_empty() {
            self.xattrs = None;
        }
        Some(taken)
    }

    /// Counts entries and subdirectories that this directory gained or lost.
    pub(crate) fn entries_changed(&mut self, now: Timestamp, entries: i64, subdirs: i32) {
        self.entries = self.entries.saturating_add_signed(entries);
        self.nlink = self.nlink.saturating_add_signed(subdirs);
        self.modified(now);
    }
}
