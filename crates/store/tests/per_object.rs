//! A file for each object (R59).

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{allocate_for, disk_dir, holds, pattern, settle};
use overspill_store::{BLOCK, Backend, PerObjectStore, Run, Space};
use overspill_sys::AlignedBuf;

fn store(dir: &std::path::Path) -> PerObjectStore {
    PerObjectStore::in_directory(dir, 1 << 20, usize::MAX).unwrap()
}

/// An owner's space returns to the disk with its file; other owners keep theirs.
#[test]
fn a_file_goes_with_what_is_in_it() {
    let dir = disk_dir();
    let store = store(dir.path());
    let runs: Vec<(u32, Run)> =
        (0..40).map(|n| (n % 4, allocate_for(&store, Some(n % 4), 1, 100).unwrap())).collect();
    assert_eq!(store.files(), 5, "one for each of four, and the one to be shared");
    for (owner, run) in &runs {
        store.write(run.start, &pattern(*run, (*owner).into())).unwrap();
    }
    // Runs of one file never cross into another's window.
    let windows =
        |of: u32| runs.iter().filter(move |(owner, _)| *owner == of).map(|(_, run)| run.start / 4096);
    assert!(windows(0).all(|window| windows(1).all(|other| window != other)));
    let full = store.usage().file_bytes;
    for (owner, run) in &runs {
        if *owner != 3 {
            store.free(*run);
        }
    }
    settle(&store, false);
    assert_eq!(store.files(), 2);
    assert!(store.usage().file_bytes < full / 2, "{} of {full} bytes", store.usage().file_bytes);
    for (owner, run) in runs.iter().filter(|(owner, _)| *owner == 3) {
        assert!(holds(&store, *run, (*owner).into()), "{run:?}");
        store.free(*run);
    }
    settle(&store, false);
    let usage = store.usage();
    assert_eq!((store.files(), usage.allocated_blocks, usage.file_bytes), (1, 0, 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file has a name");
}

/// An object larger than a window has several, and the numbers of windows that are gone are reused.
#[test]
fn large_objects_and_many_generations() {
    let dir = disk_dir();
    let store = store(dir.path());
    for generation in 0..20u32 {
        let runs: Vec<Run> =
            (0..40).map(|_| allocate_for(&store, Some(generation), 256, 256).unwrap()).collect();
        for run in [runs[0], runs[39]] {
            store.write(run.start, &pattern(run, generation.into())).unwrap();
        }
        for run in [runs[0], runs[39]] {
            assert!(holds(&store, run, generation.into()), "{run:?} of {generation}");
        }
        assert!(runs.iter().all(|run| run.start < 20 * 4096), "numbers are used up: {runs:?}");
        runs.into_iter().for_each(|run| store.free(run));
        settle(&store, false);
    }
    assert_eq!(store.files(), 1);
}

/// Files come and go while other threads write and read: no thread's blocks change.
#[test]
fn owners_come_and_go_side_by_side() {
    let dir = disk_dir();
    let store = &store(dir.path());
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..4u32)
            .map(|worker| {
                scope.spawn(move || {
                    for generation in 0..60u32 {
                        let owner = worker << 16 | generation;
                        let runs: Vec<Run> =
                            (0..6).map(|n| allocate_for(store, Some(owner), 1, 20 + n).unwrap()).collect();
                        runs.iter().for_each(|run| {
                            store.write(run.start, &pattern(*run, owner.into())).unwrap();
                        });
                        for run in runs {
                            assert!(holds(store, run, owner.into()), "{run:?} of {owner:x} changed");
                            store.free(run);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.maintain(false);
                std::thread::yield_now();
            }
        });
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    settle(store, false);
    assert_eq!((store.files(), store.usage().allocated_blocks), (1, 0));
}

/// A caller that joins reads of neighbouring blocks knows nothing of files: the next number may be another file's.
#[test]
fn what_lies_side_by_side_by_number_may_be_of_two_files() {
    let dir = disk_dir();
    let store = store(dir.path());
    // Owners take turns until each has filled two windows: the last block of one's second precedes the first of
    // another's.
    let runs: Vec<(u32, Run)> = (0..32)
        .flat_map(|_| 0..3u32)
        .map(|owner| (owner, allocate_for(&store, Some(owner), 256, 256).unwrap()))
        .collect();
    for (owner, run) in &runs {
        store.write(run.start, &pattern(*run, (*owner).into())).unwrap();
    }
    let mut joined = 0;
    for (owner, run) in &runs {
        let end = run.end();
        let next = runs.iter().find(|(other, next)| next.start == end && other != owner);
        let Some((other, next)) = next else { continue };
        let mut buf = AlignedBuf::new(2 * 256 * BLOCK);
        store.read(run.start, &mut buf).unwrap();
        assert!(buf[..256 * BLOCK] == pattern(*run, (*owner).into())[..]);
        assert!(
            buf[256 * BLOCK..] == pattern(*next, (*other).into())[..],
            "{next:?} of {other}, read with {run:?}"
        );
        joined += 1;
    }
    let starts: Vec<u64> = runs.iter().map(|(_, run)| run.start).collect();
    assert!(joined > 0, "no two owners lie side by side: {starts:?}");
}

/// A limit on files, since each costs memory.
#[test]
fn beyond_so_many_files_objects_share_one() {
    let dir = disk_dir();
    let store = PerObjectStore::in_directory(dir.path(), 1 << 20, 5).unwrap();
    let runs: Vec<Run> = (0..20).map(|n| allocate_for(&store, Some(n), 4, 4).unwrap()).collect();
    assert_eq!(store.files(), 5);
    runs.into_iter().for_each(|run| store.free(run));
    settle(&store, false);
    assert_eq!((store.files(), store.usage().file_bytes), (1, 0));
}
