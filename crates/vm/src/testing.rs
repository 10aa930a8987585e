//! Running a VM in one thread, and checking all of it: for tests and the simulation. No part of production.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use overspill_slab::Ref;
use overspill_sys::AlignedBuf;

use crate::chunk::ChunkHandle as _;
use crate::pageset::PageSet;
use crate::{Io, Object, Step, Vm};

/// Polls `f` to its end; whenever it waits, pageout steps and the store's I/O is done in place.
///
/// # Panics
/// When `f` waits and nothing is left to do: a lost wake-up or a deadlock.
pub fn block_on<F: Future>(vm: &Vm, f: F) -> F::Output {
    let mut f = pin!(f);
    let mut cx = Context::from_waker(Waker::noop());
    let mut idle = 0;
    loop {
        if let Poll::Ready(value) = f.as_mut().poll(&mut cx) {
            return value;
        }
        idle = if run_once(vm) { 0 } else { idle + 1 };
        assert!(idle < 100, "an operation waits and nothing is under way: {:?}", vm.stats());
    }
}

/// Does one thing that is there to be done: an I/O request, or a step of pageout. Returns whether there was one.
pub fn run_once(vm: &Vm) -> bool {
    if do_io(vm) {
        return true;
    }
    match vm.pageout() {
        Step::Worked => true,
        Step::AwaitStore => vm.store().is_some_and(|store| {
            store.maintain(true);
            true
        }),
        Step::Rest | Step::AwaitIo | Step::Stuck => pass_time(vm),
    }
}

/// Lets time pass until somebody's has come. Returns whether anybody waited for it.
pub fn pass_time(vm: &Vm) -> bool {
    match vm.next_alarm() {
        None => false,
        Some(at) => {
            vm.tick(at);
            true
        }
    }
}

/// Ends what is under way, so that [`check`] finds the VM at rest.
pub fn settle(vm: &Vm) {
    while do_io(vm) {}
}

fn do_io(vm: &Vm) -> bool {
    match vm.next_io() {
        None => false,
        Some(io) => {
            perform(vm, io);
            true
        }
    }
}

/// Performs a request on the VM's store and completes it.
pub fn perform(vm: &Vm, io: Io) {
    let store = vm.store().expect("requests come with a store");
    match io {
        Io::Write(write) => {
            let result = store.write(write.start(), write.bytes());
            vm.complete_write(write, result);
        }
        Io::Read(read) => {
            let mut buf = AlignedBuf::new(read.len());
            let result = store.read(read.start(), &mut buf);
            vm.complete_read(read, result.map(|()| &buf[..]));
        }
    }
}

/// Pages everything out, as far as that can be done.
pub fn evict_all(vm: &Vm) {
    vm.set_eager(true);
    for _ in 0..100_000 {
        if !run_once(vm) {
            break;
        }
    }
    vm.set_eager(false);
    vm.pageout();
}

/// What the pages that some object shows take of the store, as [`VmStats::stored_live_bytes`](crate::VmStats) should count it:
/// found by looking at each.
pub fn stored_live_bytes(objects: &[&Object]) -> u64 {
    let mut shown: HashMap<_, (u64, PageSet)> = HashMap::new();
    for object in objects {
        object.for_each_chunk(|_, chunk| {
            for cluster in chunk.lock().clusters().iter().filter(|cluster| cluster.extent.is_stored()) {
                let entry = shown.entry(Ref::as_ptr(&cluster.extent));
                let (bytes, live) = entry.or_insert((0, 0));
                *live |= cluster.live;
                *bytes = cluster.extent.live_len_of(*live) as u64;
            }
        });
    }
    shown.values().map(|(bytes, _)| bytes).sum()
}

/// Checks a VM at rest (no I/O under way, no operation half done) against the objects that are all it has: every
/// chunk's invariants, every byte of the budget, every block of the store, every count.
///
/// # Panics
/// When something does not add up.
pub fn check(vm: &Vm, objects: &[&Object]) {
    let mut seen_bytes = HashSet::new();
    let mut seen_extents = HashSet::new();
    let mut seen_chunks = HashSet::new();
    let (mut page_bytes, mut held, mut resident, mut stored, mut dirty) = (0, 0, 0, 0, 0);
    let mut blocks = HashSet::new();
    for object in objects {
        let mut existing = 0;
        object.for_each_chunk(|_, chunk| {
            let state = chunk.lock();
            existing += u64::from(state.existing().count_ones());
            if !seen_chunks.insert(Ref::as_ptr(chunk)) {
                return;
            }
            state.check();
            resident += state.resident().count_ones() as usize;
            stored += state.stored().count_ones() as usize;
            dirty += (state.dirty() | state.writing()).count_ones() as usize;
            for bytes in state.bytes() {
                if seen_bytes.insert(bytes.as_slice().as_ptr()) {
                    page_bytes += bytes.cost();
                }
            }
            for cluster in state.clusters() {
                if seen_extents.insert(Ref::as_ptr(&cluster.extent)) {
                    // Neighbouring extents share blocks.
                    blocks.extend(cluster.extent.stored_blocks().into_iter().flatten());
                    held += cluster.extent.held_cost();
                }
            }
        });
        assert_eq!(existing, object.pages(), "an object's count of pages");
    }
    let stats = vm.stats();
    assert_eq!(vm.writes_in_flight(), 0, "check needs a VM at rest");
    assert_eq!(
        stats.charged_bytes,
        page_bytes + held + stats.metadata_bytes,
        "the budget is pages, as they are or packed, and metadata, nothing else: {stats:?}"
    );
    assert_eq!(stats.compressed_bytes, held, "compressed memory");
    assert!(stats.charged_bytes <= stats.limit_bytes + stats.metadata_bytes, "over budget: {stats:?}");
    assert_eq!(stats.resident_bytes, resident * crate::PAGE, "resident pages");
    assert_eq!(stats.dirty_bytes, dirty * crate::PAGE, "dirty pages");
    assert_eq!(vm.0.counters.stored_pages(), stored, "pages in clusters");
    // Of three forks that give up pages one after the other not all is seen before one alone is left.
    let live = stored_live_bytes(objects);
    assert!(stats.stored_live_bytes >= live, "living bytes of the store: {live} are, {stats:?}");
    let blocks = blocks.len() as u64;
    assert_eq!(stats.stored_bytes, blocks * overspill_store::BLOCK as u64, "blocks of the store held");
    if let Some(store) = vm.store() {
        assert_eq!(store.usage().allocated_blocks, blocks, "blocks of the store allocated");
    }
}
