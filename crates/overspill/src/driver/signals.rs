//! Who is woken by what.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use overspill_sys::RingWaker;
use overspill_vm::{ReadIo, Signals, WriteIo};

use super::ring::Again;

/// Threads wait with a bound, so that a signal lost to a bug costs time and not the mount.
pub(super) const AT_MOST: Duration = Duration::from_millis(500);

/// A flag to wait for: set by anybody, cleared by who waits.
#[derive(Default)]
pub(super) struct Event {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self) {
        *self.lock() = true;
        self.changed.notify_one();
    }

    pub(super) fn wait(&self, at_most: Duration) {
        let guard = self.lock();
        let (mut guard, _) = self
            .changed
            .wait_timeout_while(guard, at_most, |set| !*set)
            .unwrap_or_else(PoisonError::into_inner);
        *guard = false;
    }
}

/// Threads with a ring, at most.
pub(super) const RINGS: usize = 2;

/// Kinds of requests, as bits.
pub(super) const READS: u8 = 1;
pub(super) const WRITES: u8 = 2;

/// Wakes a thread that has a ring, if it sleeps: a system call, which who does not sleep is spared.
pub(super) struct Bell {
    waker: RingWaker,
    /// It sleeps, and has room for requests of these kinds.
    waits_for: AtomicU8,
}

impl Bell {
    /// The thread is about to sleep. Who makes something ready after this rings; it must look once more itself.
    pub(super) fn sleeps(&self, room_for: u8) {
        self.waits_for.store(room_for, Ordering::SeqCst);
    }

    pub(super) fn is_up(&self) {
        self.waits_for.store(0, Ordering::SeqCst);
    }
}

/// Of all threads that have one.
#[derive(Default)]
pub(super) struct Bells([OnceLock<Bell>; RINGS]);

impl Bells {
    /// A bell for one more, if there is place.
    pub(super) fn add(&self, waker: RingWaker) -> Option<&Bell> {
        let mut bell = Some(Bell { waker, waits_for: AtomicU8::new(0) });
        self.0.iter().find_map(|place| {
            let mut taken = false;
            let here = place.get_or_init(|| {
                taken = true;
                bell.take().expect("it is put in one place")
            });
            taken.then_some(here)
        })
    }

    fn are_there(&self) -> bool {
        self.0[0].get().is_some()
    }

    /// Wakes one that sleeps and has room for a request of this kind. Where none does, all that have are about to look
    /// anyway, and the others look when they have.
    pub(super) fn ring(&self, kind: u8) {
        let wakes = |bell: &&Bell| {
            let up = |room_for: u8| (room_for & kind != 0).then_some(0);
            bell.waits_for.fetch_update(Ordering::SeqCst, Ordering::SeqCst, up).is_ok()
        };
        let sleeper = self.0.iter().filter_map(OnceLock::get).find(wakes);
        if let Some(bell) = sleeper {
            bell.waker.wake();
        }
    }

    fn ring_all(&self) {
        self.0.iter().filter_map(OnceLock::get).for_each(|bell| bell.waker.wake());
    }
}

thread_local! {
    /// Reads that the operation which this thread just begins has asked for, and nobody was woken for.
    pub(super) static HELD_BACK: Cell<Option<u32>> = const { Cell::new(None) };
}

pub(super) struct Wakeups {
    started: Instant,
    pub(super) pageout: Event,
    pub(super) helper: Event,
    pub(super) store: Event,
    pub(super) fetch: Event,
    /// Where there are rings these are woken instead of who waits for `store` and `fetch`.
    pub(super) bells: Bells,
    /// What a ring could not do.
    pub(super) reads_again: Again<Vec<ReadIo>>,
    pub(super) writes_again: Again<WriteIo>,
    pub(super) upkeep: Event,
    /// Pageout waits for prepared space of the store.
    wants_space: AtomicBool,
    pub(super) stop: AtomicBool,
}

impl Wakeups {
    pub(super) fn new() -> Wakeups {
        let event = Event::default;
        Wakeups {
            started: Instant::now(),
            pageout: event(),
            helper: event(),
            store: event(),
            fetch: event(),
            bells: Bells::default(),
            reads_again: Again::default(),
            writes_again: Again::default(),
            upkeep: event(),
            wants_space: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    /// Somebody should take reads.
    pub(super) fn reads_wait(&self) {
        if self.bells.are_there() { self.bells.ring(READS) } else { self.fetch.set() }
    }

    /// Pageout needs prepared space: preparing it may wait for a disk and for memory, so upkeep does it, and says when it has.
    pub(super) fn ask_for_space(&self) {
        self.wants_space.store(true, Ordering::Release);
        self.upkeep.set();
    }

    /// Whether pageout waits for space; takes the question.
    pub(super) fn takes_question(&self) -> bool {
        self.wants_space.swap(false, Ordering::AcqRel)
    }

    /// Wakes everybody, to see that they should stop.
    pub(super) fn wake_all(&self) {
        for event in [&self.pageout, &self.helper, &self.store, &self.fetch, &self.upkeep] {
            event.set();
        }
        self.reads_again.wake();
        self.writes_again.wake();
        self.bells.ring_all();
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Signals for Wakeups {
    fn pageout_wanted(&self) {
        self.pageout.set();
    }

    fn reads_ready(&self) {
        match HELD_BACK.get() {
            Some(reads) => HELD_BACK.set(Some(reads + 1)),
            None => self.reads_wait(),
        }
    }

    fn writes_ready(&self) {
        if self.bells.are_there() { self.bells.ring(WRITES) } else { self.store.set() }
    }

    fn alarm(&self, _at: u64) {
        self.helper.set();
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
