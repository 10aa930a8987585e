//! The few things overspill needs of the machine that cannot be said in safe Rust.
//!
//! - [`Arena`], [`Frame`]: page frames, handed out and given back without a lock.
//! - [`AlignedBuf`]: heap buffers that O_DIRECT accepts.
//! - [`Ring`]: several requests to a file at once (io_uring).
//! - [`process`]: what a pager tells the kernel and the C library about itself.
//!
//! Everything exported is safe to call; `unsafe` stays inside, each block with the reason it holds.

mod aligned;
mod arena;
pub mod process;
mod ring;

pub use aligned::AlignedBuf;
pub use arena::{Arena, ArenaError, FRAME, Frame, REGION_FRAMES};
pub use ring::{Ring, RingBuf, RingDone, RingFile, RingOp, RingSize, RingWaker};
