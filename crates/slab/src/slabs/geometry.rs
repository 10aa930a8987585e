//! How the slabs of a cache are cut: pages, buffers, header, colours.

use crate::debug::verify::Marks;
use crate::{OutOfMemory, PAGE};

/// Bytes of a slab's header before its bits.
pub(crate) const HEADER: usize = 48;

/// Bytes of a header for `objects` buffers, with a bit for each.
pub(crate) const fn header_bytes(objects: usize) -> usize {
    HEADER + objects.div_ceil(64) * size_of::<u64>()
}

/// A slab may waste one part in so many: smaller slabs fall empty, and so return to the source, more often.
const TOLERATED: usize = 8;
/// Most pages of a slab with more than one object.
const MAX_PAGES: usize = 16;
/// Most buffers of a slab whose header lies off slab.
pub(crate) const OFF_SLAB_OBJECTS: usize = 128;
/// Most buffers of a slab.
const MAX_OBJECTS: usize = 512;
/// Least alignment.
const MIN_ALIGN: usize = 8;

/// All sizes and offsets are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The size of an object that the caller asked for.
    pub(crate) size: usize,
    pub(crate) align: usize,
    /// From one buffer to the next.
    pub(crate) buffer: usize,
    /// From a buffer's start to its object: a red zone under verify.
    pub(crate) front: usize,
    pub(crate) slab: usize,
    pub(crate) objects: usize,
    /// Offset of the header in the slab; none if it lies off slab.
    pub(crate) header: Option<usize>,
    /// Number of offsets, `align` apart, at which the first buffer can start.
    pub(crate) colours: usize,
    /// `2^40 / buffer`, rounded up: a multiplication replaces a division, and is exact for offsets within a slab.
    reciprocal: u64,
}

const SHIFT: u32 = 40;

impl Geometry {
    /// The geometry for objects of this size and alignment.
    ///
    /// # Errors
    /// When the alignment is no power of two or above a page, or the size is beyond any memory.
    pub(crate) fn new(size: usize, align: usize, verify: bool) -> Result<Self, OutOfMemory> {
        if !align.is_power_of_two() || align > PAGE || size > isize::MAX as usize / 4 {
            return Err(OutOfMemory);
        }
        let align = align.max(MIN_ALIGN);
        let (front, back) = if verify { Marks::room(size, align) } else { (0, 0) };
        let buffer = (front + size.max(1) + back).next_multiple_of(align);
        let mut best: Option<(Self, usize)> = None;
        for pages in 1..=MAX_PAGES {
            let Some((candidate, lost)) = Self::cut(size, align, front, buffer, pages * PAGE) else {
                continue;
            };
            if lost * TOLERATED <= pages * PAGE {
                return Ok(candidate);
            }
            if best.as_ref().is_none_or(|(b, least)| lost * b.slab < least * candidate.slab) {
                best = Some((candidate, lost));
            }
        }
        if let Some((best, lost)) = best
            && lost < best.slab / 4
        {
            return Ok(best);
        }
        let alone = buffer.next_multiple_of(PAGE);
        Self::cut(size, align, front, buffer, alone).map(|(g, _)| g).ok_or(OutOfMemory)
    }

    /// Cuts a slab of `slab` bytes. Also returns the bytes, an off-slab header's included, that hold no buffer.
    fn cut(size: usize, align: usize, front: usize, buffer: usize, slab: usize) -> Option<(Self, usize)> {
        let off = (slab / buffer).min(OFF_SLAB_OBJECTS);
        let mut on = ((slab - HEADER) / buffer).min(MAX_OBJECTS);
        while on > 0 && on * buffer + header_bytes(on) > slab {
            on -= 1;
        }
        let lost = |objects: usize, header: usize| slab + header - objects * buffer;
        // On slab unless that loses more: it saves an allocation, and touches no other memory.
        let (objects, header, lost) = if on > 0 && lost(on, 0) <= lost(off, header_bytes(OFF_SLAB_OBJECTS)) {
            (on, Some(slab - header_bytes(on)), lost(on, 0))
        } else {
            (off, None, lost(off, header_bytes(OFF_SLAB_OBJECTS)))
        };
        if objects == 0 {
            return None;
        }
        let room = header.unwrap_or(slab) - objects * buffer;
        let geometry = Geometry {
            size,
            align,
            buffer,
            front,
            slab,
            objects,
            header,
            colours: room / align + 1,
            reciprocal: (1u64 << SHIFT).div_ceil(buffer as u64),
        };
        Some((geometry, lost))
    }

    /// Where the marks of a verified cache's objects lie.
    pub(crate) fn marks(&self) -> Marks {
        Marks { size: self.size, front: self.front }
    }

    /// The index of the buffer that contains this offset from the first one.
    #[inline]
    pub(crate) fn index(&self, offset: usize) -> usize {
        if self.objects == 1 {
            // The offset may be beyond the range in which the reciprocal is exact.
            return offset / self.buffer;
        }
        (((offset as u64) * self.reciprocal) >> SHIFT) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_and_headers_fit_and_do_not_meet() {
        for verify in [false, true] {
            for align in [1, 8, 16, 64, 512, 4096] {
                for size in
                    (0..600).chain([1000, 1024, 2048, 3000, 4096, 5000, 9000, 40_000, 300_000, 5 << 20])
                {
                    let g = Geometry::new(size, align, verify).unwrap();
                    assert!(g.objects >= 1 && g.objects <= MAX_OBJECTS, "{g:?}");
                    assert!(
                        g.buffer >= g.front + size
                            && g.buffer.is_multiple_of(g.align)
                            && g.front.is_multiple_of(g.align)
                    );
                    let end = g.objects * g.buffer + (g.colours - 1) * g.align;
                    assert!(end <= g.header.unwrap_or(g.slab), "{g:?}");
                    assert!(
                        g.header
                            .is_none_or(|at| at + header_bytes(g.objects) <= g.slab && at.is_multiple_of(8))
                    );
                    assert!(
                        g.slab.is_multiple_of(PAGE) && (g.objects == 1 || g.slab <= MAX_PAGES * PAGE),
                        "{g:?}"
                    );
                    for object in 0..g.objects {
                        for at in [object * g.buffer, object * g.buffer + g.buffer - 1] {
                            assert_eq!(g.index(at), object, "{g:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn waste_is_small() {
        for size in (8..4096).step_by(8) {
            let g = Geometry::new(size, 8, false).unwrap();
            let header = if g.header.is_none() { header_bytes(OFF_SLAB_OBJECTS) } else { 0 };
            assert!((g.slab + header - g.objects * size) * 4 <= g.slab, "{g:?}");
        }
        assert_eq!(Geometry::new(1024, 8, false).unwrap().slab, PAGE);
        assert_eq!(Geometry::new(4096, 8, false).unwrap().objects, 1);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Geometry::new(8, 3, false).is_err());
        assert!(Geometry::new(8, 0, false).is_err());
        assert!(Geometry::new(8, 8192, false).is_err());
        assert!(Geometry::new(usize::MAX, 8, true).is_err());
    }
}
