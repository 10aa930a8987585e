//! Waking of the driver's threads, apart from their work: so that all of it runs under a model checker, where a lost
//! wake-up is a deadlock (`cargo test -p overspill-runtime --features shuttle --lib wake`).
//!
//! - [`Event`]: a flag that one thread waits for.
//! - [`Requests`]: a queue of requests with an event.
//! - [`Bells`] and [`serve`]: threads that wait in the kernel for completions, each with room for some requests, and
//!   are rung there when there are new ones.
//! - [`HeldBack`]: signals held back until it is known if a thread must be woken for them.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

use imp::atomic::{AtomicU8, Ordering};
use imp::{Condvar, Mutex, MutexGuard, PoisonError};

#[cfg(feature = "shuttle")]
use shuttle::sync as imp;
#[cfg(not(feature = "shuttle"))]
use std::sync as imp;

/// Threads wait with a bound, so that a signal lost to a bug costs time and not the mount.
pub(crate) const AT_MOST: Duration = Duration::from_millis(500);

/// A flag to wait for: any thread sets it, the waiting thread clears it.
#[derive(Default)]
pub(crate) struct Event {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self) {
        *self.lock() = true;
        self.changed.notify_one();
    }

    /// Waits until it is set, at most `at_most`. Returns true if it was set.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let guard = self.lock();
        let (mut guard, _) = self
            .changed
            .wait_timeout_while(guard, at_most, |set| !*set)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *guard)
    }

    /// Waits until it is set, at most `at_most`, and leaves it set. Returns true if it is.
    pub(crate) fn becomes_set(&self, at_most: Duration) -> bool {
        let (guard, _) = self
            .changed
            .wait_timeout_while(self.lock(), at_most, |set| !*set)
            .unwrap_or_else(PoisonError::into_inner);
        *guard
    }
}

/// Signals may come this late: a thread signals after it has made the work.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// Counts the times that a thread found work, after its longest wait, that no thread had woken it for: each is a lost
/// signal.
#[derive(Default)]
pub(crate) struct Late(std::sync::atomic::AtomicU64);

impl Late {
    /// A thread has waited (`woken`: and was woken), and then found work or not.
    pub(crate) fn look(&self, woken: bool, found: bool, event: &Event) {
        if !woken && found && !event.becomes_set(ON_ITS_WAY) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Requests for one thread.
pub(crate) struct Requests<T> {
    requests: Mutex<VecDeque<T>>,
    added: Event,
}

impl<T> Default for Requests<T> {
    fn default() -> Self {
        Requests { requests: Mutex::default(), added: Event::default() }
    }
}

impl<T> Requests<T> {
    pub(crate) fn push(&self, request: T) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push_back(request);
        self.added.set();
    }

    fn take(&self) -> Option<T> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// The next request. Waits a while if there is none, and may then return `None`.
    pub(crate) fn next(&self, late: &Late) -> Option<T> {
        if let Some(next) = self.take() {
            return Some(next);
        }
        let woken = self.added.wait(AT_MOST);
        let next = self.take();
        late.look(woken, next.is_some(), &self.added);
        next
    }

    pub(crate) fn wake(&self) {
        self.added.set();
    }
}

/// Kinds of requests, as bits.
pub(crate) const READS: u8 = 1;
pub(crate) const WRITES: u8 = 2;
/// All kinds.
pub(crate) const KINDS: u8 = READS | WRITES;

/// Wakes a thread that waits in the kernel.
pub(crate) trait Waker: Send + Sync {
    fn wake(&self);
}

/// Wakes a thread that serves requests, if it sleeps: a thread that is awake costs no system call.
pub(crate) struct Bell<W> {
    waker: W,
    /// Kinds of requests that the thread, asleep, has room for; 0 while it is awake.
    waits_for: AtomicU8,
}

impl<W: Waker> Bell<W> {
    /// The thread is about to sleep. A thread that makes a request after this rings; the sleeper must check once more
    /// itself.
    fn sleeps(&self, room_for: u8) {
        self.waits_for.store(room_for, Ordering::SeqCst);
    }

