//! A slab allocator for user space: object caches as in Bonwick's papers and in x15.
//!
//! ```text
//!   cache/   Cache<T>, ObjectCache     alloc ▼                       ▲ free
//!   cpu/     magazines: one loaded per CPU (rseq) or per thread      no lock
//!            depot: filled magazines, empty magazines                one lock
//!   slabs/   runs of pages cut into equal buffers                    another, below it
//!   pages/   an [`Arena`] that imports spans from a [`PageSource`]
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

mod cache;
mod cpu;
mod debug;
mod info;
mod options;
mod pages;
mod registry;
pub mod slabinfo;
mod slabs;
mod sync;

pub use cache::blocks::Block;
pub use cache::counted::{Counted, Ref, RefCounted, RefReserve, WeakRef};
pub use cache::layers::REAP_INTERVAL;
pub use cache::object::ObjectCache;
pub use cache::reserve::Reserve;
pub use cache::typed::{Cache, Kept, Own, Slot};
pub use cpu::{CpuMode, choose_cpu_mode, cpu_mode};
pub use debug::guard::install_fault_reports;
pub use debug::inject;
pub use debug::report::{Fault, Report, set_fault_handler};
pub use debug::verify::Leak;
pub use options::Options;
pub use pages::arena::{Arena, ArenaInfo, global};
pub use pages::source::{self, PageSource};
pub use registry::reap_all;

/// Bytes of a page. Page sources hand out whole pages.
pub const PAGE: usize = 4096;

/// No memory was left, even after reaping every cache; or fault injection ([`inject`]) refused the allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory for objects")]
pub struct OutOfMemory;
