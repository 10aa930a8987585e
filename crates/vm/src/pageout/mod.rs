//! Pageout: choosing, cleaning and freeing pages when the budget runs short.
//!
//! ```text
//!   page queues ──► evict ──► compressed memory              clusters that compress; others while it has room; no I/O
//!                     └─────► batch ─────────┐               clusters that do not, once it is full
//!   compressed memory, over its share ──► batch ─► write_out ─► store ─► complete: a segment, or the next store
//!   recompress ◄── idle cores                compact ◄── segments much of which is dead
//! ```
//! A step of the daemon looks at a few chunks and evicts their dirty pages; when compressed memory is over its share of
//! the budget, its oldest clusters go to a store, side by side in one run, written as one request. A step waits for
//! nothing: [`daemon::Step`] says what the next one needs. Batches, their buffers and the compressor's tables exist
//! before they are needed (iron rule 1).

pub(crate) mod batch;
pub(crate) mod compact;
pub(crate) mod daemon;
mod evict;
mod pace;
pub(crate) mod recompress;
pub(crate) mod requests;
mod route;
pub(crate) mod state;
pub(crate) mod write_out;
