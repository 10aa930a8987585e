//! Pages: their sources, the arena that cuts runs from spans of them, and maps from a page to its owner.

pub(crate) mod arena;
pub(crate) mod list;
pub(crate) mod pagemap;
pub mod source;
