//! Opening the file of a store: where, whether it may be there, and what to say when it may not.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Why a store could not be opened. Each message says what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing lies at the path, or its directory does not exist.
    #[error("no store at {}: no such file or directory; create the directory first", .0.display())]
    NoSuchPath(PathBuf),
    /// A directory was needed.
    #[error("no store in {}: it is not a directory; give a directory, or the path of a file to create", .0.display())]
    NotADirectory(PathBuf),
    /// A file was needed, and there is something else.
    #[error("no store at {}: it is not a regular file; give a directory or the path of a file to create", .0.display())]
    NotAFile(PathBuf),
    /// The file exists, and was not to be overwritten.
    #[error("no store at {}: the file exists; give another path, or --force to destroy its contents", .0.display())]
    Exists(PathBuf),
    /// Access is denied.
    #[error("no store at {}: permission denied; choose a place this user may write to", .0.display())]
    Permission(PathBuf),
    /// The file system is mounted read-only.
    #[error("no store at {}: the file system is read-only; choose a place that can be written", .0.display())]
    ReadOnly(PathBuf),
    /// The disk has no room even for an empty file, or a quota is used up.
    #[error("no store at {}: no space or quota is left there; free some, or choose another place", .0.display())]
    NoSpace(PathBuf),
    /// Anything else the system may say.
    #[error("no store at {}: {source}; check the path and the state of its disk", .path.display())]
    Io {
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
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

/// What a store would lie on, as far as it decides whether to allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// tmpfs or ramfs: the store would take the memory it is there to save.
    Memory,
    /// A FUSE file system, perhaps one of ours.
    Fuse,
    /// Anything else.
    Other,
}

/// Where a store would lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// What kind of file system it is.
    pub kind: FsKind,
    /// Its `st_dev`: equal to that of a mount's root if the path lies on that mount, by whatever bind mount or
    /// symlink it is reached (R14).
    pub device: u64,
}

/// Looks at where a store would lie: at `path` itself if it exists, or else at the directory it would be
/// created in. Symlinks are followed.
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

/// An unnamed file in a directory.
pub(super) fn unnamed(dir: &Path) -> Result<File, StoreError> {
    let stat = rustix::fs::stat(dir).map_err(|errno| StoreError::of(dir, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(StoreError::NotADirectory(dir.to_path_buf()));
    }
    let fail = |errno| StoreError::of(dir, errno);
    match rustix::fs::open(dir, OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE, PRIVATE) {
        Ok(fd) => Ok(File::from(fd)),
        // File systems that know no unnamed files say the one; kernels that know none, the other.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => briefly_named(dir).map_err(fail),
        Err(errno) => Err(fail(errno)),
    }
}

/// A file that has a name only while it is being opened.
fn briefly_named(dir: &Path) -> Result<File, Errno> {
    for attempt in 0u32..100 {
        let path = dir.join(format!(".overspill-{:016x}", random_name(attempt)));
        match rustix::fs::open(&path, flags() | OFlags::CREATE | OFlags::EXCL, PRIVATE) {
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
            Ok(fd) => {
                rustix::fs::unlink(&path)?;
                return Ok(File::from(fd));
            }
        }
    }
    Err(Errno::EXIST)
}

/// Need not be secret: the file is created exclusively, and its name lasts an instant.
fn random_name(attempt: u32) -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(attempt);
    hasher.finish()
}

/// A file at this path, created, or emptied if `force` allows it; its name is gone on return.
pub(super) fn at_path(path: &Path, force: bool) -> Result<File, StoreError> {
    let fail = |errno| StoreError::of(path, errno);
    let file = match rustix::fs::open(path, flags() | OFlags::CREATE | OFlags::EXCL, PRIVATE) {
        Err(Errno::EXIST) if force => reuse(path)?,
        opened => File::from(opened.map_err(fail)?),
    };
    rustix::fs::unlink(path).map_err(fail)?;
    Ok(file)
}

/// Opens and empties an existing regular file.
fn reuse(path: &Path) -> Result<File, StoreError> {
    let fail = |errno| StoreError::of(path, errno);
    let fd = rustix::fs::open(path, flags() | OFlags::NONBLOCK, Mode::empty()).map_err(fail)?;
    let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(StoreError::NotAFile(path.to_path_buf()));
    }
    // What pages hold is nobody else's business, whatever the file was before.
    rustix::fs::fchmod(&fd, PRIVATE).map_err(fail)?;
    rustix::fs::ftruncate(&fd, 0).map_err(fail)?;
    Ok(File::from(fd))
}

/// Whether the file system says that it does direct I/O in our units on this file.
pub(super) fn direct_is_offered(file: &File) -> bool {
    let statfs = rustix::fs::fstatfs(file);
    if statfs.is_ok_and(|s| kind_of(&s) == FsKind::Memory) {
        // tmpfs accepts the flag, and goes through the page cache, which is all it has.
        return false;
    }
    let mask = rustix::fs::StatxFlags::DIOALIGN;
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask) {
        Ok(s) if s.stx_mask & mask.bits() != 0 => {
            (1..=4096).contains(&s.stx_dio_mem_align) && (1..=4096).contains(&s.stx_dio_offset_align)
        }
        // Not told: the flag itself, and the first write, will say.
        _ => true,
    }
}

/// Switches direct I/O on or off. False if the file system refuses.
pub(super) fn set_direct(file: &File, on: bool) -> bool {
    let Ok(mut flags) = rustix::fs::fcntl_getfl(file) else { return false };
    flags.set(OFlags::DIRECT, on);
    rustix::fs::fcntl_setfl(file, flags).is_ok()
}
