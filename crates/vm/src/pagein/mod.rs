//! Page-in: reading pages back, from compressed memory, a store or a source, once for all readers that wait.
//!
//! ```text
//!   reader ──► PageIn::page_in ──► Fetches::begin ──► joined, done at once (compressed memory), or new:
//!              requests ──► [driver] ──► PageIn::complete_read ──► decoded once ──► every reader copies, and lets go
//! ```
//! Pages that are read are not made resident: readers copy from the decoded strips. Decoded strips live in a fixed
//! number of buffers (`slots.rs`) outside the budget's pages, so that reading never waits for writers.

pub(crate) mod fetch;
pub(crate) mod requests;
pub(crate) mod service;
pub(crate) mod slots;
