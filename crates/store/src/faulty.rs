//! A store that fails on purpose.
//!
//! Every fault is drawn from the seed and the order of calls, so a single-threaded run replays exactly. All can be
//! switched while the store is in use, through [`Faults`].
//!
//! Faults that the layers above must survive, and how:
//!
//! | fault | must become |
//! |---|---|
//! | failed write | the page stays in memory and dirty, is counted, and is written again or elsewhere (R6, R17) |
//! | torn write that reports an error | the same: nothing of it counts as written |
//! | failed read | an error for that range, never zeros; a later read may succeed |
//! | bits flipped while reading | an error for that range; the store's bytes are sound, a second read may succeed |
//! | bits flipped while writing; write torn or lost though reported done | an error when the range is read |
//! | write misdirected though reported done | an error when either range is read |
//! | read misdirected | an error for that range |
//! | full, not ready | waiting, another store, or ENOSPC to a writer that may be refused |
//!
//! Never acceptable, with any fault: wrong bytes, zeros for data, a hang, a leaked run.
//! There is no redundancy below, so a corrupted page is lost; the tests check that the loss is reported.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use overspill_sys::AlignedBuf;

use crate::{AllocError, BLOCK, Backend, Run, Space, Store, Usage};

const EIO: i32 = 5;

/// Faults to inject, none at first. Chances are in millionths of calls. Counters (`next_…`) count down and take
/// precedence over chances.
#[derive(Debug)]
pub struct Faults {
    /// Fail this many of the next writes.
    pub next_writes: AtomicU32,
    /// Fail this many of the next reads.
    pub next_reads: AtomicU32,
    /// Answer this many of the next allocations with [`AllocError::NotReady`].
    pub next_not_ready: AtomicU32,
    /// Flip a bit in this many of the next reads.
    pub next_read_flips: AtomicU32,
    /// Flip a bit in this many of the next writes.
    pub next_write_flips: AtomicU32,
    /// Chance that a write fails, having written nothing.
    pub write_error: AtomicU32,
    /// Chance that a read fails.
    pub read_error: AtomicU32,
    /// Chance that one bit of the bytes read is flipped.
    pub read_flip: AtomicU32,
    /// Chance that one bit of the bytes written is flipped.
    pub write_flip: AtomicU32,
    /// Chance that only a front part of a write reaches the store, and the write fails.
    pub torn_error: AtomicU32,
    /// Chance that only a front part of a write reaches the store (perhaps none of it), and the write succeeds.
    pub torn_silent: AtomicU32,
    /// Chance that a write goes to other blocks, and succeeds.
    pub misdirected_write: AtomicU32,
    /// Chance that a read comes from other blocks, and succeeds.
    pub misdirected_read: AtomicU32,
    /// Chance that an allocation is answered with [`AllocError::NotReady`].
    pub not_ready: AtomicU32,
    /// The store is full when this many blocks are allocated.
    pub full_after: AtomicU64,
    /// Reads that begin while this is on do not return before it is off.
    pub hang_reads: AtomicBool,
    rng: AtomicU64,
    errors: AtomicU64,
    corruptions: AtomicU64,
}

/// Counts of the faults injected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Calls that returned an injected error.
    pub errors: u64,
    /// Reads and writes that succeeded, but returned or stored wrong bytes.
    pub corruptions: u64,
}

impl Faults {
    fn new(seed: u64) -> Faults {
        let none = || AtomicU32::new(0);
        Faults {
            next_writes: none(),
            next_reads: none(),
            next_not_ready: none(),
            next_read_flips: none(),
            next_write_flips: none(),
            write_error: none(),
            read_error: none(),
            read_flip: none(),
            write_flip: none(),
            torn_error: none(),
            torn_silent: none(),
            misdirected_write: none(),
            misdirected_read: none(),
            not_ready: none(),
            full_after: AtomicU64::new(u64::MAX),
            hang_reads: AtomicBool::new(false),
            rng: AtomicU64::new(seed),
            errors: AtomicU64::new(0),
            corruptions: AtomicU64::new(0),
        }
    }

    /// Stops all faults. Bytes that were corrupted stay so.
    pub fn stop(&self) {
        let calm = Faults::new(0);
        let pairs = self.switches().into_iter().zip(calm.switches());
        pairs.for_each(|(switch, zero)| switch.store(zero.load(Ordering::Relaxed), Ordering::Relaxed));
        self.full_after.store(u64::MAX, Ordering::Relaxed);
        self.hang_reads.store(false, Ordering::Relaxed);
    }

    fn switches(&self) -> [&AtomicU32; 14] {
        [
            &self.next_writes,
            &self.next_reads,
            &self.next_not_ready,
            &self.next_read_flips,
            &self.next_write_flips,
            &self.write_error,
            &self.read_error,
            &self.read_flip,
            &self.write_flip,
            &self.torn_error,
            &self.torn_silent,
            &self.misdirected_write,
            &self.misdirected_read,
            &self.not_ready,
        ]
    }

