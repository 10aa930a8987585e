//! Recompression: a cluster in compressed memory becomes a smaller one.
//!
//! - While a core is idle, the clusters held longest are compressed again by zstd. They then take a quarter to a third
//!   less, also in the store when they get there.
//! - Clusters about to leave for the store lose the pages that died meanwhile; else compaction would have to bring
//!   the others back (iron rule 4).
//!
//! A cluster keeps its turn to leave. A cluster that is read meanwhile, on its way out, or shared by a fork is left
//! alone, as is one that would not get a sixteenth smaller; each is tried only once.

use overspill_codec::{Encoder, Grain, MAX_PAGES, Method};
use overspill_slab::Ref;
use smallvec::SmallVec;

use crate::memory::chunk::ChunkHandle as _;
use crate::memory::compressed::Cold;
use crate::memory::records::{Chunk, EXTENT_COST, Extent, Location, Payload};
use crate::page::{PAGE, PageSet, members};
use crate::pagein::service::PageIn;
use crate::sync::{Mutex, rank};

/// Bytes of the budget for zstd's workspaces.
pub(crate) const RECOMPRESSOR_COST: usize = 768 << 10;

/// After this many clusters in a row without gain, only one in as many is tried: similar data mostly comes together.
const IN_VAIN: u32 = 16;

/// Compresses clusters again by zstd, one at a time.
#[derive(Default)]
pub(crate) struct Recompressor(Mutex<Work, { rank::PACKER }>);

#[derive(Default)]
struct Work {
    /// Made at its first use.
    encoder: Option<Box<Encoder>>,
    /// Clusters since the last gain.
    in_vain: u32,
}

impl std::fmt::Debug for Recompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recompressor")
    }
}

impl Recompressor {
    /// Compresses one cluster of compressed memory again, smaller. Returns true if there was one to try: never where
    /// memory is plentiful.
    pub(crate) fn turn(&self, pagein: &PageIn) -> bool {
        let memory = &pagein.memory;
        // With an eighth free there is nothing to gain yet.
        if memory.budget.charged() < memory.budget.limit() / 8 * 7 {
            return false;
        }
        let Some(mut work) = self.0.try_lock() else { return false };
        let (extent, chunk) = match memory.compressed.next_cold() {
            Cold::Cluster(extent, chunk) => (extent, chunk),
            Cold::PassedOver => return true,
            Cold::End => return false,
        };
        if work.in_vain > IN_VAIN && !work.in_vain.is_multiple_of(IN_VAIN) {
            work.in_vain += 1;
            return true;
        }
        let encoder = work.encoder.get_or_insert_with(|| Box::new(Encoder::new(Method::Zstd)));
        let pages = chunk.upgrade().and_then(|chunk| replace(pagein, encoder, &extent, &chunk));
        work.in_vain = if pages.is_some() { 0 } else { work.in_vain.wrapping_add(1) };
        memory.counters.recompressed.add(pages.unwrap_or(0).into());
        true
    }
}

/// Replaces a cluster in compressed memory by a smaller one, of the living pages only. Returns their number, or `None`
/// if nothing was replaced.
pub(crate) fn replace(
    pagein: &PageIn,
    encoder: &mut Encoder,
    extent: &Ref<Extent>,
    chunk: &Ref<Chunk>,
) -> Option<u32> {
    let memory = &pagein.memory;
    let live = living(chunk, extent);
    if live == 0 {
        return None;
    }
    // Readers need the slots more.
    let mut slot = pagein.free_slot()?;
    let (pages, bytes) = slot.buffers();
    let strips = extent.strips(extent.pages());
    let len = extent.peek_payload(strips.clone(), bytes)?;
    let places = extent.decode(strips, &bytes[..len], pages).ok()?;
    let mut list: SmallVec<[&[u8]; MAX_PAGES]> = SmallVec::new();
    for page in members(live) {
        list.push(&pages[places.get(extent.rank(page))?]);
    }
    let (tag, count) = (memory.next_tag(), list.len());
    let (encoded, payload) = encoder.encode(tag, Grain::for_pages(list.len()), list);
    memory.counters.copied.add_bytes(len + 2 * count * PAGE + payload.len());
    if payload.len() + extent.len() / 16 > extent.len() {
        return None;
    }
    let held = Payload::new(payload, count, chunk, memory).ok()?;
    let charge = memory.budget.charge_forced(EXTENT_COST);
    let new = Ref::new(Extent::new(Location::Memory(held), encoded, tag, live, charge)).ok()?;
    // The old extent goes with the caller's handle, under no lock.
    let replaced = chunk.lock().replace_extent(extent, &new, || memory.compressed.replace(extent, &new));
    replaced.then_some(live.count_ones())
}

/// The pages of `extent` that the chunk still shows, if no fork shows any.
fn living(chunk: &Ref<Chunk>, extent: &Ref<Extent>) -> PageSet {
    let state = chunk.lock();
    let alone = extent.has_one_chunk();
    let cluster = state.clusters().iter().find(|cluster| alone && Ref::ptr_eq(&cluster.extent, extent));
    cluster.map_or(0, |cluster| cluster.live)
}
