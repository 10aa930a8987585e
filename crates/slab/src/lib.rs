//! A slab allocator: object caches after Bonwick's and x15's, for user space.
//!
//! ```text
//!   Cache<T>, ObjectCache        alloc ▼                          ▲ free
//!   cpu      magazines: one loaded a CPU (rseq) or a thread; no lock
//!   depot    magazines with objects, magazines without           one lock
//!   slabs    runs of pages cut into equal buffers                another, below it
//!   source   an [`Arena`] that imports spans from a [`PageSource`]
//! ```
//! - Objects of a cache are alike: the same size, alignment and constructor. A constructor runs when an object enters
//!   a slab, not when it is allocated: objects come back as they were given back (R42).
//! - Every allocation can fail, and says so; nothing aborts for want of memory (R47).
//! - Caches are never merged: what fills memory has a name (R72, [`slabinfo`]).
//! - A free costs the same however many objects there are (R51).
//! - A cache created with [`Options::verify`] finds overruns, double and invalid frees, writes after free and leaks,
//!   and says who allocated and freed (R48); one with [`Options::guard`] samples for them at little cost.
//!
//! Lock order: registry, depot, slabs, arena; nothing of the caller's is ever called under one but the constructor,
//! which runs under none.
//!
//! ```
//! # fn main() -> Result<(), overspill_slab::OutOfMemory> {
//! static POINTS: overspill_slab::Cache<(u64, u64)> = overspill_slab::Cache::new("point");
//! let point = POINTS.insert((1, 2))?;
//! assert_eq!(point.1, 2);
//! # Ok(())
//! # }
//! ```

mod arena;
mod blocks;
mod cache;
mod counted;
mod cpu;
mod depot;
mod geometry;
mod guard;
pub mod inject;
mod list;
mod pagemap;
mod raw;
mod reap;
mod registry;
mod report;
mod reserve;

mod slab;
pub mod slabinfo;
pub mod source;
mod sync;
mod trace;
mod typed;
mod verify;

pub use arena::{Arena, ArenaInfo, global};
pub use blocks::Block;
pub use cache::{ObjectCache, Options};
pub use counted::{Counted, Ref, RefCounted, RefReserve, WeakRef};
pub use cpu::{CpuMode, choose_cpu_mode, cpu_mode};
pub use guard::install_fault_reports;
pub use raw::REAP_INTERVAL;
pub use registry::reap_all;
pub use report::{Fault, Report, set_fault_handler};
pub use reserve::Reserve;
pub use source::PageSource;
pub use typed::{Cache, Kept, Own, Slot};
pub use verify::Leak;

/// Bytes of a page, the grain of sources.
pub const PAGE: usize = 4096;

/// There was no memory to be had, also after reaping; or fault injection said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory for objects")]
pub struct OutOfMemory;
