//! The data to write and read: deterministic, and the same for every world.
//!
//! A page is 4 KiB: its number (8 bytes), 1,630 random bytes, and one random word repeated to the end. lz4 leaves about
//! 40% of it, that is "60% compressible". Readers check the number: fast reads of wrong pages are worth nothing.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "random numbers are folded on purpose; sizes fit, this runs on 64 bits only"
)]

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Random bytes of a page, its number included.
const RANDOM: usize = PAGE * 2 / 5;

/// Description of the data, for the report.
pub(crate) const DESCRIPTION: &str =
    "each 4 KiB page: its number, 1630 random bytes, then one random word repeated (lz4 leaves about 40%)";

/// SplitMix64: good enough for patterns, with one chain of multiplications per number.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A generator for the sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Fills `pages` (whole pages) with pages `first`, `first + 1` …; another `seed` makes another version of them.
pub(crate) fn fill(pages: &mut [u8], first: u64, seed: u64) {
    for (number, page) in (first..).zip(pages.chunks_exact_mut(PAGE)) {
        let mut rng = Rng::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        let (head, tail) = page.split_at_mut(RANDOM);
        for word in head.chunks_mut(8) {
            word.copy_from_slice(&rng.next().to_le_bytes()[..word.len()]);
        }
        head[..8].copy_from_slice(&number.to_le_bytes());
        let repeated = rng.next().to_le_bytes();
        for word in tail.chunks_mut(8) {
            word.copy_from_slice(&repeated[..word.len()]);
        }
    }
}

/// The first page number that is wrong in `pages`, which were read from page `first` on.
pub(crate) fn wrong(pages: &[u8], first: u64) -> Option<u64> {
    let mut numbered = (first..).zip(pages.chunks_exact(PAGE));
    numbered.find(|(number, page)| page[..8] != number.to_le_bytes()).map(|(number, _)| number)
}

/// Zipf's law over 1..=n, by rejection-inversion (Hörmann and Derflinger, 1996): no table takes memory in the group.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    n: u64,
    exponent: f64,
    from: f64,
    to: f64,
    surely: f64,
    stride: u64,
}

impl Zipf {
    /// A distribution over `n` (at least 1) ranks, with an exponent other than 1.
    pub(crate) fn new(n: u64, exponent: f64) -> Self {
        let mut zipf = Self { n, exponent, from: 0.0, to: 0.0, surely: 0.0, stride: stride(n) };
        zipf.from = zipf.area(1.5) - 1.0;
        zipf.to = zipf.area(n as f64 + 0.5);
        zipf.surely = 2.0 - zipf.inverse(zipf.area(2.5) - zipf.height(2.0));
        zipf
    }

    fn height(&self, x: f64) -> f64 {
        x.powf(-self.exponent)
    }

    /// The integral of `height` from 1 to x.
    fn area(&self, x: f64) -> f64 {
        let q = 1.0 - self.exponent;
        (x.powf(q) - 1.0) / q
    }

    fn inverse(&self, area: f64) -> f64 {
        let q = 1.0 - self.exponent;
        (1.0 + q * area).powf(1.0 / q)
    }

    /// A random rank; 0 is the most frequent.
    fn rank(&self, rng: &mut Rng) -> u64 {
        loop {
            let under = self.to + rng.unit() * (self.from - self.to);
            let x = self.inverse(under);
            let k = x.round().clamp(1.0, self.n as f64);
            if k - x <= self.surely || under >= self.area(k + 0.5) - self.height(k) {
                return k as u64 - 1;
            }
        }
    }

    /// A random page. Each rank has a page of its own; the frequent pages are scattered over the file.
    pub(crate) fn page(&self, rng: &mut Rng) -> u64 {
        self.scatter(self.rank(rng))
    }

    fn scatter(&self, rank: u64) -> u64 {
        (u128::from(rank) * u128::from(self.stride) % u128::from(self.n)) as u64
    }
}

/// A large step without a common factor with `n`, so that its multiples reach every page.
fn stride(n: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (1..=2_654_435_761).rev().find(|s| gcd(*s, n) == 1).unwrap_or(1)
}

