//! Attributes.

use crate::error::FsError;
use crate::fs::TmpFs;
use crate::inode::{CAPABILITY, Inode};
use crate::types::{Attr, Caller, MODE_BITS, SetAttr, SetTime, StaleAttributes, Timestamp};

/// Relatime updates an access time of at least this age: one day.
const RELATIME_SECONDS: i64 = 24 * 60 * 60;

impl TmpFs {
    /// An inode's attributes.
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        Ok(self.inode(ino)?.attr())
    }

    /// Reports, once, which attributes that were handed out an operation on the file's data has changed. Holders of a
    /// copy must drop it. Further calls return `None` until attributes are handed out again.
    pub fn stale_attributes(&self, ino: u64) -> StaleAttributes {
        self.inode(ino).map_or(StaleAttributes::None, |inode| inode.stale_attributes())
    }

    /// Changes attributes. The size is set first, since that may wait or fail; if it fails nothing else is changed.
    ///
    /// A new owner or group clears the set-id bits of anything but a directory, and so does a new size unless the
    /// caller is privileged; a mode set in the same call stands.
    ///
    /// # Errors
    /// [`FsError::IsDirectory`], [`FsError::Invalid`] and [`FsError::FileTooBig`] for a size that cannot be set;
    /// [`FsError::Memory`] when the bytes after a new, smaller size could not be cleared: the file then keeps its
    /// size, or has the new one rounded up to a page.
    pub async fn setattr(&self, ino: u64, set: SetAttr, caller: Caller) -> Result<Attr, FsError> {
        let inode = self.inode(ino)?;
        if let Some(size) = set.size {
            self.resize(inode.file()?, size).await?;
        }
        // Dropped after the lock of the attributes, with its charge.
        let _capability = change(&inode, set, caller, self.now());
        Ok(inode.attr())
    }

    /// Updates the access time by the rule of relatime: only if it is not later than the last change, or is at least
    /// a day old.
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub fn accessed(&self, ino: u64) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let now = self.now();
        let mut meta = inode.meta();
        if meta.atime <= meta.mtime
            || meta.atime <= meta.ctime
            || now.sec.saturating_sub(meta.atime.sec) >= RELATIME_SECONDS
        {
            meta.atime = now;
        }
        Ok(())
    }
}

fn change(inode: &Inode, set: SetAttr, caller: Caller, now: Timestamp) -> Option<crate::inode::Xattr> {
    if set == SetAttr::default() {
        return None;
    }
    let at = |time: SetTime| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    let chown = (set.uid.is_some() || set.gid.is_some()) && !inode.is_dir();
    let mut capability = None;
    let mut meta = inode.meta();
    if chown || (set.size.is_some() && !caller.privileged) {
        meta.clear_set_ids();
    }
    if chown || set.size.is_some() {
        capability = meta.take_xattr(CAPABILITY);
    }
    if let Some(mode) = set.mode {
        meta.mode = mode & MODE_BITS;
    }
    if let Some(uid) = set.uid {
        meta.uid = uid;
    }
    if let Some(gid) = set.gid {
        meta.gid = gid;
    }
    if set.size.is_some() {
        meta.mtime = now;
    }
    if let Some(atime) = set.atime {
        meta.atime = at(atime);
    }
    if let Some(mtime) = set.mtime {
        meta.mtime = at(mtime);
    }
    meta.ctime = set.ctime.unwrap_or(now);
    capability
}
