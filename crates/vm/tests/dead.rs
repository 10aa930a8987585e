//! Dead pages: counted, freed, compacted.

#![expect(clippy::cast_possible_truncation, reason = "fill bytes made of page numbers")]

mod common;

use std::future::Future as _;
use std::sync::Arc;

use common::{mem, read, take_write, uncompressed_vm_on, vm_on, write};
use overspill_store::{FaultyStore, MemStore};
use overspill_vm::testing::{block_on, check, evict_all, perform, settle, stored_live_bytes};
use overspill_vm::{Allowance, Object, PAGE, Pager};

/// A slot dies when its page is written, discarded or given up with its object (R8, R57).
#[test]
fn slots_die_with_their_pages() {
    let (vm, account) = uncompressed_vm_on(mem());
    let object = vm.object(&account);
    for page in 0..32 {
        write(&vm, &object, page, page as u8);
    }
    evict_all(&vm);
    let full = vm.stats().stored_bytes;
    assert!(full > 0 && vm.stats().resident_bytes == 0);
    for page in 0..16 {
        write(&vm, &object, page, 1);
    }
    assert!(vm.stats().stored_bytes < full, "the first chunk's extent went with its last page");
    object.discard(16, 32).unwrap();
    assert_eq!(vm.stats().stored_bytes, 0);
    evict_all(&vm);
    drop(object);
    settle(&vm);
    assert_eq!((vm.stats().stored_bytes, vm.stats().charged_bytes, account.used()), (0, 0, 0));
}

/// Dead pages are counted when the last chunk that shows them gives them up, even while a partial write, a reader, a
/// batch or a fork holds their extent for a moment (rule 4).
#[test]
fn dead_pages_are_counted_whoever_holds_their_extent() {
    let (vm, account) = uncompressed_vm_on(mem());
    let fresh = || {
        let object = vm.object(&account);
        (0..16).for_each(|page| write(&vm, &object, page, page as u8 + 1));
        evict_all(&vm);
        object
    };
    let live = |objects: &[&Object]| (vm.stats().stored_live_bytes, stored_live_bytes(objects));
    let assert_seen = |object: &Object, dead: u64, how: &str| {
        let (counted, is) = live(&[object]);
        assert_eq!(counted, is, "{how}");
        assert!((16 - dead) * PAGE as u64 <= is && is <= (17 - dead) * PAGE as u64, "{how}: {is} bytes live");
    };
    // A partial write brings the page in itself, and holds its extent.
    let object = fresh();
    block_on(&vm, object.write(100, &[7; 50], Allowance::Normal)).unwrap();
    assert_seen(&object, 1, "a write in part");
    drop(object);

    // While a reader has asked for the strip.
    let object = fresh();
    let mut buf = [0; PAGE];
    let mut reading = Box::pin(object.read(0, &mut buf));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(reading.as_mut().poll(&mut cx).is_pending());
    object.discard(4, 8).unwrap();
    block_on(&vm, reading).unwrap();
    assert_seen(&object, 4, "beside a reader");
    drop(object);

    // Two forks: the page is dead when the second one gives it up, in either order, or is dropped.
    let object = fresh();
    let fork = object.fork();
    fork.discard(0, 4).unwrap();
    object.discard(2, 6).unwrap();
    assert_eq!(live(&[&object, &fork]), (live(&[&object, &fork]).1, stored_live_bytes(&[&object, &fork])));
    let (counted, is) = live(&[&object, &fork]);
    assert_eq!(counted, is, "forks");
    drop(fork);
    assert_seen(&object, 4, "a fork gone");
    drop(object);
    assert_eq!(vm.stats().stored_live_bytes, 0);
}

