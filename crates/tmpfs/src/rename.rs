//! Renaming.
//!
//! The directories to lock, the old and the new parent and a directory that is replaced, are known only once the
//! names have been looked up, but must be locked in order. So names are looked up first, then everything is locked,
//! then the names are looked up again; if they have changed, the rename begins anew. Each retry means that another
//! operation made progress.

use overspill_slab::Ref;

use crate::dir::{Name, NewEntry, Target};
use crate::error::FsError;
use crate::fs::{LINK_MAX, TmpFs};
use crate::inode::{Inode, Node};
use crate::namei::Dirs;
use crate::sync::lock;
use crate::types::{RenameMode, Timestamp};

/// The parties of a rename, as they were when the names were looked up.
struct Plan<'a> {
    old_parent: &'a Ref<Inode>,
    old_name: Name<'a>,
    new_parent: &'a Ref<Inode>,
    new_name: Name<'a>,
    mode: RenameMode,
    source: Ref<Inode>,
    target: Option<Ref<Inode>>,
    now: Timestamp,
}

impl TmpFs {
    /// Renames an entry, within a directory or between two.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Exists`] with [`RenameMode::NoReplace`]; [`FsError::Invalid`] when a
    /// directory would move into its own subtree; [`FsError::NotEmpty`], [`FsError::NotDirectory`] and
    /// [`FsError::IsDirectory`] when the target cannot be replaced by the source; [`FsError::Memory`].
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let (old_name, new_name) = (self.name(name)?, self.name(new_name)?);
        if old_name.is_dots() || new_name.is_dots() {
            return Err(if mode == RenameMode::NoReplace { FsError::Exists } else { FsError::Busy });
        }
        let (old_parent, new_parent) = (&self.inode(parent)?, &self.inode(new_parent)?);
        let _moving = (old_parent.ino != new_parent.ino).then(|| lock(&self.moves));
        let now = self.now();
        loop {
            let source = self.peek(old_parent, old_name)?.ok_or(FsError::NotFound)?;
            let target = self.peek(new_parent, new_name)?;
            let plan = Plan { old_parent, old_name, new_parent, new_name, mode, source, target, now };
            if let Some(result) = self.try_rename(&plan) {
                return result;
            }
        }
    }

    /// Returns `None` if the names changed since they were looked up.
    fn try_rename(&self, plan: &Plan<'_>) -> Option<Result<(), FsError>> {
        let mut dirs = match &plan.target {
            Some(target) => Dirs::lock(&[plan.old_parent, plan.new_parent, target]),
            None => Dirs::lock(&[plan.old_parent, plan.new_parent]),
        };
        let source_now = dirs.get(plan.old_parent.ino).get(plan.old_name).map(|t| t.ino);
        let target_now = dirs.get(plan.new_parent.ino).get(plan.new_name).map(|t| t.ino);
        if source_now != Some(plan.source.ino) || target_now != plan.target.as_ref().map(|t| t.ino) {
            return None;
        }
        if dirs.get(plan.new_parent.ino).dead {
            return Some(Err(FsError::NotFound));
        }
        Some(self.checked_rename(plan, dirs))
    }

    fn checked_rename(&self, plan: &Plan<'_>, dirs: Dirs<'_>) -> Result<(), FsError> {
        match (&plan.target, plan.mode) {
            (Some(_), RenameMode::NoReplace) => return Err(FsError::Exists),
            (None, RenameMode::Exchange) => return Err(FsError::NotFound),
            _ => {}
        }
        let between = plan.old_parent.ino != plan.new_parent.ino;
        if between && plan.source.is_dir() && self.is_within(plan.new_parent, &plan.source) {
            return Err(FsError::Invalid);
        }
        match &plan.target {
            None => self.move_to_new_name(plan, dirs),
            Some(target) if plan.mode == RenameMode::Exchange => self.exchange(plan, target, dirs),
            Some(target) if target.ino == plan.source.ino => Ok(()),
            Some(target) => self.replace(plan, target, dirs),
        }
    }

    /// Returns true if `dir` is `ancestor` or below it. The rename mutex must be held.
    fn is_within(&self, dir: &Ref<Inode>, ancestor: &Inode) -> bool {
        let mut at = dir.clone();
        loop {
            if at.ino == ancestor.ino {
                return true;
            }
            let Node::Dir(directory) = &at.node else { return false };
            let parent = directory.parent();
            // Only the root is its own parent; a removed directory's parent may be gone.
            let Some(next) = (parent != at.ino).then(|| self.table.get(parent)).flatten() else {
                return false;
            };
            at = next;
        }
    }

    fn move_to_new_name(&self, plan: &Plan<'_>, mut dirs: Dirs<'_>) -> Result<(), FsError> {
        let entry = NewEntry::new(&self.vm, plan.new_name)?;
        let subdir = i32::from(plan.source.is_dir());
        self.change_parents(plan, [(-1, -subdir), (1, subdir)])?;
        let old_entry = dirs.get(plan.old_parent.ino).remove(plan.old_name);
        dirs.get(plan.new_parent.ino).insert(plan.new_name.hash, entry, target_of(&plan.source));
        moved(&plan.source, plan.new_parent, plan.now);
        drop(dirs);
        drop(old_entry);
        Ok(())
    }

    fn replace(&self, plan: &Plan<'_>, target: &Ref<Inode>, mut dirs: Dirs<'_>) -> Result<(), FsError> {
        match (plan.source.is_dir(), target.is_dir()) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            (true, true) if !dirs.get(target.ino).is_empty() => return Err(FsError::NotEmpty),
            _ => {}
        }
        // A directory that replaces another leaves the new parent with as many subdirectories as before.
        let subdir = i32::from(plan.source.is_dir());
        self.change_parents(plan, [(-1, -subdir), (0, 0)])?;
        if target.is_dir() {
            dirs.get(target.ino).dead = true;
        }
        let old_entry = dirs.get(plan.old_parent.ino).remove(plan.old_name);
        dirs.get(plan.new_parent.ino).retarget(plan.new_name, target_of(&plan.source));
        moved(&plan.source, plan.new_parent, plan.now);
        self.drop_link(target, plan.now);
        // The charge, and the target's pages with the plan, are returned with no directory locked.
        drop(dirs);
        drop(old_entry);
        Ok(())
    }

    fn exchange(&self, plan: &Plan<'_>, target: &Ref<Inode>, mut dirs: Dirs<'_>) -> Result<(), FsError> {
        let between = plan.old_parent.ino != plan.new_parent.ino;
        if between && target.is_dir() && self.is_within(plan.old_parent, target) {
            return Err(FsError::Invalid);
        }
        if target.ino == plan.source.ino {
            return Ok(());
        }
        let gained = i32::from(plan.source.is_dir()) - i32::from(target.is_dir());
        self.change_parents(plan, [(0, -gained), (0, gained)])?;
        dirs.get(plan.old_parent.ino).retarget(plan.old_name, target_of(target));
        dirs.get(plan.new_parent.ino).retarget(plan.new_name, target_of(&plan.source));
        moved(&plan.source, plan.new_parent, plan.now);
        moved(target, plan.old_parent, plan.now);
        Ok(())
    }

    /// Adds the changes in entries and subdirectories to the old parent and to the new one.
    fn change_parents(&self, plan: &Plan<'_>, changes: [(i64, i32); 2]) -> Result<(), FsError> {
        let [(old_entries, old_subdirs), (new_entries, new_subdirs)] = changes;
        if plan.old_parent.ino == plan.new_parent.ino {
            let mut meta = plan.old_parent.meta();
            meta.entries_changed(plan.now, old_entries + new_entries, old_subdirs + new_subdirs);
            return Ok(());
        }
        {
            let mut meta = plan.new_parent.meta();
            if new_subdirs > 0 && meta.nlink >= LINK_MAX {
                return Err(FsError::TooManyLinks);
            }
            meta.entries_changed(plan.now, new_entries, new_subdirs);
        }
        plan.old_parent.meta().entries_changed(plan.now, old_entries, old_subdirs);
        Ok(())
    }
}

