//! Stores that fail, return damaged data or have no space.

#![expect(clippy::cast_possible_truncation, reason = "fill bytes made of page numbers")]

mod common;

use std::future::Future as _;
use std::sync::Arc;

use common::{mem, read, uncompressed_vm_on, vm_on, write};
use overspill_store::{AllocError, Backend, FaultyStore, MemStore, Run, Space, Usage};
use overspill_vm::testing::{block_on, check, evict_all, next_io, pass_time, perform, run_once};
use overspill_vm::{Allowance, PAGE, Pager, VmError};

/// A failed write leaves its pages in memory and is counted; when the store recovers they go out (R6, R17).
#[test]
fn failed_writes_lose_nothing() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    for page in 0..100 {
        write(&vm, &object, page, page as u8);
    }
    faults.next_writes.store(5, std::sync::atomic::Ordering::Relaxed);
    evict_all(&vm);
    for page in 0..100 {
        assert_eq!(read(&vm, &object, page), Ok(page as u8));
    }
    assert!(vm.stats().errors >= 1);
    evict_all(&vm);
    assert_eq!(vm.stats().dirty_bytes, 0);
    for page in 0..100 {
        assert_eq!(read(&vm, &object, page), Ok(page as u8));
    }
}

/// Damage is an error, never wrong bytes; writing the whole page repairs it.
#[test]
fn damage_is_an_error() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = uncompressed_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    write(&vm, &object, 0, 9);
    // The rest of its last block belongs to other clusters: damage there would not matter here.
    (1..16).for_each(|page| write(&vm, &object, page, 1));
    evict_all(&vm);
    faults.next_read_flips.store(4, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(read(&vm, &object, 0), Err(VmError::Lost));
    assert_eq!(read(&vm, &object, 0), Err(VmError::Lost));
    write(&vm, &object, 0, 4);
    assert_eq!(read(&vm, &object, 0), Ok(4));
    check(&vm, &[&object]);
}

/// Bad reads that a retry repairs: the tries are apart in time, and the last one is good.
#[test]
fn passing_damage_and_errors_lose_nothing() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = uncompressed_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    (0..16).for_each(|page| write(&vm, &object, page, 9));
    evict_all(&vm);
    for fault in [&faults.next_read_flips, &faults.next_reads] {
        fault.store(3, std::sync::atomic::Ordering::Relaxed);
        let mut buf = [0; PAGE];
        let mut reading = Box::pin(object.read(0, &mut buf));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut pauses = 0;
        while reading.as_mut().poll(&mut cx).is_pending() {
            if let Some(io) = next_io(&vm) {
                perform(&vm, io);
            } else {
                pauses += u32::from(pass_time(&vm));
            }
        }
        drop(reading);
        assert_eq!(pauses, 3, "read again without a pause");
        assert_eq!(buf, [9; PAGE]);
    }
}

/// A strip that stays damaged leaves its chunk's other strips readable.
#[test]
fn one_damaged_strip_loses_no_neighbour() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = uncompressed_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    (0..16).for_each(|page| write(&vm, &object, page, page as u8 + 1));
    evict_all(&vm);
    // All reads of one strip; then one request for the whole chunk, in which one strip is bad each time.
    for whole in [false, true] {
        faults.next_read_flips.store(4, std::sync::atomic::Ordering::Relaxed);
        let mut buf = vec![0; if whole { 16 } else { 1 } * PAGE];
        assert_eq!(block_on(&vm, object.read(0, &mut buf)), Err(VmError::Lost));
        faults.next_read_flips.store(0, std::sync::atomic::Ordering::Relaxed);
        let lost = (0..16).filter(|&page| read(&vm, &object, page) == Err(VmError::Lost)).count();
        assert!((1..=4).contains(&lost), "{lost} pages lost by a strip of four");
        check(&vm, &[&object]);
        (0..16).for_each(|page| write(&vm, &object, page, page as u8 + 1));
        evict_all(&vm);
    }
}

