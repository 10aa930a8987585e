//! Pageout step by step, with the store's I/O held back by hand.

#![expect(clippy::cast_possible_truncation, reason = "fill bytes made of page numbers")]

mod common;

use std::future::Future as _;
use std::sync::Arc;

use common::{mem, read, take_write, uncompressed_vm_on, vm_on, write};
use overspill_vm::testing::{Io, block_on, check, evict_all, perform, settle};
use overspill_vm::{Account, Allowance, Method, PAGE, Pager, Signals, Step, VmConfig, VmError};

/// A page on its way out is written again, its neighbour discarded, and the chunk looked at once more: the end of
/// the first write must not pass the older bytes off as the page's (R28). Found by the simulation, seed 8.
#[test]
fn an_old_version_never_comes_back() {
    // Past compressed memory, or no write would be under way.
    let (vm, account) = uncompressed_vm_on(mem());
    let object = vm.object(&account);
    write(&vm, &object, 0, 1);
    write(&vm, &object, 1, 1);
    vm.set_eager(true);
    let first = take_write(&vm);
    write(&vm, &object, 0, 2);
    object.discard(1, 2).unwrap();
    while vm.pageout() == Step::Worked {}
    assert_eq!(
        (vm.writes_in_flight(), vm.stats().dirty_bytes),
        (1, PAGE),
        "a second write would be under way"
    );
    perform(&vm, first);
    assert_eq!(read(&vm, &object, 0), Ok(2));
    evict_all(&vm);
    assert_eq!(read(&vm, &object, 0), Ok(2));
    assert_eq!(read(&vm, &object, 1), Ok(0));
    check(&vm, &[&object]);
}

/// Readers go on while a page is written out, and see its newest version (R28).
#[test]
fn pages_stay_readable_during_writeout() {
    let (vm, account) = uncompressed_vm_on(mem());
    let object = vm.object(&account);
    write(&vm, &object, 3, 7);
    vm.set_eager(true);
    let out = take_write(&vm);
    assert_eq!((vm.writes_in_flight(), vm.stats().resident_bytes), (1, PAGE), "nothing is being written");
    assert_eq!(read(&vm, &object, 3), Ok(7));
    write(&vm, &object, 3, 8);
    assert_eq!(read(&vm, &object, 3), Ok(8));
    perform(&vm, out);
    settle(&vm);
    assert_eq!(read(&vm, &object, 3), Ok(8));
}

/// Pages deleted before memory is short cost no I/O (R4, R8, R9).
#[test]
fn nothing_is_written_without_pressure() {
    let (vm, account) = vm_on(mem());
    for _ in 0..50 {
        let object = vm.object(&account);
        for page in 0..64 {
            write(&vm, &object, page, 5);
        }
        assert_eq!(vm.pageout(), Step::Rest);
    }
    let stats = vm.stats();
    assert_eq!((stats.store_writes, stats.stored_bytes, stats.charged_bytes), (0, 0, 0));
}

