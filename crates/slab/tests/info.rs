//! slabinfo: its figures are true (R49).

use std::io::{Read, Seek};
use std::os::fd::AsFd;

use overspill_slab::{Cache, ObjectCache, Options, slabinfo};

#[test]
fn a_cache_is_shown_with_what_it_holds() {
    static SHOWN: Cache<[u8; 300]> = Cache::new("shown");
    let objects: Vec<_> = (0..50).map(|_| SHOWN.insert([1; 300]).unwrap()).collect();
    let all = slabinfo::snapshot();
    let info = all.iter().find(|cache| cache.name == "shown").unwrap();
    assert_eq!((info.object_size, info.buffer_size, info.active), (300, 304, 50));
    assert_eq!(info.objects, info.slabs * info.slab_objects);
    assert!(info.memory >= info.slabs * info.slab_size && info.objects >= 50 + info.cached);
    let mut text = String::new();
    slabinfo::write_table(&mut text).unwrap();
    let line = text.lines().find(|line| line.starts_with("shown ")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!((words[2], words[6]), ("300", "50"), "{text}");
    assert_eq!(serde_json::to_value(info).unwrap()["active"], 50);
    drop(objects);
    assert_eq!(SHOWN.info().unwrap().active, 0);
}

#[test]
fn the_sum_is_the_arenas() {
    let held = ObjectCache::new(Options::new("summed", 5000)).unwrap();
    let objects: Vec<_> = (0..10).map(|_| held.alloc().unwrap()).collect();
    // Other tests of this process allocate and free meanwhile, but at some moment both figures must agree.
    let agreed = (0..1000).any(|_| {
        let sum: usize = slabinfo::snapshot().iter().map(|cache| cache.memory).sum();
        sum == overspill_slab::global().info().used
    });
    assert!(agreed, "{:?}", overspill_slab::global().info());
    for object in objects {
        // SAFETY: allocated above, freed once.
        unsafe { held.free(object) };
    }
}

#[test]
fn whatis_knows_every_address() {
    let cache = ObjectCache::new(Options::new("asked", 100)).unwrap();
    let object = cache.alloc().unwrap();
    let at = object.addr().get();
    for (address, offset) in [(at, 0), (at + 99, 99)] {
        let what = slabinfo::whatis(address).unwrap();
        assert_eq!((what.cache, what.object, what.offset, what.taken), ("asked", Some(at), offset, true));
    }
    let page = at & !4095;
    assert_eq!(slabinfo::whatis(page + 4095).unwrap().object, None, "a header is no object");
    for address in [0, 1, usize::MAX, 1 << 46, std::ptr::from_ref(&cache).addr()] {
        assert_eq!(slabinfo::whatis(address), None);
    }
    // SAFETY: allocated above, freed once.
    unsafe { cache.free(object) };
    cache.reap(true);
    assert_eq!(slabinfo::whatis(at), None, "its slab is gone");
}

/// Counts the allocations of this thread.
struct Counting;

thread_local! {
    static ALLOCATED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

// SAFETY: the system's allocator, with a counter.
unsafe impl std::alloc::GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + 1);
        // SAFETY: by the caller's contract.
        unsafe { std::alloc::System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: by the caller's contract.
        unsafe { std::alloc::System.dealloc(at, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_dump_allocates_nothing() {
    let cache = ObjectCache::new(Options::new("dumped", 100)).unwrap();
    let object = cache.alloc().unwrap();
    let mut file = tempfile();
    let before = ALLOCATED.get();
    slabinfo::dump(file.as_fd());
    assert_eq!(ALLOCATED.get(), before);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("dumped ")) && text.contains("arena: imported"),
        "{text}"
    );
    // SAFETY: allocated above, freed once.
    unsafe { cache.free(object) };
}

fn tempfile() -> std::fs::File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    std::fs::File::from(rustix::fs::memfd_create("dump", flags).unwrap())
}

#[test]
fn objects_set_aside_do_not_fail_and_come_back() {
    static RESERVED: Cache<u64> = Cache::new("reserved");
    let mut reserve = RESERVED.reserve(100).unwrap();
    assert_eq!((reserve.left(), RESERVED.info().unwrap().active), (100, 100));
    let before = ALLOCATED.get();
    let taken: Vec<_> = std::iter::from_fn(|| reserve.take()).take(30).collect();
    assert!(ALLOCATED.get() - before < 10, "taking allocates");
    assert_eq!(reserve.left(), 70);
    drop(reserve);
    assert_eq!(RESERVED.info().unwrap().active, 30);
    for object in taken {
        // SAFETY: taken above, freed once.
        unsafe { RESERVED.objects().free(object) };
    }
    assert_eq!(RESERVED.info().unwrap().active, 0);
}
