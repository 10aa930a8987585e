//! Operations on names: lookup, creation, removal, readdir.

use std::sync::RwLockWriteGuard;

use overspill_slab::Ref;
use smallvec::SmallVec;

use crate::dir::{COOKIE_PARENT, COOKIE_SELF, Dir, Name, NewEntry, Target};
use crate::error::FsError;
use crate::fs::{LINK_MAX, TmpFs, inherit};
use crate::inode::{Inode, Node};
use crate::sync::{read, write};
use crate::types::{Attr, Caller, DirEntry, FileKind};
use crate::{SYMLINK_MAX, dir};

impl TmpFs {
    /// Looks a name up in a directory. Take a reference ([`grab`](TmpFs::grab)) before handing out the inode number.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NameTooLong`].
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        let parent = self.inode(parent)?;
        let dir = parent.dir()?;
        match name {
            b"." => return Ok(parent.attr()),
            b".." => return self.getattr(dir.parent()),
            _ => {}
        }
        let name = self.name(name)?;
        self.peek(&parent, name)?.map(|inode| inode.attr()).ok_or(FsError::NotFound)
    }

    /// Creates a regular file.
    ///
    /// # Errors
    /// As [`mknod`](TmpFs::mknod).
    pub fn create(&self, parent: u64, name: &[u8], mode: u32, caller: Caller) -> Result<Attr, FsError> {
        self.mknod(parent, name, FileKind::Regular, mode, 0, caller)
    }

    /// Creates a file, fifo, socket or device.
    ///
    /// # Errors
    /// [`FsError::Exists`]; [`FsError::NotFound`] in a removed directory; [`FsError::NoInodes`] and
    /// [`FsError::Memory`] when there is no room; [`FsError::Invalid`] for directories and symbolic links.
    pub fn mknod(
        &self,
        parent: u64,
        name: &[u8],
        kind: FileKind,
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr, FsError> {
        let (node, rdev) = match kind {
            FileKind::Directory | FileKind::Symlink => return Err(FsError::Invalid),
            FileKind::Regular => (Node::file(), 0),
            FileKind::Fifo | FileKind::Socket => (Node::Special(kind), 0),
            FileKind::CharDevice | FileKind::BlockDevice => (Node::Special(kind), rdev),
        };
        self.make(parent, name, node, mode, rdev, caller)
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// As [`mknod`](TmpFs::mknod), and [`FsError::TooManyLinks`].
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: Caller) -> Result<Attr, FsError> {
        self.make(parent, name, Node::dir(parent), mode, 0, caller)
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// As [`mknod`](TmpFs::mknod); [`FsError::NameTooLong`] for a target of more than
    /// [`SYMLINK_MAX`] bytes.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: Caller) -> Result<Attr, FsError> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > SYMLINK_MAX {
            return Err(FsError::NameTooLong);
        }
        if target.contains(&0) {
            return Err(FsError::Invalid);
        }
        self.make(parent, name, Node::Symlink(target.into()), 0o777, 0, caller)
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::Invalid`] if the inode is not a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Box<[u8]>, FsError> {
        match &self.inode(ino)?.node {
            Node::Symlink(target) => Ok(target.clone()),
            Node::File(_) | Node::Dir(_) | Node::Special(_) => Err(FsError::Invalid),
        }
    }

    fn make(
        &self,
        parent: u64,
        name: &[u8],
        node: Node,
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr, FsError> {
        let name = self.name(name)?;
        if name.is_dots() {
            return Err(FsError::Exists);
        }
        let parent = self.inode(parent)?;
        let directory = parent.dir()?;
        // Allocations, which can fail, come before the lock.
        let subdirs = i32::from(matches!(node, Node::Dir(_)));
        let now = self.now();
        let kind = kind_of(&node);
        let (owner, mode) = inherit(&parent.attr(), kind, mode, caller);
        let inode = self.new_inode(node, mode, rdev, owner, now)?;
        let entry = NewEntry::new(&self.vm, name)?;

        let mut entries = write(&directory.entries);
        if entries.dead {
            return Err(FsError::NotFound);
        }
        if entries.get(name).is_some() {
            return Err(FsError::Exists);
        }
        {
            let mut meta = parent.meta();
            if subdirs > 0 && meta.nlink >= LINK_MAX {
                return Err(FsError::TooManyLinks);
            }
            meta.entries_changed(now, 1, subdirs);
        }
        self.table.insert(inode.clone());
        entries.insert(name.hash, entry, Target { ino: inode.ino, kind });
        Ok(inode.attr())
    }

    /// Adds a hard link to an inode.
    ///
    /// # Errors
    /// [`FsError::NotPermitted`] for a directory; [`FsError::NotFound`] for an inode without a name; else as
    /// [`mknod`](TmpFs::mknod).
    pub fn link(&self, ino: u64, new_parent: u64, new_name: &[u8]) -> Result<Attr, FsError> {
        let name = self.name(new_name)?;
        if name.is_dots() {
            return Err(FsError::Exists);
        }
        let inode = self.inode(ino)?;
        let parent = self.inode(new_parent)?;
        let directory = parent.dir()?;
        if inode.is_dir() {
            return Err(FsError::NotPermitted);
        }
        let now = self.now();
        let entry = NewEntry::new(&self.vm, name)?;

        let mut entries = write(&directory.entries);
        if entries.dead {
            return Err(FsError::NotFound);
        }
        if entries.get(name).is_some() {
            return Err(FsError::Exists);
        }
        {
            let mut meta = inode.meta();
            if meta.nlink == 0 {
                return Err(FsError::NotFound);
            }
            if meta.nlink >= LINK_MAX {
                return Err(FsError::TooManyLinks);
            }
            meta.nlink += 1;
            meta.ctime = now;
        }
        parent.meta().entries_changed(now, 1, 0);
        entries.insert(name.hash, entry, Target { ino, kind: inode.kind() });
        Ok(inode.attr())
    }

    /// Removes a name. The inode is freed with its last name, unless it is referenced.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`].
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        let name = self.name(name)?;
        if name.is_dots() {
            return Err(FsError::IsDirectory);
        }
        let parent = self.inode(parent)?;
        let directory = parent.dir()?;
        let now = self.now();
        // Declared before the lock guard, hence dropped after it: charges and pages are returned with no lock held.
        let (_entry, victim);

        let mut entries = write(&directory.entries);
        let target = entries.get(name).ok_or(FsError::NotFound)?;
        if target.kind == FileKind::Directory {
            return Err(FsError::IsDirectory);
        }
        victim = self.inode(target.ino)?;
        _entry = entries.remove(name);
        parent.meta().entries_changed(now, -1, 0);
        self.drop_link(&victim, now);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NotEmpty`]; [`FsError::Invalid`] for `.`.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        match name {
            b"." => return Err(FsError::Invalid),
            b".." => return Err(FsError::NotEmpty),
            _ => {}
        }
        let name = self.name(name)?;
        let parent = self.inode(parent)?;
        let now = self.now();
        loop {
            // Both directories must be locked in order of their numbers, so the victim must be known first.
            let victim = self.peek(&parent, name)?.ok_or(FsError::NotFound)?;
            if !victim.is_dir() {
                return Err(FsError::NotDirectory);
            }
            let _entry;
            let mut dirs = Dirs::lock(&[&parent, &victim]);
            if dirs.get(parent.ino).get(name).map(|target| target.ino) != Some(victim.ino) {
                continue;
            }
            if !dirs.get(victim.ino).is_empty() {
                return Err(FsError::NotEmpty);
            }
            dirs.get(victim.ino).dead = true;
            _entry = dirs.get(parent.ino).remove(name);
            parent.meta().entries_changed(now, -1, -1);
            self.drop_link(&victim, now);
            return Ok(());
        }
    }

    /// Reads a directory's entries after a cookie, zero being the beginning, until `each` returns false: that entry
    /// then counts as not read. `.` and `..` come first.
    ///
    /// The directory is locked against change meanwhile: `each` may call [`grab`](TmpFs::grab) and nothing else here.
    ///
    /// # Errors
    /// [`FsError::NotDirectory`].
    pub fn readdir(
        &self,
        ino: u64,
        after: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let directory = inode.dir()?;
        let entries = read(&directory.entries);
        if entries.dead {
            return Ok(());
        }
        let dots = [(COOKIE_SELF, ino, &b"."[..]), (COOKIE_PARENT, directory.parent(), b"..")];
        for (cookie, ino, name) in dots {
            if cookie > after && !each(DirEntry { cookie, ino, kind: FileKind::Directory, name }) {
                return Ok(());
            }
        }
        for entry in entries.after(after) {
            let Target { ino, kind } = entry.target();
            if !each(DirEntry { cookie: entry.cookie, ino, kind, name: &entry.name }) {
                break;
            }
        }
        Ok(())
    }

    /// As [`readdir`](TmpFs::readdir), with each entry's attributes.
    ///
    /// # Errors
    /// [`FsError::NotDirectory`].
    pub fn readdir_plus(
        &self,
        ino: u64,
        after: u64,
        each: &mut dyn FnMut(DirEntry<'_>, &Attr) -> bool,
    ) -> Result<(), FsError> {
        self.readdir(ino, after, &mut |entry| {
            // While the directory is locked its entries' inodes stay in the table. Its parent may leave it after a
            // concurrent rename: then `..` is skipped.
            self.table.get(entry.ino).is_none_or(|inode| each(entry, &inode.attr()))
        })
    }

    /// Returns the inode of a name. The name may change as soon as this returns.
    pub(crate) fn peek(&self, parent: &Inode, name: Name<'_>) -> Result<Option<Ref<Inode>>, FsError> {
        let entries = read(&parent.dir()?.entries);
        match entries.get(name) {
            None => Ok(None),
            // An entry's inode stays in the table as long as the entry exists.
            Some(target) => self.inode(target.ino).map(Some),
        }
    }
}

fn kind_of(node: &Node) -> FileKind {
    match node {
        Node::File(_) => FileKind::Regular,
        Node::Dir(_) => FileKind::Directory,
        Node::Symlink(_) => FileKind::Symlink,
        Node::Special(kind) => *kind,
    }
}

/// Write guards of several directories, taken by ascending inode number.
pub(crate) struct Dirs<'a>(SmallVec<[(u64, RwLockWriteGuard<'a, dir::Dir>); 4]>);

impl<'a> Dirs<'a> {
    /// Locks those of `inodes` that are directories, each once.
    pub(crate) fn lock(inodes: &[&'a Ref<Inode>]) -> Dirs<'a> {
        let mut sorted: SmallVec<[&'a Ref<Inode>; 4]> = SmallVec::from_slice(inodes);
        sorted.sort_by_key(|inode| inode.ino);
        sorted.dedup_by_key(|inode| inode.ino);
        let guards =
            sorted.into_iter().filter_map(|inode| Some((inode.ino, write(&inode.dir().ok()?.entries))));
        Dirs(guards.collect())
    }

    /// Returns one of the locked directories. Panics for any other.
    pub(crate) fn get(&mut self, ino: u64) -> &mut Dir {
        let found = self.0.iter_mut().find(|(locked, _)| *locked == ino);
        &mut found.expect("the caller locked this directory").1
    }
}
