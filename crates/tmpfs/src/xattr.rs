//! Extended attributes: wired memory, charged by the byte.
//!
//! The caller checks permissions. This module only refuses `user.` attributes on symbolic links, fifos, sockets and
//! devices.

use crate::error::FsError;
use crate::fs::TmpFs;
use crate::inode::{Inode, Node, Xattr};
use crate::types::XattrMode;
use crate::{NAME_MAX, XATTR_SIZE_MAX};

/// Bytes that the map takes for an attribute beside its name and value.
const OVERHEAD: usize = 96;

impl TmpFs {
    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`], [`FsError::Unsupported`], [`FsError::Range`].
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Box<[u8]>, FsError> {
        check_name(name)?;
        let inode = self.inode(ino)?;
        let meta = inode.meta();
        let found = meta.xattrs.as_ref().and_then(|xattrs| xattrs.get(name));
        found.map(|xattr| xattr.value.clone()).ok_or(FsError::NoAttribute)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// [`FsError::Exists`] and [`FsError::NoAttribute`] as `mode` asks; [`FsError::AttributeTooBig`] for more than
    /// [`XATTR_SIZE_MAX`] bytes of value or of names; [`FsError::Unsupported`] outside of
    /// `user.`, `security.` and `trusted.`; [`FsError::NotPermitted`] for `user.` on a link, fifo, socket or device;
    /// [`FsError::Range`]; [`FsError::Memory`].
    pub fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        check_name(name)?;
        if value.len() > XATTR_SIZE_MAX {
            return Err(FsError::AttributeTooBig);
        }
        let inode = self.inode(ino)?;
        if name.starts_with(b"user.") && matches!(inode.node, Node::Symlink(_) | Node::Special(_)) {
            return Err(FsError::NotPermitted);
        }
        let charge = self.vm.charge(OVERHEAD + name.len() + value.len())?;
        let new = Xattr { value: value.into(), _charge: charge };
        // Dropped after the lock of the attributes, with its charge.
        let _old = replace(&inode, name, new, mode, self.now())?;
        Ok(())
    }

    /// Lists the names of an inode's extended attributes, each followed by a zero byte, as listxattr(2) does. Names in
    /// `trusted.` are for callers that may read them (CAP_SYS_ADMIN).
    ///
    /// # Errors
    /// [`FsError::Stale`].
    pub fn listxattr(&self, ino: u64, with_trusted: bool) -> Result<Vec<u8>, FsError> {
        let inode = self.inode(ino)?;
        let meta = inode.meta();
        let all = meta.xattrs.iter().flat_map(|xattrs| xattrs.keys());
        let names = all.filter(|name| with_trusted || !name.starts_with(b"trusted."));
        Ok(names.flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`], [`FsError::Unsupported`], [`FsError::Range`].
    pub fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        let inode = self.inode(ino)?;
        let now = self.now();
        // Declared before the lock guard, hence dropped after it, with its charge.
        let _old;
        let mut meta = inode.meta();
        _old = meta.take_xattr(name).ok_or(FsError::NoAttribute)?;
        meta.ctime = now;
        Ok(())
    }
}

fn replace(
    inode: &Inode,
    name: &[u8],
    new: Xattr,
    mode: XattrMode,
    now: crate::Timestamp,
) -> Result<Option<Xattr>, FsError> {
    let mut meta = inode.meta();
    let exists = meta.xattrs.as_ref().is_some_and(|xattrs| xattrs.contains_key(name));
    match (mode, exists) {
        (XattrMode::Create, true) => return Err(FsError::Exists),
        (XattrMode::Replace, false) => return Err(FsError::NoAttribute),
        _ => {}
    }
    if !exists {
        let names = meta.xattrs.iter().flat_map(|xattrs| xattrs.keys());
        let listed: usize = names.map(|name| name.len() + 1).sum();
        if listed + name.len() + 1 > XATTR_SIZE_MAX {
            return Err(FsError::AttributeTooBig);
        }
    }
    meta.ctime = now;
    Ok(meta.xattrs.get_or_insert_default().insert(name.into(), new))
}

/// Checks that a name is valid and in a namespace that is kept here.
fn check_name(name: &[u8]) -> Result<(), FsError> {
    const NAMESPACES: [&[u8]; 3] = [b"user.", b"security.", b"trusted."];
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(FsError::Range);
    }
    let Some(namespace) = NAMESPACES.into_iter().find(|namespace| name.starts_with(namespace)) else {
        return Err(FsError::Unsupported);
    };
    if name.len() == namespace.len() || name.contains(&0) {
        return Err(FsError::Invalid);
    }
    Ok(())
}
