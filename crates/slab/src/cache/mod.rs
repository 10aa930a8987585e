//! Caches of objects: the three layers together, and the types through which callers use them.

pub(crate) mod alloc;
pub(crate) mod blocks;
pub(crate) mod counted;
pub(crate) mod exchange;
pub(crate) mod layers;
pub(crate) mod life;
pub(crate) mod object;
pub(crate) mod reap;
pub(crate) mod reserve;
pub(crate) mod typed;
