//! The table of mounts, from `/proc/self/mountinfo`.
//!
//! A dead FUSE mount answers every call with ENOTCONN, and a mount whose daemon hangs does not answer at all. So a path
//! is resolved here name by name, and an overspill mountpoint is recognised *before* any call touches it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// The file system type of our mounts.
const FSTYPE: &str = "fuse.overspill";

/// Most symbolic links in a path before it counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Id of the mount.
    pub id: u64,
    /// Id of the mount on which it lies.
    pub parent: u64,
    /// `major:minor` of the file system's device.
    pub dev: String,
    /// The directory inside the file system that is mounted.
    pub root: PathBuf,
    /// The directory on which it is mounted.
    pub mountpoint: PathBuf,
    /// Type of the file system.
    pub fstype: String,
    /// The source, as its maker named it.
    pub source: OsString,
    /// Options of the file system (not of this mount).
    pub options: String,
}

impl Entry {
    /// True if this is an overspill mount.
    pub fn is_overspill(&self) -> bool {
        self.fstype == FSTYPE || (self.fstype == "fuse" && self.source == "overspill")
    }

    /// A numeric option of the file system, such as `user_id=`.
    pub fn option_u32(&self, name: &str) -> Option<u32> {
        self.options.split(',').find_map(|o| o.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    }

    /// The number of the FUSE connection in `/sys/fs/fuse/connections`.
    pub fn connection(&self) -> Option<&str> {
        self.dev.split_once(':').map(|(_, minor)| minor)
    }
}

/// The mounts that this process sees, in the order in which they were made.
#[derive(Debug, Default, Clone)]
pub struct Mounts(Vec<Entry>);

impl Mounts {
    /// Reads the mounts of this process.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn read() -> std::io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Parses the text of a mountinfo file; skips lines that are malformed.
    pub fn parse(text: &[u8]) -> Self {
        Mounts(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
    }

    /// Every mount.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }

    /// The mount at exactly `path`: the topmost, if several are stacked.
    pub fn at(&self, path: &Path) -> Option<&Entry> {
        self.0.iter().rev().find(|e| e.mountpoint == path)
    }

    /// The mount on which `path` (absolute, without links) lies.
    pub fn containing(&self, path: &Path) -> Option<&Entry> {
        path.ancestors().find_map(|p| self.at(p))
    }

    /// The mounts that sit directly on `entry`.
    pub fn children<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = &'a Entry> {
        self.0.iter().filter(move |e| e.parent == entry.id)
    }

    /// Makes `path` absolute and free of links without touching an overspill mount: names below one are taken as they
    /// are. Names that do not exist are kept too.
    ///
    /// # Errors
    /// When a link leads in a circle, or there is no working directory.
    pub fn resolve(&self, path: &Path) -> std::io::Result<PathBuf> {
        let mut rest: VecDeque<OsString> = VecDeque::new();
        push_front(&mut rest, path);
        let mut at = if path.is_absolute() { PathBuf::from("/") } else { std::env::current_dir()? };
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(&name);
            if self.containing(&at).is_some_and(Entry::is_overspill) {
                continue;
            }
            let Ok(target) = std::fs::read_link(&at) else { continue };
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            push_front(&mut rest, &target);
        }
        Ok(at)
    }
}

