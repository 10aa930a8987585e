//! The record of a cache: its three layers and its counters.

use std::alloc::Layout;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use crate::cpu::CpuLayer;
use crate::cpu::depot::Depot;
use crate::registry::Member;
use crate::slabs::layer::SlabLayer;
use crate::sync::Mutex;

pub use crate::slabs::layer::REAP_INTERVAL;

/// The largest buffer of each magazine size, and the size: larger objects have smaller magazines, or none.
pub(crate) const MAGAZINES: [(usize, usize); 3] = [(256, 125), (4096, 61), (32768, 5)];

pub(crate) struct Layers {
    pub(crate) cpu: CpuLayer,
    /// Objects per magazine; 0 without magazines.
    pub(crate) rounds: usize,
    pub(crate) depot: Mutex<Depot>,
    pub(crate) slabs: SlabLayer,
    pub(crate) member: Member,
    pub(crate) reaps: AtomicU64,
    /// Slow allocations, counted to guard one in so many.
    pub(crate) guards: AtomicU64,
    /// Guarded objects in use.
    pub(crate) guarded: AtomicUsize,
    /// Least time between reaps, in milliseconds.
    pub(crate) interval: AtomicU64,
    /// Layout of the allocation that holds this record and the slots behind it.
    pub(crate) whole: Layout,
}

// SAFETY: the locks, or the rules of the CPU layer, guard everything behind pointers.
unsafe impl Send for Layers {}
// SAFETY: as for Send.
unsafe impl Sync for Layers {}
