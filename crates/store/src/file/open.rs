//! Opens the file of a store: checks its place, and says why a place will not do.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// The reason why a store could not be opened. Each message says which operation failed, on which path, with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing exists at the path, or its directory does not exist.
    #[error("no store at {}: no such file or directory; create the directory first", .0.display())]
    NoSuchPath(PathBuf),
    /// The path is not a directory, and must be.
    #[error("no store in {}: it is not a directory; give a directory, or the path of a file to create", .0.display())]
    NotADirectory(PathBuf),
    /// The path is not a regular file, and must be.
    #[error("no store at {}: it is not a regular file; give a directory or the path of a file to create", .0.display())]
    NotAFile(PathBuf),
    /// The file exists, and was not to be overwritten.
    #[error("no store at {}: the file exists; give another path, or --force to destroy its contents", .0.display())]
    Exists(PathBuf),
    /// The file exists and belongs to another user: its name and contents are not ours to destroy.
    #[error("no store at {}: the file belongs to the user {}; give another path", .0.display(), .1)]
    NotYours(PathBuf, u32),
    /// The file system does not keep the bytes of a file without a name.
    #[error("no store at {}: its file system does not keep a file that has lost its name ({source}); choose another place", .path.display())]
    NotWithoutName {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Access is denied.
    #[error("no store at {}: permission denied; choose a place this user may write to", .0.display())]
    Permission(PathBuf),
    /// The file system is mounted read-only.
    #[error("no store at {}: the file system is read-only; choose a place that can be written", .0.display())]
    ReadOnly(PathBuf),
    /// The disk has no room even for an empty file, or a quota is used up.
    #[error("no store at {}: no space or quota is left there; free some, or choose another place", .0.display())]
    NoSpace(PathBuf),
    /// Any other error of the system.
    #[error("no store at {}: {source}; check the path and the state of its disk", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl StoreError {
    /// The same error for `path`: the file asked for, when opening its directory failed.
    fn on(self, path: &Path) -> StoreError {
        let path = path.to_path_buf();
        match self {
            StoreError::NoSuchPath(_) => StoreError::NoSuchPath(path),
            StoreError::NotADirectory(_) => StoreError::NotADirectory(path),
            StoreError::Permission(_) => StoreError::Permission(path),
            StoreError::Io { source, .. } => StoreError::Io { path, source },
            other => other,
        }
    }

    pub(super) fn of(path: &Path, errno: Errno) -> StoreError {
        let path = path.to_path_buf();
        match errno {
            Errno::NOENT => StoreError::NoSuchPath(path),
            Errno::NOTDIR => StoreError::NotADirectory(path),
            Errno::ISDIR | Errno::NXIO | Errno::LOOP => StoreError::NotAFile(path),
            Errno::EXIST => StoreError::Exists(path),
            Errno::ACCESS | Errno::PERM => StoreError::Permission(path),
            Errno::ROFS => StoreError::ReadOnly(path),
            Errno::NOSPC | Errno::DQUOT => StoreError::NoSpace(path),
            other => StoreError::Io { path, source: other.into() },
        }
    }
}

/// The kind of file system under a store, as far as it decides if a store is allowed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// tmpfs or ramfs: the store would take the memory it is there to save.
    Memory,
    /// A FUSE file system, perhaps one of ours.
    Fuse,
    /// Any other.
    Other,
}

/// The place of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The kind of file system.
    pub kind: FsKind,
    /// Its `st_dev`: equal to that of a mount's root if the path lies on that mount, also through a bind mount or
    /// symlink (R14).
    pub device: u64,
}

/// Examines the place of a store: `path` itself if it exists, or else the directory it would be created in.
/// Symlinks are followed.
pub fn check_location(path: &Path) -> Result<Location, StoreError> {
    let fail = |errno| StoreError::of(path, errno);
    let place = match rustix::fs::stat(path) {
        Ok(_) => path,
        Err(Errno::NOENT) => parent(path),
        Err(errno) => return Err(fail(errno)),
    };
    let stat = rustix::fs::stat(place).map_err(fail)?;
    let statfs = rustix::fs::statfs(place).map_err(fail)?;
    Ok(Location { kind: kind_of(&statfs), device: stat.st_dev })
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// The kind of file system, by its magic number.
pub(super) fn kind_of(statfs: &rustix::fs::StatFs) -> FsKind {
    match statfs.f_type {
        0x0102_1994 | 0x8584_58f6 => FsKind::Memory,
        0x6573_5546 => FsKind::Fuse,
        _ => FsKind::Other,
    }
}

const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

fn flags() -> OFlags {
    OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW
}

/// Creates an unnamed file in a directory, and checks that its file system keeps bytes written to it.
pub(super) fn unnamed(dir: &Path) -> Result<File, StoreError> {
    checked(unnamed_in(&open_directory(dir)?, dir)?, dir)
}

/// Creates another one, where [`unnamed`] created one before.
pub(super) fn unnamed_again(dir: &Path) -> Result<File, StoreError> {
    unnamed_in(&open_directory(dir)?, dir)
}

fn checked(file: File, path: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::NotWithoutName { path: path.to_owned(), source };
    check_without_name(&file).map_err(failed)?;
    Ok(file)
}

/// Opens a directory: names are made and removed in this one, even if its path changes meanwhile.
fn open_directory(dir: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::empty()) {
        // A directory may be writable and not readable.
        Err(Errno::ACCESS) => rustix::fs::open(dir, flags | OFlags::PATH, Mode::empty()),
        opened => opened,
    }
    .map_err(|errno| StoreError::of(dir, errno))
}

