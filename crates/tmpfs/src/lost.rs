//! Ranges of a file that read as an error: their data was lost, and there was no room to note that page by page.

use std::ops::Range;

/// Limit on the number of ranges: beyond it, the two with the smallest gap between them are merged.
const MOST: usize = 64;

/// Ranges in ascending order; no two touch.
#[derive(Debug, Default)]
pub(crate) struct Lost(Vec<Range<u64>>);

impl Lost {
    /// Returns true if some of these bytes are lost.
    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        self.0.iter().any(|lost| lost.start < range.end && range.start < lost.end)
    }

    /// Adds a lost range.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        let at = self.0.partition_point(|lost| lost.start < range.start);
        self.0.insert(at, range);
        self.0.dedup_by(|next, before| {
            let joins = next.start <= before.end;
            if joins {
                before.end = before.end.max(next.end);
            }
            joins
        });
        while self.0.len() > MOST {
            let gap = |i: &usize| self.0[i + 1].start - self.0[*i].end;
            let Some(narrowest) = (0..self.0.len() - 1).min_by_key(gap) else { return };
            let next = self.0.remove(narrowest + 1);
            self.0[narrowest].end = next.end;
        }
    }

    /// Forgets lost bytes at and after `size`, where the file now ends.
    pub(crate) fn cut(&mut self, size: u64) {
        self.0.retain_mut(|lost| {
            lost.end = lost.end.min(size);
            !lost.is_empty()
        });
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_where_they_touch_and_are_cut_with_the_file() {
        let mut lost = Lost::default();
        for start in [40, 10, 20, 60, 30] {
            lost.add(start..start + 10);
        }
        assert_eq!(lost.0, [10..50, 60..70]);
        assert!(lost.touches(&(49..55)) && !lost.touches(&(50..60)) && !lost.touches(&(0..10)));
        lost.add(0..100);
        assert_eq!(lost.0, [0..100; 1]);
        lost.cut(50);
        assert_eq!(lost.0, [0..50; 1]);
        lost.cut(0);
        assert!(lost.0.is_empty());
    }

    #[test]
    fn very_many_take_no_more_than_the_narrowest_gaps() {
        let mut lost = Lost::default();
        for n in 0..1000_u64 {
            // Ranges in pairs, with a gap of 10 within a pair.
            let start = n / 2 * 1000 + n % 2 * 20;
            lost.add(start..start + 10);
            assert!(lost.0.len() <= MOST);
        }
        assert!(lost.touches(&(999_000 / 2 * 2 - 500_000..999_000)));
        let mut one = Lost::default();
        (0..1000).for_each(|n| one.add(n * 10..n * 10 + 10));
        assert_eq!(one.0, [0..10_000; 1]);
    }
}
