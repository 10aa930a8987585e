//! The file system: its configuration, its limits, and how inodes come and go.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use overspill_slab::Ref;
use overspill_vm::{Account, Vm, VmError};

use crate::dir::{ENTRY_COST, Name};
use crate::error::FsError;
use crate::inode::{Birth, Inode, Node};
use crate::slots::Slots;
use crate::sync::lock;
use crate::table::Table;
use crate::types::{Attr, Caller, Clock, FileKind, FsStats, Orphans, RenameMode, SET_GID, StatFs, Timestamp};
use crate::{NAME_MAX, ROOT_INO};

/// Bytes that the table, a radix tree and an `Arc` take for an inode beside itself.
const INODE_OVERHEAD: usize = 64;
/// Bytes of metadata of an empty file: its inode and a short name.
const FILE_COST: usize = size_of::<Inode>() + INODE_OVERHEAD + ENTRY_COST;
/// The most links an inode may have.
pub(crate) const LINK_MAX: u32 = u32::MAX - 1;

/// Configuration of a [`TmpFs`].
#[derive(Clone)]
pub struct TmpFsConfig {
    /// The VM that keeps the pages.
    pub vm: Vm,
    /// Limit on pages of data: tmpfs's `size=`.
    pub size_pages: u64,
    /// Limit on inodes, the root included: tmpfs's `nr_inodes=`. `None` is no limit.
    pub nr_inodes: Option<u64>,
    /// Permissions of the root directory.
    pub mode: u32,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Source of the time.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for TmpFsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TmpFsConfig")
            .field("size_pages", &self.size_pages)
            .field("nr_inodes", &self.nr_inodes)
            .finish_non_exhaustive()
    }
}

/// A temporary file system.
///
/// # Locks
/// Taken in this order:
///
/// 1. *name*: the rename mutex, which serialises renames from one directory to another, so that they can follow
///    `..` safely; then directories' locks, several by ascending inode number;
/// 2. *inode*: an inode's attributes, one inode at a time;
/// 3. *leaves*: the orphans, then a shard of the inode table;
/// 4. the VM's own.
///
/// All of these are held for a few memory accesses, never across an await. Beside them each regular file has a
/// *gate*, an asynchronous lock taken before any of them and held while an operation waits for memory or a store.
///
/// # Order of requests on one file (R67)
/// Reads, writes, seeks and [`mark_lost`](TmpFs::mark_lost) share the gate; truncation and
/// [`fallocate`](TmpFs::fallocate) take it exclusively, so a write that waits for a slow store cannot interleave with
/// a truncation and lose bytes. The gate is fair to writers: a truncation waits for operations begun before it and
/// precedes those begun after it. Concurrent reads and writes are ordered page by page: each page a read returns is
/// as it was before or after each write, and of two such writes to a page either may come last. The size grows only
/// after the bytes are written.
///
/// # Life of an inode
/// An inode lives while it has a name or is referenced from outside: [`grab`](TmpFs::grab) before its number is
/// handed out, [`forget`](TmpFs::forget) when it is given up. Inode numbers are never reused. An unreferenced inode
/// is removed with its last name, although an operation already begun on it completes.
pub struct TmpFs {
    pub(crate) vm: Vm,
    pub(crate) account: Arc<Account>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) table: Table,
    /// The rename mutex: held by renames between directories.
    pub(crate) moves: Mutex<()>,
    hasher: RandomState,
    slots: Arc<Slots>,
    inodes_limit: Option<u64>,
    next_ino: AtomicU64,
    orphans: Mutex<BTreeMap<u64, Ref<Inode>>>,
}

impl fmt::Debug for TmpFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TmpFs").field("inodes", &self.slots.used()).finish_non_exhaustive()
    }
}

