//! The rows. The time of a pair is the least of several rounds within a process, because a shared machine has slow
//! phases of twice the time; xtask takes medians over processes.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::rivals::{Allocator, SIZES};

const ROUNDS: usize = 60;
const PAIRS: usize = 200_000;

type Say<'a> = dyn FnMut(&str, &str, f64) + 'a;

/// Measures every row that is wanted.
pub fn all<A: Allocator>(wants: &dyn Fn(&str) -> bool, say: &mut Say) {
    for size in [256, 1024] {
        let row = format!("resident/live after 90% freed, {size} B");
        if wants(&row) {
            say(&row, "ratio", alone(&row).unwrap_or_else(|| resident::<A>(size)));
        }
    }
    if wants("constructed 256 B pair") {
        say("constructed 256 B pair", "ns", constructed::<A>());
    }
    for size in SIZES {
        let row = format!("pair, {size} B");
        if wants(&row) {
            say(&row, "ns", pair::<A>(size));
        }
    }
    for size in [64, 256, 1024] {
        let row = format!("1000 then all, {size} B");
        if wants(&row) {
            say(&row, "ns", thousand::<A>(size, 1000));
        }
    }
    for (row, objects) in [("quick pattern, 1 object", 1), ("long pattern, 100 objects", 100)] {
        if wants(row) {
            say(row, "ns", thousand::<A>(256, objects));
        }
    }
    if wants("walk, 700 B") {
        say("walk, 700 B", "ns", walk::<A>());
    }
    if A::THREADS {
        threaded::<A>(wants, say);
    }
    let row = "free, 10 M live over 10 k";
    if wants(row) {
        let (few, many) = (free_among::<A>(10_000), free_among::<A>(10_000_000));
        say("free, 10 k live", "ns", few);
        say("free, 10 M live", "ns", many);
        say(row, "ratio", many / few);
    }
}

fn threaded<A: Allocator>(wants: &dyn Fn(&str) -> bool, say: &mut Say) {
    if wants("threads, two over one") {
        let (one, two) = (parallel::<A>(1), parallel::<A>(2));
        say("threads, one", "op/s", one);
        say("threads, two", "op/s", two);
        say("threads, two over one", "times", two / one);
    }
    if wants("freed by another thread") {
        say("freed by another thread", "op/s", handed_over::<A>());
    }
    if wants("alloc p99, quiet") {
        let (quiet, purging) = (latency::<A>(false), latency::<A>(true));
        say("alloc p99, quiet", "ns", quiet);
        say("alloc p99, while another purges", "ns", purging);
        say("alloc p99, purging over quiet", "ratio", purging / quiet);
    }
}

/// Measures a row in a process of its own, so that nothing else is resident; `None` in that process.
fn alone(row: &str) -> Option<f64> {
    let mut args = std::env::args();
    let (program, name) = (args.next()?, args.next()?);
    if std::env::var_os("ALONE").is_some() {
        return None;
    }
    let output = std::process::Command::new(program).args([&name, row]).env("ALONE", "1").output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().rsplit('\t').next()?.parse().ok()
}

fn least(times: Vec<f64>) -> f64 {
    times.into_iter().fold(f64::MAX, f64::min)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn nanos_each(start: Instant, n: usize) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / n as f64
}

fn constructed<A: Allocator>() -> f64 {
    let round = |_| {
        let start = Instant::now();
        for i in 0..PAIRS {
            let object = black_box(A::get());
            // SAFETY: a living object of 256 bytes; the byte written is 0 again, as constructed.
            unsafe {
                object.add(128).write_volatile(i as u8);
                object.add(128).write_volatile(0);
                A::put(black_box(object));
            }
        }
        nanos_each(start, PAIRS)
    };
    least((0..ROUNDS).map(round).collect())
}

fn pair<A: Allocator>(size: usize) -> f64 {
    let round = |_| {
        let start = Instant::now();
        for i in 0..PAIRS {
            let object = black_box(A::alloc(size));
            // SAFETY: a living object.
            unsafe {
                object.write_volatile(i as u8);
                A::free(black_box(object), size);
            }
        }
        nanos_each(start, PAIRS)
    };
    least((0..ROUNDS).map(round).collect())
}

/// Nanoseconds per object to read the first word of each of 2,000 objects, one after the other. Where the objects of
/// all slabs start at the same offset in a page, they compete for few lines of the CPU's cache.
fn walk<A: Allocator>() -> f64 {
    const SIZE: usize = 700;
    let objects: Vec<*mut u8> = (0..2000).map(|_| A::alloc(SIZE)).collect();
    let round = |_| {
        let start = Instant::now();
        for _ in 0..100 {
            for object in &objects {
                // SAFETY: living, aligned to 8.
                unsafe { black_box(object.cast::<u64>().read_volatile()) };
            }
        }
        nanos_each(start, 100 * objects.len())
    };
    let time = least((0..ROUNDS).map(round).collect());
    for object in objects {
        // SAFETY: living, freed once.
        unsafe { A::free(object, SIZE) };
    }
    time
}

