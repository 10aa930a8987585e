//! The control socket: `overspill stats` and its like ask a running engine here.
//!
//! - [`protocol`]: requests and replies, one JSON object on a line each, with a version.
//! - [`sockets`]: the directories in which sockets lie.
//! - `server`: answers them in the engine's process. [`client`]: asks.

pub mod client;
mod connect;
pub mod protocol;
pub(crate) mod server;
pub mod sockets;
