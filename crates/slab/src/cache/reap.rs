//! Reap: returns memory that no object uses to its source (R46).
//!
//! Empty slabs are detached under the lock in constant time, and released without it. Magazines are flushed only where
//! their objects alone keep a slab from being empty.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::layers::Layers;
use crate::cpu::depot::Depot;
use crate::cpu::{Magazine, Slot, nothing};
use crate::info::CacheInfo;
use crate::registry::Listed;
use crate::slabs::lists::Slabs;
use crate::slabs::slab::{PAGES, Slab};

impl Layers {
    /// Releases empty slabs, unless the last reap is within the interval and not `force`. Returns their bytes.
    pub(crate) fn reap(&self, force: bool) -> usize {
        let interval = Duration::from_millis(self.interval.load(Ordering::Relaxed));
        let now = Instant::now();
        {
            let mut depot = self.depot.lock();
            let recent = |last: Instant| now.saturating_duration_since(last) < interval;
            if !force && depot.last_reap.is_some_and(recent) {
                return 0;
            }
            depot.last_reap = Some(now);
            self.unpin(&depot);
        }
        self.reaps.fetch_add(1, Ordering::Relaxed);
        self.trim_depot();
        self.slabs.release_empty()
    }

    /// Returns objects from magazines to their slabs where that empties the slab.
    fn unpin(&self, depot: &Depot) {
        if !self.cpu.is_on() {
            return;
        }
        let mut slabs = self.slabs.slabs.lock();
        // SAFETY: the depot's lock is held.
        unsafe {
            let alone = self.cpu.with_all_held(|| self.flush_pinning(depot, &mut slabs));
            if !alone {
                self.flush_pinning(depot, &mut slabs);
            }
        }
    }

    /// # Safety
    /// The depot's lock is held, and nobody else uses the magazines in `held`.
    unsafe fn flush_pinning(&self, depot: &Depot, slabs: &mut Slabs) {
        let each = |visit: &mut dyn FnMut(*mut Magazine)| {
            depot.filled.iter().for_each(&mut *visit);
            for Slot { previous, held, .. } in self.cpu.slots() {
                visit(held.load(Ordering::Relaxed));
                let previous = previous.load(Ordering::Relaxed);
                if !previous.is_null() {
                    visit(previous);
                }
            }
        };
        // SAFETY: by contract nobody else uses these magazines; their objects lie in living slabs of this cache.
        unsafe {
            each(&mut |magazine| {
                for object in Magazine::objects(magazine) {
                    (*slab_of(*object).as_ptr()).cached += 1;
                }
            });
            each(&mut |magazine| {
                let mut kept = 0;
                let objects = Magazine::objects(magazine);
                for i in 0..objects.len() {
                    let object = objects[i];
                    let slab = slab_of(object).as_ptr();
                    // Both fall together while a slab is flushed, so the answer is the same for all its objects.
                    if (*slab).in_use == (*slab).cached {
                        (*slab).cached -= 1;
                        let put = slabs.put(
                            self.slabs.this(),
                            &self.slabs.geometry,
                            NonNull::new_unchecked(object),
                        );
                        debug_assert!(put.is_ok());
                    } else {
                        objects[kept] = object;
                        kept += 1;
                    }
                }
                Magazine::set_count(magazine, kept);
            });
            each(&mut |magazine| {
                for object in Magazine::objects(magazine) {
                    (*slab_of(*object).as_ptr()).cached = 0;
                }
            });
        }
    }

    /// Frees the depot's magazines without objects.
    fn trim_depot(&self) {
        loop {
            let mut depot = self.depot.lock();
            // Magazines that reap has emptied are still among the filled ones.
            let empty = depot.empty.pop().or_else(|| depot.filled.pop_empty());
            drop(depot);
            match empty {
                Some(magazine) => self.drop_magazine(magazine),
                None => return,
            }
        }
    }

    /// Returns every object in a magazine to its slab, and frees the magazines.
    ///
    /// The caller is the only user of the cache: loaded magazines are taken without care for owners.
    pub(crate) fn flush(&self) {
        let mut depot = self.depot.lock();
        let slots = self.cpu.slots().iter();
        let nothing = nothing();
        let loaded = slots.flat_map(|slot| {
            [
                slot.loaded.swap(nothing, Ordering::Relaxed),
                slot.previous.swap(std::ptr::null_mut(), Ordering::Relaxed),
            ]
        });
        // SAFETY: the caller is the only user, so all of these are ours.
        unsafe {
            for magazine in loaded.filter(|m| !m.is_null() && *m != nothing) {
                depot.filled.push(magazine);
            }
            while let Some(magazine) = depot.filled.pop() {
                self.slabs.put(Magazine::objects(magazine));
                Magazine::set_count(magazine, 0);
                depot.empty.push(magazine);
            }
        }
        drop(depot);
        self.trim_depot();
    }
}

impl Listed for Layers {
    fn is_internal(&self) -> bool {
        false
    }

    fn reap(&self, force: bool) -> usize {
        self.reap(force)
    }

    fn info(&self) -> CacheInfo {
        let depot = self.depot.lock();
        let mut info = self.slabs.info();
        let in_slots = || {
            self.cpu
                .slots()
                .iter()
                .flat_map(|slot| [slot.loaded.load(Ordering::Acquire), slot.previous.load(Ordering::Acquire)])
        };
        // SAFETY: magazines are freed, and leave slots, only under the depot's lock.
        let cached: usize = depot
            .filled
            .iter()
            .chain(in_slots().filter(|m| !m.is_null()))
            .map(|magazine| unsafe { Magazine::count(magazine) })
            .sum();
        // SAFETY: as above.
        let served = |magazine: *mut Magazine| unsafe { Magazine::served(magazine) };
        let gone = self.cpu.slots().iter().map(|slot| slot.hits.load(Ordering::Relaxed));
        let hits = gone.chain(in_slots().filter(|m| !m.is_null()).map(served)).sum();
        (info.cached, info.active, info.hits) = (cached, info.active.saturating_sub(cached), hits);
        info = info.with_fragmentation();
        info.flags.guard = self.slabs.options.guard > 0;
        info.flags.magazines = self.cpu.is_on();
        info.active += self.guarded.load(Ordering::Relaxed);
        info.memory += self.whole.size();
        (info.fills, info.drains, info.exchanges) = (depot.fills, depot.drains, depot.exchanges);
        info.reaps = self.reaps.load(Ordering::Relaxed);
        info
    }
}

/// # Safety
/// `object` is of a cache, and out of its slab, which is therefore alive.
unsafe fn slab_of(object: *mut u8) -> NonNull<Slab> {
    let slab = PAGES.get(object.addr());
    debug_assert!(slab.is_some());
    // SAFETY: pages of a living slab are in the map.
    unsafe { slab.unwrap_unchecked() }
}
