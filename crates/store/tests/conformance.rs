//! Properties that every store must have, tested on each of them.

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{allocate, disk_dir, holds, pattern, settle};
use overspill_store::{AllocError, BLOCK, FaultyStore, FileStore, MemStore, PerObjectStore, Run, Store};
use overspill_sys::AlignedBuf;

/// 12 MiB and a bit: not a whole number of groups, nor of segments.
const CAPACITY: u32 = 3 * 1024 + 77;

fn a_round_trip(store: &dyn Store) {
    let runs: Vec<Run> = (1..20).map(|n| allocate(store, n, n).unwrap()).collect();
    for (run, owner) in runs.iter().zip(0..) {
        store.write(run.start, &pattern(*run, owner)).unwrap();
    }
    assert_eq!(store.usage().allocated_blocks, (1..20).sum::<u64>());
    for (run, owner) in runs.iter().zip(0..) {
        assert!(holds(store, *run, owner), "{run:?}");
    }
    runs.into_iter().for_each(|run| store.free(run));
    assert_eq!(store.usage().allocated_blocks, 0);
}

fn unwritten_blocks_are_zeros(store: &dyn Store) {
    let run = allocate(store, 8, 8).unwrap();
    let mut buf = AlignedBuf::new(8 * BLOCK);
    buf.fill(7);
    store.read(run.start, &mut buf).unwrap();
    assert!(buf.iter().all(|&b| b == 0));
    store.free(run);
}

fn fills_up_to_its_capacity_and_no_further(store: &dyn Store) {
    assert_eq!(store.usage().capacity_blocks, u64::from(CAPACITY));
    let mut owner_of = vec![false; CAPACITY as usize];
    let mut runs = Vec::new();
    while let Ok(run) = allocate(store, 1, 64) {
        for cell in &mut owner_of[usize::try_from(run.start).unwrap()..usize::try_from(run.end()).unwrap()] {
            assert!(!std::mem::replace(cell, true), "{run:?} overlaps");
        }
        runs.push(run);
    }
    assert!(owner_of.iter().all(|&owned| owned), "full before it was");
    assert_eq!(store.usage().allocated_blocks, u64::from(CAPACITY));
    assert_eq!(allocate(store, 1, 1), Err(AllocError::Full));

    // Any block-aligned part may be freed by itself, and allocated again (R57).
    let run = runs.pop().unwrap();
    store.free(Run { start: run.start, blocks: 1 });
    assert_eq!(allocate(store, 2, 9), Err(AllocError::Full));
    assert_eq!(allocate(store, 1, 9), Ok(Run { start: run.start, blocks: 1 }));
    store.free(run);
    runs.into_iter().for_each(|run| store.free(run));
    settle(store, false);
    assert_eq!(store.usage().allocated_blocks, 0);
    let again = allocate(store, 1, 64).unwrap();
    store.free(again);
}

fn bad_io_is_refused(store: &dyn Store) {
    let run = allocate(store, 4, 4).unwrap();
    let kind = |result: std::io::Result<()>| result.map_err(|e| e.kind());
    let mut buf = AlignedBuf::new(3 * BLOCK);
    assert_eq!(kind(store.write(run.start, &buf[1..=BLOCK])), Err(ErrorKind::InvalidInput), "unaligned");
    assert_eq!(kind(store.write(run.start, &buf[..BLOCK / 2])), Err(ErrorKind::InvalidInput), "half a block");
    assert_eq!(kind(store.read(run.start, &mut buf[1..=BLOCK])), Err(ErrorKind::InvalidInput));
    for beyond in [CAPACITY - 2, CAPACITY, u32::MAX].map(u64::from).into_iter().chain([u64::MAX]) {
        assert_eq!(kind(store.write(beyond, &buf)), Err(ErrorKind::InvalidInput));
        assert_eq!(kind(store.read(beyond, &mut buf)), Err(ErrorKind::InvalidInput));
    }
    store.free(run);
}

/// Threads write, verify and free while another one punches and prepares: no thread's blocks may change. This fails
/// if upkeep punches a group that allocate has just handed out.
fn upkeep_races_nobody(store: &Arc<dyn Store>) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (1..4u32).map(|worker| scope.spawn(move || work(store.as_ref(), worker))).collect();
        scope.spawn(|| {
            let mut turn = 0u32;
            while !done.load(Ordering::Relaxed) {
                store.maintain(turn.is_multiple_of(3));
                turn += 1;
            }
        });
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|r| r.unwrap());
    });
    assert_eq!(store.usage().allocated_blocks, 0);
}

fn work(store: &dyn Store, worker: u32) {
    let mut random = worker;
    let mut held: Vec<(Run, u64)> = Vec::new();
    for turn in 0..400u64 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let owner = turn << 8 | u64::from(worker);
        if let Ok(run) = allocate(store, 1, 1 + (random >> 8) % 128) {
            store.write(run.start, &pattern(run, owner)).unwrap();
            held.push((run, owner));
        }
        // From time to time free all, so that whole groups become free.
        let keep = if turn % 50 == 49 { 0 } else { 8 };
        while held.len() > keep {
            let (run, owner) = held.swap_remove((random >> 16) as usize % held.len());
            assert!(holds(store, run, owner), "{run:?} of {owner:x} changed");
            store.free(run);
        }
    }
    held.into_iter().for_each(|(run, _)| store.free(run));
}

fn conforms(make: impl Fn() -> Arc<dyn Store>) {
    a_round_trip(&*make());
    unwritten_blocks_are_zeros(&*make());
    fills_up_to_its_capacity_and_no_further(&*make());
    bad_io_is_refused(&*make());
    upkeep_races_nobody(&make());
}

#[test]
fn memory() {
    conforms(|| Arc::new(MemStore::new(CAPACITY)));
}

#[test]
fn memory_that_must_be_prepared() {
    conforms(|| Arc::new(MemStore::unprepared(CAPACITY)));
}

#[test]
fn faulty_without_faults() {
    conforms(|| Arc::new(FaultyStore::new(Arc::new(MemStore::new(CAPACITY)), 1)));
}

/// A small lead, so that preparing and punching happen all the time.
fn file(dir: &std::path::Path) -> FileStore {
    FileStore::in_directory(dir, CAPACITY).unwrap().ahead(1 << 20)
}

#[test]
fn file_direct() {
    let dir = disk_dir();
    conforms(|| Arc::new(file(dir.path())));
}

/// One owner for everything, as by a caller that knows no owners.
#[test]
fn a_file_for_each_object() {
    let dir = disk_dir();
    conforms(|| Arc::new(PerObjectStore::in_directory(dir.path(), CAPACITY, usize::MAX).unwrap()));
}

#[test]
fn file_buffered() {
    let dir = disk_dir();
    conforms(|| Arc::new(file(dir.path()).buffered()));
}
