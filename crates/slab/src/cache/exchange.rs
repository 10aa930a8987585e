//! The slow paths, which exchange magazines between CPU layer and depot.
//!
//! Objects move a magazine at a time: from the slabs into a magazine, through the depot, and back. Magazines are
//! allocated only on the free path; an allocation that finds none goes straight to the slabs, to avoid recursion (R43).

use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

use super::layers::{Layers, MAGAZINES};
use crate::OutOfMemory;
use crate::cpu::depot::Depot;
use crate::cpu::{Magazine, Slot, nothing};
use crate::debug::inject;
use crate::slabs::layer::{InternalPlace, SlabLayer, internal};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// Most magazines with objects in a depot; more are drained into their slabs.
const FILLED: usize = 16;
/// Most empty magazines in a depot; more are freed.
const EMPTY: usize = 16;

impl Layers {
    /// Allocates an object when the loaded magazine is empty.
    #[cold]
    pub(crate) fn alloc_slow(&self) -> Result<NonNull<u8>, OutOfMemory> {
        if !self.cpu.is_on() {
            return self.slabs.alloc();
        }
        loop {
            if let Some(object) = self.cpu.pop() {
                return Ok(object);
            }
            let mut depot = self.depot.lock();
            let Some(here) = self.cpu.here() else {
                drop(depot);
                return self.slabs.alloc();
            };
            let slot = &self.cpu.slots()[here];
            let loaded = slot.loaded.load(Ordering::Relaxed);
            let previous = slot.previous.load(Ordering::Relaxed);
            // SAFETY: the holder of the depot's lock holds the previous magazine.
            if !previous.is_null() && unsafe { Magazine::count(previous) } > 0 {
                // SAFETY: `here` is from `CpuLayer::here`, and the lock's holder holds `previous`.
                if unsafe { self.cpu.load(here, loaded, previous) } {
                    slot.previous
                        .store(if loaded == nothing() { null_mut() } else { loaded }, Ordering::Relaxed);
                }
                continue;
            }
            if let Some(filled) = depot.filled.pop() {
                // SAFETY: as above; the popped magazine is ours, and goes back if it is not loaded.
                unsafe {
                    if self.cpu.load(here, loaded, filled) {
                        depot.exchanges += 1;
                        self.retire(&mut depot, slot, loaded);
                    } else {
                        depot.filled.push(filled);
                    }
                }
                continue;
            }
            let array = if previous.is_null() {
                depot.empty.pop()
            } else {
                // SAFETY: `previous` is the slot's until it is taken out below, under the lock.
                slot.hits.fetch_add(unsafe { Magazine::take_served(previous) }, Ordering::Relaxed);
                Some(previous)
            };
            slot.previous.store(null_mut(), Ordering::Relaxed);
            drop(depot);
            return match array {
                Some(array) => self.fill(array),
                None => self.slabs.alloc(),
            };
        }
    }

    /// Makes `loaded` the slot's previous magazine, and moves the one it replaces to the depot.
    ///
    /// # Safety
    /// The caller took `loaded` out of the slot, under the depot's lock.
    unsafe fn retire(&self, depot: &mut Depot, slot: &Slot, loaded: *mut Magazine) {
        let loaded = if loaded == nothing() { null_mut() } else { loaded };
        let previous = slot.previous.swap(loaded, Ordering::Relaxed);
        if !previous.is_null() {
            // SAFETY: the slot had `previous`, and the lock is held.
            slot.hits.fetch_add(unsafe { Magazine::take_served(previous) }, Ordering::Relaxed);
            // SAFETY: the slot had `previous`, and the lock is held.
            unsafe {
                if Magazine::count(previous) > 0 {
                    depot.filled.push(previous);
                } else {
                    depot.empty.push(previous);
                }
            }
        }
    }

    /// Fills half a magazine from the slabs, returns one of the objects, and puts the magazine into the depot, where
    /// the next allocation finds it.
    fn fill(&self, array: *mut Magazine) -> Result<NonNull<u8>, OutOfMemory> {
        // SAFETY: the caller holds the magazine, which is empty; the first `count` pointers are initialised.
        unsafe {
            let half = (*array).capacity as usize / 2;
            let room = std::slice::from_raw_parts_mut(Magazine::object(array, 0), half.max(1));
            room.fill(null_mut());
            let got = self.slabs.take(room);
            Magazine::set_count(array, got.saturating_sub(1));
            let object = got.checked_sub(1).and_then(|last| NonNull::new(room[last]));
            let mut depot = self.depot.lock();
            depot.fills += u64::from(got > 0);
            if got > 1 {
                depot.filled.push(array);
            } else {
                depot.empty.push(array);
            }
            object.ok_or(OutOfMemory)
        }
    }

