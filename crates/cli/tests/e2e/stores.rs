//! Stores: permitted places, refusals, and leftovers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use crate::harness::{
    CleanUp, Mount, is_root, mountinfo, names, noise, ok, overspill, refused, run, scratch,
};

fn mount(store: &Path, dir: &Path, more: &[&str]) -> Output {
    let options =
        ["mount", "--memory=4M", "--size=32M", "--log=/dev/null"].iter().chain(more).map(OsStr::new);
    overspill(options.chain(["--store".as_ref(), store.as_os_str(), dir.as_os_str()]))
}

fn umount(dir: &Path) {
    ok(&overspill(["umount".as_ref(), dir.as_os_str()]));
}

/// A store on its own mountpoint, by several names (R14).
#[test]
fn a_store_on_the_mount_it_serves_is_refused() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir_all(dir.join("sub")).unwrap();
    symlink(&dir, base.path().join("link")).unwrap();
    symlink("mnt/sub", base.path().join("deep")).unwrap();
    for store in
        ["mnt", "mnt/sub", "mnt/file", "mnt/sub/file", "link", "link/sub", "deep", "deep/file", "mnt/sub/.."]
    {
        refused(&mount(&base.path().join(store), &dir, &[]), 6, &["store"]);
        assert_eq!(mountinfo(&dir), [""; 0], "{store}");
        assert_eq!(names(&dir), ["sub"], "{store}");
        assert_eq!(names(&dir.join("sub")), [""; 0], "{store}");
    }
}

#[test]
fn a_store_on_the_mount_it_serves_is_refused_through_a_bind_mount() {
    if !is_root("bind mounts") {
        return;
    }
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    let bound = base.path().join("bound");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::create_dir(&bound).unwrap();
    rustix::mount::mount_bind(&dir, &bound).unwrap();
    let outputs =
        ["bound", "bound/sub", "bound/file"].map(|store| mount(&base.path().join(store), &dir, &[]));
    let left = mountinfo(&dir);
    rustix::mount::unmount(&bound, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(left, [""; 0]);
    for output in outputs {
        refused(&output, 6, &["store"]);
    }
}

#[test]
fn a_store_on_a_tmpfs_needs_force() {
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let base = scratch();
    let _clean_up = CleanUp(base.path().to_owned());
    refused(&mount(shm.path(), base.path(), &[]), 6, &["tmpfs", "--force"]);
    refused(&mount(&shm.path().join("file"), base.path(), &[]), 6, &["tmpfs", "--force"]);
    assert_eq!(names(shm.path()), [""; 0]);
    let forced = mount(shm.path(), base.path(), &["--force"]);
    if forced.status.success() {
        umount(base.path());
    }
    ok(&forced);
    assert_eq!(names(shm.path()), [""; 0]);
}

#[test]
fn a_store_file_is_unlinked_once_opened_and_never_taken_from_others() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let file = base.path().join("precious");
    fs::write(&file, "do not lose me").unwrap();
    refused(&mount(&file, &dir, &[]), 6, &["precious", "exists", "--force"]);
    assert_eq!(fs::read(&file).unwrap(), b"do not lose me");

    for (store, more) in [("new", &[][..]), ("precious", &["--force"])] {
        let mounted = mount(&base.path().join(store), &dir, more);
        let while_mounted = names(base.path());
        let data = noise(2, 12 << 20);
        let written = fs::write(dir.join("f"), &data);
        let read = fs::read(dir.join("f"));
        if mounted.status.success() {
            umount(&dir);
        }
        ok(&mounted);
        assert!(!while_mounted.contains(&store.to_owned()), "{store} keeps its name");
        written.unwrap();
        assert!(read.unwrap() == data);
        assert!(!names(base.path()).contains(&store.to_owned()));
    }
}

#[test]
fn a_dangling_link_or_a_device_is_no_store_file() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    symlink("nowhere", base.path().join("dangling")).unwrap();
    refused(&mount(&base.path().join("dangling"), &dir, &[]), 6, &["dangling"]);
    refused(&mount(Path::new("/dev/null"), &dir, &[]), 6, &["/dev/null"]);
    assert_eq!(names(base.path()), ["dangling", "mnt"]);
}

#[test]
fn no_store_is_memory_only() {
    let mount = Mount::new(&["--memory", "8M", "--size", "32M", "--store", "none"]);
    let data = noise(3, 2 << 20);
    fs::write(mount.path("f"), &data).unwrap();
    mount.drop_caches();
    assert!(fs::read(mount.path("f")).unwrap() == data);
    assert_eq!(mount.stat("store_file_bytes"), 0);
    // Data that memory cannot hold is refused, not lost.
    let more = run(std::process::Command::new("dd")
        .args(["if=/dev/urandom", "bs=64k", "count=512", "conv=fsync"])
        .arg(format!("of={}", mount.path("g").display())));
    assert!(!more.status.success(), "32 MiB of noise in 8 MiB of memory");
    mount.drop_caches();
    assert!(fs::read(mount.path("f")).unwrap() == data);
    mount.umount();
}

/// Without a store memory holds as much as packs, write(2) says when it is full, and `df` comes down to that.
#[test]
fn no_store_holds_what_packs() {
    let mount = Mount::new(&["--memory", "32M", "--size", "256M", "--store", "none"]);
    let free = || rustix::fs::statvfs(&mount.dir).map(|s| s.f_bavail * s.f_frsize).unwrap();
    // Half noise, half zeros: it packs two to one.
    let content = |n: u64| -> Vec<u8> {
        noise(n, 512 << 10).chunks(2048).flat_map(|half| [half, &[0; 2048][..]].concat()).collect()
    };
    let mut held = Vec::new();
    for n in 0..200 {
        let path = mount.path(&format!("f{n}"));
        match fs::write(&path, content(n)) {
            Ok(()) => held.push(n),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                fs::remove_file(&path).unwrap();
                break;
            }
        }
    }
    assert!(held.len() >= 40, "{} MiB that pack two to one in 32 MiB of memory", held.len());
    assert!(held.len() < 80, "{} MiB", held.len());
    crate::harness::eventually("df has seen it", || free() < 16 << 20);
    mount.drop_caches();
    for n in &held {
        assert!(fs::read(mount.path(&format!("f{n}"))).unwrap() == content(*n), "file {n}");
    }
    for n in &held {
        fs::remove_file(mount.path(&format!("f{n}"))).unwrap();
    }
    crate::harness::eventually("df has room again", || free() > 24 << 20);
    fs::write(mount.path("after"), content(1)).unwrap();
    mount.umount();
}

#[test]
fn a_store_without_permission_is_refused() {
    // Root may write everywhere, except in a file system that takes no files.
    let store = if rustix::process::geteuid().is_root() { "/proc" } else { "/etc" };
    let base = scratch();
    let _clean_up = CleanUp(base.path().to_owned());
    refused(&mount(Path::new(store), base.path(), &[]), 6, &[store]);
}
