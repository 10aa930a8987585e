//! The seams: several stores, sources, pages without copies, memory that is lent and a limit that changes.

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{mem, read, uncompressed_vm_on, vm_on, write};
use overspill_store::{FaultyStore, MemStore, Space as _, Store};
use overspill_vm::testing::{block_on, check, evict_all, settle};
use overspill_vm::{
    Access, Account, Allowance, CHUNK, IoFailure, Lessee, Method, PAGE, Pager, Source, StoreId, VmConfig,
    VmError,
};

/// Two stores, the first of which can be made to fail.
fn two_stores() -> (Pager, Arc<Account>, Arc<overspill_store::Faults>, Arc<MemStore>) {
    let first = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let (faults, second) = (first.faults(), Arc::new(MemStore::new(10_000)));
    let mut config = VmConfig::new(8 << 20);
    config.method = Method::None;
    let stores: Vec<Arc<dyn Store>> = vec![Arc::new(first), second.clone()];
    (Pager::new(&config, stores).unwrap(), Account::new(1 << 20), faults, second)
}

#[test]
fn a_batch_that_a_store_refuses_goes_to_the_next_and_is_found_there() {
    let (vm, account, faults, second) = two_stores();
    let object = vm.object(&account);
    (0..64).for_each(|page| write(&vm, &object, page, 3));
    faults.write_error.store(1_000_000, Ordering::Relaxed);
    evict_all(&vm);
    assert!(second.usage().allocated_blocks >= 64 && vm.stats().resident_bytes == 0, "{:?}", vm.stats());
    assert!(!vm.is_store_failing(), "one of two takes writes");
    (0..64).for_each(|page| assert_eq!(read(&vm, &object, page), Ok(3)));
    // The first store takes writes again, after it was left alone for a while.
    faults.stop();
    overspill_vm::testing::pass_time(&vm);
    (64..128).for_each(|page| write(&vm, &object, page, 4));
    evict_all(&vm);
    assert!(vm.store(StoreId(0)).unwrap().usage().allocated_blocks >= 64);
    (0..128).for_each(|page| assert_eq!(read(&vm, &object, page), Ok(if page < 64 { 3 } else { 4 })));
    settle(&vm);
    check(&vm, &[&object]);
}

#[test]
fn a_full_store_passes_pages_on_to_the_next() {
    let (vm, account, faults, second) = two_stores();
    faults.full_after.store(32, Ordering::Relaxed);
    let object = vm.object(&account);
    (0..256).for_each(|page| write(&vm, &object, page, 5));
    evict_all(&vm);
    let first = vm.store(StoreId(0)).unwrap().usage().allocated_blocks;
    let rest = second.usage().allocated_blocks;
    assert!(first > 0 && first <= 32 && rest >= 224, "{first} and {rest} blocks, {:?}", vm.stats());
    (0..256).for_each(|page| assert_eq!(read(&vm, &object, page), Ok(5)));
    settle(&vm);
    check(&vm, &[&object]);
}

#[test]
fn a_store_that_frees_whole_runs_gets_them_back_whole() {
    let store = Arc::new(MemStore::new(10_000).freeing_whole_runs());
    let (vm, account) = uncompressed_vm_on(Some(store.clone()));
    let object = vm.object(&account);
    (0..64).for_each(|page| write(&vm, &object, page, 6));
    evict_all(&vm);
    let all = store.usage().allocated_blocks;
    object.discard(0, 32).unwrap();
    settle(&vm);
    assert!(all >= 64 && store.usage().allocated_blocks > 0);
    (32..64).for_each(|page| assert_eq!(read(&vm, &object, page), Ok(6)));
    object.discard(0, 64).unwrap();
    assert_eq!(store.usage().allocated_blocks, 0, "of {all}");
}

#[test]
fn an_error_keeps_its_cause() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    write(&vm, &object, 0, 7);
    evict_all(&vm);
    faults.read_error.store(1_000_000, Ordering::Relaxed);
    let failed = read(&vm, &object, 0).unwrap_err();
    assert_eq!(failed, VmError::StoreRead(IoFailure::of(&io::Error::from_raw_os_error(5))));
    let cause = std::error::Error::source(&failed).unwrap().to_string();
    assert!(cause.contains("os error 5"), "{cause}");
}

/// A source of pages of one byte each, which can hang and fail.
#[derive(Default)]
struct Pages {
    fails: AtomicBool,
    reads: AtomicUsize,
}

const SOURCED: u64 = 40;

impl Source for Pages {
    fn len(&self) -> u64 {
        SOURCED * PAGE as u64 - 100
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = if at < self.len() { u8::try_from(at / PAGE as u64 + 1).unwrap_or(0) } else { 0 };
        }
        Ok(())
    }
}

