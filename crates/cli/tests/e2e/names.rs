//! Names and inodes through a real mount: links, renames, directories, special files, attributes, times.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::harness::{Mount, is_root, names, ok, python, sh};

fn small() -> Mount {
    Mount::new(&["--memory", "8M", "--size", "64M"])
}

fn errno(result: std::io::Result<impl Sized>) -> Option<Errno> {
    result.err().and_then(|e| Errno::from_io_error(&e))
}

#[test]
fn symbolic_links() {
    let mount = small();
    fs::write(mount.path("target"), "aimed").unwrap();
    symlink("target", mount.path("link")).unwrap();
    symlink("gone", mount.path("dangling")).unwrap();
    symlink("loop", mount.path("loop")).unwrap();
    let long = "x".repeat(4095);
    symlink(&long, mount.path("long")).unwrap();
    assert_eq!(fs::read(mount.path("link")).unwrap(), b"aimed");
    assert_eq!(fs::read_link(mount.path("long")).unwrap().as_os_str(), long.as_str());
    assert_eq!(fs::symlink_metadata(mount.path("link")).unwrap().len(), 6);
    assert_eq!(errno(fs::read(mount.path("dangling"))), Some(Errno::NOENT));
    assert_eq!(errno(fs::read(mount.path("loop"))), Some(Errno::LOOP));
}

#[test]
fn hard_links_and_counts() {
    let mount = small();
    fs::write(mount.path("a"), "one inode").unwrap();
    fs::hard_link(mount.path("a"), mount.path("b")).unwrap();
    let [a, b] = ["a", "b"].map(|n| fs::metadata(mount.path(n)).unwrap());
    assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
    fs::remove_file(mount.path("a")).unwrap();
    assert_eq!(fs::metadata(mount.path("b")).unwrap().nlink(), 1);
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"one inode");
    assert_eq!(errno(fs::hard_link(&mount.dir, mount.path("c"))), Some(Errno::PERM));

    let nlink = || fs::metadata(mount.path("d")).unwrap().nlink();
    fs::create_dir(mount.path("d")).unwrap();
    assert_eq!(nlink(), 2);
    fs::create_dir(mount.path("d/e")).unwrap();
    fs::write(mount.path("d/f"), "").unwrap();
    assert_eq!(nlink(), 3);
    fs::remove_dir(mount.path("d/e")).unwrap();
    assert_eq!(nlink(), 2);
}

