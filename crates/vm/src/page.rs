//! Pages of a chunk, and sets of them.

/// Bytes of a page.
pub const PAGE: usize = overspill_sys::FRAME;
/// Pages of a chunk.
pub const CHUNK_PAGES: usize = 16;
/// Bytes of a chunk.
pub const CHUNK: usize = PAGE * CHUNK_PAGES;

/// A set of pages of a chunk, one bit each.
pub(crate) type PageSet = u16;

/// Pages `from..to` of a chunk.
pub(crate) fn pages(from: usize, to: usize) -> PageSet {
    debug_assert!(from <= to && to <= CHUNK_PAGES);
    let below = |n: usize| if n == CHUNK_PAGES { PageSet::MAX } else { (1 << n) - 1 };
    below(to) & !below(from)
}

/// The page numbers of a set, ascending.
pub(crate) fn members(mut set: PageSet) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = set.trailing_zeros() as usize;
        (next < CHUNK_PAGES).then(|| set &= set - 1)?;
        Some(next)
    })
}
