//! The threads that run a [`Pager`](overspill_vm::Pager) in production. The other driver is the simulation.
//!
//! ```text
//!   driver      starts the threads: pageout, helper, tasks, upkeep, store I/O
//!   store_io    reads and writes of stores: clients of a reactor, or threads where io_uring is refused
//!   reactor     a ring's thread: any descriptor, any request, several clients
//!   upkeep      store space, memory back to the kernel, compaction       watch  the process held to its memory
//!   spawner     parked operations as tasks                               spawn, here  waiting: as a task, or in place
//!   signals     which event wakes which thread                           idle   cores with nothing to do
//!   wake        how threads are woken, under a model checker
//! ```
#![forbid(unsafe_code)]

mod driver;
mod here;
mod idle;
mod reactor;
mod signals;
mod spawn;
mod spawner;
mod store_io;
mod upkeep;
mod wake;
mod watch;

pub use driver::{Driver, DriverOptions, StoreIo, try_ring};
pub use here::Here;
pub use reactor::{Client, Reactor};
pub use spawn::Spawn;