    /// Frees an object when the loaded magazine is full.
    ///
    /// # Safety
    /// As for [`Layers::free`].
    #[cold]
    pub(crate) unsafe fn free_slow(&self, object: NonNull<u8>) {
        if !self.cpu.is_on() {
            return self.slabs.put(&[object.as_ptr()]);
        }
        let mut fresh: Option<*mut Magazine> = None;
        loop {
            // SAFETY: the caller gives the object up.
            if unsafe { self.cpu.push(object) } {
                break;
            }
            let mut depot = self.depot.lock();
            let Some(here) = self.cpu.here() else {
                drop(depot);
                self.slabs.put(&[object.as_ptr()]);
                break;
            };
            let slot = &self.cpu.slots()[here];
            let loaded = slot.loaded.load(Ordering::Relaxed);
            let previous = slot.previous.load(Ordering::Relaxed);
            // SAFETY: the lock's holder holds `previous`, and `loaded` once it takes that place.
            unsafe {
                if !previous.is_null() && Magazine::count(previous) < (*previous).capacity as usize {
                    if self.cpu.load(here, loaded, previous) {
                        slot.previous
                            .store(if loaded == nothing() { null_mut() } else { loaded }, Ordering::Relaxed);
                    }
                    continue;
                }
            }
            let Some(empty) = fresh.take().or_else(|| depot.empty.pop()) else {
                drop(depot);
                // The lock is not held: another thread may have returned a magazine meanwhile, so we look again (R43).
                match self.new_magazine() {
                    Some(array) => fresh = Some(array),
                    None => {
                        self.slabs.put(&[object.as_ptr()]);
                        break;
                    }
                }
                continue;
            };
            // SAFETY: `empty` is ours, and the lock is held.
            unsafe {
                if self.cpu.load(here, loaded, empty) {
                    depot.exchanges += 1;
                    self.retire(&mut depot, slot, loaded);
                    self.drain_excess(depot);
                } else {
                    fresh = Some(empty);
                }
            }
        }
        if let Some(unused) = fresh {
            let mut depot = self.depot.lock();
            // SAFETY: the magazine is ours, and we give it away.
            unsafe { depot.empty.push(unused) };
            self.drain_excess(depot);
        }
    }

    /// Drains a filled magazine and frees an empty one, if the depot has too many of them.
    fn drain_excess(&self, mut depot: MutexGuard<'_, Depot>) {
        let full = (depot.filled.len() > FILLED).then(|| depot.filled.pop()).flatten();
        let spare = (depot.empty.len() > EMPTY).then(|| depot.empty.pop()).flatten();
        depot.drains += u64::from(full.is_some());
        drop(depot);
        if let Some(magazine) = full {
            // SAFETY: we popped it, so it is ours.
            unsafe {
                self.slabs.put(Magazine::objects(magazine));
                Magazine::set_count(magazine, 0);
                self.depot.lock().empty.push(magazine);
            }
        }
        if let Some(array) = spare {
            self.drop_magazine(array);
        }
    }

    /// Allocates a magazine of this cache's size; `None` for lack of memory.
    pub(crate) fn new_magazine(&self) -> Option<*mut Magazine> {
        if inject::strikes() {
            return None;
        }
        let at = magazines(self.rounds)?.alloc().ok()?.cast::<Magazine>().as_ptr();
        // SAFETY: allocated with room for `rounds` objects.
        unsafe { Magazine::init(at, self.rounds) };
        Some(at)
    }

    /// Frees an empty magazine that the caller holds.
    pub(crate) fn drop_magazine(&self, magazine: *mut Magazine) {
        if let (Some(cache), Some(at)) = (magazines(self.rounds), NonNull::new(magazine)) {
            // `new_magazine` allocated it from this cache.
            cache.put(&[at.as_ptr().cast()]);
        }
    }
}

/// The cache of magazines with so many rounds.
fn magazines(rounds: usize) -> Option<&'static SlabLayer> {
    static CACHES: [InternalPlace; 3] = [const { OnceLock::new() }; 3];
    const NAMES: [&str; 3] = ["magazine 125", "magazine 61", "magazine 5"];
    let i = MAGAZINES.iter().position(|(_, r)| *r == rounds)?;
    internal(&CACHES[i], NAMES[i], Magazine::bytes(rounds)).ok()
}