fn target_of(inode: &Inode) -> Target {
    Target { ino: inode.ino, kind: inode.kind() }
}

fn moved(inode: &Inode, parent: &Inode, now: Timestamp) {
    if let Node::Dir(directory) = &inode.node
        && directory.parent() != parent.ino
    {
        directory.set_parent(parent.ino);
    }
    inode.meta().ctime = now;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Caller, TmpFsConfig};
    use overspill_vm::{Pager, VmConfig};

    fn fs() -> TmpFs {
        let vm = Pager::new(&VmConfig::new(8 << 20), Vec::new()).unwrap().vm().clone();
        let clock = std::sync::Arc::new(Timestamp::default);
        let (mode, uid, gid) = (0o755, 0, 0);
        TmpFs::new(TmpFsConfig { vm, size_pages: 10, nr_inodes: None, mode, uid, gid, clock }).unwrap()
    }

    /// Tests the window between lookup and locking, which is too short to be hit by chance.
    #[test]
    fn a_plan_that_others_overtook_is_given_up() {
        let fs = fs();
        for name in [b"from", b"into", b"else"] {
            fs.create(1, name, 0o644, Caller::default()).unwrap();
        }
        let root = fs.inode(1).unwrap();
        let (old_name, new_name) = (fs.name(b"from").unwrap(), fs.name(b"into").unwrap());
        let plan = |source: &[u8], target: Option<&[u8]>| Plan {
            old_parent: &root,
            old_name,
            new_parent: &root,
            new_name,
            mode: RenameMode::Replace,
            source: fs.inode(fs.lookup(1, source).unwrap().ino).unwrap(),
            target: target.map(|name| fs.inode(fs.lookup(1, name).unwrap().ino).unwrap()),
            now: fs.now(),
        };
        assert_eq!(fs.try_rename(&plan(b"else", Some(b"into"))), None, "another source");
        assert_eq!(fs.try_rename(&plan(b"from", Some(b"else"))), None, "another target");
        assert_eq!(fs.try_rename(&plan(b"from", None)), None, "a target has come");
        let good = plan(b"from", Some(b"into"));
        assert_eq!(fs.try_rename(&good), Some(Ok(())));
        assert_eq!(fs.try_rename(&good), None, "the source has gone");
        assert_eq!(fs.stats().inodes - 1, 2 + 1, "the replaced inode is only held by the plan");
    }
}