impl TmpFs {
    /// Creates a file system that holds only a root directory.
    ///
    /// # Errors
    /// [`FsError::NoInodes`] or [`FsError::Memory`] when there is no room for the root.
    pub fn new(config: TmpFsConfig) -> Result<TmpFs, FsError> {
        let fs = TmpFs {
            vm: config.vm,
            account: Account::new(config.size_pages),
            clock: config.clock,
            table: Table::new(),
            moves: Mutex::new(()),
            hasher: RandomState::new(),
            slots: Slots::new(config.nr_inodes.unwrap_or(u64::MAX)),
            inodes_limit: config.nr_inodes,
            next_ino: AtomicU64::new(ROOT_INO),
            orphans: Mutex::new(BTreeMap::new()),
        };
        let owner = Caller { uid: config.uid, gid: config.gid, privileged: true };
        let root = fs.new_inode(Node::dir(ROOT_INO), config.mode, 0, owner, fs.now())?;
        fs.table.insert(root);
        Ok(fs)
    }

    /// The account that data is charged to: its limit is the size of the file system, and
    /// [`WriteFlags::reserve`](crate::WriteFlags) draws on its reserve.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The VM that keeps the pages.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Takes a reference to an inode, before its number is handed out. Returns false if the inode no longer exists.
    /// The root always exists, and within the callback of [`readdir`](TmpFs::readdir) so does every entry but `..`.
    pub fn grab(&self, ino: u64) -> bool {
        let Some(inode) = self.table.get(ino) else { return false };
        let mut meta = inode.meta();
        if meta.gone {
            return false;
        }
        meta.nlookup += 1;
        true
    }

    /// Drops `n` references to an inode. An inode without a name is freed with the last one.
    pub fn forget(&self, ino: u64, n: u64) {
        let Some(inode) = self.table.get(ino) else { return };
        let mut meta = inode.meta();
        meta.nlookup = meta.nlookup.saturating_sub(n);
        if meta.nlookup == 0 && meta.nlink == 0 && !meta.gone {
            meta.gone = true;
            lock(&self.orphans).remove(&ino);
            self.table.remove(ino);
        }
        // The data is freed with `inode`, after the guard.
        drop(meta);
    }

    /// Counts inodes without a name that are still referenced. A [`forget`](TmpFs::forget) lags behind the last close,
    /// so a caller should wait for orphans before it reports that space is short.
    pub fn orphans(&self) -> Orphans {
        let all: Vec<Ref<Inode>> = lock(&self.orphans).values().cloned().collect();
        Orphans { inodes: all.len() as u64, pages: all.iter().map(|inode| inode.pages()).sum() }
    }

    /// Returns true if there are any orphans; cheaper than counting them.
    pub fn has_orphans(&self) -> bool {
        !lock(&self.orphans).is_empty()
    }

    /// Limits and free counts, for statfs(2).
    pub fn statfs(&self) -> StatFs {
        let (pages, used) = (self.account.limit(), self.slots.used());
        let by_memory = (self.vm.metadata_left() / FILE_COST) as u64;
        let free = self.inodes_limit.map_or(by_memory, |limit| limit.saturating_sub(used).min(by_memory));
        StatFs {
            pages,
            pages_free: self.account.left(),
            inodes: self.inodes_limit.unwrap_or(used + free),
            inodes_free: free,
        }
    }

    /// Counts, for display.
    pub fn stats(&self) -> FsStats {
        FsStats {
            inodes: self.slots.used(),
            inodes_limit: self.inodes_limit,
            pages: self.account.used(),
            pages_limit: self.account.limit(),
            orphans: self.orphans(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn inode(&self, ino: u64) -> Result<Ref<Inode>, FsError> {
        self.table.get(ino).ok_or(FsError::Stale)
    }

    /// Checks a name and hashes it. The caller handles `.` and `..`, see [`Name::is_dots`].
    pub(crate) fn name<'a>(&self, bytes: &'a [u8]) -> Result<Name<'a>, FsError> {
        use std::hash::BuildHasher;
        if bytes.is_empty() {
            return Err(FsError::NotFound);
        }
        if bytes.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        if bytes.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(FsError::Invalid);
        }
        Ok(Name { bytes, hash: self.hasher.hash_one(bytes) })
    }

