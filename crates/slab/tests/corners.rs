//! Regression tests: a second review of the allocator found these faults.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use overspill_slab::source::{Limited, System};
use overspill_slab::{Arena, Cache, ObjectCache, Options, PAGE, slabinfo};

fn info(name: &str) -> Option<slabinfo::CacheInfo> {
    slabinfo::snapshot().into_iter().find(|cache| cache.name == name)
}

/// `whatis` is safe for any number, including an address in a slab that is just being made.
#[test]
fn a_slab_can_be_asked_about_while_it_is_made() {
    static AT: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    let asker = std::thread::spawn(|| {
        while !STOP.load(Ordering::Relaxed) {
            let at = AT.load(Ordering::Relaxed);
            if let Some(found) = slabinfo::whatis(at) {
                assert!(!found.cache.is_empty());
            }
        }
    });
    let cache = ObjectCache::new(Options::new("coming and going", 512).magazines(false)).unwrap();
    for _ in 0..20_000 {
        let object = cache.alloc().unwrap();
        AT.store(object.as_ptr().addr(), Ordering::Relaxed);
        // SAFETY: allocated above, freed once.
        unsafe { cache.free(object) };
        cache.reap(true);
    }
    STOP.store(true, Ordering::Relaxed);
    asker.join().unwrap();
}

/// The code that receives the table may itself create caches.
#[test]
fn the_table_can_be_written_by_who_allocates() {
    static FIRST: Cache<u64> = Cache::new("there already");
    static LATE: Cache<u64> = Cache::new("made while listing");
    struct Allocating(usize);
    impl Write for Allocating {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let _ = LATE.insert(0);
            self.0 += text.len();
            Ok(())
        }
    }
    let _first = FIRST.insert(1).unwrap();
    let mut to = Allocating(0);
    slabinfo::write_table(&mut to).unwrap();
    assert!(to.0 > 0);
}

/// Another cache can use the memory that one cache returned to a limited arena.
#[test]
fn an_arena_at_its_limit_gives_empty_spans_back() {
    let arena = Arc::new(Arena::new(Limited::new(System, 4 * 64 * PAGE)));
    let options = |name, size| Options::new(name, size).source(arena.clone()).magazines(false);
    let small = ObjectCache::new(options("small in an arena", PAGE)).unwrap();
    let big = ObjectCache::new(options("big in an arena", 75 * PAGE)).unwrap();
    let objects: Vec<_> = (0..200).map(|_| small.alloc().unwrap()).collect();
    assert!(big.alloc().is_err(), "the limit holds");
    for object in objects {
        // SAFETY: allocated above, freed once.
        unsafe { small.free(object) };
    }
    let object = big.alloc().unwrap();
    // SAFETY: allocated above, freed once.
    unsafe { big.free(object) };
}

/// Taking from a reserve touches no other cache (iron rule 1).
#[test]
fn a_reserve_gives_out_without_freeing_links() {
    static THINGS: Cache<[u64; 3]> = Cache::new("set aside");
    let mut reserve = THINGS.reserve(200).unwrap();
    let links = info("reserve link").unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| reserve.take()).collect();
    assert_eq!(taken.len(), 200);
    assert_eq!(info("reserve link").unwrap().active, links.active, "links go when there is time");
    reserve.fill(200).unwrap();
    assert_eq!(info("reserve link").unwrap().active, links.active, "links are used again");
    for object in taken {
        // SAFETY: from this cache, each freed once.
        unsafe { THINGS.objects().free(object) };
    }
}

/// A value whose drop panics still returns its memory.
#[test]
fn a_panicking_drop_leaks_nothing() {
    struct Angry(#[expect(dead_code, reason = "it has a size")] u64);
    impl Drop for Angry {
        fn drop(&mut self) {
            panic!("as it should");
        }
    }
    static ANGRY: Cache<Angry> = Cache::new("angry");
    for _ in 0..5 {
        let slot = ANGRY.insert(Angry(1)).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(slot))).unwrap_err();
    }
    assert_eq!(ANGRY.info().unwrap().active, 0);
}

/// A constructor in the options is not trusted to make `T`s.
#[test]
#[should_panic(expected = "without a constructor")]
fn options_do_not_say_how_to_make_a_type() {
    // SAFETY: it initialises the 24 bytes of the object.
    let options = unsafe { Options::new("texts", 24).constructor(|object| object.write_bytes(0, 24)) };
    let cache: Cache<String> = Cache::with(options);
    let _ = cache.get();
}

/// Counters never decrease.
#[test]
fn hits_never_go_back() {
    let cache = ObjectCache::new(Options::new("hits", 100)).unwrap();
    let (mut objects, mut last, mut growing, mut x) = (Vec::new(), 0, true, 12_345_u64);
    for i in 0..200_000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        growing = objects.len() < 10 || growing && objects.len() < 2000;
        if (x >> 20) % 100 < if growing { 90 } else { 10 } {
            objects.push(cache.alloc().unwrap());
        } else if let Some(object) = objects.pop() {
            // SAFETY: allocated above, freed once.
            unsafe { cache.free(object) };
        }
        if i % 5000 == 4999 {
            cache.reap(true);
        }
        let hits = cache.info().unwrap().hits;
        assert!(hits >= last, "{last} and then {hits}");
        last = hits;
    }
    for object in objects {
        // SAFETY: allocated above, freed once.
        unsafe { cache.free(object) };
    }
}
