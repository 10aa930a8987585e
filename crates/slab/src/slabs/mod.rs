//! The slab layer of a cache: runs of pages cut into equal buffers, a bit for each.

pub(crate) mod faults;
pub(crate) mod geometry;
pub(crate) mod layer;
pub(crate) mod lists;
pub(crate) mod records;
pub(crate) mod slab;
pub(crate) mod verified;
pub(crate) mod whatis;