#[test]
fn renames_with_and_without_flags() {
    let mount = small();
    let rename =
        |a: &str, b: &str, flags| rustix::fs::renameat_with(CWD, mount.path(a), CWD, mount.path(b), flags);
    let put = |name: &str| fs::write(mount.path(name), name).unwrap();
    let get = |name: &str| fs::read_to_string(mount.path(name)).unwrap();
    put("a");
    put("b");
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!((get("a"), get("b")), ("a".into(), "b".into()));
    rename("a", "c", RenameFlags::NOREPLACE).unwrap();
    rename("c", "b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((get("b"), get("c")), ("a".into(), "b".into()));
    assert_eq!(rename("c", "absent", RenameFlags::EXCHANGE), Err(Errno::NOENT));
    rename("b", "c", RenameFlags::empty()).unwrap();
    assert_eq!((names(&mount.dir), get("c")), (vec!["c".to_owned()], "a".into()));

    fs::create_dir_all(mount.path("d/e/f")).unwrap();
    assert_eq!(rename("d", "d/e/g", RenameFlags::empty()), Err(Errno::INVAL));
    assert_eq!(rename("c", "d", RenameFlags::empty()), Err(Errno::ISDIR));
    assert_eq!(rename("d", "c", RenameFlags::empty()), Err(Errno::NOTDIR));
    fs::create_dir_all(mount.path("full/x")).unwrap();
    assert_eq!(rename("d", "full", RenameFlags::empty()), Err(Errno::NOTEMPTY));
    rename("d/e", "full", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((names(&mount.path("full")), names(&mount.path("d/e"))), (vec!["f".into()], vec!["x".into()]));
    assert_eq!(
        fs::metadata(mount.path("d/e/..")).unwrap().ino(),
        fs::metadata(mount.path("d")).unwrap().ino()
    );
}

#[test]
fn a_big_directory_is_listed_once_while_it_changes() {
    let mount = small();
    let dir = mount.path("big");
    fs::create_dir(&dir).unwrap();
    let all: BTreeSet<String> = (0..5000).map(|n| format!("entry-{n:05}")).collect();
    for name in &all {
        fs::File::create(dir.join(name)).unwrap();
    }
    // Every third entry is deleted while the listing goes on; entries that stay must be seen exactly once.
    let doomed = |n: usize| n.is_multiple_of(3);
    let mut seen = Vec::new();
    for (n, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        seen.push(entry.unwrap().file_name().into_string().unwrap());
        if n == 100 {
            for (n, name) in all.iter().enumerate().filter(|(n, _)| doomed(*n)) {
                fs::remove_file(dir.join(name)).unwrap_or_else(|e| panic!("{n}: {e}"));
            }
        }
    }
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "an entry came twice");
    let kept: Vec<&String> =
        all.iter().enumerate().filter(|(n, _)| !doomed(*n)).map(|(_, name)| name).collect();
    let missed: Vec<_> = kept.iter().filter(|name| !unique.contains(**name)).collect();
    assert!(missed.is_empty(), "missed {} of {}: {missed:?}", missed.len(), kept.len());
    assert_eq!(names(&dir).len(), kept.len());
    // rm -r reads and deletes in turn.
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(names(&mount.dir), [""; 0]);
}

#[test]
fn directories_say_no() {
    let mount = small();
    fs::create_dir_all(mount.path("d/e")).unwrap();
    fs::write(mount.path("f"), "").unwrap();
    assert_eq!(errno(fs::remove_dir(mount.path("d"))), Some(Errno::NOTEMPTY));
    assert_eq!(errno(fs::remove_dir(mount.path("f"))), Some(Errno::NOTDIR));
    assert_eq!(errno(fs::remove_file(mount.path("d"))), Some(Errno::ISDIR));
    assert_eq!(errno(fs::create_dir(mount.path("d"))), Some(Errno::EXIST));
    assert_eq!(errno(fs::write(mount.path("f/x"), "")), Some(Errno::NOTDIR));
    assert_eq!(errno(fs::write(mount.path(&"n".repeat(256)), "")), Some(Errno::NAMETOOLONG));
    fs::write(mount.path(&"n".repeat(255)), "").unwrap();
}

#[test]
fn fifos_sockets_and_devices() {
    let mount = small();
    let mknod = |name: &str, kind, dev| {
        rustix::fs::mknodat(CWD, mount.path(name), kind, Mode::RUSR | Mode::WUSR, dev)
    };
    mknod("fifo", FileType::Fifo, 0).unwrap();
    assert!(fs::metadata(mount.path("fifo")).unwrap().file_type().is_fifo());
    let fifo = mount.path("fifo");
    let writer = std::thread::spawn(move || fs::write(fifo, "through").unwrap());
    assert_eq!(fs::read(mount.path("fifo")).unwrap(), b"through");
    writer.join().unwrap();

    // The socket is bound by a short name: a socket's path has room for 108 bytes.
    let dir = fs::File::open(&mount.dir).unwrap();
    let address = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let listener = UnixListener::bind(&address).unwrap();
    assert!(fs::metadata(mount.path("socket")).unwrap().file_type().is_socket());
    UnixStream::connect(&address).unwrap().write_all(b"hello").unwrap();
    let mut said = String::new();
    listener.accept().unwrap().0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello");

    if is_root("device nodes") {
        let dev = rustix::fs::makedev(1, 5);
        mknod("zero", FileType::CharacterDevice, dev).unwrap();
        let zero = fs::metadata(mount.path("zero")).unwrap();
        assert!(zero.file_type().is_char_device());
        assert_eq!(zero.rdev(), dev);
        let mut bytes = [1; 8];
        fs::File::open(mount.path("zero")).unwrap().read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 8]);
    } else {
        assert_eq!(mknod("zero", FileType::CharacterDevice, rustix::fs::makedev(1, 5)), Err(Errno::PERM));
    }
}

