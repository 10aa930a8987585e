//! Places of files: a path's file system and its path within it, through any symlinks and bind mounts.

use std::io;
use std::path::{Path, PathBuf};

use crate::mountinfo::Mounts;

/// A place on a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The file system, as `major:minor`.
    device: String,
    /// The path from that file system's own root.
    path: PathBuf,
    /// Its type, such as `ext4` or `fuse.overspill`.
    pub fs_type: String,
}

impl Place {
    /// The place of an existing path.
    ///
    /// # Errors
    /// When the path cannot be resolved, or /proc is not mounted.
    pub(super) fn of(path: &Path) -> io::Result<Place> {
        Place::find(&path.canonicalize()?, &Mounts::read()?)
            .ok_or_else(|| io::Error::other("no mount holds this path"))
    }

    /// The place of `path`, absolute and without symlinks, among `mounts`.
    fn find(path: &Path, mounts: &Mounts) -> Option<Place> {
        let mount = mounts.containing(path)?;
        let below = path.strip_prefix(&mount.mountpoint).ok()?;
        let fs_type = mount.fstype.clone();
        Some(Place { device: mount.dev.clone(), path: mount.root.join(below), fs_type })
    }

    /// True if this place is `other` or below it.
    pub(super) fn is_within(&self, other: &Place) -> bool {
        self.device == other.device && self.path.starts_with(&other.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &[u8] = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
        30 22 0:40 / /mnt/over\\040lay rw,nosuid shared:5 master:1 - fuse.overspill overspill rw\n\
        31 22 254:0 /mnt/scratch/sub /b rw - ext4 /dev/vda rw\n";

    #[test]
    fn sees_through_bind_mounts() {
        let scratch = Place::find(Path::new("/mnt/scratch"), &Mounts::parse(INFO)).unwrap();
        let bound = Place::find(Path::new("/b/store"), &Mounts::parse(INFO)).unwrap();
        assert!(bound.is_within(&scratch), "/b is /mnt/scratch/sub (R14)");
        assert!(!scratch.is_within(&bound));
        assert!(!Place::find(Path::new("/mnt/scratch2"), &Mounts::parse(INFO)).unwrap().is_within(&scratch));
    }

    #[test]
    fn knows_types_and_escapes() {
        let place = Place::find(Path::new("/mnt/over lay/x"), &Mounts::parse(INFO)).unwrap();
        assert_eq!((place.fs_type.as_str(), place.path.as_path()), ("fuse.overspill", Path::new("/x")));
    }
}
