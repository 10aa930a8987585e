//! Repacking: a cluster in compressed memory becomes a smaller one.
//!
//! - While a core has nothing else to do, those that have been there longest are packed again by zstd. They take a quarter
//!   to a third less then, and as much less of the store when they get there.
//! - Those that are about to leave for the store lose the pages that died meanwhile, or the store would be given what
//!   compaction must bring back (rule 4).
//!
//! A cluster keeps its turn to leave. What is read meanwhile, on its way out, or shared by a fork is left alone; so is
//! what does not get a sixteenth smaller, and either is looked at once only.

use overspill_slab::Ref;
use overspill_store::codec::{Encoder, MAX_PAGES, Method};
use smallvec::SmallVec;

use crate::PAGE;
use crate::Vm;
use crate::chunk::{Chunk, ChunkHandle as _};
use crate::extent::{EXTENT_COST, Extent, Place};
use crate::pageout::grain_of;
use crate::pageset::{PageSet, members};
use crate::sync::{Mutex, rank};
use crate::vm::Shared;

/// What repacking by zstd takes of the budget: workspaces of the compressor.
pub(crate) const REPACKER_COST: usize = 768 << 10;

/// After so many clusters in a row that gained nothing only one in so many is tried: data mostly comes in masses of a kind.
const IN_VAIN: u32 = 16;

/// Who packs again by zstd, one cluster at a time.
#[derive(Default)]
pub(crate) struct Repacker(Mutex<Work, { rank::PACKER }>);

#[derive(Default)]
struct Work {
    /// Made when it is first wanted.
    encoder: Option<Box<Encoder>>,
    /// Clusters since one gained something.
    in_vain: u32,
}

impl std::fmt::Debug for Repacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Repacker")
    }
}

impl Vm {
    /// Packs one cluster of compressed memory again, smaller. For when a core is idle. Returns whether there was one to
    /// try: never where memory is plentiful, or where repacking was not asked for ([`crate::VmConfig::repack`]).
    pub fn repack(&self) -> bool {
        let shared = &self.0;
        let Some(repacker) = &shared.repacker else { return false };
        // With an eighth free there is nothing to gain yet.
        if shared.budget.charged() < shared.budget.limit() / 8 * 7 {
            return false;
        }
        let Some(mut work) = repacker.0.try_lock() else { return false };
        let Some(next) = shared.tier().next_cold() else { return false };
        let Some((extent, chunk)) = next else { return true };
        if work.in_vain > IN_VAIN && !work.in_vain.is_multiple_of(IN_VAIN) {
            work.in_vain += 1;
            return true;
        }
        let encoder = work.encoder.get_or_insert_with(|| Box::new(Encoder::new(Method::Zstd)));
        let pages = chunk.upgrade().and_then(|chunk| replace(shared, encoder, &extent, &chunk));
        work.in_vain = if pages.is_some() { 0 } else { work.in_vain.wrapping_add(1) };
        shared.counters.repacked.add(pages.unwrap_or(0).into());
        true
    }
}

/// Puts a smaller cluster, of the living pages only, in the place of one in compressed memory. Returns how many pages those
/// are, or `None` where it did not.
pub(crate) fn replace(
    shared: &Shared,
    encoder: &mut Encoder,
    extent: &Ref<Extent>,
    chunk: &Ref<Chunk>,
) -> Option<u32> {
    let live = living(chunk, extent);
    if live == 0 {
        return None;
    }
    // Readers need these more.
    let mut slot = shared.fetches.free_slot()?;
    let (pages, packed) = slot.buffers();
    let strips = extent.strips(extent.pages());
    let len = extent.peek_held(strips.clone(), packed)?;
    let places = extent.unpack(strips, &packed[..len], pages).ok()?;
    let mut list: SmallVec<[&[u8]; MAX_PAGES]> = SmallVec::new();
    for page in members(live) {
        list.push(&pages[places.get(extent.rank(page))?]);
    }
    let (tag, count) = (shared.next_tag(), list.len());
    let (encoded, payload) = encoder.encode(tag, grain_of(live), list);
    shared.counters.copied.add_bytes(len + 2 * count * PAGE + payload.len());
    if payload.len() + extent.len() / 16 > extent.len() {
        return None;
    }
    let tier = shared.tier();
    let held = tier.hold(payload, count, chunk, shared).ok()?;
    let charge = shared.budget.charge_forced(EXTENT_COST);
    let new = Ref::new(Extent::new(Place::Memory(held), encoded, tag, live, charge)).ok()?;
    // What is replaced goes with the caller's handle, under no lock.
    let replaced = chunk.lock().replace_extent(extent, &new, || tier.replace(extent, &new));
    replaced.then_some(live.count_ones())
}

/// The pages of `extent` that the chunk still shows, if no fork shows any.
fn living(chunk: &Ref<Chunk>, extent: &Ref<Extent>) -> PageSet {
    let state = chunk.lock();
    let alone = extent.has_one_chunk();
    let cluster = state.clusters().iter().find(|cluster| alone && Ref::ptr_eq(&cluster.extent, extent));
    cluster.map_or(0, |cluster| cluster.live)
}