    /// Returns the counts of faults injected so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        FaultCounts {
            errors: self.errors.load(Ordering::Relaxed),
            corruptions: self.corruptions.load(Ordering::Relaxed),
        }
    }

    /// splitmix64: good enough to choose faults by, and one atomic addition.
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut x = self.rng.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Returns a random number below `n`, or 0 if `n` is 0.
    fn below(&self, n: usize) -> usize {
        let n = u64::try_from(n).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.random() % n).unwrap_or(0)
    }

    fn chance(&self, millionths: &AtomicU32) -> bool {
        let millionths = u64::from(millionths.load(Ordering::Relaxed));
        millionths > 0 && self.random() % 1_000_000 < millionths
    }

    fn next(counter: &AtomicU32) -> bool {
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
    }

    fn error(&self) -> io::Error {
        self.errors.fetch_add(1, Ordering::Relaxed);
        io::Error::from_raw_os_error(EIO)
    }

    fn corrupted(&self) {
        self.corruptions.fetch_add(1, Ordering::Relaxed);
    }

    fn flip(&self, buf: &mut [u8]) {
        if !buf.is_empty() {
            let bit = self.below(buf.len() * 8);
            buf[bit / 8] ^= 1 << (bit % 8);
            self.corrupted();
        }
    }
}

/// Any store, with faults. The module says how the layers above must survive each.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Arc<Faults>,
}

impl std::fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FaultyStore").field(&self.faults).finish()
    }
}

impl FaultyStore {
    /// Creates a store that behaves as `inner` until faults are switched on.
    pub fn new(inner: Arc<dyn Store>, seed: u64) -> FaultyStore {
        FaultyStore { inner, faults: Arc::new(Faults::new(seed)) }
    }

    /// Returns the switches.
    #[must_use]
    pub fn faults(&self) -> Arc<Faults> {
        self.faults.clone()
    }

    /// Another place for an I/O of `len` bytes meant for `start`.
    fn elsewhere(&self, start: u64, len: usize) -> u64 {
        let blocks = self.inner.usage().allocated_blocks.max(2);
        let to = self.faults.random() % blocks;
        if to == start { to + (len / BLOCK) as u64 } else { to }
    }

    fn write_with_flip(&self, start: u64, buf: &[u8]) -> io::Result<()> {
        let mut copy = AlignedBuf::new(buf.len());
        copy.copy_from_slice(buf);
        self.faults.flip(&mut copy);
        self.inner.write(start, &copy)
    }

    /// Writes a front part, at least one block less than all.
    fn write_torn(&self, start: u64, buf: &[u8]) -> io::Result<()> {
        let blocks = self.faults.below(buf.len() / BLOCK);
        if blocks > 0 { self.inner.write(start, &buf[..blocks * BLOCK]) } else { Ok(()) }
    }
}

impl Space for FaultyStore {
    fn allocate(&self, hint: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        let f = &self.faults;
        if Faults::next(&f.next_not_ready) || f.chance(&f.not_ready) {
            return Err(AllocError::NotReady);
        }
        let limit = f.full_after.load(Ordering::Relaxed);
        if limit == u64::MAX {
            return self.inner.allocate(hint, min, max);
        }
        let room =
            u32::try_from(limit.saturating_sub(self.inner.usage().allocated_blocks)).unwrap_or(u32::MAX);
        if room < min { Err(AllocError::Full) } else { self.inner.allocate(hint, min, max.min(room)) }
    }

    fn separates(&self) -> bool {
        self.inner.separates()
    }

    fn free(&self, run: Run) {
        self.inner.free(run);
    }

    fn frees_parts(&self) -> bool {
        self.inner.frees_parts()
    }

    fn maintain(&self, pressure: bool) -> bool {
        self.inner.maintain(pressure)
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

impl Backend for FaultyStore {
    fn write(&self, start: u64, buf: &[u8]) -> io::Result<()> {
        let f = &self.faults;
        if Faults::next(&f.next_writes) || f.chance(&f.write_error) {
            return Err(f.error());
        }
        if f.chance(&f.torn_error) {
            self.write_torn(start, buf)?;
            return Err(f.error());
        }
        if f.chance(&f.torn_silent) {
            f.corrupted();
            return self.write_torn(start, buf);
        }
        if f.chance(&f.misdirected_write) {
            f.corrupted();
            // The other place may not exist; then the write is lost, which is as bad.
            let _ = self.inner.write(self.elsewhere(start, buf.len()), buf);
            return Ok(());
        }
        if !buf.is_empty() && (Faults::next(&f.next_write_flips) || f.chance(&f.write_flip)) {
            return self.write_with_flip(start, buf);
        }
        self.inner.write(start, buf)
    }

    fn read(&self, start: u64, buf: &mut [u8]) -> io::Result<()> {
        let f = &self.faults;
        while f.hang_reads.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if Faults::next(&f.next_reads) || f.chance(&f.read_error) {
            return Err(f.error());
        }
        if f.chance(&f.misdirected_read) {
            f.corrupted();
            if self.inner.read(self.elsewhere(start, buf.len()), buf).is_err() {
                buf.fill(0);
            }
            return Ok(());
        }
        self.inner.read(start, buf)?;
        if Faults::next(&f.next_read_flips) || f.chance(&f.read_flip) {
            f.flip(buf);
        }
        Ok(())
    }
}
