//! The VM's driver threads. Each acts only when signalled, as in production, but without a time-out that would hide a
//! lost signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use overspill_vm::testing::{Io, perform};
use overspill_vm::{Pager, Signals, Step};
use rand::Rng;
use rand::rngs::StdRng;

/// Nanoseconds of one tick of simulated time.
const TICK: u64 = 1_000_000;
/// A store's request takes at most this many ticks.
const SLOWEST: u64 = 40;

/// Signals of the VM that no thread has heard yet; and a clock.
#[derive(Debug, Default)]
struct Heard {
    pageout: AtomicBool,
    reads: AtomicBool,
    writes: AtomicBool,
    fills: AtomicBool,
    clock: AtomicU64,
}

impl Signals for Heard {
    fn pageout_wanted(&self) {
        self.pageout.store(true, Ordering::Relaxed);
    }

    fn reads_ready(&self) {
        self.reads.store(true, Ordering::Relaxed);
    }

    fn writes_ready(&self) {
        self.writes.store(true, Ordering::Relaxed);
    }

    fn fills_ready(&self) {
        self.fills.store(true, Ordering::Relaxed);
    }

    /// The simulation looks for alarms itself.
    fn alarm(&self, _at: u64) {}

    fn nanoseconds(&self) -> u64 {
        let now = self.clock.load(Ordering::Relaxed);
        // As in splitmix64.
        let x = (now ^ (now >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = x ^ (x >> 27);
        let later = now + 1 + (x >> 8) % (TICK / 50);
        self.clock.fetch_max(later, Ordering::Relaxed);
        later
    }
}

/// A thread that sleeps until it is signalled.
#[derive(Debug, Default)]
struct Thread {
    is_up: bool,
}

impl Thread {
    fn wakes(&mut self, signal: &AtomicBool) -> bool {
        self.is_up |= signal.swap(false, Ordering::Relaxed);
        self.is_up
    }

    fn may_run(&self, signal: &AtomicBool) -> bool {
        self.is_up || signal.load(Ordering::Relaxed)
    }
}

/// All driver threads.
pub(super) struct Driver {
    pager: Pager,
    heard: Arc<Heard>,
    pageout: Thread,
    reader: Thread,
    writer: Thread,
    filler: Thread,
    /// Pageout waits for space that upkeep must prepare.
    wants_space: bool,
    /// Requests at stores and sources, with the times of their completion.
    at_store: Vec<(u64, Io)>,
    /// The time, in ticks.
    pub(super) now: u64,
    /// Writes to the second store.
    pub(super) to_second: u64,
    /// Turns in which a helper evicted something.
    pub(super) helped: u64,
}

impl Driver {
    pub(super) fn new(pager: &Pager) -> Driver {
        let heard = Arc::new(Heard::default());
        pager.set_signals(heard.clone());
        Driver {
            pager: pager.clone(),
            heard,
            pageout: Thread::default(),
            reader: Thread::default(),
            writer: Thread::default(),
            filler: Thread::default(),
            wants_space: false,
            at_store: Vec::new(),
            now: 0,
            helped: 0,
            to_second: 0,
        }
    }

    /// Advances time, and fires alarms.
    pub(super) fn tick(&mut self) {
        self.now = (self.now + 1).max(self.heard.clock.load(Ordering::Relaxed) / TICK);
        self.heard.clock.fetch_max(self.now * TICK, Ordering::Relaxed);
        if self.pager.next_alarm().is_some_and(|at| at <= self.now * TICK) {
            self.pager.tick(self.now * TICK);
        }
    }

    /// Gives one thread a turn.
    pub(super) fn step(&mut self, rng: &mut StdRng) {
        match rng.random_range(0..45) {
            0..15 => self.page_out(),
            15..23 => self.take_reads(rng),
            23..28 => self.take_write(rng),
            28..30 => self.take_fill(rng),
            30..42 => self.complete_io(rng),
            42 => self.helped += u64::from(self.pager.help_pageout()),
            _ => self.keep_up(),
        }
    }

    fn page_out(&mut self) {
        if !self.pageout.wakes(&self.heard.pageout) {
            return;
        }
        match self.pager.pageout() {
            Step::Worked => {}
            Step::AwaitStore => {
                self.wants_space = true;
                self.pageout.is_up = false;
            }
            Step::Rest | Step::AwaitIo | Step::Stuck => self.pageout.is_up = false,
        }
    }

    /// Upkeep: space for pageout, if it waits for some.
    fn keep_up(&mut self) {
        if std::mem::take(&mut self.wants_space) {
            self.pager.prepare_space();
            self.heard.pageout_wanted();
        }
    }

    fn take_reads(&mut self, rng: &mut StdRng) {
        if !self.reader.wakes(&self.heard.reads) {
            return;
        }
        let mut reads = Vec::new();
        self.pager.next_reads(rng.random_range(1..64) << 12, &mut reads);
        self.reader.is_up = !reads.is_empty();
        for read in reads {
            self.at_store.push((self.now + rng.random_range(0..SLOWEST), Io::Read(read)));
        }
    }

    fn take_write(&mut self, rng: &mut StdRng) {
        if !self.writer.wakes(&self.heard.writes) {
            return;
        }
        match self.pager.next_write() {
            Some(write) => {
                self.to_second += u64::from(write.place().store.0 > 0);
                self.at_store.push((self.now + rng.random_range(0..SLOWEST), Io::Write(write)));
            }
            None => self.writer.is_up = false,
        }
    }

    fn take_fill(&mut self, rng: &mut StdRng) {
        if !self.filler.wakes(&self.heard.fills) {
            return;
        }
        match self.pager.next_fill() {
            Some(fill) => self.at_store.push((self.now + rng.random_range(0..SLOWEST), Io::Fill(fill))),
            None => self.filler.is_up = false,
        }
    }

    fn complete_io(&mut self, rng: &mut StdRng) {
        let due: Vec<usize> = (0..self.at_store.len()).filter(|&i| self.at_store[i].0 <= self.now).collect();
        if due.is_empty() {
            return;
        }
        let (_, io) = self.at_store.swap_remove(due[rng.random_range(0..due.len())]);
        perform(&self.pager, io);
    }

    /// True if any of them can do something now, or will by itself when time passes. If not, only a client can.
    pub(super) fn may_run(&self) -> bool {
        self.pageout.may_run(&self.heard.pageout)
            || self.reader.may_run(&self.heard.reads)
            || self.writer.may_run(&self.heard.writes)
            || self.filler.may_run(&self.heard.fills)
            || self.wants_space
            || !self.at_store.is_empty()
            || self.pager.next_alarm().is_some()
    }

    /// Advances time when all threads wait for it.
    pub(super) fn skip_idle_time(&mut self) {
        let busy = self.pageout.may_run(&self.heard.pageout)
            || self.reader.may_run(&self.heard.reads)
            || self.writer.may_run(&self.heard.writes)
            || self.filler.may_run(&self.heard.fills)
            || self.wants_space;
        let due = self.at_store.iter().map(|(due, _)| *due);
        let next = due.chain(self.pager.next_alarm().map(|at| at.div_ceil(TICK))).min();
        if let Some(next) = next.filter(|&next| !busy && next > self.now) {
            self.now = next - 1;
            self.tick();
        }
    }
}
