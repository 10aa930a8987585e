//! The description of an address, for slabinfo and reports.

use std::sync::PoisonError;

use serde::Serialize;

use super::slab::{PAGES, SLABS_STAY, Slab};

/// The description of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Whatis {
    /// The cache whose slab contains the address.
    pub cache: &'static str,
    /// Start of the object; `None` in a slab's header or unused part.
    pub object: Option<usize>,
    /// Offset of the address in the object, or else in the slab.
    pub offset: usize,
    /// True if the object is allocated or in a magazine.
    pub taken: bool,
}

/// Describes an address; `None` if it lies in no slab. Any number is safe.
pub fn whatis(address: usize) -> Option<Whatis> {
    let _stay = SLABS_STAY.write().unwrap_or_else(PoisonError::into_inner);
    let slab = PAGES.get(address)?;
    // SAFETY: slabs in the map are initialised, and stay while we hold SLABS_STAY; layers outlive their slabs.
    unsafe {
        let layer = (*slab.as_ptr()).layer.as_ref();
        let g = &layer.geometry;
        let slabs = layer.slabs.lock();
        let first = (*slab.as_ptr()).first.addr().get();
        let index = address.checked_sub(first).map(|offset| g.index(offset)).filter(|i| *i < g.objects);
        let object = index.map(|i| first + i * g.buffer + g.front).filter(|start| *start <= address);
        let into = |start: usize| address.wrapping_sub(start);
        Some(Whatis {
            cache: layer.options.name,
            object,
            offset: object.map_or_else(|| into((*slab.as_ptr()).pages.addr().get()), into),
            taken: index.is_some_and(|i| !Slab::is_free(slab, i)),
        })
        .inspect(|_| drop(slabs))
    }
}
