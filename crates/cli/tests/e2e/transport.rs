//! The way to the kernel: how often it is gone, and that it costs nothing when nobody goes it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::time::Duration;

use crate::harness::Mount;

const FILES: u64 = 100;

/// Counts the round trips of an operation on each of the files.
fn trips(mount: &Mount, what: &str, most: f64, op: impl Fn(&std::path::Path, u64)) {
    let before = mount.stat("requests");
    (0..FILES).for_each(|n| op(&mount.path(&format!("f{n}")), n));
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let each = (mount.stat("requests") - before) as f64 / FILES as f64;
    assert!(each <= most + 0.1, "{what}: {each} round trips, not {most}");
}

#[test]
fn round_trips_are_the_fewest() {
    round_trips("noxattr", 0.0);
    // The kernel asks for security.capability before it writes to a file for the first time.
    round_trips("defaults", 1.0);
}

/// A change of a directory makes the kernel ask for the directory's attributes before the next: it checks permissions.
fn round_trips(option: &str, first_write: f64) {
    let mount = Mount::new(&["--memory", "64M", "-o", option]);
    let page = [7; 4096];
    trips(&mount, "create", 3.0, |path, _| drop(File::create_new(path).unwrap()));
    trips(&mount, "open and close", 0.0, |path, _| drop(File::open(path).unwrap()));
    for (what, most) in [("the first write and close", 1.0 + first_write), ("write and close", 1.0)] {
        trips(&mount, what, most, |path, _| {
            OpenOptions::new().write(true).open(path).unwrap().write_all(&page).unwrap();
        });
    }
    trips(&mount, "stat after it", 1.0, |path, _| assert!(fs::metadata(path).is_ok()));
    trips(&mount, "stat again", 0.0, |path, _| assert!(fs::metadata(path).is_ok()));
    trips(&mount, "hot read", 0.0, |path, _| {
        let mut bytes = [0; 4096];
        File::open(path).unwrap().read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, page);
    });
    trips(&mount, "rename", 3.0, |path, _| fs::rename(path, path.with_extension("new")).unwrap());
    trips(&mount, "unlink", 2.0, |path, _| fs::remove_file(path.with_extension("new")).unwrap());
    trips(&mount, "create, write, fsync", 4.0 + first_write, |path, _| {
        let mut file = File::create_new(path).unwrap();
        file.write_all(&page).unwrap();
        file.sync_all().unwrap();
    });
    mount.umount();
}

/// Clock ticks of processor time that the daemon has taken.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_idle_mount_takes_no_processor_time() {
    let mount = Mount::new(&["--memory", "64M"]);
    fs::write(mount.path("f"), "some work").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let before = ticks(mount.pid);
    std::thread::sleep(Duration::from_secs(3));
    let took = ticks(mount.pid) - before;
    assert!(took <= 6, "{took} ticks of 300 without work");
    mount.umount();
}

/// Many processes at once, all kinds of requests, and what they leave is what they wrote.
#[test]
fn many_writers_at_once_find_what_they_wrote() {
    let mount = Mount::new(&["--memory", "64M", "--size", "256M"]);
    std::thread::scope(|scope| {
        for writer in 0..16u8 {
            let mount = &mount;
            scope.spawn(move || {
                let dir = mount.path(&format!("dir{writer}"));
                fs::create_dir(&dir).unwrap();
                for n in 0..40 {
                    let (path, bytes) =
                        (dir.join(format!("{n}")), vec![writer ^ n; 1 + usize::from(n) * 5000]);
                    fs::write(&path, &bytes).unwrap();
                    assert!(fs::read(&path).unwrap() == bytes);
                    if n % 3 == 0 {
                        fs::rename(&path, dir.join(format!("moved{n}"))).unwrap();
                    }
                    if n % 5 == 1 {
                        fs::remove_file(dir.join(format!("{}", n - 1)))
                            .or_else(|_| fs::remove_file(dir.join(format!("moved{}", n - 1))))
                            .unwrap();
                    }
                }
            });
        }
    });
    mount.drop_caches();
    for writer in 0..16u8 {
        for entry in fs::read_dir(mount.path(&format!("dir{writer}"))).unwrap() {
            let path = entry.unwrap().path();
            let n: u8 =
                path.file_name().unwrap().to_str().unwrap().trim_start_matches("moved").parse().unwrap();
            let bytes = fs::read(&path).unwrap();
            assert!(
                bytes.len() == 1 + usize::from(n) * 5000 && bytes.iter().all(|b| *b == writer ^ n),
                "{path:?}"
            );
        }
    }
    mount.umount();
}
