//! "Did you try fault injection to make sure the checking code actually works" (R48): for every check, a process of its
//! own plants a fault, and the test reads its report.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr::NonNull;

use overspill_slab::{ObjectCache, Options};

/// In the child, plants the fault. Else runs the child, which must die of `signal` and print all of `says`.
fn planted(test: &str, signal: Option<i32>, says: &[&str], plant: fn()) {
    if std::env::var("PLANT").is_ok_and(|name| name == test) {
        plant();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("PLANT", test)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), signal, "{}\n{stderr}", output.status);
    for words in says {
        assert!(stderr.contains(words), "no '{words}' in:\n{stderr}");
    }
}

fn verified(name: &'static str, size: usize) -> ObjectCache {
    ObjectCache::new(Options::new(name, size).verify(true)).unwrap()
}

#[inline(never)]
fn the_one_who_allocates(cache: &ObjectCache) -> NonNull<u8> {
    cache.alloc().unwrap()
}

#[inline(never)]
fn the_one_who_frees(cache: &ObjectCache, object: NonNull<u8>) {
    // SAFETY: sound, or the fault that the test plants.
    unsafe { cache.free(object) };
    // Not the last call: a tail call would leave no trace of this function.
    std::hint::black_box(());
}

const ABORT: Option<i32> = Some(libc::SIGABRT);
const SEGV: Option<i32> = Some(libc::SIGSEGV);

/// The process ends even if nobody reads its report.
#[test]
fn double_free_with_nobody_to_hear() {
    planted("double_free_with_nobody_to_hear", ABORT, &[], || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        // SAFETY: both are open; the child's own stderr is lost from now on.
        assert_eq!(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&writer), 2) }, 2);
        let cache = verified("unheard", 40);
        let object = cache.alloc().unwrap();
        let freeing = std::panic::AssertUnwindSafe(|| {
            the_one_who_frees(&cache, object);
            the_one_who_frees(&cache, object);
        });
        let _ = std::panic::catch_unwind(freeing);
        std::process::exit(0);
    });
}

/// A handler of reports from `check` may inspect the caches.
#[test]
fn a_handler_that_takes_a_snapshot() {
    planted("a_handler_that_takes_a_snapshot", ABORT, &["11 caches or more"], || {
        overspill_slab::set_fault_handler(|_| {
            let caches = overspill_slab::slabinfo::snapshot().len();
            eprintln!("{} caches or more", caches.max(11));
        });
        let cache = verified("handled", 40);
        let object = cache.alloc().unwrap();
        the_one_who_frees(&cache, object);
        // SAFETY: the planted fault: the memory is mapped, and nobody owns it.
        unsafe { object.write_bytes(1, 8) };
        cache.check();
    });
}

#[test]
fn double_free() {
    planted(
        "double_free",
        ABORT,
        &["double free", "cache 'doubly'", "the_one_who_allocates", "the_one_who_frees"],
        || {
            let cache = verified("doubly", 40);
            let object = the_one_who_allocates(&cache);
            the_one_who_frees(&cache, object);
            the_one_who_frees(&cache, object);
        },
    );
}

#[test]
fn double_free_without_verify_is_seen_by_the_slab() {
    planted(
        "double_free_without_verify_is_seen_by_the_slab",
        ABORT,
        &["double free", "cache 'plain'"],
        || {
            let cache = ObjectCache::new(Options::new("plain", 40).magazines(false)).unwrap();
            let (_other, object) = (cache.alloc().unwrap(), cache.alloc().unwrap());
            the_one_who_frees(&cache, object);
            the_one_who_frees(&cache, object);
        },
    );
}

#[test]
fn free_of_no_object() {
    planted("free_of_no_object", ABORT, &["invalid free: not the start", "cache 'wild'"], || {
        let cache = verified("wild", 40);
        the_one_who_frees(&cache, NonNull::from(&mut 7u64).cast());
    });
}

#[test]
fn free_of_an_objects_middle() {
    planted("free_of_an_objects_middle", ABORT, &["invalid free: not the start", "cache 'middle'"], || {
        let cache = verified("middle", 40);
        // SAFETY: inside the object.
        the_one_who_frees(&cache, unsafe { cache.alloc().unwrap().add(8) });
    });
}

#[test]
fn free_in_the_unused_tail() {
    planted(
        "free_in_the_unused_tail",
        ABORT,
        &["invalid free: an address in a slab's unused part", "cache 'tail'"],
        || {
            let cache = verified("tail", 900);
            let object = cache.alloc().unwrap();
            let page = object.addr().get() & !4095;
            let info = cache.info().unwrap();
            let last = page + info.slab_size - 8;
            the_one_who_frees(&cache, object.with_addr(last.try_into().unwrap()));
        },
    );
}

#[test]
fn free_of_another_caches_object() {
    planted(
        "free_of_another_caches_object",
        ABORT,
        &["an object of another cache", "in cache 'mine'", "of cache 'theirs'"],
        || {
            let (mine, theirs) = (verified("mine", 40), verified("theirs", 40));
            the_one_who_frees(&mine, theirs.alloc().unwrap());
        },
    );
}

#[test]
fn overrun_into_the_red_zone() {
    planted(
        "overrun_into_the_red_zone",
        ABORT,
        &["red zone", "cache 'over'", "the_one_who_allocates"],
        || {
            let cache = verified("over", 40);
            let object = the_one_who_allocates(&cache);
            // SAFETY: unsound on purpose: this is the planted fault.
            unsafe { object.add(40).write(0) };
            the_one_who_frees(&cache, object);
        },
    );
}

