//! The few services of the machine that overspill needs and safe Rust cannot express.
//!
//! - [`Arena`], [`Frame`]: page frames, handed out and given back without a lock.
//! - [`AlignedBuf`]: heap buffers that O_DIRECT accepts.
//! - [`Ring`]: several requests to a file at once (io_uring).
//! - [`FuseRing`]: requests of the kernel to a file system (FUSE over io_uring).
//! - [`process`]: settings of a pager's process in the kernel and the C library.
//!
//! Everything exported is safe to call; `unsafe` stays inside, each block with its SAFETY comment.

mod aligned;
mod arena;
mod fuse_ring;
pub mod process;
mod ring;

pub use aligned::AlignedBuf;
pub use arena::{Arena, ArenaError, FRAME, Frame, REGION_FRAMES};
pub use fuse_ring::{FuseRing, FuseSlot};
pub use ring::{Ring, RingBuf, RingDone, RingFile, RingOp, RingSize, RingWaker};
