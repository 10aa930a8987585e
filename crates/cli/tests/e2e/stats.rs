//! `overspill stats`: every field exists, and is true where a test can tell.

use std::fs;

use rustix::process::Signal;

use crate::harness::{Mount, eventually, noise, ok, overspill, run};

/// Fields that programs may rely on.
const FIELDS: [&str; 14] = [
    "pid",
    "budget_bytes",
    "rss_bytes",
    "resident_bytes",
    "dirty_bytes",
    "compressed_bytes",
    "stored_bytes",
    "store_file_bytes",
    "store_writes",
    "store_reads",
    "page_ins",
    "page_outs",
    "errors",
    "inodes",
];

#[test]
fn json_has_every_field_on_one_line() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    let text = ok(&overspill(["stats".as_ref(), "--json".as_ref(), mount.dir.as_os_str()]));
    assert_eq!(text.trim_end().lines().count(), 1);
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    for field in FIELDS {
        assert!(stats[field].is_u64(), "{field} in {stats}");
    }
    assert_eq!(stats["pid"], mount.pid);
    assert_eq!(stats["budget_bytes"], 4 << 20);
    assert_eq!(stats["errors"], 0);
}

#[test]
fn numbers_follow_what_happens() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    let inodes = mount.stat("inodes");
    assert_eq!((mount.stat("store_writes"), mount.stat("page_outs")), (0, 0));
    let len = 16 << 20;
    fs::write(mount.path("f"), noise(5, len)).unwrap();
    mount.drop_caches();
    fs::read(mount.path("f")).unwrap();
    let stats = mount.stats();
    let get = |name: &str| stats[name].as_u64().unwrap();
    assert_eq!(get("inodes"), inodes + 1);
    // R20, R21: every byte is in memory or in the store; noise does not compress.
    let held = get("resident_bytes") + get("compressed_bytes") + get("stored_bytes");
    assert!(held >= len.try_into().unwrap(), "{held} held of {len}: {stats}");
    assert!(get("resident_bytes") <= 4 << 20, "{stats}");
    assert!(get("dirty_bytes") <= get("resident_bytes"), "{stats}");
    assert!(get("store_file_bytes") >= get("stored_bytes") && get("stored_bytes") >= 8 << 20, "{stats}");
    assert!(get("store_writes") > 0 && get("store_reads") > 0, "{stats}");
    assert!(get("page_outs") >= 2048 && get("page_ins") >= 2048, "{stats}");
    assert!(get("rss_bytes") > 0 && get("rss_bytes") <= mount.peak_rss(), "{stats}");
}

#[test]
fn the_table_shows_the_same() {
    let mount = Mount::new(&["--memory", "4M"]);
    let table = ok(&overspill(["stats".as_ref(), mount.dir.as_os_str()]));
    assert!(table.contains(&format!("(pid {})", mount.pid)), "{table}");
    for part in ["memory", "budget", "4.00 MiB", "store", "inodes"] {
        assert!(table.contains(part), "no {part} in\n{table}");
    }
}

#[test]
fn watch_ends_with_the_mount() {
    let mount = Mount::new(&["--memory", "4M"]);
    let mut command = std::process::Command::new(crate::harness::program());
    command.args(["stats", "--json", "--watch=1"]).arg(&mount.dir);
    let watcher = std::thread::spawn(move || run(&mut command));
    eventually("watched", || mount.stat("pid") == u64::from(mount.pid));
    std::thread::sleep(std::time::Duration::from_millis(300));
    crate::harness::kill(mount.pid, Signal::TERM);
    let output = watcher.join().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"budget_bytes\""), "{output:?}");
    mount.nothing_left();
}

#[test]
fn slabinfo_shows_where_metadata_is_and_agrees_with_stats() {
    let mount = Mount::new(&["--memory", "16M", "--size", "64M"]);
    for i in 0..2000 {
        fs::write(mount.path(&format!("f{i}")), "x").unwrap();
    }
    let text = ok(&overspill(["slabinfo".as_ref(), "--json".as_ref(), mount.dir.as_os_str()]));
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    let caches = info["caches"].as_array().unwrap();
    let active = |name: &str| caches.iter().find(|c| c["name"] == name).unwrap()["active"].as_u64().unwrap();
    assert!(active("inode") >= 2001 && active("directory entry") >= 2000, "{text}");
    let sum: u64 = caches.iter().map(|cache| cache["memory"].as_u64().unwrap()).sum();
    assert_eq!(sum, info["used_bytes"].as_u64().unwrap(), "caches are all there is");
    // Meanwhile only the requests for statistics change anything.
    assert!(mount.stat("slab_bytes").abs_diff(sum) < 64 << 10, "{sum} and {}", mount.stats());
    assert!(mount.stat("slab_bytes") <= mount.stat("rss_bytes"));

    let table = ok(&overspill(["slabinfo".as_ref(), "--sort=active".as_ref(), mount.dir.as_os_str()]));
    let first: Vec<&str> =
        table.lines().take(3).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!((first[0], table.contains("directory entry")), ("NAME", true), "{table}");

    for i in 0..2000 {
        fs::remove_file(mount.path(&format!("f{i}"))).unwrap();
    }
    eventually("reaped", || mount.stat("slab_bytes") < sum / 2);
}

#[test]
fn slabinfo_of_nothing_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let output = overspill(["slabinfo".as_ref(), dir.path().as_os_str()]);
    crate::harness::refused(&output, 9, &["not on an overspill mount"]);
}