/// Creates an unnamed file in an open directory, which is called `name` in errors.
fn unnamed_in(dir: &OwnedFd, name: &Path) -> Result<File, StoreError> {
    let fail = |errno| StoreError::of(name, errno);
    match rustix::fs::openat(dir, ".", OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE, PRIVATE) {
        Ok(fd) => Ok(File::from(fd)),
        // OPNOTSUPP: the file system knows no unnamed files. ISDIR: the kernel knows none.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => briefly_named(dir).map_err(fail),
        Err(errno) => Err(fail(errno)),
    }
}

/// Creates a file that has a name only while it is being opened.
fn briefly_named(dir: &OwnedFd) -> Result<File, Errno> {
    for attempt in 0u32..100 {
        let name = format!(".overspill-{:016x}", random_name(attempt));
        match rustix::fs::openat(dir, &name, flags() | OFlags::CREATE | OFlags::EXCL, PRIVATE) {
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
            Ok(fd) => {
                rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
                return Ok(File::from(fd));
            }
        }
    }
    Err(Errno::EXIST)
}

/// The name need not be secret: the file is created exclusively, and its name lasts an instant.
fn random_name(attempt: u32) -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(attempt);
    hasher.finish()
}

/// Writes to a file without a name and reads it back: some file systems (libfuse's with `hard_remove`) let one be
/// created and refuse every byte of it. Leaves the file empty.
fn check_without_name(file: &File) -> io::Result<()> {
    let written = [0x5a; crate::BLOCK];
    let mut read = [0; crate::BLOCK];
    match file.write_all_at(&written, 0) {
        // A full disk is no reason to refuse: there may be room when it is needed.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
        result => {
            result?;
            file.read_exact_at(&mut read, 0)?;
            if read != written {
                return Err(io::Error::other("it reads back other bytes than were written"));
            }
        }
    }
    file.set_len(0)
}

/// Creates an unnamed file in the directory of `path`. With `force` a file at `path` loses its name. That file is never
/// used itself: it may have other names and be open elsewhere, and its holders would see spilled data.
pub(super) fn at_path(path: &Path, force: bool) -> Result<File, StoreError> {
    let fail = |errno| StoreError::of(path, errno);
    let Some(name) = path.file_name() else { return Err(StoreError::NotAFile(path.to_path_buf())) };
    let dir = open_directory(parent(path)).map_err(|error| error.on(path))?;
    match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(fail(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
            return Err(StoreError::NotAFile(path.to_path_buf()));
        }
        Ok(_) if !force => return Err(StoreError::Exists(path.to_path_buf())),
        Ok(stat) if stat.st_uid != rustix::process::geteuid().as_raw() => {
            return Err(StoreError::NotYours(path.to_path_buf(), stat.st_uid));
        }
        Ok(_) => rustix::fs::unlinkat(&dir, name, AtFlags::empty()).map_err(fail)?,
    }
    checked(unnamed_in(&dir, path)?, path)
}

/// Returns false if the file system says that it does no direct I/O in our units on this file.
pub(super) fn direct_is_offered(file: &File) -> bool {
    let statfs = rustix::fs::fstatfs(file);
    if statfs.is_ok_and(|s| kind_of(&s) == FsKind::Memory) {
        // tmpfs accepts the flag, and goes through the page cache, which is all that it has.
        return false;
    }
    let mask = rustix::fs::StatxFlags::DIOALIGN;
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask) {
        Ok(s) if s.stx_mask & mask.bits() != 0 => {
            (1..=4096).contains(&s.stx_dio_mem_align) && (1..=4096).contains(&s.stx_dio_offset_align)
        }
        // Unknown: the flag itself, and the first write, will tell.
        _ => true,
    }
}

/// Switches direct I/O on or off. Returns false if the file system refuses.
pub(super) fn set_direct(file: &File, on: bool) -> bool {
    let Ok(mut flags) = rustix::fs::fcntl_getfl(file) else { return false };
    flags.set(OFlags::DIRECT, on);
    rustix::fs::fcntl_setfl(file, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libfuse's `hard_remove` lets a file be created and lose its name, and then refuses every byte of it.
    #[test]
    fn a_file_that_takes_no_bytes_is_no_store() {
        let sealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::WRITE).unwrap();
        let refused = checked(File::from(sealed), Path::new("/somewhere")).unwrap_err();
        assert!(matches!(refused, StoreError::NotWithoutName { .. }), "{refused}");
        assert!(refused.to_string().contains("/somewhere"), "{refused}");
    }
}