#[test]
fn an_object_shows_its_source_until_it_is_changed() {
    let (vm, account) = vm_on(mem());
    let source = Arc::new(Pages::default());
    let object = vm.object_from(source.clone(), &account);
    assert_eq!((object.pages(), object.next_data(0), object.next_hole(0)), (0, Some(0), SOURCED));
    assert_eq!(read(&vm, &object, 7), Ok(8));
    // The chunk was kept: it is not asked for again, also when it has been to the store.
    evict_all(&vm);
    let asked = source.reads.load(Ordering::Relaxed);
    assert_eq!((read(&vm, &object, 7), read(&vm, &object, 8)), (Ok(8), Ok(9)));
    assert_eq!(source.reads.load(Ordering::Relaxed), asked, "asked again");
    // A part of a page is written: the rest is the source's.
    block_on(&vm, object.write(20 * PAGE as u64 + 10, &[0xff; 5], Allowance::Normal)).unwrap();
    let mut page = [0; PAGE];
    block_on(&vm, object.read(20 * PAGE as u64, &mut page)).unwrap();
    assert!(page[..10] == [21; 10] && page[10..15] == [0xff; 5] && page[15..].iter().all(|&byte| byte == 21));
    // Pages that are discarded, and zeroed in part, do not come back.
    object.discard(33, 36).unwrap();
    block_on(&vm, object.zero(39 * PAGE as u64, 39 * PAGE as u64 + 50)).unwrap();
    let fork = object.fork();
    write(&vm, &object, 38, 99);
    for object in [&object, &fork] {
        assert_eq!(
            (read(&vm, object, 32), read(&vm, object, 33), read(&vm, object, 35)),
            (Ok(33), Ok(0), Ok(0))
        );
        assert_eq!(object.next_hole(32), 33);
        block_on(&vm, object.read(39 * PAGE as u64, &mut page)).unwrap();
        let is_right =
            |(at, &byte): (usize, &u8)| byte == if (50..PAGE - 100).contains(&at) { 40 } else { 0 };
        assert!(page.iter().enumerate().all(is_right));
    }
    assert_eq!((read(&vm, &object, 38), read(&vm, &fork, 38)), (Ok(99), Ok(39)));
    evict_all(&vm);
    check(&vm, &[&object, &fork]);
}

#[test]
fn a_source_that_fails_is_an_error_and_no_zeros() {
    let (vm, account) = vm_on(mem());
    let source = Arc::new(Pages::default());
    let object = vm.object_from(source.clone(), &account);
    source.fails.store(true, Ordering::Relaxed);
    assert!(matches!(read(&vm, &object, 0), Err(VmError::SourceRead(_))));
    let refused = block_on(&vm, object.write(1, &[1], Allowance::Normal));
    assert!(matches!(refused, Err((0, VmError::SourceRead(_)))));
    // Whole pages need nothing of it.
    write(&vm, &object, 0, 50);
    source.fails.store(false, Ordering::Relaxed);
    assert_eq!((read(&vm, &object, 0), read(&vm, &object, 1)), (Ok(50), Ok(2)));
}

#[test]
fn pages_are_installed_and_lent_without_a_copy() {
    let (vm, account) = vm_on(mem());
    let object = vm.object(&account);
    let mut frames = block_on(&vm, vm.frames(20)).unwrap();
    for (fill, frame) in (1..).zip(frames.slices_mut()) {
        frame.fill(fill);
    }
    let before = vm.stats().copied_bytes;
    // Across the end of a chunk.
    object.install(10, frames, Allowance::Normal).unwrap();
    let lent = block_on(&vm, object.lend(10 * PAGE as u64 + 100, 3 * PAGE)).unwrap();
    assert_eq!(vm.stats().copied_bytes, before, "nothing was copied");
    let bytes: Vec<u8> = lent.slices().flatten().copied().collect();
    assert_eq!((bytes.len(), lent.len(), bytes[0], bytes[3 * PAGE - 1]), (3 * PAGE, 3 * PAGE, 1, 4));
    // Lent bytes stay as they were, though the page is written anew and evicted meanwhile (R28).
    write(&vm, &object, 10, 77);
    evict_all(&vm);
    assert_eq!(lent.slices().flatten().copied().collect::<Vec<u8>>(), bytes);
    drop(lent);
    let lent = block_on(&vm, object.lend(10 * PAGE as u64, 10 * CHUNK)).unwrap();
    assert!(!lent.is_empty() && lent.slices().next().unwrap()[0] == 77);
    drop(lent);
    assert_eq!((read(&vm, &object, 29), read(&vm, &object, 30), object.pages()), (Ok(20), Ok(0), 20));
    settle(&vm);
    check(&vm, &[&object]);
}

#[test]
fn frames_that_the_account_refuses_go_free() {
    let (vm, _) = vm_on(mem());
    let account = Account::new(3);
    let object = vm.object(&account);
    let mut frames = block_on(&vm, vm.frames(5)).unwrap();
    frames.slices_mut().for_each(|frame| frame.fill(1));
    assert_eq!(object.install(14, frames, Allowance::Normal), Err((3, VmError::NoSpace)));
    assert_eq!((object.pages(), account.used()), (3, 3));
    check(&vm, &[&object]);
    let mut frames = block_on(&vm, vm.frames(4)).unwrap();
    for (fill, frame) in (1..).zip(frames.slices_mut()) {
        frame.fill(fill);
    }
    // A transfer came short: the first frames are kept.
    frames.truncate(2);
    assert_eq!(frames.slices_mut().map(|frame| frame[0]).collect::<Vec<_>>(), [1, 2]);
    assert!(block_on(&vm, vm.frames(100_000)).is_err());
}

