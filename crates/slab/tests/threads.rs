//! Threads that allocate, free each other's objects, reap and exit, in every mode of the CPU layer.

use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use overspill_slab::{CpuMode, ObjectCache, Options, cpu_mode};

/// Runs a test of this file again in a process of its own, where the environment chooses the mode.
fn in_mode(mode: &str, test: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("OVERSPILL_SLAB_CPU", mode)
        .status()
        .unwrap();
    assert!(status.success(), "{test} in mode {mode}: {status}");
}

/// Writes an object's own address and a number into it, so that two users of one object are detected.
fn mark(object: NonNull<u8>, number: usize) {
    // SAFETY: objects here have 64 bytes.
    unsafe { object.cast::<[usize; 2]>().write([object.addr().get(), number]) };
}

fn check(object: NonNull<u8>, number: usize) {
    // SAFETY: as above.
    let read = unsafe { object.cast::<[usize; 2]>().read() };
    assert_eq!(read, [object.addr().get(), number], "somebody else wrote");
}

struct Sent(NonNull<u8>, usize);

// SAFETY: the thread that has an object's address owns the object.
unsafe impl Send for Sent {}

fn storm(name: &'static str) {
    let cache = ObjectCache::new(Options::new(name, 64)).unwrap();
    let done = AtomicBool::new(false);
    let (cache, done) = (&cache, &done);
    std::thread::scope(|scope| {
        let reaper = scope.spawn(move || {
            let mut reaps = 0;
            while !done.load(Ordering::Relaxed) {
                cache.reap(true);
                reaps += 1;
            }
            reaps
        });
        for round in 0..6 {
            // Each thread sends half its objects to the next thread. All of them exit with magazines loaded.
            let (to, from): (Vec<_>, Vec<_>) = (0..4).map(|_| sync_channel::<Sent>(1000)).unzip();
            let workers: Vec<_> = from
                .into_iter()
                .enumerate()
                .map(|(i, from)| {
                    let to = to[(i + 1) % 4].clone();
                    scope.spawn(move || {
                        let mut held = Vec::new();
                        for n in 0..20_000 {
                            let number = round << 40 | i << 32 | n;
                            let object = cache.alloc().unwrap();
                            mark(object, number);
                            if n % 2 == 0 {
                                if let Err(back) = to.try_send(Sent(object, number)) {
                                    let (std::sync::mpsc::TrySendError::Full(Sent(object, number))
                                    | std::sync::mpsc::TrySendError::Disconnected(Sent(object, number))) =
                                        back;
                                    held.push((object, number));
                                }
                            } else {
                                held.push((object, number));
                            }
                            let theirs = from.try_recv().ok().map(|Sent(object, number)| (object, number));
                            let mine = (held.len() > n % 500).then(|| held.swap_remove(n % held.len()));
                            for (object, number) in theirs.into_iter().chain(mine) {
                                check(object, number);
                                // SAFETY: allocated here or sent to us; freed once.
                                unsafe { cache.free(object) };
                            }
                        }
                        drop(to);
                        let rest = from.try_iter().map(|Sent(o, n)| (o, n));
                        for (object, number) in held.into_iter().chain(rest) {
                            check(object, number);
                            // SAFETY: as above.
                            unsafe { cache.free(object) };
                        }
                        from
                    })
                })
                .collect();
            drop(to);
            for from in workers.into_iter().map(|w| w.join().unwrap()).collect::<Vec<_>>() {
                for Sent(object, number) in from {
                    check(object, number);
                    // SAFETY: as above.
                    unsafe { cache.free(object) };
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(reaper.join().unwrap() > 0);
    });
    cache.reap(true);
    let info = cache.info().unwrap();
    assert_eq!((info.active, info.cached, info.slabs), (0, 0, 0), "{info:?}");
}

#[test]
fn storm_in_this_mode() {
    storm("storm");
}

#[test]
fn storm_per_thread() {
    in_mode("thread", "storm_in_this_mode");
}

#[test]
fn storm_without_magazines() {
    in_mode("off", "storm_in_this_mode");
}

#[test]
fn more_threads_than_slots() {
    let cache = ObjectCache::new(Options::new("many threads", 64)).unwrap();
    let barrier = std::sync::Barrier::new(50);
    std::thread::scope(|scope| {
        for i in 0..50 {
            let (cache, barrier) = (&cache, &barrier);
            scope.spawn(move || {
                let first = cache.alloc().unwrap();
                barrier.wait();
                for n in 0..1000 {
                    let object = cache.alloc().unwrap();
                    mark(object, n * 50 + i);
                    std::thread::yield_now();
                    check(object, n * 50 + i);
                    // SAFETY: allocated above, freed once.
                    unsafe { cache.free(object) };
                }
                // SAFETY: as above.
                unsafe { cache.free(first) };
            });
        }
    });
    cache.reap(true);
    assert_eq!(cache.info().unwrap().slabs, 0);
}

#[test]
fn more_threads_than_slots_per_thread() {
    in_mode("thread", "more_threads_than_slots");
}

#[test]
fn the_mode_is_the_environments() {
    if let Ok(wanted) = std::env::var("OVERSPILL_SLAB_CPU") {
        let mode = cpu_mode();
        assert_eq!(wanted == "thread", mode == CpuMode::Thread, "{mode:?}");
        assert_eq!(wanted == "off", mode == CpuMode::Off, "{mode:?}");
    } else {
        in_mode("thread", "the_mode_is_the_environments");
        in_mode("off", "the_mode_is_the_environments");
        assert_ne!(cpu_mode(), CpuMode::Off);
    }
}
