//! Virtual memory in user space: memory that may grow past RAM, into a store that its user chose.
//!
//! This crate puts the parts together: the VM, its stores and its faces, and the threads that drive them. The parts are
//! re-exported for programs that need only some.
//!
//! - [`engine`]: one VM, its stores and threads, on which faces are opened and closed.
//! - [`mount`]: a face: a tmpfs with its own pager, mounted through FUSE.
//! - [`stats`]: where every byte of such a mount is.
//! - [`control`]: the socket on which a running engine answers.
//! - [`log`]: a log that cannot fail its program.
#![forbid(unsafe_code)]

mod clock;
pub mod control;
pub mod engine;
pub mod log;
pub mod metrics;
pub mod mount;
pub mod mountinfo;
pub mod stats;

pub use overspill_mount::fusermount;
pub use overspill_runtime as runtime;
pub use overspill_slab as slab;
pub use overspill_store as store;
pub use overspill_sys::process;
pub use overspill_tmpfs as tmpfs;
pub use overspill_vm as vm;