/// Without a store, full memory is an error, and freeing some helps.
#[test]
fn full_memory_is_an_error() {
    let (vm, account) = vm_on(None);
    let object = vm.object(&account);
    let mut page = 0;
    let error = loop {
        match block_on(&vm, object.write(page * PAGE as u64, &[1; PAGE], Allowance::Normal)) {
            Ok(()) => page += 1,
            Err((0, error)) => break error,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(error, VmError::NoMemory);
    assert!(page > 1500, "nearly all of 8 MiB: {page}");
    object.discard(0, 64).unwrap();
    write(&vm, &object, 0, 3);
    assert_eq!(read(&vm, &object, 0), Ok(3));
}

/// The account's limit holds; the reserve is for promised data.
#[test]
fn accounts_limit() {
    let (vm, _) = vm_on(mem());
    let account = Account::new(20);
    account.set_reserve(5);
    let object = vm.object(&account);
    let data = vec![1; 30 * PAGE];
    assert_eq!(block_on(&vm, object.write(0, &data, Allowance::Normal)), Err((20 * PAGE, VmError::NoSpace)));
    assert_eq!(block_on(&vm, object.write(0, &data, Allowance::Reserve)), Err((25 * PAGE, VmError::NoSpace)));
    assert_eq!((account.used(), object.pages()), (25, 25));
    object.discard(0, 10).unwrap();
    assert_eq!(account.used(), 15);
    assert_eq!(block_on(&vm, object.allocate(0, 6)), Err(VmError::NoSpace));
    block_on(&vm, object.allocate(0, 5)).unwrap();
    object.lose(0, 1).unwrap();
    assert_eq!(read(&vm, &object, 0), Err(VmError::Lost));
    check(&vm, &[&object]);
}

/// Small pages take their length, not a page (R25).
#[test]
fn short_pages_are_small() {
    let (vm, account) = vm_on(mem());
    let objects: Vec<_> = (0..100).map(|_| vm.object(&account)).collect();
    for object in &objects {
        block_on(&vm, object.write(0, &[7; 1000], Allowance::Normal)).unwrap();
    }
    let stats = vm.stats();
    let pages = stats.charged_bytes - stats.metadata_bytes;
    assert!(pages < 100 * 1200, "{pages} bytes for 100 pages of 1000");
    evict_all(&vm);
    for object in &objects {
        let mut buf = [1; 2000];
        block_on(&vm, object.read(0, &mut buf)).unwrap();
        assert!(buf[..1000].iter().all(|&b| b == 7) && buf[1000..].iter().all(|&b| b == 0));
    }
}

/// With eager eviction, memory can be full without a resident page: a write fails, and does not wait for ever.
#[test]
fn eager_pageout_refuses_what_never_fits() {
    let mut config = VmConfig::new(8 << 20);
    (config.batch_bytes, config.batches, config.fetch_slots) = (128 << 10, 2, 2);
    config.memory_bytes = config.buffers(true) + 40 * PAGE;
    let vm = Pager::new(&config, mem().into_iter().collect()).unwrap();
    let object = vm.object(&Account::new(1000));
    vm.set_eager(true);
    let held = vm.charge(29 * PAGE).unwrap();
    assert_eq!(
        block_on(&vm, object.write(0, &[1; 16 * PAGE], Allowance::Normal)),
        Err((0, VmError::NoMemory))
    );
    drop(held);
    block_on(&vm, object.write(0, &[1; 16 * PAGE], Allowance::Normal)).unwrap();
}

/// Neighbouring reads in the store are one request.
#[test]
fn neighbouring_reads_are_joined() {
    let mut config = VmConfig::new(16 << 20);
    (config.method, config.fetch_slots) = (Method::None, 8);
    let vm = Pager::new(&config, mem().into_iter().collect()).unwrap();
    let object = vm.object(&Account::new(1 << 20));
    (0..64).for_each(|page| write(&vm, &object, page, page as u8 + 1));
    evict_all(&vm);
    let mut buf = vec![0; 64 * PAGE];
    let mut reading = Box::pin(object.read(0, &mut buf));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let (mut requests, mut reads) = (0, Vec::new());
    while reading.as_mut().poll(&mut cx).is_pending() {
        vm.next_reads(1 << 20, &mut reads);
        requests += 1;
        for read in reads.drain(..) {
            perform(&vm, Io::Read(read));
        }
    }
    drop(reading);
    assert!(requests <= 2, "{requests} requests for four clusters");
    assert!((0..64).all(|page| buf[page * PAGE..][..PAGE].iter().all(|&b| b == page as u8 + 1)));
}

/// A huge allocation is long work without a wait: it yields its thread in between, or two of them would keep all parked
/// operations from theirs.
#[test]
fn a_huge_allocation_lets_others_run() {
    let (vm, account) = vm_on(mem());
    let object = vm.object(&account);
    let mut allocating = Box::pin(object.allocate(0, 16 * 2000));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut turns = 1;
    while allocating.as_mut().poll(&mut cx).is_pending() {
        turns += 1;
    }
    assert!((4..100).contains(&turns), "{turns} turns for 2,000 chunks");
    drop(allocating);
    assert_eq!(object.pages(), 16 * 2000);
}

/// True if pageout was asked for.
#[derive(Default)]
struct Asked(std::sync::atomic::AtomicBool);

impl Signals for Asked {
    fn pageout_wanted(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    fn reads_ready(&self) {}
    fn writes_ready(&self) {}
    fn alarm(&self, _at: u64) {}
}

/// Every write asks an eager pageout for work; otherwise only writes that run short of memory ask.
#[test]
fn an_eager_pageout_hears_of_every_write() {
    let (vm, account) = vm_on(mem());
    let asked = Arc::new(Asked::default());
    vm.set_signals(asked.clone());
    let object = vm.object(&account);
    let was_asked = || asked.0.swap(false, std::sync::atomic::Ordering::Relaxed);
    write(&vm, &object, 0, 1);
    assert!(!was_asked());
    vm.set_eager(true);
    assert!(was_asked());
    while vm.pageout() == Step::Worked {}
    was_asked();
    write(&vm, &object, 1, 1);
    assert!(was_asked(), "nobody told an eager pageout of a write");
}
