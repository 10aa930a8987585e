//! A directory's entries.
//!
//! Each entry exists once, with its name, and is found two ways: by the hash of its name, and by its cookie, in
//! order of creation. Cookies only grow and are never reused, so a reader that continues after a cookie sees every
//! entry that stays exactly once, whichever others come and go. A rename that replaces an entry keeps its cookie: a
//! name that exists all the while is never missed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use overspill_slab::{Ref, kept};
use overspill_vm::{Charge, Vm, VmError};
use smallvec::SmallVec;

use crate::trie::HashTrie;
use crate::types::FileKind;

/// The cookie of `.`; a reader of the directory begins at zero.
pub(crate) const COOKIE_SELF: u64 = 1;
/// The cookie of `..`.
pub(crate) const COOKIE_PARENT: u64 = 2;

/// Names up to this many bytes lie in the entry itself.
const INLINE_NAME: usize = 24;
/// Bytes that the two indexes take for an entry, with the slack of their nodes.
const INDEX_COST: usize = 64;

/// Bytes of metadata of an entry with a short name.
pub(crate) const ENTRY_COST: usize = size_of::<Entry>() + INDEX_COST;

/// A valid name with its hash, computed before any lock is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) hash: u64,
}

/// One entry. Its target is guarded by the directory's lock; it is an atomic only because both indexes point to the
/// entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) cookie: u64,
    /// The inode's number times eight, plus its kind.
    target: AtomicU64,
    pub(crate) name: SmallVec<[u8; INLINE_NAME]>,
    _charge: Charge,
}

/// The inode of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) ino: u64,
    pub(crate) kind: FileKind,
}

impl Target {
    fn pack(self) -> u64 {
        self.ino << 3 | FileKind::ALL.iter().position(|&kind| kind == self.kind).unwrap_or(0) as u64
    }

    fn unpack(packed: u64) -> Target {
        let at = usize::try_from(packed & 7).unwrap_or(0);
        Target { ino: packed >> 3, kind: FileKind::ALL.get(at).copied().unwrap_or(FileKind::Regular) }
    }
}

kept!(counted Entry, "directory entry");

impl Entry {
    pub(crate) fn target(&self) -> Target {
        Target::unpack(self.target.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
pub(crate) struct Dir {
    by_name: HashTrie<Ref<Entry>>,
    by_cookie: BTreeMap<u64, Ref<Entry>>,
    next_cookie: u64,
    /// The directory is removed: no entry can be added any more.
    pub(crate) dead: bool,
}

impl Dir {
    pub(crate) fn new() -> Self {
        Dir {
            by_name: HashTrie::new(),
            by_cookie: BTreeMap::new(),
            next_cookie: COOKIE_PARENT + 1,
            dead: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_cookie.is_empty()
    }

    pub(crate) fn get(&self, name: Name<'_>) -> Option<Target> {
        self.by_name.get(name.hash, |entry| entry.name[..] == *name.bytes).map(|entry| entry.target())
    }

    /// Adds an entry. Its name must not exist yet.
    pub(crate) fn insert(&mut self, hash: u64, NewEntry(mut entry): NewEntry, target: Target) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if let Some(entry) = Ref::get_mut(&mut entry) {
            entry.cookie = cookie;
            entry.target = AtomicU64::new(target.pack());
        }
        self.by_cookie.insert(cookie, entry.clone());
        self.by_name.insert(hash, entry);
    }

    /// Points an existing name to another inode.
    pub(crate) fn retarget(&mut self, name: Name<'_>, target: Target) {
        if let Some(entry) = self.by_name.get(name.hash, |entry| entry.name[..] == *name.bytes) {
            entry.target.store(target.pack(), Ordering::Relaxed);
        }
    }

    /// Removes an entry. Drop it when no lock is held: that returns its charge.
    pub(crate) fn remove(&mut self, name: Name<'_>) -> Option<Ref<Entry>> {
        let entry = self.by_name.remove(name.hash, |entry| entry.name[..] == *name.bytes)?;
        self.by_cookie.remove(&entry.cookie);
        Some(entry)
    }

    /// The entries after a cookie.
    pub(crate) fn after(&self, cookie: u64) -> impl Iterator<Item = &Entry> {
        let start = (Bound::Excluded(cookie.max(COOKIE_PARENT)), Bound::Unbounded);
        self.by_cookie.range(start).map(|(_, entry)| &**entry)
    }
}

/// An entry that is in no directory yet: allocated before the first lock, because allocation can fail.
#[derive(Debug)]
pub(crate) struct NewEntry(Ref<Entry>);

impl NewEntry {
    /// # Errors
    /// If there is no memory for the entry.
    pub(crate) fn new(vm: &Vm, name: Name<'_>) -> Result<NewEntry, VmError> {
        let long = if name.bytes.len() > INLINE_NAME { name.bytes.len() + 16 } else { 0 };
        let charge = vm.charge(ENTRY_COST + long)?;
        let name = SmallVec::from_slice(name.bytes);
        Ok(NewEntry(Ref::new(Entry { cookie: 0, target: AtomicU64::new(0), name, _charge: charge })?))
    }
}