/// Pages that die while their cluster is being written out are dead when it reaches the store.
#[test]
fn pages_that_die_on_the_way_are_counted_dead() {
    let (vm, account) = uncompressed_vm_on(mem());
    let object = vm.object(&account);
    (0..16).for_each(|page| write(&vm, &object, page, page as u8 + 1));
    vm.set_eager(true);
    let out = take_write(&vm);
    object.discard(0, 8).unwrap();
    perform(&vm, out);
    settle(&vm);
    assert_eq!(vm.stats().stored_live_bytes, stored_live_bytes(&[&object]));
    assert!(vm.stats().stored_live_bytes <= 9 * PAGE as u64, "{:?}", vm.stats());
}

/// Rule 4: after random overwrites and discards of ten times the data, at most a tenth of the store is dead, and living
/// data is right.
#[test]
fn dead_pages_do_not_keep_the_store() {
    const PAGES: u64 = 4096;
    let (vm, account) = vm_on(Some(Arc::new(MemStore::new(100_000))));
    let object = vm.object(&account);
    let mut random = 1_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // Half of a page is noise: it compresses, but not to nothing.
    let mut noisy = |fill: u64| {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&fill.to_le_bytes());
        page[8..PAGE / 2].chunks_mut(8).for_each(|word| word.copy_from_slice(&next().to_le_bytes()));
        page
    };
    let mut model = vec![0; PAGES as usize];
    let mut seed = 7_u64;
    for step in 0..10 * PAGES {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let page = if step < PAGES { step } else { (seed >> 33) % PAGES };
        if step > PAGES && step % 16 == 0 {
            object.discard(page, page + 1).unwrap();
            model[page as usize] = 0;
        } else {
            block_on(&vm, object.write(page * PAGE as u64, &noisy(step + 1), Allowance::Normal)).unwrap();
            model[page as usize] = step + 1;
        }
    }
    evict_all(&vm);
    let dead = |vm: &Pager| {
        let stats = vm.stats();
        ((stats.stored_bytes - stats.stored_live_bytes) * 100 / stats.stored_bytes, stats)
    };
    let before = dead(&vm);
    assert_eq!(before.1.stored_live_bytes, stored_live_bytes(&[&object]), "dead pages are not seen");
    assert!(vm.wants_compaction(), "nothing to do: {before:?}");
    let mut turns = 0;
    while vm.wants_compaction() {
        for _ in 0..8 {
            block_on(&vm, vm.compact());
        }
        evict_all(&vm);
        turns += 1;
        assert!(turns < 1000, "no end to it: {:?}, before {before:?}", dead(&vm));
    }
    assert!(dead(&vm).0 <= 10, "{:?}, before {before:?}", dead(&vm));
    assert_eq!(vm.stats().stored_live_bytes, stored_live_bytes(&[&object]), "dead pages are not seen");
    for (page, &fill) in (0..).zip(&model) {
        let mut buf = [1; 8];
        block_on(&vm, object.read(page * PAGE as u64, &mut buf)).unwrap();
        assert_eq!(u64::from_le_bytes(buf), fill, "page {page}");
    }
    check(&vm, &[&object]);
}

/// A segment that could not be read for compaction is compacted when the store can be read again.
#[test]
fn compaction_comes_back_to_what_could_not_be_read() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = uncompressed_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    (0..512).for_each(|page| write(&vm, &object, page, page as u8));
    evict_all(&vm);
    // Three pages of four die, in every cluster.
    (0..512).filter(|page| page % 4 != 0).for_each(|page| object.discard(page, page + 1).unwrap());
    assert!(vm.wants_compaction(), "{:?}", vm.stats());
    faults.read_error.store(1_000_000, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..40 {
        assert!(!block_on(&vm, vm.compact()), "compacted what cannot be read");
    }
    faults.stop();
    for turn in 0.. {
        if !vm.wants_compaction() {
            break;
        }
        assert!(turn < 100, "it never comes back: {:?}", vm.stats());
        block_on(&vm, vm.compact());
        evict_all(&vm);
    }
    (0..512)
        .filter(|page| page % 4 == 0)
        .for_each(|page| assert_eq!(read(&vm, &object, page), Ok(page as u8)));
    check(&vm, &[&object]);
}
