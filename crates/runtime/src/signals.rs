//! Mapping of signals to the threads that they wake.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use overspill_sys::RingWaker;
use overspill_vm::{ReadIo, Signals, WriteIo};

use crate::wake::{self, Bells, Event, HeldBack, Late, READS, Requests, WRITES};

impl wake::Waker for RingWaker {
    fn wake(&self) {
        RingWaker::wake(self);
    }
}

thread_local! {
    /// Reads of the operation that this thread is just beginning.
    static HELD_BACK: RefCell<HeldBack> = RefCell::default();
}

pub(crate) struct Wakeups {
    started: Instant,
    pub(crate) pageout: Event,
    pub(crate) helper: Event,
    pub(crate) store: Event,
    pub(crate) fetch: Event,
    pub(crate) fill: Event,
    /// Where there are rings, these are woken instead of the threads that wait for `store` and `fetch`.
    pub(crate) bells: Bells<RingWaker>,
    /// Requests that a ring could not do.
    pub(crate) reads_again: Requests<Vec<ReadIo>>,
    pub(crate) writes_again: Requests<WriteIo>,
    pub(crate) upkeep: Event,
    /// Pageout waits for prepared space of the store.
    wants_space: AtomicBool,
    /// Count of lost signals.
    pub(crate) late: Late,
    pub(crate) stop: AtomicBool,
}

impl Wakeups {
    pub(crate) fn new() -> Wakeups {
        let event = Event::default;
        Wakeups {
            started: Instant::now(),
            pageout: event(),
            helper: event(),
            store: event(),
            fetch: event(),
            fill: event(),
            bells: Bells::default(),
            reads_again: Requests::default(),
            writes_again: Requests::default(),
            upkeep: event(),
            wants_space: AtomicBool::new(false),
            late: Late::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// An operation begins on this thread.
    pub(crate) fn operation_begins(&self) {
        HELD_BACK.with_borrow_mut(HeldBack::begin);
    }

    /// The operation has begun; with `help` this thread waits for it. Returns true if it should do one of its reads
    /// itself.
    pub(crate) fn operation_has_begun(&self, help: bool) -> bool {
        let (wake, own) = HELD_BACK.with_borrow_mut(|held| held.end(help));
        if wake {
            self.reads_wait();
        }
        own
    }

    /// Reads are queued: wakes a thread that takes reads.
    pub(crate) fn reads_wait(&self) {
        if self.bells.are_there() { self.bells.ring(READS) } else { self.fetch.set() }
    }

    /// Pageout needs prepared space. Preparing may wait for a disk and for memory, so upkeep does it, and reports when
    /// done.
    pub(crate) fn ask_for_space(&self) {
        self.wants_space.store(true, Ordering::Release);
        self.upkeep.set();
    }

    /// Takes pageout's request for space, if there is one.
    pub(crate) fn takes_question(&self) -> bool {
        self.wants_space.swap(false, Ordering::AcqRel)
    }

    /// Wakes all threads, to see that they should stop.
    pub(crate) fn wake_all(&self) {
        for event in [&self.pageout, &self.helper, &self.store, &self.fetch, &self.fill, &self.upkeep] {
            event.set();
        }
        self.reads_again.wake();
        self.writes_again.wake();
        self.bells.ring_all();
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Signals for Wakeups {
    fn pageout_wanted(&self) {
        self.pageout.set();
    }

    fn reads_ready(&self) {
        if !HELD_BACK.with_borrow_mut(HeldBack::hold) {
            self.reads_wait();
        }
    }

    fn writes_ready(&self) {
        if self.bells.are_there() { self.bells.ring(WRITES) } else { self.store.set() }
    }

    fn fills_ready(&self) {
        self.fill.set();
    }

    fn alarm(&self, _at: u64) {
        self.helper.set();
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
