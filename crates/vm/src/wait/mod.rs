//! Waiting: for a value that another operation sends (`ticket.rs`), and for a time (`timer.rs`).

pub(crate) mod ticket;
pub(crate) mod timer;
