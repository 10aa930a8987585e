//! Several mounts on one engine (R12): one memory, one store, opened and closed while others live.

use std::path::Path;

use overspill::engine::{Debugging, Engine, EngineOptions, Layout, Method, StoreChoice};
use overspill::mount::{MountFlags, MountOptions};

const MIB: u64 = 1 << 20;

fn engine(memory: u64, store: &Path) -> Engine {
    Engine::start(EngineOptions {
        memory,
        capacity: 256 * MIB,
        store: StoreChoice::Directory(store.to_owned()),
        layout: Layout::Shared,
        compress: Method::None,
        force: true,
        control: false,
        debug: Debugging::default(),
    })
    .unwrap()
}

fn options(mountpoint: &Path) -> MountOptions {
    MountOptions {
        mountpoint: mountpoint.to_owned(),
        size: 64 * MIB,
        nr_inodes: None,
        mode: 0o700,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        flags: MountFlags::default(),
        writeback: false,
        xattrs: true,
    }
}

/// Unmounts on drop, whatever happened.
struct CleanUp<'a>(&'a Path);

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        if rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).is_err() {
            let _ = std::process::Command::new("fusermount3").arg("-uz").arg(self.0).output();
        }
    }
}

fn content(seed: u8) -> Vec<u8> {
    let page = |n: u8| vec![seed.wrapping_mul(31).wrapping_add(n); 32 << 10];
    (0..=255).flat_map(page).collect()
}

#[test]
fn two_mounts_share_an_engine_and_one_outlives_the_other() {
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        eprintln!("skipped: /dev/fuse cannot be opened");
        return;
    }
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    let (one, two, store) = (base.path().join("one"), base.path().join("two"), base.path().join("store"));
    [&one, &two, &store].into_iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    let engine = engine(32 * MIB, &store);
    let limit = || engine.vm().stats().limit_bytes;
    let alone = limit();
    let first = engine.mount(&options(&one)).unwrap();
    let clean_first = CleanUp(&one);
    assert_eq!(limit(), alone, "room for one transport is set aside");
    let second = engine.mount(&options(&two)).unwrap();
    let clean_second = CleanUp(&two);
    assert!(limit() < alone, "the second one's transport takes memory from the pages");
    // Together they hold twice the memory: both page to the one store.
    for (dir, seed) in [(&one, 1), (&two, 2)] {
        (0..4).for_each(|n| std::fs::write(dir.join(n.to_string()), content(seed + n)).unwrap());
    }
    for (dir, seed) in [(&one, 1), (&two, 2)] {
        for n in 0..4 {
            assert!(std::fs::read(dir.join(n.to_string())).unwrap() == content(seed + n), "{dir:?} {n}");
        }
    }
    let with_both = engine.vm().stats();
    assert!(with_both.page_outs > 0 && with_both.charged_bytes <= with_both.limit_bytes, "{with_both:?}");
    drop(clean_second);
    second.wait().unwrap();
    assert_eq!(limit(), alone, "its memory is back");
    let left = engine.vm().stats();
    let held = |s: &overspill::vm::VmStats| s.resident_bytes as u64 + s.stored_page_bytes as u64;
    assert!(held(&left) < held(&with_both) - 20 * MIB, "its pages are gone: {left:?}");
    for n in 0..4 {
        assert!(std::fs::read(one.join(n.to_string())).unwrap() == content(1 + n), "{n}");
    }
    drop(clean_first);
    first.wait().unwrap();
}

#[test]
fn a_store_on_its_own_mount_is_refused() {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    let engine = engine(8 * MIB, base.path());
    let error = engine.mount(&options(base.path())).unwrap_err();
    assert!(error.to_string().contains("lies on the mount it is to serve"), "{error}");
}
