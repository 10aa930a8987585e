//! The main job: real trees, larger than the mount's memory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Mount, eventually, noise, ok, run};

/// Memory beyond the budget: code, stacks and the C library's heap.
const SLACK: u64 = 16 << 20;

fn tree_size(path: &Path) -> u64 {
    let output = run(Command::new("du").args(["-s", "--apparent-size", "--block-size=1"]).arg(path));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { text.split_whitespace().next().unwrap().parse().unwrap() } else { 0 }
}

/// Returns the smallest readable tree of this machine of at least `least` bytes.
fn real_tree(least: u64) -> PathBuf {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = sysroot.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let candidates = [
        "/usr/share/perl".into(),
        "/usr/lib/python3.11".into(),
        "/usr/include".into(),
        "/usr/share/doc".into(),
        format!("{sysroot}/lib/rustlib"),
        "/usr/lib".into(),
    ];
    let readable = candidates.into_iter().map(PathBuf::from).map(|p| (tree_size(&p), p));
    readable.filter(|(size, _)| *size >= least).min().map(|(_, path)| path).expect("no tree to copy")
}

fn copy_verify_remove(memory: &str, budget: u64, least: u64) {
    let tree = real_tree(least);
    let mount = Mount::new(&["--memory", memory, "--size", "1G"]);
    let start = mount.stat("rss_bytes");
    let copy = mount.path("copy");
    ok(&run(Command::new("cp").arg("-a").args([&tree, &copy])));
    mount.drop_caches();
    ok(&run(Command::new("diff").args(["-r", "--no-dereference"]).args([&tree, &copy])));
    let stats = mount.stats();
    assert!(stats["store_writes"].as_u64() > Some(0) && stats["store_reads"].as_u64() > Some(0), "{stats}");
    assert_eq!(stats["errors"], 0, "{stats}");
    let peak = mount.peak_rss();
    assert!(peak <= budget + SLACK, "peak RSS {peak}, budget {budget}: {stats}");

    // R57, R71: removal returns memory and store.
    ok(&run(Command::new("rm").arg("-rf").arg(&copy)));
    eventually("pages and inodes are gone", || {
        let stats = mount.stats();
        let get = |name: &str| stats[name].as_u64().unwrap();
        get("inodes") <= 1 && get("stored_bytes") == 0 && get("resident_bytes") == 0
    });
    eventually("memory is back with the kernel", || mount.stat("rss_bytes") <= start + (32 << 20));
    mount.umount();
}

#[test]
fn a_tree_through_four_mebibytes() {
    copy_verify_remove("4M", 4 << 20, 16 << 20);
}

#[test]
fn a_tree_through_sixteen_mebibytes() {
    copy_verify_remove("16M", 16 << 20, 100 << 20);
}

/// R4, R8, R9: more data than the kernel may hold dirty, so that the daemon gets it, and less than the daemon's memory.
#[test]
fn what_is_deleted_before_pressure_is_never_written() {
    let mount = Mount::new(&["--memory", "320M", "--size", "1G"]);
    let (rss, written) = (mount.stat("rss_bytes"), mount.written_to_disk());
    let file_bytes = mount.stat("store_file_bytes");
    let data = 160 << 20;
    // The kernel keeps the limit as a share of its memory, and reports it roughly.
    assert!(data > mount.dirty_limit() * 3 / 2 && data < mount.stat("vm_limit_bytes") / 4 * 3);
    for n in 0..10 {
        let mut file = File::create(mount.path(&n.to_string())).unwrap();
        file.write_all(&noise(n, usize::try_from(data / 10).unwrap())).unwrap();
        if n % 2 == 0 {
            file.sync_all().unwrap();
        }
    }
    assert!(mount.stat("resident_bytes") > data / 4, "the daemon never had it: {}", mount.stats());
    for n in 0..10 {
        fs::remove_file(mount.path(&n.to_string())).unwrap();
    }
    eventually("pages are gone", || mount.stat("used_bytes") == 0 && mount.stat("resident_bytes") == 0);
    eventually("memory is back with the kernel", || mount.stat("rss_bytes") <= rss + (32 << 20));
    assert_eq!(mount.written_to_disk(), written, "bytes written by the daemon");
    assert_eq!(mount.stat("store_file_bytes"), file_bytes, "what the store takes on its disk");
    assert_eq!((mount.stat("store_writes"), mount.stat("page_outs")), (0, 0));
    mount.umount();
}

