//! Virtual memory in user space: memory objects whose pages live in memory or in a store, under one hard budget.
//!
//! Words, as in Mach and BSD: an [`Object`] is a sparse array of 4 KiB pages; 16 neighbouring pages are a chunk, the
//! leaf of the object's tree and the unit of clustering. A page is absent, resident (in a frame of the arena, or on
//! the heap if short), packed in a cluster (in compressed memory or in the store), or lost. When the budget runs short, never
//! before (R4), pageout packs dirty pages, and moves the oldest clusters to the [`Store`](overspill_store::Store) when
//! compressed memory is full.
//!
//! This crate owns no thread, no clock and no blocking wait. Operations are futures, pageout is a step function, and
//! the store's I/O is requests that a driver takes and completes: the same code runs under threads in production and
//! under a seeded scheduler in the simulation.
//!
//! ```text
//!   object ─► tree ─► chunk ─► bytes ─► frame (sys)        what there is
//!                       │  └─► extent ─► tier │ segment    where it is when packed: compressed memory, store
//!   budget ◄────────────┘      account                     what it may cost
//!   queue ─► pageout ─► tier ─► batch ─► io ─► [driver]    how it leaves; compact brings back what keeps dead neighbours
//!            repack ◄──┘ (idle cores)
//!   fetch ─► tier, or io ─► [driver] ─► complete           how it comes back
//! ```
//!
//! Lock order is in `sync.rs`; the life of a page in `chunk.rs`.
#![forbid(unsafe_code)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("object offsets are u64 and lengths usize: 64-bit machines only");

mod account;
mod batch;
mod budget;
mod bytes;
mod chunk;
mod compact;
mod counters;
mod error;
mod extent;
mod fetch;
mod health;
mod io;
mod object;
mod pace;
mod pageout;
mod pageset;
mod queue;
mod repack;
mod sync;
pub mod testing;
mod ticket;
mod tier;
mod timer;
mod tree;
mod vm;

pub use account::{Account, Space};
pub use budget::Charge;
pub use error::VmError;
pub use io::{Io, ReadIo, WriteIo};
pub use object::Object;
pub use pageout::Step;
pub use vm::{Signals, Vm, VmConfig, VmStats};

pub(crate) use overspill_sys::Frame;

/// Bytes of a page.
pub const PAGE: usize = overspill_sys::FRAME;
/// Pages of a chunk.
pub const CHUNK_PAGES: usize = 16;
/// Bytes of a chunk.
pub const CHUNK: usize = PAGE * CHUNK_PAGES;