/// Latencies in nanoseconds, in buckets 1/32 wide: percentiles are off by at most 3%, the maximum is exact.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    /// An empty histogram.
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; 64 * 32], count: 0, max: 0 }
    }

    /// Below 64, each number has its bucket; above, each power of two has 32 buckets.
    fn bucket(nanos: u64) -> usize {
        let shift = (63 - (nanos | 1).leading_zeros()).saturating_sub(5);
        (u64::from(shift) * 32 + (nanos >> shift)) as usize
    }

    /// The largest number of a bucket.
    fn upper(bucket: usize) -> u64 {
        let shift = (bucket as u64 / 32).saturating_sub(1);
        let top = bucket as u64 - shift * 32;
        (top << shift) + (1 << shift) - 1
    }

    /// Counts a latency.
    pub(crate) fn add(&mut self, nanos: u64) {
        let last = self.buckets.len() - 1;
        self.buckets[Self::bucket(nanos).min(last)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds the latencies of another thread.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The number of latencies.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The longest latency.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The latency that this share (0 to 1) of all did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let target = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= target && seen > 0 {
                return Self::upper(bucket).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_shrink_to_forty_percent_and_name_themselves() {
        let mut pages = vec![0; 64 * PAGE];
        fill(&mut pages, 1000, 7);
        for page in pages.chunks(PAGE) {
            let share = lz4_flex::block::compress(page).len() * 100 / PAGE;
            assert!((39..=42).contains(&share), "{share}%");
        }
        assert_eq!(wrong(&pages, 1000), None);
        assert_eq!(wrong(&pages, 1001), Some(1001));
        let mut other = vec![0; PAGE];
        fill(&mut other, 1000, 8);
        assert_ne!(&pages[..PAGE], &other[..], "another seed is another version");
        pages[5 * PAGE] ^= 1;
        assert_eq!(wrong(&pages, 1000), Some(1005));
    }

    #[test]
    fn zipf_follows_its_law() {
        let (n, exponent) = (1000, 1.1);
        let zipf = Zipf::new(n, exponent);
        let mut rng = Rng::new(1);
        let mut counts = vec![0_u64; 1000];
        let draws = 200_000;
        for _ in 0..draws {
            counts[zipf.rank(&mut rng) as usize] += 1;
        }
        let total: f64 = (1..=n).map(|k| (k as f64).powf(-exponent)).sum();
        for rank in [0, 1, 9, 99] {
            let expected = draws as f64 * ((rank + 1) as f64).powf(-exponent) / total;
            let off = (counts[rank] as f64 - expected).abs() / expected;
            assert!(off < 0.15, "rank {rank}: {} instead of {expected}", counts[rank]);
        }
    }

    #[test]
    fn scattering_reaches_every_page_once() {
        for n in [1, 2, 4096, 5000, 6 * 7 * 11] {
            let zipf = Zipf::new(n, 1.1);
            let mut seen: Vec<u64> = (0..n).map(|rank| zipf.scatter(rank)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "{n}");
        }
    }

    #[test]
    fn percentiles_are_close_and_the_maximum_exact() {
        let mut histogram = Histogram::new();
        let mut other = Histogram::new();
        for n in 1..=100_000 {
            if n % 2 == 0 { histogram.add(n) } else { other.add(n) }
        }
        histogram.merge(&other);
        assert_eq!((histogram.count(), histogram.max()), (100_000, 100_000));
        for share in [0.5, 0.99, 0.999] {
            let (found, exact) = (histogram.quantile(share) as f64, 100_000.0 * share);
            assert!((found / exact - 1.0).abs() < 0.035, "{share}: {found}");
        }
        histogram.add(u64::MAX);
        assert_eq!(histogram.max(), u64::MAX);
        assert_eq!(Histogram::new().quantile(0.99), 0);
    }

    #[test]
    fn buckets_hold_what_they_say() {
        for nanos in (0..2000).chain([1 << 20, (1 << 40) + 12345]) {
            let upper = Histogram::upper(Histogram::bucket(nanos));
            assert!(upper >= nanos && upper <= nanos + nanos / 32, "{nanos}: {upper}");
        }
    }
}
