//! A failing store: an error is worse than waiting, wrong bytes are worse than an error (R6, R17).

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Mount, kill, noise, ok, overspill, python};

const LEN: usize = 1 << 20;

/// Mounts with a faulty store, and writes twelve files of a mebibyte, of which memory holds a few. Returns with each
/// true if it was acknowledged (fsync).
fn with(word: &str) -> (Mount, Vec<bool>) {
    let mount = Mount::new(&["--memory", "4M", "--size", "32M", "-o", &format!("debug={word}")]);
    let write = |n: usize| {
        let file = fs::File::create(mount.path(&n.to_string()))?;
        std::io::Write::write_all(&mut &file, &noise(n as u64, LEN))?;
        file.sync_all()
    };
    let kept = (0..12).map(|n| write(n).is_ok()).collect();
    mount.drop_caches();
    (mount, kept)
}

#[test]
fn a_store_that_fails_writes_loses_nothing_acknowledged() {
    let (mount, kept) = with("fail-writes");
    assert!(kept[0] && !kept[11], "12 MiB of noise cannot stay in 4 MiB of memory: {kept:?}");
    for (n, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
        assert!(fs::read(mount.path(&n.to_string())).unwrap() == noise(n as u64, LEN), "file {n}");
    }
    assert!(mount.stat("errors") > 0);
    // Room freed in memory can be used again.
    for n in 0..12 {
        let _ = fs::remove_file(mount.path(&n.to_string()));
    }
    crate::harness::eventually("it takes a file again", || {
        fs::write(mount.path("again"), noise(99, LEN / 4)).is_ok()
    });
    mount.umount();
}

/// All writes to the store fail: the bytes accepted are bounded by memory and by the kernel's dirty limit. write(2)
/// itself fails beyond that, and not before the store had its chance.
#[test]
fn write_itself_fails_when_the_store_stays_broken() {
    let mount = Mount::new(&["--memory", "16M", "--size", "1G", "-o", "debug=fail-writes"]);
    let program = r#"
import errno, os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
begun, accepted = time.time(), 0
while time.time() - begun < 120:
    try: accepted += os.write(fd, os.urandom(65536))
    except OSError as e:
        if e.errno != errno.ENOSPC: raise
        print(accepted >> 20, int(time.time() - begun))
        sys.exit(0)
sys.exit(f'{accepted} bytes accepted in two minutes, and no error')
"#;
    let said = ok(&python(program, &[&mount.path("f")]));
    let numbers: Vec<u64> = said.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(numbers[0] <= 32, "{} MiB accepted into 16, after {} s", numbers[0], numbers[1]);
    assert_eq!(mount.stats()["store_failing"], true);
    fs::remove_file(mount.path("f")).unwrap();
}

/// The store fails every write for two seconds, and no data is lost.
#[test]
fn passing_trouble_of_the_store_costs_nothing() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M", "-o", "debug=fail-writes-2s"]);
    for n in 0..12 {
        let file = fs::File::create(mount.path(&n.to_string())).unwrap();
        std::io::Write::write_all(&mut &file, &noise(n, LEN)).unwrap();
        file.sync_all().unwrap();
    }
    mount.drop_caches();
    for n in 0..12 {
        assert!(fs::read(mount.path(&n.to_string())).unwrap() == noise(n, LEN), "file {n}");
    }
    assert!(mount.stat("errors") > 0, "there was no trouble");
    mount.umount();
}

/// A store that hangs: reads of it fail in the end, and requests that need no store are served meanwhile.
#[test]
fn reads_of_a_hung_store_time_out_and_stop_nobody_else() {
    let mount = Mount::new(&["--memory", "16M", "--size", "256M", "-o", "debug=hang-reads"]);
    for n in 0..24 {
        fs::write(mount.path(&n.to_string()), noise(n, 2 << 20)).unwrap();
    }
    mount.drop_caches();
    // Around the kernel's cache: its readahead would fill its background queue.
    let read = |n: usize| {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", mount.path(&n.to_string()).display()));
        dd.args(["of=/dev/null", "bs=4096", "count=1", "iflag=direct"]).env("LC_ALL", "C");
        // No guard: a process that waits for the daemon's answer does not die before the answer comes or the mount is
        // gone.
        dd.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut readers: Vec<Child> = (0..12).map(read).collect();
    std::thread::sleep(Duration::from_secs(1));
    for n in 0..20 {
        let one = Instant::now();
        fs::write(mount.path(&format!("new{n}")), "well").unwrap();
        assert_eq!(fs::read(mount.path(&format!("new{n}"))).unwrap(), b"well");
        assert!(one.elapsed().as_secs() < 5, "it took {:?} beside readers of a hung store", one.elapsed());
    }
    // A transport thread that performs its operation's read itself has no time-out yet: two of the four may do that.
    let begun = Instant::now();
    let mut told = 0;
    while told < 4 {
        assert!(begun.elapsed().as_secs() < 60, "{told} of 12 readers were told");
        std::thread::sleep(Duration::from_millis(100));
        for reader in &mut readers {
            if let Some(status) = reader.try_wait().unwrap()
                && let Some(mut stderr) = reader.stderr.take()
            {
                let mut said = String::new();
                stderr.read_to_string(&mut said).unwrap();
                // Some readers are served from memory.
                assert!(status.success() || said.contains("Input/output error"), "{said}");
                told += u32::from(!status.success());
            }
        }
    }
    // A read that hangs in the store keeps the daemon from ending by itself.
    ok(&overspill(["umount".as_ref(), "--force".as_ref(), mount.dir.as_os_str()]));
    kill(mount.pid, rustix::process::Signal::KILL);
    for mut reader in readers {
        reader.wait().unwrap();
    }
}

#[test]
fn what_cannot_be_read_back_is_an_error_and_never_other_bytes() {
    for word in ["fail-reads", "damage-reads"] {
        let (mount, kept) = with(word);
        assert!(kept.iter().all(|kept| *kept), "{word}: {kept:?}");
        // The oldest files, which memory no longer holds.
        let read: Vec<_> = (0..4).map(|n| fs::read(mount.path(&n.to_string()))).collect();
        for (n, read) in read.iter().enumerate() {
            match read {
                Ok(bytes) => assert!(*bytes == noise(n as u64, LEN), "{word}: file {n} is wrong"),
                Err(error) => {
                    assert_eq!(
                        rustix::io::Errno::from_io_error(error),
                        Some(rustix::io::Errno::IO),
                        "{word}"
                    );
                }
            }
        }
        assert!(read.iter().any(Result::is_err), "{word}: no read reached the store");
        assert!(mount.stat("errors") > 0, "{word}");
        // The mount still serves requests that need no store.
        fs::write(mount.path("new"), "well").unwrap();
        assert_eq!(fs::read(mount.path("new")).unwrap(), b"well");
        ok(&overspill(["stats".as_ref(), mount.dir.as_os_str()]));
        mount.umount();
    }
}
