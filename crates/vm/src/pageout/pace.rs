//! Pace: while the store is faster than the compressor, pages that writers wait for go there uncompressed.
//!
//! Both are measured while they work: the compressor's time per byte, and the store's while it has something to write.
//! Without a clock ([`crate::Signals::nanoseconds`]) everything is compressed.

use crate::sync::Mutex;

/// Threads that compress while writers wait.
const PACKERS: u64 = 2;
/// While bypassing, still compress one cluster in this many, to notice when data becomes compressible.
const PROBE: u32 = 16;
/// Fewer bytes than these are no measurement.
const ENOUGH: u64 = 256 << 10;
/// Once beyond this, old measurements count half when the next ones come.
const MANY: u64 = 32 << 20;

#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    bytes: u64,
    ns: u64,
}

impl Rate {
    fn add(&mut self, bytes: usize, ns: u64) {
        if self.bytes > MANY {
            self.bytes /= 2;
            self.ns /= 2;
        }
        self.bytes += bytes as u64;
        self.ns += ns;
    }

    fn is_known(self) -> bool {
        self.bytes >= ENOUGH && self.ns > 0
    }
}

#[derive(Debug, Default)]
struct Rates {
    packing: Rate,
    store: Rate,
    /// Writes at the store, and the time since which there is at least one.
    writes: u32,
    since: u64,
    /// Clusters sent raw since one was compressed.
    unpacked: u32,
}

/// A leaf lock.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    rates: Mutex<Rates>,
    /// Ignore the measurements.
    always_outruns: bool,
}

impl Pace {
    pub(crate) fn new(always_outruns: bool) -> Pace {
        Pace { rates: Mutex::default(), always_outruns }
    }

    /// `bytes` of pages were compressed in `ns`.
    pub(crate) fn packed(&self, bytes: usize, ns: u64) {
        self.rates.lock().packing.add(bytes, ns);
    }

    /// A write was sent to the store.
    pub(crate) fn write_begins(&self, now: u64) {
        let mut rates = self.rates.lock();
        if rates.writes == 0 {
            rates.since = now;
        }
        rates.writes += 1;
    }

    /// A write has ended: the store was busy since the last one ended, or since it got work.
    pub(crate) fn write_ends(&self, now: u64, bytes: usize) {
        let mut rates = self.rates.lock();
        rates.writes -= 1;
        let took = now.saturating_sub(rates.since);
        rates.store.add(bytes, took);
        rates.since = now;
    }

    /// True if the next cluster should go out as it is.
    pub(crate) fn skips_packing(&self) -> bool {
        let mut rates = self.rates.lock();
        let Rates { packing, store, .. } = *rates;
        // store.bytes / store.ns > PACKERS * packing.bytes / packing.ns
        let is_faster = packing.is_known()
            && store.is_known()
            && u128::from(store.bytes) * u128::from(packing.ns)
                > u128::from(PACKERS * packing.bytes) * u128::from(store.ns);
        let outruns = self.always_outruns || is_faster;
        rates.unpacked = if outruns { (rates.unpacked + 1) % PROBE } else { 0 };
        rates.unpacked != 0
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn paced(pack_ns: u64, write_ns: u64) -> Pace {
        let pace = Pace::default();
        for i in 0..8 {
            pace.packed(1 << 20, pack_ns);
            pace.write_begins(i * write_ns);
            pace.write_ends((i + 1) * write_ns, 1 << 20);
        }
        pace
    }

    #[test]
    fn the_slower_of_two_packers_and_the_store_decides() {
        assert!(!Pace::default().skips_packing());
        assert!(!paced(3_000_000, 1_600_000).skips_packing());
        assert!(paced(3_000_000, 1_400_000).skips_packing());
        // No clock.
        assert!(!paced(0, 0).skips_packing());
    }

    #[test]
    fn one_in_sixteen_is_packed_all_the_same() {
        let pace = paced(9_000_000, 1_000_000);
        assert_eq!((0..160).filter(|_| pace.skips_packing()).count(), 150);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let pace = paced(9_000_000, 1_000_000);
        (0..1000).for_each(|_| pace.packed(1 << 16, 30_000));
        assert!(!pace.skips_packing());
    }

    #[test]
    fn writes_side_by_side_count_their_time_once() {
        let pace = Pace::default();
        for i in 0..8 {
            // Two at once, a millisecond for both.
            pace.write_begins(i * 1_000_000);
            pace.write_begins(i * 1_000_000);
            pace.write_ends((i + 1) * 1_000_000, 1 << 20);
            pace.write_ends((i + 1) * 1_000_000, 1 << 20);
        }
        let store = pace.rates.lock().store;
        assert_eq!(store.bytes / store.ns, 2);
    }
}