/// Puts the names of `path` before those already queued.
fn push_front(rest: &mut VecDeque<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => rest.push_front(name.to_owned()),
            Component::ParentDir => rest.push_front("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let dev = text(fields.next()?);
    let root = PathBuf::from(unescape(fields.next()?));
    let mountpoint = PathBuf::from(unescape(fields.next()?));
    let _mount_options = fields.next()?;
    // Optional fields; a lone dash ends them.
    fields.by_ref().find(|f| *f == b"-")?;
    let fstype = text(fields.next()?);
    let source = unescape(fields.next()?);
    let options = text(fields.next().unwrap_or_default());
    Some(Entry { id, parent, dev, root, mountpoint, fstype, source, options })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Decodes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten().and_then(octal_byte);
        if let Some(byte) = octal {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

fn octal_byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const TABLE: &[u8] = b"\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:50 / /mnt/a\\040b rw,nosuid shared:7 master:2 - fuse.overspill overspill rw,user_id=1000,group_id=100
41 40 0:51 / /mnt/a\\040b/deep rw - tmpfs none rw
42 27 0:52 / /mnt/s rw - fuse.sshfs host:/x rw,user_id=0
43 42 0:53 / /mnt/s rw - fuse overspill rw
not a line
99 27 0:54
";

    #[test]
    fn lines_are_understood_and_broken_ones_left_out() {
        let mounts = Mounts::parse(TABLE);
        assert_eq!(mounts.iter().count(), 5);
        let ours = mounts.at(Path::new("/mnt/a b")).unwrap();
        assert!(ours.is_overspill());
        assert_eq!((ours.id, ours.parent, ours.connection()), (40, 27, Some("50")));
        assert_eq!(ours.option_u32("user_id"), Some(1000));
        assert_eq!(ours.option_u32("group_id"), Some(100));
        assert_eq!(ours.option_u32("user"), None);
        assert_eq!(mounts.children(ours).map(|e| e.id).collect::<Vec<_>>(), [41]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_into_something(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            for entry in Mounts::parse(&text).iter() {
                let _ = (entry.is_overspill(), entry.connection(), entry.option_u32("user_id"));
            }
        }

        #[test]
        fn broken_tables_keep_their_whole_lines(cut in 0..TABLE.len(), byte in proptest::prelude::any::<u8>()) {
            let mut text = TABLE.to_vec();
            text[cut] = byte;
            let whole = TABLE.split(|b| *b == b'\n').take(5).filter_map(parse_line).count();
            proptest::prop_assert!(Mounts::parse(&text).iter().count() + 2 >= whole);
        }
    }

    #[test]
    fn the_topmost_of_stacked_mounts_counts() {
        let mounts = Mounts::parse(TABLE);
        assert_eq!(mounts.at(Path::new("/mnt/s")).unwrap().id, 43);
        assert!(mounts.at(Path::new("/mnt/s")).unwrap().is_overspill());
        assert!(mounts.at(Path::new("/mnt")).is_none());
    }

    #[test]
    fn a_path_belongs_to_the_nearest_mount_above() {
        let mounts = Mounts::parse(TABLE);
        let id = |p: &str| mounts.containing(Path::new(p)).map(|e| e.id);
        assert_eq!(id("/mnt/a b/x/y"), Some(40));
        assert_eq!(id("/mnt/a b/deep/y"), Some(41));
        assert_eq!(id("/mnt/a bc"), Some(27));
    }

    #[test]
    fn escapes_and_near_escapes() {
        assert_eq!(unescape(br"a\040b\134\011"), "a b\\\t");
        assert_eq!(unescape(br"a\04"), "a\\04");
        assert_eq!(unescape(br"\999"), "\\999");
        assert_eq!(unescape(br"\"), "\\");
    }

    #[test]
    fn links_are_followed_up_to_the_mount_and_not_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("mnt")).unwrap();
        symlink("mnt", base.join("link")).unwrap();
        symlink("/nowhere", base.join("mnt/trap")).unwrap();
        symlink("self", base.join("self")).unwrap();
        let line = format!("40 27 0:50 / {} rw - fuse.overspill overspill rw", base.join("mnt").display());
        let mounts = Mounts::parse(line.as_bytes());
        let resolve = |p: &str| mounts.resolve(&base.join(p));
        assert_eq!(resolve("link").unwrap(), base.join("mnt"));
        assert_eq!(resolve("./mnt/../link/x").unwrap(), base.join("mnt/x"));
        assert_eq!(resolve("mnt/trap").unwrap(), base.join("mnt/trap"), "read a link on the mount");
        assert_eq!(resolve("absent/y").unwrap(), base.join("absent/y"));
        assert!(resolve("self/x").is_err());
    }
}
