//! Magazines, depot and reap under some thousands of schedules of their threads.
//!
//! `cargo test -p overspill-slab --features shuttle --test shuttle`. Shuttle knows only sequential consistency: it does
//! not test the barriers between owner and reaper, but the work that they do between them.
#![cfg(feature = "shuttle")]

use std::ptr::NonNull;

use overspill_slab::{ObjectCache, Options};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::{Arc, Mutex};
use shuttle::{Config, Runner, thread};

fn explore(schedules: usize, scenario: fn()) {
    let mut config = Config::new();
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new(schedules), config.clone()).run(scenario);
    Runner::new(PctScheduler::new(3, schedules), config).run(scenario);
}

/// Large objects, so that magazines are small: 5 objects.
const SIZE: usize = 5000;

struct Object(NonNull<u8>, usize);

// SAFETY: the thread that has an object's address owns the object.
unsafe impl Send for Object {}

fn take(cache: &ObjectCache, number: usize) -> Object {
    let object = cache.alloc().unwrap();
    // SAFETY: the object is ours.
    unsafe { object.cast::<usize>().write(number) };
    thread::yield_now();
    Object(object, number)
}

fn give(cache: &ObjectCache, Object(object, number): Object) {
    // SAFETY: the object is ours until it is freed.
    unsafe {
        assert_eq!(object.cast::<usize>().read(), number, "somebody else has this object");
        cache.free(object);
    }
}

#[test]
fn threads_take_and_give_while_one_reaps() {
    explore(400, || {
        let cache = Arc::new(ObjectCache::new(Options::new("checked", SIZE)).unwrap());
        let workers: Vec<_> = (0..2)
            .map(|i| {
                let cache = cache.clone();
                thread::spawn(move || {
                    for round in 0..2 {
                        let held: Vec<_> = (0..8).map(|n| take(&cache, i << 16 | round << 8 | n)).collect();
                        held.into_iter().for_each(|object| give(&cache, object));
                    }
                })
            })
            .collect();
        cache.reap(true);
        cache.reap(true);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        cache.reap(true);
        let info = cache.info().unwrap();
        assert_eq!((info.active, info.cached, info.slabs), (0, 0, 0));
    });
}

#[test]
fn objects_freed_by_another_thread_come_back() {
    explore(400, || {
        let cache = Arc::new(ObjectCache::new(Options::new("handed", SIZE)).unwrap());
        let handed = Arc::new(Mutex::new(Vec::new()));
        let (theirs, to) = (cache.clone(), handed.clone());
        let giver = thread::spawn(move || {
            for n in 0..14 {
                let object = take(&theirs, n);
                to.lock().unwrap().push(object);
            }
        });
        for _ in 0..20 {
            let next = handed.lock().unwrap().pop();
            if let Some(object) = next {
                give(&cache, object);
            }
            thread::yield_now();
        }
        giver.join().unwrap();
        assert_eq!(cache.info().unwrap().active, handed.lock().unwrap().len());
        for object in handed.lock().unwrap().drain(..) {
            give(&cache, object);
        }
        cache.reap(true);
        assert_eq!(cache.info().unwrap().slabs, 0);
    });
}
