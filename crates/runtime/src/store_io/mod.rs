//! Reads and writes of stores.

pub(crate) mod ring;
pub(crate) mod threads;
