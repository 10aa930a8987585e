//! A slab allocator for user space: object caches as in Bonwick's papers and in x15.
//!
//! ```text
//!   Cache<T>, ObjectCache        alloc ▼                          ▲ free
//!   cpu      magazines: one loaded per CPU (rseq) or per thread      no lock
//!   depot    filled magazines, empty magazines                       one lock
//!   slabs    runs of pages cut into equal buffers                    another, below it
//!   source   an [`Arena`] that imports spans from a [`PageSource`]
//! ```
//! - All objects of a cache have one size, alignment and constructor. The constructor runs when an object enters a
//!   slab, not when it is allocated: an object is reused in the state in which it was freed (R42).
//! - Every allocation can fail with an error; none aborts for lack of memory (R47).
//! - Caches are never merged: all memory is accounted to a named cache (R72, [`slabinfo`]).
//! - A free costs the same however many objects exist (R51).
//! - A cache created with [`Options::verify`] detects overruns, double and invalid frees, writes after free and leaks,
//!   and reports who allocated and freed the object (R48); one with [`Options::guard`] samples for them at little cost.
//!
//! Lock order: registry, depot, slabs, arena. Constructors run under none of these locks, page sources under the
//! registry's at most, fault handlers possibly under any.
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

/// Bytes of a page. Page sources hand out whole pages.
pub const PAGE: usize = 4096;

/// No memory was left, even after reaping every cache; or fault injection ([`inject`]) refused the allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory for objects")]
pub struct OutOfMemory;
