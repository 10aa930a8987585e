//! Pageout step by step, with the store's I/O held back by hand.

#![expect(clippy::cast_possible_truncation, reason = "fill bytes made of page numbers")]

use std::future::Future as _;
use std::sync::Arc;

use overspill_store::codec::Method;
use overspill_store::{AllocError, FaultyStore, MemStore, Run, Store, Usage};
use overspill_vm::testing::{
    block_on, check, evict_all, pass_time, perform, run_once, settle, stored_live_bytes,
};
use overspill_vm::{Account, Io, Object, PAGE, Signals, Space, Step, Vm, VmConfig, VmError};

fn vm_on(store: Option<Arc<dyn Store>>) -> (Vm, Arc<Account>) {
    let vm = Vm::new(&VmConfig::new(8 << 20), store).unwrap();
    (vm, Account::new(1 << 20))
}

/// A VM that packs nothing: a page takes a block and a little.
fn unpacked_vm_on(store: Option<Arc<dyn Store>>) -> (Vm, Arc<Account>) {
    let mut config = VmConfig::new(8 << 20);
    config.method = Method::None;
    (Vm::new(&config, store).unwrap(), Account::new(1 << 20))
}

fn mem() -> Option<Arc<dyn Store>> {
    Some(Arc::new(MemStore::new(10_000)))
}

fn write(vm: &Vm, object: &Object, page: u64, fill: u8) {
    block_on(vm, object.write(page * PAGE as u64, &[fill; PAGE], Space::Normal)).unwrap();
}

fn read(vm: &Vm, object: &Object, page: u64) -> Result<u8, VmError> {
    let mut buf = [0; PAGE];
    block_on(vm, object.read(page * PAGE as u64, &mut buf))?;
    assert!(buf.iter().all(|&b| b == buf[0]), "a page is written as a whole");
    Ok(buf[0])
}

fn take_write(vm: &Vm) -> Io {
    loop {
        match vm.next_io() {
            Some(io @ Io::Write(_)) => return io,
            Some(Io::Read(_)) => panic!("nobody reads"),
            None => assert_eq!(vm.pageout(), Step::Worked),
        }
    }
}