/// A damaged strip that no reader wants, between two wanted ones, does no harm: the read ends, with the right bytes.
/// Found by the simulation, seed 1329.
#[test]
fn damage_between_what_is_read_stops_nothing() {
    let (vm, account) = uncompressed_vm_on(mem());
    let object = vm.object(&account);
    (0..16).for_each(|page| write(&vm, &object, page, page as u8 + 1));
    evict_all(&vm);
    (4..12).for_each(|page| write(&vm, &object, page, 77));
    let reads = vm.stats().store_reads;
    let mut buf = vec![0; 16 * PAGE];
    block_on(&vm, object.read(0, &mut buf)).unwrap();
    assert_eq!(vm.stats().store_reads - reads, 2, "the strips in between are read too");
    assert_eq!((buf[0], buf[5 * PAGE], buf[15 * PAGE]), (1, 77, 16));
}

/// A store that refuses writes is left alone and tried again at growing intervals; waiters are refused only when it has
/// refused everything for long, however often it was tried (R17).
#[test]
fn errors_of_a_store_are_waited_out() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let always =
        |on| faults.write_error.store(if on { 1_000_000 } else { 0 }, std::sync::atomic::Ordering::Relaxed);
    let (vm, account) = uncompressed_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    let data = vec![3; 4000 * PAGE];
    always(true);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut writing = Box::pin(object.write(0, &data, Allowance::Normal));
    let seconds = |vm: &Pager| vm.next_alarm().unwrap_or(0) / 1_000_000_000;
    let mut failed = 0;
    while seconds(&vm) < 10 {
        assert!(writing.as_mut().poll(&mut cx).is_pending(), "refused after {} s", seconds(&vm));
        let before = vm.stats().errors;
        run_once(&vm);
        failed += vm.stats().errors - before;
    }
    assert!((8..60).contains(&failed), "{failed} tries in ten seconds");
    assert!(vm.is_store_failing());
    // It recovers: operations go on as before.
    always(false);
    block_on(&vm, writing).unwrap();
    assert!(!vm.is_store_failing());
    // It does not: then the writer gets an error.
    always(true);
    let more = vm.object(&account);
    let refused = block_on(&vm, more.write(0, &data, Allowance::Normal)).unwrap_err();
    assert_eq!(refused.1, VmError::NoMemory);
    assert!(vm.is_store_failing());
}

/// A store that keeps objects apart and has no room for one of them.
#[derive(Debug)]
struct Closed {
    store: MemStore,
    to: u32,
}

impl Space for Closed {
    fn allocate(&self, owner: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        if owner == self.to { Err(AllocError::Full) } else { self.store.allocate(owner, min, max) }
    }
    fn separates(&self) -> bool {
        true
    }
    fn free(&self, run: Run) {
        self.store.free(run);
    }
    fn maintain(&self, pressure: bool) -> bool {
        self.store.maintain(pressure)
    }
    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

impl Backend for Closed {
    fn write(&self, start: u64, buf: &[u8]) -> std::io::Result<()> {
        self.store.write(start, buf)
    }
    fn read(&self, start: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.store.read(start, buf)
    }
}

/// An object that finds no space does not block the others behind it.
#[test]
fn an_object_without_space_blocks_no_other() {
    let (vm, account) = vm_on(Some(Arc::new(Closed { store: MemStore::new(10_000), to: 0 })));
    let (closed, open) = (vm.object(&account), vm.object(&account));
    // Half of a page is noise: it compresses, but not to nothing.
    let page = |n: u64| {
        let mut word = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        std::array::from_fn::<u8, PAGE, _>(|i| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            if i < PAGE / 2 { word as u8 } else { 1 }
        })
    };
    (0..64).for_each(|n| block_on(&vm, closed.write(n * PAGE as u64, &page(n), Allowance::Normal)).unwrap());
    // It comes first in compressed memory, and the clusters that should leave lie behind it.
    for n in 0..20_000_u64 {
        let at = n * PAGE as u64;
        let written = block_on(&vm, open.write(at, &page(n), Allowance::Normal));
        assert_eq!(written, Ok(()), "page {n} of the object that has space");
    }
    assert!(vm.stats().page_outs > 10_000, "{:?}", vm.stats());
}
