//! A store that fails: an error is worse than waiting, wrong bytes are worse than an error (R6, R17).

use std::fs;

use crate::harness::{Mount, noise, ok, overspill};

const LEN: usize = 1 << 20;

/// A mount whose store misbehaves, and twelve files of a mebibyte, of which memory holds a few; with each, whether it
/// was acknowledged (fsync).
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
    // Room in memory is room again.
    for n in 0..12 {
        let _ = fs::remove_file(mount.path(&n.to_string()));
    }
    crate::harness::eventually("it takes a file again", || {
        fs::write(mount.path("again"), noise(99, LEN / 4)).is_ok()
    });
    mount.umount();
}

#[test]
fn what_cannot_be_read_back_is_an_error_and_never_other_bytes() {
    for word in ["fail-reads", "damage-reads"] {
        let (mount, kept) = with(word);
        assert!(kept.iter().all(|kept| *kept), "{word}: {kept:?}");
        let read: Vec<_> = (0..12).map(|n| fs::read(mount.path(&n.to_string()))).collect();
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
        // It still serves what needs no store.
        fs::write(mount.path("new"), "well").unwrap();
        assert_eq!(fs::read(mount.path("new")).unwrap(), b"well");
        ok(&overspill(["stats".as_ref(), mount.dir.as_os_str()]));
        mount.umount();
    }
}
