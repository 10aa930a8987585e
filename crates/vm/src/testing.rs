//! Runs a VM in one thread, and checks all of it: for tests and the simulation. Not part of production.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use overspill_slab::Ref;
use overspill_sys::AlignedBuf;

use crate::memory::chunk::ChunkHandle as _;
use crate::memory::records::{Place, StoreId};
use crate::object::Object;
use crate::page::{PAGE, PageSet};
use crate::pagein::requests::{FillIo, ReadIo};
use crate::pageout::daemon::Step;
use crate::pageout::requests::WriteIo;
use crate::pager::Pager;

/// Polls `f` until it is ready; while it waits, steps pageout and does the store's I/O in place.
///
/// # Panics
/// When `f` waits and nothing is left to do: a lost wake-up or a deadlock.
pub fn block_on<F: Future>(pager: &Pager, f: F) -> F::Output {
    let mut f = pin!(f);
    let mut cx = Context::from_waker(Waker::noop());
    let mut idle = 0;
    loop {
        if let Poll::Ready(value) = f.as_mut().poll(&mut cx) {
            return value;
        }
        idle = if run_once(pager) { 0 } else { idle + 1 };
        assert!(idle < 100, "an operation waits and nothing is under way: {:?}", pager.stats());
    }
}

/// Does one thing: an I/O request, or a step of pageout. Returns true if there was one.
pub fn run_once(pager: &Pager) -> bool {
    if do_io(pager) {
        return true;
    }
    match pager.pageout() {
        Step::Worked => true,
        Step::AwaitStore => {
            pager.prepare_space();
            true
        }
        Step::Rest | Step::AwaitIo | Step::Stuck => pass_time(pager),
    }
}

/// Advances time to the next alarm. Returns true if an operation waited for one.
pub fn pass_time(pager: &Pager) -> bool {
    match pager.next_alarm() {
        None => false,
        Some(at) => {
            pager.tick(at);
            true
        }
    }
}

/// Ends the requests under way, so that [`check`] finds the VM at rest.
pub fn settle(pager: &Pager) {
    while do_io(pager) {}
}

/// A request of any kind.
#[derive(Debug)]
pub enum Io {
    /// To a store.
    Write(WriteIo),
    /// To a store.
    Read(ReadIo),
    /// To a source.
    Fill(FillIo),
}

/// A request that no driver has taken, reads first.
pub fn next_io(pager: &Pager) -> Option<Io> {
    let read = pager.next_read().map(Io::Read);
    read.or_else(|| pager.next_fill().map(Io::Fill)).or_else(|| pager.next_write().map(Io::Write))
}

fn do_io(pager: &Pager) -> bool {
    match next_io(pager) {
        None => false,
        Some(io) => {
            perform(pager, io);
            true
        }
    }
}

/// Performs a request and completes it.
///
/// # Panics
/// When the request names a store that does not exist.
pub fn perform(pager: &Pager, io: Io) {
    let store = |place: Place| pager.store(place.store).expect("requests name stores that there are");
    match io {
        Io::Write(write) => {
            let place = write.place();
            let result = store(place).write(place.block, write.bytes());
            let (ticket, buf) = write.into_parts();
            pager.complete_write(ticket, buf, result);
        }
        Io::Read(read) => {
            let mut buf = AlignedBuf::new(read.len());
            let result = store(read.place()).read(read.place().block, &mut buf);
            pager.complete_read(read, result.map(|()| &buf[..]));
        }
        Io::Fill(fill) => {
            let mut buf = vec![0; FillIo::LEN];
            let result = fill.source().fill(fill.offset(), &mut buf);
            pager.complete_fill(fill, result.map(|()| &buf[..]));
        }
    }
}

/// Pages everything out, as far as possible.
pub fn evict_all(pager: &Pager) {
    pager.set_eager(true);
    for _ in 0..100_000 {
        if !run_once(pager) {
            break;
        }
    }
    pager.set_eager(false);
    pager.pageout();
}

/// Bytes of the store that pages take which some object shows, as [`VmStats::stored_live_bytes`](crate::VmStats) should count it:
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
pub fn check(pager: &Pager, objects: &[&Object]) {
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
            stored += state.clustered().count_ones() as usize;
            dirty += (state.dirty() | state.writing()).count_ones() as usize;
            for bytes in state.bytes() {
                if seen_bytes.insert(bytes.as_slice().as_ptr()) {
                    page_bytes += bytes.cost();
                }
            }
            for cluster in state.clusters() {
                if seen_extents.insert(Ref::as_ptr(&cluster.extent)) {
                    // Neighbouring extents share blocks.
                    if let Some((id, range)) = cluster.extent.stored_blocks()
                        && pager.store(id).is_some_and(|store| store.frees_parts())
                    {
                        blocks.extend(range.map(|block| (id, block)));
                    }
                    held += cluster.extent.payload_cost();
                }
            }
        });
        assert_eq!(existing, object.pages(), "an object's count of pages");
    }
    let stats = pager.stats();
    assert_eq!(pager.writes_in_flight(), 0, "check needs a VM at rest");
    assert_eq!(
        stats.charged_bytes,
        page_bytes + held + stats.metadata_bytes + stats.leased_bytes,
        "the budget is pages, as they are or packed, and metadata, nothing else: {stats:?}"
    );
    assert_eq!(stats.compressed_bytes, held, "compressed memory");
    // A limit that went down may be exceeded for as long as the stores are full.
    let most = pager.pagein.memory.budget.most();
    assert!(stats.charged_bytes <= most + stats.metadata_bytes, "over budget: {stats:?}");
    assert_eq!(stats.resident_bytes, resident * PAGE, "resident pages");
    assert_eq!(stats.dirty_bytes, dirty * PAGE, "dirty pages");
    assert_eq!(pager.pagein.memory.counters.clustered_pages(), stored, "pages in clusters");
    // When three forks give up pages one after the other, some pages are counted dead only once one fork alone is left.
    let live = stored_live_bytes(objects);
    assert!(stats.stored_live_bytes >= live, "living bytes of the store: {live} are, {stats:?}");
    check_blocks(pager, &blocks);
}

/// Every block that a store has given is held by a living extent; where runs are freed whole, by one of its run.
fn check_blocks(pager: &Pager, blocks: &HashSet<(StoreId, u64)>) {
    let mut all = 0;
    for (id, store) in pager.stores() {
        let held = blocks.iter().filter(|(of, _)| *of == id).count() as u64;
        let allocated = store.usage().allocated_blocks;
        all += allocated;
        if store.frees_parts() {
            assert_eq!(allocated, held, "blocks allocated of {id:?}");
        }
    }
    let stored = pager.stats().stored_bytes;
    assert_eq!(stored, all * overspill_store::BLOCK as u64, "blocks of the stores held");
}