/// R37: compressible data stays in compressed memory, where twice the memory would not hold it plain; with `none` it
/// does not.
#[test]
fn what_packs_stays_in_memory() {
    let page = |number: usize| {
        let mut page = crate::harness::noise(u64::try_from(number).unwrap() + 1, 1024);
        page.resize(4096, b'x');
        page
    };
    let data: Vec<u8> = (0..5120).flat_map(page).collect();
    for (method, packs) in [("lz4", true), ("zstd", true), ("none", false)] {
        let mount = Mount::new(&["--memory", "16M", "--size", "64M", "--compress", method]);
        std::fs::write(mount.path("f"), &data).unwrap();
        mount.drop_caches();
        assert!(std::fs::read(mount.path("f")).unwrap() == data, "{method}: other bytes");
        let stats = mount.stats();
        let get = |name: &str| stats[name].as_u64().unwrap();
        assert_eq!(get("compressed_bytes") > 1 << 20, packs, "{method}: {stats}");
        assert_eq!(
            get("store_writes") == 0,
            packs,
            "{method}: 20 MiB that shrink to 5 need no store: {stats}"
        );
        assert!(!packs || get("compressed_page_bytes") > 3 * get("compressed_bytes"), "{method}: {stats}");
        mount.umount();
    }
}

/// R59: each object, small or large, has a file; removing the object removes the file and frees its space.
#[test]
fn a_file_for_each_object() {
    let mount = Mount::new(&["--memory", "4M", "--size", "1G", "--layout", "per-object"]);
    assert!(mount.stats()["store_mode"].as_str().unwrap().contains("per object"), "{}", mount.stats());
    // Only a few files: a disk's file system takes some time to create one.
    let files: Vec<_> = (0..60).map(|n| (mount.path(&n.to_string()), noise(n, 1000 << (n % 12)))).collect();
    for (path, data) in &files {
        fs::write(path, data).unwrap();
    }
    mount.drop_caches();
    for (path, data) in &files {
        assert!(&fs::read(path).unwrap() == data, "{}: other bytes", path.display());
    }
    let stats = mount.stats();
    assert!(stats["store_writes"].as_u64() > Some(0) && stats["errors"] == 0, "{stats}");
    for (path, _) in &files {
        fs::remove_file(path).unwrap();
    }
    eventually("the disk has its space again", || {
        mount.stat("stored_bytes") == 0 && mount.stat("store_file_bytes") == 0
    });
    mount.umount();
}

/// R32: the store uses io_uring if there is any, and threads otherwise; `stats` says which.
#[test]
fn the_store_is_read_and_written_either_way() {
    for (option, word) in [("defaults", ""), ("debug=no-uring", "direct")] {
        let mount = Mount::new(&["--memory", "4M", "--size", "64M", "-o", option]);
        let mode = mount.stats()["store_mode"].as_str().unwrap().to_owned();
        assert!(mode.contains("uring") || mode == word || mode == "buffered", "{option}: {mode}");
        let data = noise(5, 24 << 20);
        std::fs::write(mount.path("f"), &data).unwrap();
        mount.drop_caches();
        assert!(std::fs::read(mount.path("f")).unwrap() == data, "{mode}: other bytes");
        let stats = mount.stats();
        assert!(
            stats["store_writes"].as_u64() > Some(0) && stats["store_reads"].as_u64() > Some(0),
            "{stats}"
        );
        assert_eq!(stats["errors"], 0, "{stats}");
        mount.umount();
    }
}
