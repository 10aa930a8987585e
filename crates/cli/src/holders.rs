//! Finds the holders that keep a mount busy. It reads `/proc` and `/sys`, and never touches the mount.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use overspill::mountinfo::{Entry, Mounts};

/// The most holders that a message names.
const NAMED: usize = 12;

/// A user of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process, with an example of each kind of thing it holds there, and the number of that kind.
    Process { pid: u32, comm: String, holds: Vec<(String, usize)> },
    /// Another mount on top of this one.
    Mount(PathBuf),
    /// A loop device whose backing file is on the mount.
    Loop { device: String, file: String },
}

/// All users of a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holders {
    pub(crate) found: Vec<Holder>,
    /// True if root asked, who sees every process in /proc.
    pub(crate) asked_by_root: bool,
}

/// Finds all users of `mount`. Without root, the processes of other users cannot be examined.
pub(crate) fn find(mounts: &Mounts, mount: &Entry) -> Holders {
    let mut holders: Vec<Holder> =
        mounts.children(mount).map(|child| Holder::Mount(child.mountpoint.clone())).collect();
    holders.extend(processes(Path::new("/proc"), &mount.mountpoint));
    holders.extend(loops(Path::new("/sys/block"), &mount.mountpoint));
    Holders { found: holders, asked_by_root: false }
}

fn processes(proc: &Path, mountpoint: &Path) -> Vec<Holder> {
    let own = std::process::id();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let holds = held_by(&entry.path(), mountpoint);
        if pid != own && !holds.is_empty() {
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.insert(pid, Holder::Process { pid, comm: comm.trim_end().to_owned(), holds });
        }
    }
    found.into_values().collect()
}

/// The things a process (its directory in `/proc`) holds below `mountpoint`: an example and the number of each kind.
fn held_by(process: &Path, mountpoint: &Path) -> Vec<(String, usize)> {
    let below = |path: PathBuf| path.starts_with(mountpoint).then_some(path);
    let link = |name: &str| std::fs::read_link(process.join(name)).ok().and_then(below);
    let mut holds = Vec::new();
    for (name, what) in [("cwd", "working directory"), ("root", "root directory"), ("exe", "runs")] {
        if let Some(path) = link(name) {
            holds.push((format!("{what} {}", path.display()), 1));
        }
    }
    let fds = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let open: Vec<PathBuf> = fds.filter_map(|fd| below(std::fs::read_link(fd.path()).ok()?)).collect();
    if let Some(first) = open.first() {
        holds.push((format!("open {}", first.display()), open.len()));
    }
    let maps = std::fs::read(process.join("maps")).unwrap_or_default();
    let mut mapped: Vec<PathBuf> =
        maps.split(|b| *b == b'\n').filter_map(mapped_file).filter_map(below).collect();
    mapped.sort();
    mapped.dedup();
    if let Some(first) = mapped.first() {
        holds.push((format!("mapped {}", first.display()), mapped.len()));
    }
    holds
}

/// The file in a line of `maps`: the text after the five columns, from its first slash.
fn mapped_file(line: &[u8]) -> Option<PathBuf> {
    let slash = line.iter().position(|b| *b == b'/')?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&line[slash..])))
}