/// A page on its way out is written again, its neighbour discarded, and the chunk looked at once more: the end of
/// the first write must not pass the older bytes off as the page's (R28). Found by the simulation, seed 8.
#[test]
fn an_old_version_never_comes_back() {
    // Past compressed memory, or there would be no write under way.
    let (vm, account) = unpacked_vm_on(mem());
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

/// Readers go on while a page is written out, and see the newest version (R28).
#[test]
fn pages_stay_readable_during_writeout() {
    let (vm, account) = unpacked_vm_on(mem());
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

/// A slot dies when its page is written, discarded or given up with its object (R8, R57).
#[test]
fn slots_die_with_their_pages() {
    let (vm, account) = unpacked_vm_on(mem());
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

/// What is deleted before pressure costs no I/O (R4, R8, R9).
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

/// Damage is an error, never other bytes; writing the whole page heals it.
#[test]
fn damage_is_an_error() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = unpacked_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    write(&vm, &object, 0, 9);
    // What is behind it in its last block belongs to others: damage there would concern nobody.
    (1..16).for_each(|page| write(&vm, &object, page, 1));
    evict_all(&vm);
    faults.next_read_flips.store(4, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(read(&vm, &object, 0), Err(VmError::Lost));
    assert_eq!(read(&vm, &object, 0), Err(VmError::Lost));
    write(&vm, &object, 0, 4);
    assert_eq!(read(&vm, &object, 0), Ok(4));
    check(&vm, &[&object]);
}

/// Bad reads, one after the other, that are not the store's last word: they are apart in time, and the last one is good.
#[test]
fn passing_damage_and_errors_lose_nothing() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = unpacked_vm_on(Some(Arc::new(store)));
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
            if let Some(io) = vm.next_io() {
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

/// A strip that stays damaged takes none of its chunk's other strips with it.
#[test]
fn one_damaged_strip_loses_no_neighbour() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = unpacked_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    (0..16).for_each(|page| write(&vm, &object, page, page as u8 + 1));
    evict_all(&vm);
    // All reads of one strip; then of one request for the whole chunk, of which one strip is bad each time.
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

/// A damaged strip that nobody wants, between two that are wanted, is nobody's business: the read ends, with the right bytes.
/// Found by the simulation, seed 1329.
#[test]
fn damage_between_what_is_read_stops_nothing() {
    let (vm, account) = unpacked_vm_on(mem());
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

/// Dead pages are counted when the last chunk that shows them gives them up, whoever holds their extent for a moment: a
/// writer that overwrites in part, a reader, a batch, a fork (rule 4).
#[test]
fn dead_pages_are_counted_whoever_holds_their_extent() {
    let (vm, account) = unpacked_vm_on(mem());
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
    // In part: the write itself brings the page in, and holds its extent.
    let object = fresh();
    block_on(&vm, object.write(100, &[7; 50], Space::Normal)).unwrap();
    assert_seen(&object, 1, "a write in part");
    drop(object);

    // Beside a reader that has asked for the strip.
    let object = fresh();
    let mut buf = [0; PAGE];
    let mut reading = Box::pin(object.read(0, &mut buf));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(reading.as_mut().poll(&mut cx).is_pending());
    object.discard(4, 8).unwrap();
    block_on(&vm, reading).unwrap();
    assert_seen(&object, 4, "beside a reader");
    drop(object);

    // Of two forks: dead when the second one lets go, in either order, or goes itself.
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

/// Pages that die while their cluster is on its way to the store are dead when it gets there.
#[test]
fn pages_that_die_on_the_way_are_counted_dead() {
    let (vm, account) = unpacked_vm_on(mem());
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

/// A store that refuses writes is left alone and tried again, longer and longer; who waits for memory is refused only when
/// it has refused everything for long, and not by how often it was tried (R17).
#[test]
fn errors_of_a_store_are_waited_out() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let always =
        |on| faults.write_error.store(if on { 1_000_000 } else { 0 }, std::sync::atomic::Ordering::Relaxed);
    let (vm, account) = unpacked_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    let data = vec![3; 4000 * PAGE];
    always(true);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut writing = Box::pin(object.write(0, &data, Space::Normal));
    let seconds = |vm: &Vm| vm.next_alarm().unwrap_or(0) / 1_000_000_000;
    let mut failed = 0;
    while seconds(&vm) < 10 {
        assert!(writing.as_mut().poll(&mut cx).is_pending(), "refused after {} s", seconds(&vm));
        let before = vm.stats().errors;
        run_once(&vm);
        failed += vm.stats().errors - before;
    }
    assert!((8..60).contains(&failed), "{failed} tries in ten seconds");
    assert!(vm.is_store_failing());
    // It recovers: all goes on as if nothing had been.
    always(false);
    block_on(&vm, writing).unwrap();
    assert!(!vm.is_store_failing());
    // It does not: then the writer is told.
    always(true);
    let more = vm.object(&account);
    let refused = block_on(&vm, more.write(0, &data, Space::Normal)).unwrap_err();
    assert_eq!(refused.1, VmError::NoMemory);
    assert!(vm.is_store_failing());
}

/// A store that keeps objects apart and has no place for one of them.
#[derive(Debug)]
struct Closed {
    store: MemStore,
    to: u32,
}

impl Store for Closed {
    fn allocate(&self, min: u32, max: u32) -> Result<Run, AllocError> {
        self.store.allocate(min, max)
    }
    fn allocate_for(&self, owner: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        if owner == self.to { Err(AllocError::Full) } else { self.store.allocate(min, max) }
    }
    fn separates(&self) -> bool {
        true
    }
    fn free(&self, run: Run) {
        self.store.free(run);
    }
    fn write(&self, start: u32, buf: &[u8]) -> std::io::Result<()> {
        self.store.write(start, buf)
    }
    fn read(&self, start: u32, buf: &mut [u8]) -> std::io::Result<()> {
        self.store.read(start, buf)
    }
    fn maintain(&self, pressure: bool) -> bool {
        self.store.maintain(pressure)
    }
    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

/// An object that finds no space does not stand in the way of the others behind it.
#[test]
fn an_object_without_space_blocks_no_other() {
    let (vm, account) = vm_on(Some(Arc::new(Closed { store: MemStore::new(10_000), to: 0 })));
    let (closed, open) = (vm.object(&account), vm.object(&account));
    // Half of a page is noise: it packs, but not to nothing.
    let page = |n: u64| {
        let mut word = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        std::array::from_fn::<u8, PAGE, _>(|i| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            if i < PAGE / 2 { word as u8 } else { 1 }
        })
    };
    (0..64).for_each(|n| block_on(&vm, closed.write(n * PAGE as u64, &page(n), Space::Normal)).unwrap());
    // It comes first in compressed memory, and what should leave lies behind it.
    for n in 0..20_000_u64 {
        let at = n * PAGE as u64;
        let written = block_on(&vm, open.write(at, &page(n), Space::Normal));
        assert_eq!(written, Ok(()), "page {n} of the object that has space");
    }
    assert!(vm.stats().page_outs > 10_000, "{:?}", vm.stats());
}

/// Without a store, memory that is full is an error, and freeing some helps.
#[test]
fn full_memory_is_an_error() {
    let (vm, account) = vm_on(None);
    let object = vm.object(&account);
    let mut page = 0;
    let error = loop {
        match block_on(&vm, object.write(page * PAGE as u64, &[1; PAGE], Space::Normal)) {
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

/// The account's limit holds; the reserve is for who was promised.
#[test]
fn accounts_limit() {
    let (vm, _) = vm_on(mem());
    let account = Account::new(20);
    account.set_reserve(5);
    let object = vm.object(&account);
    let data = vec![1; 30 * PAGE];
    assert_eq!(block_on(&vm, object.write(0, &data, Space::Normal)), Err((20 * PAGE, VmError::NoSpace)));
    assert_eq!(block_on(&vm, object.write(0, &data, Space::Reserve)), Err((25 * PAGE, VmError::NoSpace)));
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
        block_on(&vm, object.write(0, &[7; 1000], Space::Normal)).unwrap();
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

/// Where all is evicted at once, memory that holds no page is full too: a write is told, not left waiting.
#[test]
fn eager_pageout_refuses_what_never_fits() {
    let mut config = VmConfig::new(8 << 20);
    (config.batch_bytes, config.batches, config.fetch_slots) = (128 << 10, 2, 2);
    config.memory_bytes = config.buffers(true) + 40 * PAGE;
    let vm = Vm::new(&config, mem()).unwrap();
    let object = vm.object(&Account::new(1000));
    vm.set_eager(true);
    let held = vm.charge(29 * PAGE).unwrap();
    assert_eq!(block_on(&vm, object.write(0, &[1; 16 * PAGE], Space::Normal)), Err((0, VmError::NoMemory)));
    drop(held);
    block_on(&vm, object.write(0, &[1; 16 * PAGE], Space::Normal)).unwrap();
}

/// Rule 4: after random overwrites and discards of ten times the data, at most a tenth of the store is dead, and what lives
/// is right.
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
    // Half of a page is noise: it packs, but not to nothing.
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
            block_on(&vm, object.write(page * PAGE as u64, &noisy(step + 1), Space::Normal)).unwrap();
            model[page as usize] = step + 1;
        }
    }
    evict_all(&vm);
    let dead = |vm: &Vm| {
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

/// A segment that could not be read when it was to be compacted is compacted when the store can be read again.
#[test]
fn compaction_comes_back_to_what_could_not_be_read() {
    let store = FaultyStore::new(Arc::new(MemStore::new(10_000)), 1);
    let faults = store.faults();
    let (vm, account) = unpacked_vm_on(Some(Arc::new(store)));
    let object = vm.object(&account);
    (0..512).for_each(|page| write(&vm, &object, page, page as u8));
    evict_all(&vm);
    // Three pages of four die, everywhere.
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

/// Reads that lie side by side in the store are one request to it.
#[test]
fn neighbouring_reads_are_joined() {
    let mut config = VmConfig::new(16 << 20);
    (config.method, config.fetch_slots) = (Method::None, 8);
    let vm = Vm::new(&config, mem()).unwrap();
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

/// A huge allocation is long work that waits for nothing: it lets others have its thread in between, or two of them would
/// keep all parked operations from theirs.
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

/// Whether pageout was asked for.
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

/// An eager pageout is asked for by every write; one that is not, only by those that run short.
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