    /// Creates an inode with one link (a directory: two), not in the table yet.
    pub(crate) fn new_inode(
        &self,
        node: Node,
        mode: u32,
        rdev: u32,
        owner: Caller,
        now: Timestamp,
    ) -> Result<Ref<Inode>, FsError> {
        let slot = self.slots.take().ok_or(FsError::NoInodes)?;
        let charge = self.vm.charge(size_of::<Inode>() + INODE_OVERHEAD + node.heap_bytes())?;
        let ino = self.next_ino.fetch_add(1, Ordering::Relaxed);
        let birth = Birth { ino, node, mode, uid: owner.uid, gid: owner.gid, rdev, now, slot, charge };
        Ok(Ref::new(Inode::new(birth)).map_err(VmError::from)?)
    }

    /// Drops one link of an inode; a directory loses all. The parent's lock is held.
    pub(crate) fn drop_link(&self, inode: &Ref<Inode>, now: Timestamp) {
        let mut meta = inode.meta();
        meta.nlink = if inode.is_dir() { 0 } else { meta.nlink.saturating_sub(1) };
        meta.ctime = now;
        if meta.nlink > 0 || meta.gone {
            return;
        }
        if meta.nlookup > 0 {
            lock(&self.orphans).insert(inode.ino, inode.clone());
        } else {
            meta.gone = true;
            self.table.remove(inode.ino);
        }
    }
}

/// Owner and mode of a new inode in a directory with these attributes: a set-group-id directory passes its group on,
/// and to new directories set-group-id too.
pub(crate) fn inherit(parent: &Attr, kind: FileKind, mode: u32, caller: Caller) -> (Caller, u32) {
    if parent.mode & SET_GID == 0 {
        return (caller, mode);
    }
    let mode = if kind == FileKind::Directory { mode | SET_GID } else { mode };
    (Caller { gid: parent.gid, ..caller }, mode)
}

impl Name<'_> {
    /// Returns true for `.` and `..`.
    pub(crate) fn is_dots(self) -> bool {
        matches!(self.bytes, b"." | b"..")
    }
}

impl RenameMode {
    /// Decodes the flags of renameat2(2).
    ///
    /// # Errors
    /// [`FsError::Invalid`] for flags other than RENAME_NOREPLACE or RENAME_EXCHANGE, or both.
    pub fn from_bits(bits: u32) -> Result<RenameMode, FsError> {
        match bits {
            0 => Ok(RenameMode::Replace),
            1 => Ok(RenameMode::NoReplace),
            2 => Ok(RenameMode::Exchange),
            _ => Err(FsError::Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::Entry;
    use crate::{SetAttr, WriteFlags};

    /// A driver parks requests and moves them between threads.
    #[test]
    fn requests_can_move_between_threads() {
        fn sendable<T: Send>(_: Option<T>) {}
        fn shareable<T: Send + Sync>() {}
        shareable::<TmpFs>();
        let of = |fs: &'static TmpFs| {
            sendable(Some(fs.write(1, 0, &[], WriteFlags::default())));
            sendable(Some(fs.setattr(1, SetAttr::default(), Caller::default())));
            sendable(Some(fs.fallocate(1, 0, 1, crate::FallocateMode::PunchHole, Caller::default())));
        };
        let _: fn(&'static TmpFs) = of;
    }

    /// A file's wired memory is these two, their indexes and nothing else.
    #[test]
    fn an_inode_and_its_name_stay_small() {
        assert!(size_of::<Inode>() <= 400, "{}", size_of::<Inode>());
        assert!(size_of::<Entry>() <= 72, "{}", size_of::<Entry>());
    }
}