fn loops(block: &Path, mountpoint: &Path) -> Vec<Holder> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(block).into_iter().flatten().flatten() {
        let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let file = file.trim_end().to_owned();
        if Path::new(&file).starts_with(mountpoint) {
            found.push(Holder::Loop { device: entry.file_name().to_string_lossy().into_owned(), file });
        }
    }
    found
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { pid, comm, holds } => {
                write!(f, "pid {pid} ({comm}: ")?;
                for (n, (what, count)) in holds.iter().enumerate() {
                    f.write_str(if n == 0 { "" } else { ", " })?;
                    f.write_str(what)?;
                    if *count > 1 {
                        write!(f, " and {} more", count - 1)?;
                    }
                }
                f.write_str(")")
            }
            Holder::Mount(at) => write!(f, "the mount on {}", at.display()),
            Holder::Loop { device, file } => write!(f, "/dev/{device} (backed by {file})"),
        }
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.found.is_empty() {
            return f.write_str(if self.asked_by_root {
                "a process or mount of another namespace, a swap file or the kernel itself (/proc shows none of ours)"
            } else {
                "a process that cannot be seen from here (try as root)"
            });
        }
        for (n, holder) in self.found.iter().take(NAMED).enumerate() {
            write!(f, "{}{holder}", if n == 0 { "" } else { "; " })?;
        }
        match self.found.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A `/proc` with one process.
    fn fake_proc(pid: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let process = dir.path().join(pid.to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), "vi m\n").unwrap();
        symlink("/home", process.join("cwd")).unwrap();
        symlink("/", process.join("root")).unwrap();
        symlink("/bin/vim", process.join("exe")).unwrap();
        (dir, process)
    }

    fn those(found: Vec<Holder>) -> Holders {
        Holders { found, asked_by_root: false }
    }

    fn shown(dir: &Path) -> String {
        those(processes(dir, Path::new("/mnt/x"))).to_string()
    }

    #[test]
    fn all_the_ways_to_hold_a_mount_are_seen() {
        let (dir, process) = fake_proc(77);
        fs::remove_file(process.join("cwd")).unwrap();
        symlink("/mnt/x/dir", process.join("cwd")).unwrap();
        symlink("/mnt/x/f", process.join("fd/3")).unwrap();
        symlink("/mnt/x/g (deleted)", process.join("fd/4")).unwrap();
        symlink("pipe:[1]", process.join("fd/5")).unwrap();
        let maps = "7f0-7f1 r--p 0000 00:50 1                    /mnt/x/lib a.so\n7f1-7f2 r-xp 0000 00:50 1  \
                    /mnt/x/lib a.so\n7f2-7f3 rw-p 0000 00:00 0  [heap]\n";
        fs::write(process.join("maps"), maps).unwrap();
        let text = shown(dir.path());
        assert!(text.starts_with("pid 77 (vi m: working directory /mnt/x/dir, open /mnt/x/"), "{text}");
        assert!(text.contains(" and 1 more, mapped /mnt/x/lib a.so)"), "{text}");
    }

    #[test]
    fn neighbours_are_not_holders() {
        let (dir, process) = fake_proc(77);
        symlink("/mnt/xy/f", process.join("fd/3")).unwrap();
        fs::write(process.join("maps"), "7f0-7f1 r--p 0 00:50 1 /mnt/xy/lib.so\n").unwrap();
        assert!(processes(dir.path(), Path::new("/mnt/x")).is_empty());
        assert!(shown(dir.path()).contains("cannot be seen"));
    }

    #[test]
    fn root_is_not_told_to_try_as_root() {
        let unseen = |asked_by_root| Holders { found: Vec::new(), asked_by_root }.to_string();
        assert!(unseen(false).contains("try as root") && !unseen(true).contains("as root"));
    }

    #[test]
    fn a_loop_device_holds_its_file() {
        let dir = tempfile::tempdir().unwrap();
        for (name, file) in [("loop0", "/mnt/x/disk\n"), ("loop1", "/srv/disk\n")] {
            fs::create_dir_all(dir.path().join(name).join("loop")).unwrap();
            fs::write(dir.path().join(name).join("loop/backing_file"), file).unwrap();
        }
        let found = loops(dir.path(), Path::new("/mnt/x"));
        assert_eq!(those(found).to_string(), "/dev/loop0 (backed by /mnt/x/disk)");
    }

    #[test]
    fn very_many_are_counted() {
        let many = (0..20).map(|n| Holder::Mount(format!("/m/{n}").into())).collect();
        let text = those(many).to_string();
        assert!(text.contains("/m/11") && !text.contains("/m/12"), "{text}");
        assert!(text.ends_with("and 8 more"), "{text}");
    }
}