    /// The thread is awake.
    pub(crate) fn is_up(&self) {
        self.waits_for.store(0, Ordering::SeqCst);
    }
}

/// The most threads that serve requests.
pub(crate) const RINGS: usize = 2;

/// The bells of all serving threads.
pub(crate) struct Bells<W>([OnceLock<Bell<W>>; RINGS]);

impl<W> Default for Bells<W> {
    fn default() -> Self {
        Bells(std::array::from_fn(|_| OnceLock::new()))
    }
}

impl<W: Waker> Bells<W> {
    /// A bell for one more thread, if there is room.
    pub(crate) fn add(&self, waker: W) -> Option<&Bell<W>> {
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

    pub(crate) fn are_there(&self) -> bool {
        self.0[0].get().is_some()
    }

    /// Wakes a sleeping thread with room for a request of this kind. If none sleeps, threads with room are about to
    /// check anyway, and the others check when they have room.
    pub(crate) fn ring(&self, kind: u8) {
        let wakes = |bell: &&Bell<W>| {
            let up = |room_for: u8| (room_for & kind != 0).then_some(0);
            bell.waits_for.fetch_update(Ordering::SeqCst, Ordering::SeqCst, up).is_ok()
        };
        let sleeper = self.0.iter().filter_map(OnceLock::get).find(wakes);
        if let Some(bell) = sleeper {
            bell.waker.wake();
        }
    }

    pub(crate) fn ring_all(&self) {
        self.0.iter().filter_map(OnceLock::get).for_each(|bell| bell.waker.wake());
    }
}

/// The work of a thread that serves requests.
pub(crate) trait Worker {
    /// Takes requests, as long as it has room for them.
    fn begin(&mut self);
    /// Kinds of requests that no thread has taken.
    fn ready(&self) -> u8;
    /// Kinds that it has room for.
    fn room(&self) -> u8;
    /// Waits until a request of its own has ended, or it is woken; calls `is_up` before it deals with either.
    fn wait(&mut self, is_up: &dyn Fn());
}

/// Serves requests until it is time to stop.
pub(crate) fn serve<W: Waker>(
    bells: &Bells<W>,
    bell: &Bell<W>,
    worker: &mut impl Worker,
    stopped: impl Fn() -> bool,
) {
    while !stopped() {
        worker.begin();
        // Another thread takes requests for which this one has no room.
        for kind in [READS, WRITES] {
            if worker.ready() & kind != 0 {
                bells.ring(kind);
            }
        }
        // A thread that makes a request ready after this rings; a request that was ready before is seen here.
        bell.sleeps(worker.room());
        if worker.ready() & worker.room() == 0 {
            worker.wait(&|| bell.is_up());
        }
        bell.is_up();
    }
}

/// Count of reads by the operation that a thread is just beginning, for which no thread was woken.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct HeldBack(Option<u32>);

impl HeldBack {
    /// An operation begins.
    pub(crate) fn begin(&mut self) {
        self.0 = Some(0);
    }

    /// A read was requested. False if it is not held back: a thread must be woken for it now.
    pub(crate) fn hold(&mut self) -> bool {
        match &mut self.0 {
            Some(reads) => {
                *reads += 1;
                true
            }
            None => false,
        }
    }

