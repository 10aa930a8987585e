//! Places of files: a path's file system and its path within it, through any symlinks and bind mounts.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

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
        Place::find(&path.canonicalize()?, &std::fs::read("/proc/self/mountinfo")?)
            .ok_or_else(|| io::Error::other("no mount holds this path"))
    }

    /// The place of `path`, absolute and without symlinks, among the mounts of `mountinfo`.
    fn find(path: &Path, mountinfo: &[u8]) -> Option<Place> {
        let lines = mountinfo.split(|&b| b == b'\n').filter_map(Mount::parse);
        // Of several mounts on one point the last is on top.
        let mount = lines
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|m| m.point.components().count())?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some(Place { device: mount.device, path: mount.root.join(below), fs_type: mount.fs_type })
    }

    /// True if this place is `other` or below it.
    pub(super) fn is_within(&self, other: &Place) -> bool {
        self.device == other.device && self.path.starts_with(&other.path)
    }
}

struct Mount {
    device: String,
    root: PathBuf,
    point: PathBuf,
    fs_type: String,
}

impl Mount {
    /// A line of mountinfo: `id parent major:minor root mountpoint options fields… - type source options`.
    fn parse(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|&b| b == b' ').skip(2);
        let device = String::from_utf8(fields.next()?.to_vec()).ok()?;
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mount { device, root, point, fs_type: String::from_utf8(fs_type.to_vec()).ok()? })
    }
}

/// Decodes spaces and the like, which are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let ([a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..], b'\\') = (tail, first) {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &[u8] = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
        30 22 0:40 / /mnt/over\\040lay rw,nosuid shared:5 master:1 - fuse.overspill overspill rw\n\
        31 22 254:0 /mnt/scratch/sub /b rw - ext4 /dev/vda rw\n";

    #[test]
    fn sees_through_bind_mounts() {
        let scratch = Place::find(Path::new("/mnt/scratch"), INFO).unwrap();
        let bound = Place::find(Path::new("/b/store"), INFO).unwrap();
        assert!(bound.is_within(&scratch), "/b is /mnt/scratch/sub (R14)");
        assert!(!scratch.is_within(&bound));
        assert!(!Place::find(Path::new("/mnt/scratch2"), INFO).unwrap().is_within(&scratch));
    }

    #[test]
    fn knows_types_and_escapes() {
        let place = Place::find(Path::new("/mnt/over lay/x"), INFO).unwrap();
        assert_eq!((place.fs_type.as_str(), place.path.as_path()), ("fuse.overspill", Path::new("/x")));
    }

    #[test]
    fn garbage_is_no_mount() {
        for line in [&b""[..], b"1 2", b"1 2 3:4 / /x rw", b"- - - - - - -", b"\\04 \\999 \\"] {
            assert_eq!(Place::find(Path::new("/x"), line), None);
        }
    }
}
