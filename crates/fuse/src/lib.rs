//! The kernel's FUSE protocol, without a file system.
//!
//! ```text
//!   mount      a connection to the kernel, by mount(2) or fusermount3          device   its descriptor
//!   negotiate  the first request: version and features                         abi      messages as the kernel has them
//!   request    messages decoded                       reply, dirent            answers encoded
//!   transport  how requests come: classic (read(2)), uring (io_uring), fake (for tests)     channel  how replies go
//!   session    all of it together: threads that serve a file system ([`Serve`])
//! ```
#![forbid(unsafe_code)]

pub mod abi;
mod channel;
mod device;
mod dirent;
pub mod fusermount;
mod mount;
mod negotiate;
mod reply;
mod request;
mod serve;
mod session;
mod transport;

pub use device::Device;
pub use dirent::Dirents;
pub use mount::{FuseError, MountFlags, Mounted, mount};
pub use negotiate::{Granted, Wanted};
pub use reply::{Reply, entry};
pub use request::{Forgets, Malformed, Op, Request};
pub use serve::Serve;
pub use session::{Session, Threads, ring_queues};
pub use transport::fake;
