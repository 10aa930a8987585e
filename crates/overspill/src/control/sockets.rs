//! The directories of control sockets: root's in `/run`, a user's in `/tmp`.
//!
//! An engine listens on `PID.sock`. For each face it makes `PID.face-MAJOR:MINOR`, a symbolic link to its socket. (The
//! process is in the name because the kernel gives a device to another mount while the old one's process still ends.)

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The directory of a user's sockets. It depends on nothing else, so that root finds it too, and that it stays when the
/// user logs out: `/run/user` would not.
#[must_use]
pub fn directory(uid: u32) -> PathBuf {
    if uid == 0 { "/run/overspill".into() } else { format!("/tmp/overspill-{uid}").into() }
}

/// The directories of all users that have one: for root.
#[must_use]
pub fn all_directories() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/tmp").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let users = names.filter_map(|name| name.strip_prefix("overspill-")?.parse().ok());
    let mut all: Vec<PathBuf> = std::iter::once(0).chain(users).map(directory).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Makes this user's directory, or checks that it is his alone: another user may have made one of that name in `/tmp`.
pub(crate) fn make_directory(uid: u32) -> io::Result<PathBuf> {
    let dir = directory(uid);
    match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io::Error::new(error.kind(), format!("{}: {error}", dir.display())));
        }
        _ => {}
    }
    check(&dir, uid)?;
    Ok(dir)
}

/// Refuses a directory that is not this user's alone.
fn check(dir: &Path, uid: u32) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(dir)?;
    let is_his = metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o077 == 0;
    if is_his {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{} is not a directory that only you can use", dir.display()),
    ))
}

/// The name, beside an engine's socket, of the link for a face.
pub(crate) fn link_name(pid: u32, device: &str) -> String {
    format!("{pid}.face-{device}")
}

/// True for the name of a link for a face.
pub(crate) fn is_link(name: &std::ffi::OsStr) -> bool {
    name.to_str().and_then(|name| name.split_once(".face-")).is_some()
}

/// The links for the face `device`, the newest first.
pub(crate) fn links_to(dir: &Path, device: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut links: Vec<_> = entries
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.split_once(".face-"))
                .is_some_and(|n| n.1 == device)
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    links.sort_unstable();
    links.into_iter().rev().map(|(_, path)| path).collect()
}

/// The sockets in a directory.
#[must_use]
pub fn sockets_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sockets: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "sock")).collect();
    sockets.sort_unstable();
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_a_directory_of_ones_own_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let set = |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o700);
        assert!(check(dir.path(), uid).is_ok());
        assert!(check(dir.path(), uid + 1).is_err());
        for mode in [0o770, 0o701, 0o777] {
            set(mode);
            assert!(check(dir.path(), uid).is_err(), "{mode:o}");
        }
        set(0o700);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(check(&link, uid).is_err());
    }
}