    /// The operation has begun. Returns if a thread must be woken for its reads, and if this thread should do one
    /// itself, which it does when it waits for the operation (`help`).
    pub(crate) fn end(&mut self, help: bool) -> (bool, bool) {
        let reads = self.0.take().unwrap_or(0);
        (reads > u32::from(help), help && reads > 0)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn reads_held_back_are_done_or_somebody_is_woken() {
        let mut held = HeldBack::default();
        assert!(!held.hold(), "outside of an operation nothing is held back");
        for (reads, help, expected) in [
            (0, false, (false, false)),
            (0, true, (false, false)),
            (1, false, (true, false)),
            (1, true, (false, true)),
            (2, true, (true, true)),
            (3, false, (true, false)),
        ] {
            held.begin();
            assert!((0..reads).all(|_| held.hold()));
            assert_eq!(held.end(help), expected, "{reads} reads, help {help}");
            assert!(!held.hold());
        }
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod model {
    use super::*;
    use shuttle::rand::{Rng, thread_rng};
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::sync::Arc;
    use shuttle::sync::atomic::{AtomicBool, AtomicUsize};
    use shuttle::{Config, Runner, thread};

    fn explore(scenario: fn()) {
        let mut config = Config::new();
        config.silence_warnings = true;
        Runner::new(RandomScheduler::new(20_000), config.clone()).run(scenario);
        Runner::new(PctScheduler::new(3, 20_000), config).run(scenario);
    }

    /// A store, as its serving threads see it: requests by kind, and the number that have ended.
    #[derive(Default)]
    struct Store {
        queued: Mutex<[usize; 2]>,
        ended: AtomicUsize,
        all_ended: Event,
        stop: AtomicBool,
        /// The first request ends only when all others have.
        first_hangs: bool,
        taken: AtomicUsize,
        kernels: Mutex<Vec<Kernel>>,
    }

    const EACH: [u8; 2] = [READS, WRITES];

    impl Store {
        fn take(&self, kind: usize) -> bool {
            let mut queued = self.queued.lock().unwrap();
            let there_is = queued[kind] > 0;
            queued[kind] -= usize::from(there_is);
            there_is
        }
    }

    /// A thread sleeps on it in the kernel; a wake-up counts both before and after it went to sleep.
    #[derive(Default, Clone)]
    struct Kernel(Arc<Event>);

    impl Waker for Kernel {
        fn wake(&self) {
            self.0.set();
        }
    }

    /// A thread with room for some requests of each kind.
    struct Ring {
        store: Arc<Store>,
        kernel: Kernel,
        room: [usize; 2],
        under_way: [usize; 2],
        all: usize,
        /// It holds the request that hangs.
        hangs: bool,
    }

    impl Worker for Ring {
        fn begin(&mut self) {
            for kind in 0..2 {
                while self.room[kind] > 0 && self.store.take(kind) {
                    self.room[kind] -= 1;
                    self.under_way[kind] += 1;
                    self.hangs |=
                        self.store.first_hangs && self.store.taken.fetch_add(1, Ordering::SeqCst) == 0;
                }
            }
        }

        fn ready(&self) -> u8 {
            let queued = self.store.queued.lock().unwrap();
            (0..2).filter(|&kind| queued[kind] > 0).fold(0, |all, kind| all | EACH[kind])
        }

        fn room(&self) -> u8 {
            (0..2).filter(|&kind| self.room[kind] > 0).fold(0, |all, kind| all | EACH[kind])
        }

        fn wait(&mut self, is_up: &dyn Fn()) {
            if self.hangs && self.store.ended.load(Ordering::SeqCst) + 1 < self.all {
                self.kernel.0.wait(AT_MOST);
                return is_up();
            }
            let ends = (0..2).find(|&kind| self.under_way[kind] > 0);
            // A completion wakes just as a bell does; a request at the store ends eventually.
            if ends.is_none() {
                self.kernel.0.wait(AT_MOST);
            }
            is_up();
            if let Some(kind) = ends {
                self.under_way[kind] -= 1;
                self.room[kind] += 1;
                if self.store.ended.fetch_add(1, Ordering::SeqCst) + 1 == self.all {
                    self.store.all_ended.set();
                }
                self.store.kernels.lock().unwrap().iter().for_each(Waker::wake);
            }
        }
    }

    /// A serving thread, with room for one read and `writes` writes.
    fn start(
        store: &Arc<Store>,
        bells: &Arc<Bells<Kernel>>,
        writes: usize,
        all: usize,
    ) -> thread::JoinHandle<()> {
        let (store, bells) = (store.clone(), bells.clone());
        thread::spawn(move || {
            let kernel = Kernel::default();
            store.kernels.lock().unwrap().push(kernel.clone());
            let bell = bells.add(kernel.clone()).unwrap();
            let (room, under_way) = ([1, writes], [0; 2]);
            let mut ring = Ring { store: store.clone(), kernel, room, under_way, all, hangs: false };
            serve(&bells, bell, &mut ring, || store.stop.load(Ordering::SeqCst));
        })
    }

    fn end(store: &Store, bells: &Bells<Kernel>, all: usize, threads: Vec<thread::JoinHandle<()>>) {
        store.all_ended.wait(AT_MOST);
        assert_eq!(store.ended.load(Ordering::SeqCst), all);
        store.stop.store(true, Ordering::SeqCst);
        bells.ring_all();
        store.kernels.lock().unwrap().iter().for_each(Waker::wake);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    /// Two threads make requests of both kinds while one or two others go to sleep and wake: all requests are served.
    #[test]
    fn every_request_finds_a_thread() {
        explore(|| {
            const REQUESTS: usize = 2;
            let store = Arc::new(Store::default());
            let bells = Arc::new(Bells::<Kernel>::default());
            let rings = thread_rng().gen_range(1..=RINGS);
            let mut threads: Vec<_> = (0..rings)
                .map(|_| start(&store, &bells, thread_rng().gen_range(1..3), 2 * REQUESTS))
                .collect();
            threads.extend((0..2).map(|kind: usize| {
                let (store, bells) = (store.clone(), bells.clone());
                thread::spawn(move || {
                    for _ in 0..REQUESTS {
                        store.queued.lock().unwrap()[kind] += 1;
                        bells.ring(EACH[kind]);
                    }
                })
            }));
            end(&store, &bells, 2 * REQUESTS, threads);
        });
    }

    /// Two reads and one ring, as from an operation that held them back: if the rung thread has room for one, and that
    /// one hangs, the other read goes to another thread.
    #[test]
    fn no_request_waits_for_a_thread_without_room() {
        explore(|| {
            let store = Arc::new(Store { first_hangs: true, ..Store::default() });
            let bells = Arc::new(Bells::<Kernel>::default());
            let mut threads: Vec<_> = (0..RINGS).map(|_| start(&store, &bells, 1, 2)).collect();
            let (client, ring) = (store.clone(), bells.clone());
            threads.push(thread::spawn(move || {
                client.queued.lock().unwrap()[0] += 2;
                ring.ring(READS);
            }));
            end(&store, &bells, 2, threads);
        });
    }

    /// A request that is pushed while its thread goes to sleep is taken.
    #[test]
    fn every_request_pushed_is_taken() {
        explore(|| {
            let requests = Arc::new(Requests::default());
            let pushers: Vec<_> = (0..2)
                .map(|n| {
                    let requests = requests.clone();
                    thread::spawn(move || (0..3).for_each(|i| requests.push(n * 3 + i)))
                })
                .collect();
            let mut taken = Vec::new();
            while taken.len() < 6 {
                taken.extend(requests.next(&Late::default()));
            }
            taken.sort_unstable();
            assert_eq!(taken, [0, 1, 2, 3, 4, 5]);
            pushers.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    /// Operations hold their reads back, and then do one themselves or have a thread woken: no read is forgotten.
    #[test]
    fn every_read_held_back_is_done() {
        type Queue = (Mutex<usize>, Event, AtomicUsize, Event);
        explore(|| {
            let queue: Arc<Queue> =
                Arc::new((Mutex::new(0_usize), Event::default(), AtomicUsize::new(0), Event::default()));
            const ALL: usize = 5;
            let done = |queue: &Queue| {
                let mut reads = queue.0.lock().unwrap();
                let there_was = *reads > 0;
                *reads -= usize::from(there_was);
                drop(reads);
                if there_was && queue.2.fetch_add(1, Ordering::SeqCst) + 1 == ALL {
                    queue.3.set();
                }
                there_was
            };
            let operations: Vec<_> = [2_usize, 3]
                .into_iter()
                .map(|reads| {
                    let queue = queue.clone();
                    let help = thread_rng().gen_bool(0.5);
                    thread::spawn(move || {
                        let mut held = HeldBack::default();
                        held.begin();
                        for _ in 0..reads {
                            *queue.0.lock().unwrap() += 1;
                            if !held.hold() {
                                queue.1.set();
                            }
                        }
                        let (wake, own) = held.end(help);
                        if wake {
                            queue.1.set();
                        }
                        if own {
                            done(&queue);
                        }
                    })
                })
                .collect();
            let (reader, stop) = (queue.clone(), Arc::new(AtomicBool::new(false)));
            let stopped = stop.clone();
            let reader = thread::spawn(move || {
                while !stopped.load(Ordering::SeqCst) {
                    if !done(&reader) {
                        reader.1.wait(AT_MOST);
                    }
                }
            });
            queue.3.wait(AT_MOST);
            stop.store(true, Ordering::SeqCst);
            queue.1.set();
            operations.into_iter().chain([reader]).for_each(|thread| thread.join().unwrap());
        });
    }
}
