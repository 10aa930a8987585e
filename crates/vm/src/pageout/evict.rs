//! Eviction: a chunk's dirty pages become a cluster, in compressed memory or in a batch for a store.

use overspill_codec::{Encoded, Grain};
use overspill_slab::{Ref, RefReserve};
use smallvec::SmallVec;

use super::batch::{Batch, Item};
use super::route::{Encoding, Load, Route};
use super::state::{FULL, OVERFULL, Outcome, Packer, Pageout, SCAN};
use crate::memory::bytes::Bytes;
use crate::memory::chunk::ChunkHandle as _;
use crate::memory::queue::Victim;
use crate::memory::records::{Chunk, EXTENT_COST, Extent, Location, Payload};
use crate::page::{CHUNK_PAGES, PageSet};

/// The result of checking a chunk.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack for a moment, and eviction allocates nothing"
)]
enum Look {
    /// Its dirty pages are being written.
    Cleaning(Cleaning),
    /// Pages may have been freed, but none is to be written.
    Next,
    /// There are no more chunks.
    End,
}

/// Pages of a chunk that are being written.
struct Cleaning {
    chunk: Ref<Chunk>,
    pages: PageSet,
    bytes: SmallVec<[Bytes; CHUNK_PAGES]>,
    /// Bytes of the budget that come free with the pages' own.
    cost: usize,
}

/// An encoded cluster that is about to leave the encoder.
struct Fresh<'a> {
    chunk: Ref<Chunk>,
    pages: PageSet,
    cost: usize,
    encoded: Encoded,
    tag: u64,
    payload: &'a [u8],
}

/// The yield of one round of eviction.
#[derive(Default)]
struct Haul {
    freed: usize,
    batch: Option<Box<Batch>>,
    /// Raw clusters moved to compressed memory.
    moved: bool,
    /// Raw clusters bypass it.
    bypassed: bool,
    /// A batch was needed and none was idle.
    no_batch: bool,
}

impl Haul {
    fn bytes(&self) -> usize {
        self.freed + self.batch.as_ref().map_or(0, |batch| batch.frees)
    }
}

impl Pageout {
    /// Takes chunks in queue order and evicts their pages, until `wanted` bytes are free or on their way.
    pub(super) fn evict(&self, packer: &mut Packer, wanted: usize) -> Outcome {
        packer.refill();
        let load = Load {
            has_store: self.has_store(),
            full: self.holds_more_than(FULL),
            overfull: self.holds_more_than(OVERFULL),
            has_waiters: false,
            holds_incompressible: self.holds_incompressible,
        };
        let mut haul = Haul::default();
        for _ in 0..SCAN {
            if haul.bytes() >= wanted.max(1) {
                break;
            }
            let cleaning = match self.look(&mut haul.freed) {
                Look::Cleaning(cleaning) => cleaning,
                Look::Next => continue,
                Look::End => break,
            };
            let load = Load { has_waiters: self.memory.budget.has_waiters(), ..load };
            if !self.clean(packer, cleaning, load, &mut haul) {
                break;
            }
        }
        let unsent = if haul.no_batch { Outcome::NoBatch } else { Outcome::Nothing };
        let sent = haul.batch.map_or(unsent, |batch| self.send(batch, 0));
        match sent {
            Outcome::Done if haul.bypassed => Outcome::Bypassed,
            _ if haul.freed > 0 => Outcome::Done,
            Outcome::Nothing if haul.moved => Outcome::Moved,
            sent => sent,
        }
    }

    /// Checks the chunk whose turn it is. Clean pages and pages of zeros give up their bytes at once.
    fn look(&self, freed: &mut usize) -> Look {
        let chunk = match self.memory.queues.lock().next_victim() {
            Victim::Found(chunk) => chunk,
            Victim::Dying => return Look::Next,
            Victim::None => return Look::End,
        };
        let mut state = chunk.lock();
        // It may have lost its pages, and its position on the queues, since the queues gave it to us.
        if !chunk.is_owned() || state.is_going_out() || state.resident() == 0 {
            return Look::Next;
        }
        if std::mem::take(&mut state.referenced) && !self.memory.is_eager() {
            self.memory.queues.lock().activate(state.queue);
            return Look::Next;
        }
        *freed += state.drop_clean() + state.drop_zeros();
        let mut bytes = SmallVec::new();
        let (pages, cost) = state.begin_writing(&mut bytes);
        drop(state);
        if pages == 0 {
            return Look::Next;
        }
        Look::Cleaning(Cleaning { chunk, pages, bytes, cost })
    }