/// Nanoseconds per object to allocate `n` objects, then free them all.
fn thousand<A: Allocator>(size: usize, n: usize) -> f64 {
    let mut objects = vec![std::ptr::null_mut(); n];
    let times = (100_000 / n).max(1);
    let round = |_| {
        let start = Instant::now();
        for i in 0..times {
            for slot in &mut objects {
                let object = A::alloc(size);
                // SAFETY: a living object.
                unsafe { object.write_volatile(i as u8) };
                *slot = object;
            }
            for object in &objects {
                // SAFETY: allocated above, freed once.
                unsafe { A::free(*object, size) };
            }
        }
        nanos_each(start, times * n)
    };
    least((0..ROUNDS).map(round).collect())
}

fn rss() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok()).unwrap_or(0) * 1024
}

/// Resident bytes over live bytes, after nine in ten objects at random are freed and the allocator has purged.
fn resident<A: Allocator>(size: usize) -> f64 {
    let n = (128 << 20) / size;
    // SAFETY of all: objects of this size, each freed once.
    let warm = A::alloc(size);
    unsafe { A::free(warm, size) };
    let mut objects = vec![std::ptr::null_mut::<u8>(); n];
    objects.fill(std::ptr::dangling_mut());
    A::purge();
    let before = rss();
    for slot in &mut objects {
        *slot = A::alloc(size);
        unsafe { slot.write_bytes(1, size) };
    }
    objects.shuffle(&mut SmallRng::seed_from_u64(size as u64));
    let keep = n / 10;
    for object in &objects[keep..] {
        unsafe { A::free(*object, size) };
    }
    A::purge();
    let ratio = (rss() - before) as f64 / (keep * size) as f64;
    for object in &objects[..keep] {
        unsafe { A::free(*object, size) };
    }
    A::purge();
    ratio
}

/// Nanoseconds of a free among `live` objects: random ones are freed and allocated again, 1000 at a time.
fn free_among<A: Allocator>(live: usize) -> f64 {
    const SIZE: usize = 64;
    let mut objects: Vec<*mut u8> = (0..live).map(|_| A::alloc(SIZE)).collect();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut times = Vec::new();
    for _ in 0..200 {
        // Chosen before the clock starts: choosing them is no part of freeing them.
        let chosen: Vec<(usize, *mut u8)> = {
            let mut seen = std::collections::HashSet::new();
            let random = std::iter::repeat_with(|| rng.random_range(0..live)).filter(|i| seen.insert(*i));
            random.take(1000).map(|i| (i, objects[i])).collect()
        };
        let start = Instant::now();
        for (_, object) in &chosen {
            // SAFETY: living, and replaced below.
            unsafe { A::free(*object, SIZE) };
        }
        times.push(nanos_each(start, chosen.len()));
        for (i, _) in chosen {
            objects[i] = A::alloc(SIZE);
        }
    }
    for object in objects {
        // SAFETY: living, freed once.
        unsafe { A::free(object, SIZE) };
    }
    A::purge();
    median(times)
}

/// Operations per second of `threads` threads, each with a working set of its own.
fn parallel<A: Allocator>(threads: usize) -> f64 {
    let stop = &AtomicBool::new(false);
    let done = &AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for t in 0..threads {
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(t as u64);
                let mut held: Vec<*mut u8> = (0..1000).map(|_| A::alloc(256)).collect();
                let mut ops = 0;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..1000 {
                        let i = rng.random_range(0..held.len());
                        // SAFETY: living, and replaced at once.
                        unsafe { A::free(held[i], 256) };
                        held[i] = A::alloc(256);
                        // SAFETY: living.
                        unsafe { held[i].write_volatile(1) };
                    }
                    ops += 1000;
                }
                done.fetch_add(ops, Ordering::Relaxed);
                for object in held {
                    // SAFETY: living, freed once.
                    unsafe { A::free(object, 256) };
                }
            });
        }
        std::thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// Objects per second that one thread allocates and another frees, through a ring.
fn handed_over<A: Allocator>() -> f64 {
    const RING: usize = 1024;
    const SIZE: usize = 256;
    let ring: Vec<AtomicPtr<u8>> = (0..RING).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect();
    let (ring, n) = (&ring, 3_000_000);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for i in 0..n {
                let object = A::alloc(SIZE);
                // SAFETY: living.
                unsafe { object.write_volatile(1) };
                while !ring[i % RING].load(Ordering::Relaxed).is_null() {
                    std::hint::spin_loop();
                }
                ring[i % RING].store(object, Ordering::Release);
            }
        });
        scope.spawn(move || {
            for i in 0..n {
                let object = loop {
                    let object = ring[i % RING].load(Ordering::Acquire);
                    if !object.is_null() {
                        break object;
                    }
                    std::hint::spin_loop();
                };
                ring[i % RING].store(std::ptr::null_mut(), Ordering::Release);
                // SAFETY: allocated by the other thread, freed once.
                unsafe { A::free(object, SIZE) };
            }
        });
    });
    n as f64 / start.elapsed().as_secs_f64()
}

/// The 99th percentile of an allocation's nanoseconds, including the time to read the clock.
fn latency<A: Allocator>(purging: bool) -> f64 {
    let stop = &AtomicBool::new(false);
    let mut times = Vec::with_capacity(1_000_000);
    std::thread::scope(|scope| {
        if purging {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    A::purge();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let mut held = vec![std::ptr::null_mut(); 500];
        for _ in 0..1000 {
            for slot in &mut held {
                let start = Instant::now();
                *slot = A::alloc(256);
                times.push(start.elapsed().as_nanos() as f64);
            }
            for object in &held {
                // SAFETY: allocated above, freed once.
                unsafe { A::free(*object, 256) };
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    times.sort_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}
