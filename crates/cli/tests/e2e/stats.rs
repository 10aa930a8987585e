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
fn without_a_mount_all_are_listed() {
    let (one, two) = (Mount::new(&["--memory", "4M"]), Mount::new(&["--memory", "5M"]));
    let table = ok(&overspill(["stats"]));
    let line_of = |mount: &Mount| {
        let dir = mount.dir.display().to_string();
        let mut lines = table.lines().filter(|line| line.split_whitespace().next() == Some(dir.as_str()));
        let line = lines.next().unwrap_or_else(|| panic!("{dir} is not in\n{table}"));
        assert!(lines.next().is_none(), "twice in\n{table}");
        line.to_owned()
    };
    assert!(line_of(&one).contains("4.00 MiB") && line_of(&one).contains(&one.pid.to_string()), "{table}");
    assert!(line_of(&two).contains("5.00 MiB"), "{table}");
    let lines = ok(&overspill(["stats", "--json"]));
    let all: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let budget = |mount: &Mount| {
        all.iter().find(|line| line["at"] == mount.dir.to_str().unwrap()).unwrap()["budget_bytes"].clone()
    };
    assert_eq!((budget(&one), budget(&two)), ((4 << 20).into(), (5 << 20).into()));
}

/// The control socket speaks lines of JSON to its owner, and goes with the mount.
#[test]
fn the_control_socket_answers_and_goes() {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let mount = Mount::new(&["--memory", "4M"]);
    let uid = rustix::process::geteuid().as_raw();
    let places =
        ["/run/overspill".to_owned(), format!("/run/user/{uid}/overspill"), format!("/tmp/overspill-{uid}")];
    let path = places.iter().map(|dir| format!("{dir}/{}.sock", mount.pid));
    let path = std::path::PathBuf::from(path.into_iter().find(|path| fs::metadata(path).is_ok()).unwrap());
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut lines = BufReader::new(&stream).lines();
    let mut ask = |request: &str| -> serde_json::Value {
        (&stream).write_all(format!("{request}\n").as_bytes()).unwrap();
        serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
    };
    let faces = ask(r#"{"v":1,"get":"faces"}"#);
    assert_eq!(faces["faces"][0]["at"], mount.dir.to_str().unwrap(), "{faces}");
    let device = faces["faces"][0]["device"].as_str().unwrap().to_owned();
    let stats = ask(&format!(r#"{{"v":1,"get":"stats","face":"{device}"}}"#));
    assert_eq!(stats["stats"]["pid"], mount.pid, "{stats}");
    assert!(ask(r#"{"v":1,"get":"stats","face":"9:9"}"#)["error"].is_string());
    assert!(ask(r#"{"v":7,"get":"faces"}"#)["error"].as_str().unwrap().contains("version 7"));
    let (dir, pid) = (path.parent().unwrap().to_owned(), mount.pid);
    mount.umount();
    assert!(!path.exists());
    assert!(dir.join(format!("{pid}.face-{device}")).symlink_metadata().is_err(), "the link goes too");
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
