//! Repacking: clusters that have been in compressed memory longest are packed again by zstd, while a core has nothing
//! else to do. They take a quarter to a third less then, and as much less of the store when they get there.
//!
//! A cluster keeps its turn to leave. What is read meanwhile, on its way out, or shared by a fork is left alone; so is
//! what does not get an eighth smaller, and either is looked at once only.

use overspill_slab::{Ref, RefReserve};
use overspill_store::codec::{Encoder, MAX_CLUSTER, MAX_PAGES, MAX_PAYLOAD, Method};
use smallvec::SmallVec;

use crate::PAGE;
use crate::Vm;
use crate::chunk::{Chunk, ChunkHandle as _, PageSet, members};
use crate::error::VmError;
use crate::extent::{EXTENT_COST, Extent, Place};
use crate::pageout::grain_of;
use crate::sync::Mutex;
use crate::vm::Shared;

/// What repacking takes of the budget: workspaces of the compressor and two clusters.
pub(crate) const REPACKER_COST: usize = 1 << 20;

/// Its workspaces, made when they are first wanted.
#[derive(Default)]
pub(crate) struct Repacker(Mutex<Option<Box<Workspace>>>);

struct Workspace {
    encoder: Encoder,
    extents: RefReserve<Extent>,
    packed: Box<[u8]>,
    pages: Box<[u8]>,
}

impl Workspace {
    fn new() -> Result<Box<Workspace>, VmError> {
        Ok(Box::new(Workspace {
            encoder: Encoder::new(Method::Zstd),
            extents: RefReserve::new(1)?,
            packed: vec![0; MAX_PAYLOAD].into_boxed_slice(),
            pages: vec![0; MAX_CLUSTER].into_boxed_slice(),
        }))
    }
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
        let Some(mut workspace) = repacker.0.try_lock() else { return false };
        if workspace.is_none() {
            *workspace = Workspace::new().ok();
        }
        workspace.as_mut().is_some_and(|workspace| workspace.step(shared))
    }
}

impl Workspace {
    /// Returns whether there was a cluster to try.
    fn step(&mut self, shared: &Shared) -> bool {
        let tier = shared.tier();
        let Some((extent, chunk)) = tier.next_cold() else { return false };
        if self.extents.fill(1).is_err() {
            return false;
        }
        let Some(chunk) = chunk.upgrade() else { return true };
        let live = living(&chunk, &extent);
        let packed = if live == 0 { None } else { self.pack(shared, &extent, live) };
        if let Some((encoded, tag, payload)) = packed
            && payload.len() + extent.len() / 8 <= extent.len()
            && let Ok(held) = tier.hold(payload, live.count_ones() as usize, &chunk, shared)
        {
            let charge = shared.budget.charge_forced(EXTENT_COST);
            let new = Extent::new(Place::Memory(held), encoded, tag, live, charge);
            let new = self.extents.make(new).expect("one was set aside");
            if chunk.lock().replace_extent(&extent, &new, || tier.replace(&extent, &new)) {
                shared.counters.repacked.add(u64::from(live.count_ones()));
            }
        }
        // What is smaller now is dropped with `extent`.
        true
    }

    /// The living pages of a cluster, packed again; `None` when they are not there any more.
    fn pack(
        &mut self,
        shared: &Shared,
        extent: &Ref<Extent>,
        live: PageSet,
    ) -> Option<(overspill_store::codec::Encoded, u64, &[u8])> {
        let strips = extent.strips(extent.pages());
        let len = extent.peek_held(strips.clone(), &mut self.packed)?;
        let pages = extent.unpack(strips, &self.packed[..len], &mut self.pages).ok()?;
        let mut list: SmallVec<[&[u8]; MAX_PAGES]> = SmallVec::new();
        for page in members(live) {
            list.push(&self.pages[pages.get(extent.rank(page))?]);
        }
        let tag = shared.next_tag();
        let (encoded, payload) = self.encoder.encode(tag, grain_of(live), list.iter().copied());
        shared.counters.copied.add_bytes(len + list.len() * 2 * PAGE + payload.len());
        Some((encoded, tag, payload))
    }
}

/// The pages of `extent` that the chunk still shows, if nobody else shows any.
fn living(chunk: &Ref<Chunk>, extent: &Ref<Extent>) -> PageSet {
    let state = chunk.lock();
    // The chunk's handle and ours.
    let alone = Ref::handles(extent) == 2;
    let cluster = state.clusters().iter().find(|cluster| alone && Ref::ptr_eq(&cluster.extent, extent));
    cluster.map_or(0, |cluster| cluster.live)
}
