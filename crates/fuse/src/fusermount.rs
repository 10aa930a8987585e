//! Finds fusermount3, the setuid helper that mounts and unmounts for users.

use std::path::PathBuf;

const NAME: &str = "fusermount3";

/// Directories to search beyond `PATH`, which a daemon may have inherited incomplete.
const USUAL: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// The first fusermount3 that is a file: in the directories of `path`, then in the usual ones below `base`.
#[must_use]
pub fn find(path: &[PathBuf], base: &std::path::Path) -> Option<PathBuf> {
    let usual = USUAL.iter().map(|dir| base.join(dir.trim_start_matches('/')));
    path.iter().cloned().chain(usual).map(|dir| dir.join(NAME)).find(|program| program.is_file())
}

/// The directories of `PATH`.
#[must_use]
pub fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}
