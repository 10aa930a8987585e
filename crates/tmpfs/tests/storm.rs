//! Many threads on few names: no deadlock, and everything adds up at the end.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{Fs, ME, ROOT, fs_on, list, vm};
use overspill_tmpfs::{FileKind, FsError, RenameMode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const THREADS: u64 = 4;
const ROUNDS: usize = 40_000;

/// One random operation on a random pair of places. Almost any may fail; none may hang or do half.
fn stir(fs: &Fs, rng: &mut StdRng, dirs: &mut Vec<u64>) {
    let name = |rng: &mut StdRng| vec![b'a' + rng.random_range(0..4_u8)];
    let dir = |rng: &mut StdRng, dirs: &[u64]| dirs[rng.random_range(0..dirs.len())];
    let (from, to) = (dir(rng, dirs), dir(rng, dirs));
    let (old, new) = (name(rng), name(rng));
    match rng.random_range(0..12) {
        0 | 1 => _ = fs.create(from, &old, 0o644, ME),
        2 | 3 => {
            if let Ok(attr) = fs.mkdir(from, &old, 0o755, ME) {
                if dirs.len() < 12 {
                    dirs.push(attr.ino);
                } else {
                    let at = rng.random_range(1..dirs.len());
                    dirs[at] = attr.ino;
                }
            }
        }
        4 => _ = fs.unlink(from, &old),
        5 => _ = fs.rmdir(from, &old),
        6 => {
            if let Ok(attr) = fs.lookup(from, &old) {
                _ = fs.link(attr.ino, to, &new);
            }
        }
        7 => {
            // Hold a reference for a moment.
            if let Ok(attr) = fs.lookup(from, &old)
                && fs.grab(attr.ino)
            {
                assert!(fs.getattr(attr.ino).is_ok());
                fs.forget(attr.ino, 1);
            }
        }
        8 => _ = fs.readdir_plus(from, 0, &mut |_, _| true),
        9 => _ = fs.rename(from, &old, to, &new, RenameMode::Exchange),
        10 => _ = fs.rename(from, &old, to, &new, RenameMode::NoReplace),
        _ => _ = fs.rename(from, &old, to, &new, RenameMode::Replace),
    }
}

/// Walks the tree: links, parents, counts.
fn check(fs: &Fs, dir: u64, names: &mut HashMap<u64, u32>) -> u64 {
    let mut below = 1;
    let mut subdirs = 0;
    for (_, attr) in list(fs, dir) {
        if attr.kind == FileKind::Directory {
            subdirs += 1;
            assert_eq!(fs.lookup(attr.ino, b"..").unwrap().ino, dir, "parent of {}", attr.ino);
            below += check(fs, attr.ino, names);
        } else {
            let seen = names.entry(attr.ino).or_default();
            below += u64::from(*seen == 0);
            *seen += 1;
        }
    }
    assert_eq!(fs.getattr(dir).unwrap().nlink, 2 + subdirs, "links of directory {dir}");
    below
}

#[test]
fn renames_creations_and_removals_end_and_add_up() {
    let vm = vm(4096);
    let fs = Arc::new(fs_on(&vm, 64));
    let start = vm.stats().charged_bytes;
    let (done, finished) = mpsc::channel();
    for seed in 0..THREADS {
        let (fs, done) = (fs.clone(), done.clone());
        std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut dirs = vec![ROOT];
            for _ in 0..ROUNDS {
                stir(&fs, &mut rng, &mut dirs);
            }
            done.send(()).unwrap();
        });
    }
    drop(done);
    for _ in 0..THREADS {
        // Not a measure of speed: without a bound a deadlock would hang the test instead of failing it.
        let ended = finished.recv_timeout(Duration::from_secs(120));
        ended.expect("every thread ends: else one failed above, or they wait for each other");
    }
    let mut names = HashMap::new();
    let reachable = check(&fs, ROOT, &mut names);
    for (ino, count) in names {
        assert_eq!(fs.getattr(ino).unwrap().nlink, count, "links of {ino}");
    }
    assert_eq!(fs.stats().inodes, reachable, "nothing exists that cannot be reached");
    assert!(!fs.has_orphans());
    remove_all(&fs, ROOT);
    assert_eq!(vm.stats().charged_bytes, start);
}

/// Renames `x/a` to `y/b/a` and `y/b` to `x/a/b` at once: if both succeeded, neither could be reached any more.
#[test]
fn two_directories_never_swallow_each_other() {
    let fs = fs_on(&vm(4096), 64);
    let mkdir = |parent, name: &[u8]| fs.mkdir(parent, name, 0o755, ME).unwrap().ino;
    for round in 0..600 {
        let (x, y) = (mkdir(ROOT, b"x"), mkdir(ROOT, b"y"));
        let (a, b) = (mkdir(x, b"a"), mkdir(y, b"b"));
        let start = SpinBarrier::default();
        let rename = |from, name: &[u8], to| {
            start.wait();
            fs.rename(from, name, to, name, RenameMode::Replace)
        };
        let results = std::thread::scope(|scope| {
            let one = scope.spawn(|| rename(x, b"a", b));
            let other = rename(y, b"b", a);
            [one.join().unwrap(), other]
        });
        let moved = results.iter().filter(|result| result.is_ok()).count();
        let refused = results.iter().filter(|result| **result == Err(FsError::Invalid)).count();
        assert_eq!((moved, refused), (1, 1), "round {round}: {results:?}");
        remove_all(&fs, ROOT);
    }
}

/// Releases two threads at nearly the same moment.
#[derive(Default)]
struct SpinBarrier(AtomicU32);

impl SpinBarrier {
    fn wait(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        while self.0.load(Ordering::SeqCst) < 2 {
            std::hint::spin_loop();
        }
    }
}

fn remove_all(fs: &Fs, dir: u64) {
    for (name, attr) in list(fs, dir) {
        if attr.kind == FileKind::Directory {
            remove_all(fs, attr.ino);
            fs.rmdir(dir, &name).unwrap();
        } else {
            fs.unlink(dir, &name).unwrap();
        }
    }
}