#[test]
fn a_fault_for_writing_makes_the_page_resident_and_frees_its_slot() {
    let (vm, account) = vm_on(mem());
    let object = vm.object(&account);
    write(&vm, &object, 3, 9);
    evict_all(&vm);
    let lent = block_on(&vm, object.fault(3, Access::Read, Allowance::Normal)).unwrap();
    assert!(vm.stats().resident_bytes == 0 && lent.slices().flatten().all(|&byte| byte == 9));
    drop(lent);
    let lent = block_on(&vm, object.fault(3, Access::Write, Allowance::Normal)).unwrap();
    assert!(lent.len() == PAGE && lent.slices().flatten().all(|&byte| byte == 9));
    let stats = vm.stats();
    assert_eq!((stats.dirty_bytes, stats.stored_live_bytes, stats.compressed_bytes), (PAGE, 0, 0));
}

#[derive(Default)]
struct Tenant(AtomicUsize);

impl Lessee for Tenant {
    fn revoke(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Memory on lease is asked back before a writer is refused, and serves it.
#[test]
fn a_lease_is_revoked_when_memory_is_short() {
    let vm = Pager::new(&VmConfig::new(4 << 20), Vec::new()).unwrap();
    let (tenant, account) = (Arc::new(Tenant::default()), Account::new(1 << 20));
    let lease = vm.lease(tenant.clone());
    let limit = vm.stats().limit_bytes;
    block_on(&vm, lease.grow(limit / 4 * 3)).unwrap();
    assert_eq!((vm.stats().leased_bytes, lease.bytes()), (limit / 4 * 3, limit / 4 * 3));
    let object = vm.object(&account);
    let mut data = vec![0; limit / 2];
    let mut word = 1_u64;
    data.iter_mut().for_each(|byte| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = word.to_be_bytes()[0];
    });
    let mut writing = Box::pin(object.write(0, &data, Allowance::Normal));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut given = 0;
    for _ in 0..100_000 {
        if writing.as_mut().poll(&mut cx).is_ready() {
            given += 1_000_000_000;
            break;
        }
        vm.pageout();
        let asked = tenant.0.swap(0, Ordering::Relaxed);
        lease.shrink(asked);
        given += asked;
    }
    assert!(given > 1_000_000_000, "the writer waits for ever, or nothing was asked back: {given}");
    drop(writing);
    drop(lease);
    check(&vm, &[&object]);
}

/// A lessee that never gives anything back does not make writers wait for ever.
#[test]
fn a_lessee_that_keeps_all_stops_nobody_for_long() {
    let vm = Pager::new(&VmConfig::new(4 << 20), Vec::new()).unwrap();
    let (tenant, account) = (Arc::new(Tenant::default()), Account::new(1 << 20));
    let lease = vm.lease(tenant.clone());
    block_on(&vm, lease.grow(vm.stats().limit_bytes / 8 * 7)).unwrap();
    let object = vm.object(&account);
    let data: Vec<u8> = (0..1_u32 << 20).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let refused = block_on(&vm, object.write(0, &data, Allowance::Normal));
    assert!(matches!(refused, Err((_, VmError::NoMemory))) && tenant.0.load(Ordering::Relaxed) > 0);
    drop(lease);
}

#[test]
fn a_smaller_limit_pages_out_and_a_larger_one_serves_waiters() {
    let mut config = VmConfig::new(4 << 20);
    config.most_memory_bytes = 8 << 20;
    config.method = Method::None;
    let vm = Pager::new(&config, mem().into_iter().collect()).unwrap();
    let (account, before) = (Account::new(1 << 20), vm.stats().limit_bytes);
    vm.set_memory(8 << 20).unwrap();
    assert_eq!(vm.stats().limit_bytes, before + (4 << 20));
    let object = vm.object(&account);
    (0..1200).for_each(|page| write(&vm, &object, page, 1));
    assert!(vm.stats().charged_bytes > before && vm.stats().page_outs == 0, "{:?}", vm.stats());
    vm.set_memory(4 << 20).unwrap();
    while vm.stats().charged_bytes > before {
        assert!(overspill_vm::testing::run_once(&vm), "pageout rests above the limit: {:?}", vm.stats());
    }
    (0..1200).for_each(|page| assert_eq!(read(&vm, &object, page), Ok(1)));
    assert_eq!(vm.set_memory(9 << 20), Err(VmError::Limit));
    assert_eq!(vm.set_memory(1 << 20), Err(VmError::Limit));
    settle(&vm);
    check(&vm, &[&object]);
}