#[test]
fn extended_attributes() {
    let mount = small();
    let path = mount.path("f");
    fs::write(&path, "").unwrap();
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    let get = |name: &str| {
        let mut value = vec![0; 1 << 16];
        rustix::fs::getxattr(&path, name, &mut value[..]).map(|n| value[..n].to_vec())
    };
    assert_eq!(get("user.a"), Err(Errno::NODATA));
    set("user.a", b"one", XattrFlags::CREATE).unwrap();
    assert_eq!(set("user.a", b"two", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set("user.b", b"two", XattrFlags::REPLACE), Err(Errno::NODATA));
    set("user.a", b"changed", XattrFlags::REPLACE).unwrap();
    set("user.empty", b"", XattrFlags::empty()).unwrap();
    set("user.big", &[7; 4000], XattrFlags::empty()).unwrap();
    assert_eq!(get("user.a").unwrap(), b"changed");
    assert_eq!(get("user.empty").unwrap(), b"");
    assert_eq!(get("user.big").unwrap(), [7; 4000]);
    let mut list = vec![0; 4096];
    let len = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    let listed: BTreeSet<&[u8]> = list[..len].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    assert_eq!(listed, BTreeSet::from([&b"user.a"[..], b"user.big", b"user.empty"]));
    let mut tiny = [0; 2];
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut tiny[..]), Err(Errno::RANGE));
    rustix::fs::removexattr(&path, "user.a").unwrap();
    assert_eq!(rustix::fs::removexattr(&path, "user.a"), Err(Errno::NODATA));
    assert_eq!(get("user.a"), Err(Errno::NODATA));
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let mount = small();
    let path = mount.path("f");
    fs::write(&path, "x").unwrap();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 1_000_000_001, tv_nsec: 123_456_789 },
        last_modification: Timespec { tv_sec: -5, tv_nsec: 999_999_999 },
    };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    mount.drop_caches();
    let m = fs::metadata(&path).unwrap();
    assert_eq!((m.atime(), m.atime_nsec()), (1_000_000_001, 123_456_789));
    assert_eq!((m.mtime(), m.mtime_nsec()), (-5, 999_999_999));

    // A write updates mtime and ctime, a chmod only ctime.
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"y").unwrap();
    let written = fs::metadata(&path).unwrap();
    assert!(written.mtime() > 1_000_000_000, "{}", written.mtime());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    mount.drop_caches();
    let changed = fs::metadata(&path).unwrap();
    assert_eq!((changed.mtime(), changed.mtime_nsec()), (written.mtime(), written.mtime_nsec()));
    assert!((changed.ctime(), changed.ctime_nsec()) >= (written.ctime(), written.ctime_nsec()));

    let dir = fs::metadata(&mount.dir).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(mount.path("new"), "").unwrap();
    let after = fs::metadata(&mount.dir).unwrap();
    assert!((after.mtime(), after.mtime_nsec()) > (dir.mtime(), dir.mtime_nsec()), "a new name is a change");
}

#[test]
fn permissions_are_the_kernels() {
    let mount = small();
    fs::write(mount.path("f"), "mine").unwrap();
    fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(0o000)).unwrap();
    if rustix::process::geteuid().is_root() {
        let line = r#"setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'cat <"$1"' sh "$1""#;
        assert!(!sh(line, [mount.path("f")]).status.success(), "nobody read a file of mode 0");
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"mine");
        // A change of owner clears set-id bits.
        fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(0o6777)).unwrap();
        rustix::fs::chown(mount.path("f"), Some(rustix::fs::Uid::from_raw(7)), None).unwrap();
        assert_eq!(fs::metadata(mount.path("f")).unwrap().mode() & 0o6000, 0, "chown keeps set-id");
    } else {
        assert_eq!(errno(fs::read(mount.path("f"))), Some(Errno::ACCESS));
        assert!(rustix::fs::chown(mount.path("f"), Some(rustix::fs::Uid::ROOT), None).is_err());
    }
    fs::create_dir(mount.path("d")).unwrap();
    fs::set_permissions(mount.path("d"), fs::Permissions::from_mode(0o2755)).unwrap();
    fs::create_dir(mount.path("d/e")).unwrap();
    assert_eq!(fs::metadata(mount.path("d/e")).unwrap().mode() & 0o2000, 0o2000, "set-gid is inherited");
}

/// A handle finds its file again after the kernel has forgotten it, also when it was moved; a removed file is stale.
#[test]
fn root_opens_files_by_handles() {
    if !is_root("open_by_handle_at(2)") {
        return;
    }
    let mount = Mount::new(&["--memory", "16M"]);
    let program = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]
def handle_of(path):
    h, mount = Handle(bytes=128), ctypes.c_int()
    assert libc.name_to_handle_at(-100, path.encode(), ctypes.byref(h), ctypes.byref(mount), 0) == 0, ctypes.get_errno()
    return h
def open_by(root, h):
    fd = libc.open_by_handle_at(root, ctypes.byref(h), os.O_RDONLY)
    return fd if fd >= 0 else -ctypes.get_errno()
os.chdir(sys.argv[1])
os.makedirs("d/e")
open("d/e/f", "w").write("found")
open("gone", "w").write("x")
handles = [handle_of(p) for p in ("d/e/f", "d/e", "gone")]
os.rename("d", "moved"); os.remove("gone")
open("/proc/sys/vm/drop_caches", "w").write("2")
root = os.open(".", os.O_RDONLY)
fd = open_by(root, handles[0])
assert fd >= 0, fd
assert os.read(fd, 10) == b"found"
directory = open_by(root, handles[1])
assert directory >= 0 and os.listdir(directory) == ["f"], directory
assert open_by(root, handles[2]) == -116, "ESTALE"
"#;
    ok(&python(program, &[&mount.dir]));
    mount.umount();
}
