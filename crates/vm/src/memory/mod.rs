//! Memory, and the records that say where each page of it is.
//!
//! The records point at each other in both directions (a chunk shows extents; a segment knows the chunks that show its
//! clusters), so `records.rs` defines them together. Each file above it holds the operations on one of them and uses
//! only files below its own:
//!
//! ```text
//!   chunk       a chunk in its trees: locked, copied, queued
//!   state       where its sixteen pages are: the life of a page
//!   compressed  compressed memory: which cluster leaves next
//!   extent      a cluster: where its payload is, and which pages of it live
//!   payload     a payload in compressed memory     segment   a run of blocks that was written in one piece
//!   ground      clock, tags, leases                backing   a store, and the blocks of it that are held
//!   records     all their definitions
//!   bytes  queue  health  states
//! ```

pub(crate) mod backing;
pub(crate) mod bytes;
pub(crate) mod chunk;
pub(crate) mod compressed;
pub(crate) mod extent;
pub(crate) mod ground;
pub(crate) mod health;
pub(crate) mod payload;
pub(crate) mod queue;
pub(crate) mod records;
pub(crate) mod segment;
pub(crate) mod state;
pub(crate) mod states;
