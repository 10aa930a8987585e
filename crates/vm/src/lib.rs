//! Virtual memory in user space: memory objects whose pages live in memory or in stores, under one hard budget.
//!
//! Words, as in Mach and BSD: an [`Object`] is a sparse array of 4 KiB pages; 16 neighbouring pages are a chunk, the
//! leaf of the object's tree and the unit of clustering. A page is absent, resident (in a frame of the arena, or on the
//! heap if short), in a cluster (in compressed memory or in a store), in a source, or lost. When the budget runs short,
//! never before (R4), pageout encodes dirty pages, and moves the oldest clusters to a [`Store`](overspill_store::Store)
//! when compressed memory is full.
//!
//! This crate owns no thread, no clock and no blocking wait. Operations are futures, pageout is a step function, and
//! I/O is requests that a driver takes and completes: the same code runs under threads in production and under a seeded
//! scheduler in the simulation.
//!
//! ```text
//!   Vm (faces)                Pager (driver)          two handles: only the driver's can page out
//!     │                          │
//!   object ──► pagein ◄──────── pageout               an object's operations; pages back in; pages out
//!     └──────────┴── memory ─────┘                    the ground: chunks, clusters, segments, compressed memory, stores
//!   budget  lease  account  wait  page  sync          bytes, pages, tickets, timers, locks
//! ```
//! Files use files below them only (`cargo xtask test` checks it). Lock order is in `sync.rs`; the life of a page in
//! `memory/state.rs`.
#![forbid(unsafe_code)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("object offsets are u64 and lengths usize: 64-bit machines only");

mod account;
mod budget;
mod config;
mod counters;
mod error;
mod lease;
mod memory;
mod object;
mod page;
mod pagein;
mod pageout;
mod pager;
mod revoke;
mod signals;
mod source;
mod stats;
mod sync;
pub mod testing;
mod vm;
mod wait;

pub use overspill_codec::Method;

pub use account::{Account, Allowance};
pub use budget::Charge;
pub use config::VmConfig;
pub use error::{IoFailure, VmError};
pub use lease::Lease;
pub use memory::records::{Place, StoreId};
pub use object::Object;
pub use object::frames::Frames;
pub use object::lend::{Access, Lent};
pub use page::{CHUNK, CHUNK_PAGES, PAGE};
pub use pagein::requests::{FillIo, ReadIo};
pub use pageout::daemon::Step;
pub use pageout::requests::{WriteIo, WriteTicket};
pub use pager::Pager;
pub use revoke::Lessee;
pub use signals::Signals;
pub use source::Source;
pub use stats::VmStats;
pub use vm::Vm;