    /// Encodes pages and sends the cluster on its route. Returns false if there is no room for it
    /// anywhere: the round ends.
    fn clean(&self, packer: &mut Packer, cleaning: Cleaning, load: Load, haul: &mut Haul) -> bool {
        let Cleaning { chunk, pages, bytes, cost } = cleaning;
        let raw = load.may_bypass() && self.pace.skips_packing();
        let encoding = if raw { Encoding::Uncompressed } else { Encoding::Compressed };
        let tag = self.memory.next_tag();
        let (grain, list) = (Grain::for_pages(bytes.len()), bytes.iter().map(Bytes::as_slice));
        let driver = self.memory.driver.get();
        let began = driver.nanoseconds();
        let Packer { encoder, extents } = packer;
        let (encoded, payload) = match encoding {
            Encoding::Uncompressed => encoder.encode_uncompressed(tag, grain, list),
            Encoding::Compressed => encoder.encode(tag, grain, list),
        };
        if encoding == Encoding::Compressed {
            self.pace.packed(cost, driver.nanoseconds().saturating_sub(began));
        }
        // Copied once into the encoder, once to the destination.
        self.memory.counters.copied.add_bytes(cost + payload.len());
        drop(bytes);
        let route = load.route(payload.len(), cost);
        let fresh = Fresh { chunk, pages, cost, encoded, tag, payload };
        if matches!(route, Route::Hold | Route::HoldIncompressible)
            && let Some(freed) = self.hold(&fresh, extents)
        {
            haul.freed += freed;
            haul.moved |= route == Route::HoldIncompressible;
            return true;
        }
        self.add_to_batch(fresh, encoding, haul)
    }

    /// Moves a cluster to compressed memory. Returns the bytes freed; `None` if there is no memory for it there.
    fn hold(&self, fresh: &Fresh<'_>, extents: &mut RefReserve<Extent>) -> Option<usize> {
        if extents.left() == 0 {
            return None;
        }
        let Fresh { ref chunk, pages, encoded, tag, payload, .. } = *fresh;
        let memory = &self.memory;
        let count = pages.count_ones();
        let held = Payload::new(payload, count as usize, chunk, memory).ok()?;
        let freed = fresh.cost.saturating_sub(held.cost());
        let charge = memory.budget.charge_forced(EXTENT_COST);
        let extent = Extent::new(Location::Memory(held), encoded, tag, pages, charge);
        let extent = extents.make(extent).expect("looked at above");
        memory.compressed.insert(&extent);
        chunk.lock().finish_writing(pages, || extent);
        memory.counters.compressed.add(u64::from(count));
        memory.budget.grant();
        Some(freed)
    }

    /// Puts a cluster into the round's batch. Returns false if there is no batch or no room in it: the pages are dirty
    /// again.
    fn add_to_batch(&self, fresh: Fresh<'_>, encoding: Encoding, haul: &mut Haul) -> bool {
        let Fresh { chunk, pages, cost, encoded, tag, payload } = fresh;
        if haul.batch.is_none() && self.has_store() {
            haul.batch = self.take_idle();
            haul.no_batch = haul.batch.is_none();
        }
        let object = chunk.object();
        let fits = |batch: &&mut Box<Batch>| {
            batch.has_room_for_another(payload.len()) && self.only(batch).is_none_or(|only| only == object)
        };
        let Some(batch) = haul.batch.as_mut().filter(fits) else {
            chunk.lock().abandon_writing(pages);
            return false;
        };
        batch.push(object, Item::Fresh { chunk, pages, encoded, tag }, payload, cost);
        if encoding == Encoding::Uncompressed {
            haul.bypassed = true;
            self.memory.counters.bypassed.add(u64::from(pages.count_ones()));
        }
        true
    }
}