#[test]
fn underrun_into_the_red_zone() {
    planted(
        "underrun_into_the_red_zone",
        ABORT,
        &["red zone", "cache 'under'", "the_one_who_allocates"],
        || {
            let cache = verified("under", 40);
            let object = the_one_who_allocates(&cache);
            // SAFETY: unsound on purpose: this is the planted fault.
            unsafe { object.sub(1).write(0) };
            the_one_who_frees(&cache, object);
        },
    );
}

#[test]
fn overrun_into_the_tag() {
    planted("overrun_into_the_tag", ABORT, &["record behind an object", "cache 'far over'"], || {
        let cache = verified("far over", 40);
        let object = cache.alloc().unwrap();
        // SAFETY: unsound on purpose: this is the planted fault.
        unsafe { object.add(40).write_bytes(0, 24) };
        the_one_who_frees(&cache, object);
    });
}

#[test]
fn write_after_free_is_seen_by_the_next_allocation() {
    let says = ["write after free", "cache 'late'", "the_one_who_allocates", "the_one_who_frees"];
    planted("write_after_free_is_seen_by_the_next_allocation", ABORT, &says, || {
        let cache = verified("late", 40);
        let object = the_one_who_allocates(&cache);
        the_one_who_frees(&cache, object);
        // SAFETY: unsound on purpose: this is the planted fault.
        unsafe { object.add(8).write(1) };
        cache.alloc().unwrap();
    });
}

#[test]
fn write_after_free_is_seen_by_a_check() {
    planted("write_after_free_is_seen_by_a_check", ABORT, &["write after free", "cache 'checked'"], || {
        let cache = verified("checked", 40);
        let object = cache.alloc().unwrap();
        the_one_who_frees(&cache, object);
        // SAFETY: unsound on purpose: this is the planted fault.
        unsafe { object.add(39).write(1) };
        cache.check();
    });
}

#[test]
fn write_after_free_is_seen_when_the_slab_goes() {
    planted(
        "write_after_free_is_seen_when_the_slab_goes",
        ABORT,
        &["write after free", "cache 'gone'"],
        || {
            let cache = verified("gone", 40);
            let object = cache.alloc().unwrap();
            the_one_who_frees(&cache, object);
            // SAFETY: unsound on purpose: this is the planted fault.
            unsafe { object.write(1) };
            cache.reap(true);
        },
    );
}

#[test]
fn leaks_are_reported_by_who_allocated() {
    let says = ["leak", "cache 'leaky'", "3 objects", "the_one_who_allocates"];
    planted("leaks_are_reported_by_who_allocated", None, &says, || {
        let cache = verified("leaky", 40);
        for _ in 0..3 {
            the_one_who_allocates(&cache);
        }
        let freed = cache.alloc().unwrap();
        the_one_who_frees(&cache, freed);
        let leaks = cache.leaks();
        assert_eq!((leaks.len(), leaks[0].objects, leaks[0].bytes), (1, 3, 120));
        drop(cache);
    });
}

fn guarded(name: &'static str) -> ObjectCache {
    overspill_slab::install_fault_reports();
    ObjectCache::new(Options::new(name, 40).guard(1)).unwrap()
}

#[test]
fn overrun_onto_a_guard_page() {
    planted(
        "overrun_onto_a_guard_page",
        SEGV,
        &["guard page touched, overrun", "cache 'g over'", "allocated by"],
        || {
            let object = guarded("g over").alloc().unwrap();
            // SAFETY: unsound on purpose: this is the planted fault.
            unsafe { object.add(40).write_volatile(1) };
        },
    );
}

#[test]
fn use_after_free_of_a_guarded_object() {
    let says = ["guard page touched, use after free", "cache 'g late'", "freed by"];
    planted("use_after_free_of_a_guarded_object", SEGV, &says, || {
        let cache = guarded("g late");
        let object = cache.alloc().unwrap();
        the_one_who_frees(&cache, object);
        // SAFETY: unsound on purpose: this is the planted fault.
        unsafe { object.read_volatile() };
    });
}

#[test]
fn double_free_of_a_guarded_object() {
    let says = ["double free", "cache 'g double'", "the_one_who_allocates", "the_one_who_frees"];
    planted("double_free_of_a_guarded_object", ABORT, &says, || {
        let cache = guarded("g double");
        let object = the_one_who_allocates(&cache);
        the_one_who_frees(&cache, object);
        the_one_who_frees(&cache, object);
    });
}

/// A fault that only AddressSanitizer (`cargo xtask asan`) finds: if it does not, the sanitizer is not active.
#[test]
fn a_heap_overrun_is_seen_by_the_sanitizer() {
    if std::env::var_os("OVERSPILL_ASAN").is_none() {
        return;
    }
    planted(
        "a_heap_overrun_is_seen_by_the_sanitizer",
        None,
        &["AddressSanitizer: heap-buffer-overflow"],
        || {
            let mut bytes = vec![0u8; 40];
            // SAFETY: unsound on purpose: this is the planted fault.
            unsafe { std::hint::black_box(bytes.as_mut_ptr()).add(40).write_volatile(1) };
        },
    );
}

#[test]
fn an_honest_program_is_left_alone() {
    planted("an_honest_program_is_left_alone", None, &[], || {
        let cache = verified("honest", 40);
        for _ in 0..3 {
            let objects: Vec<_> = (0..100).map(|_| the_one_who_allocates(&cache)).collect();
            for object in objects {
                // SAFETY: allocated above with this size.
                unsafe { object.write_bytes(3, 40) };
                the_one_who_frees(&cache, object);
            }
            cache.check();
        }
    });
}
