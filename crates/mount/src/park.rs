//! Parked requests: a request that waits keeps state, not a thread.
//!
//! The thread that received an operation tries it first. If it must wait, the thread waits with it for some
//! milliseconds, as long as enough other threads are left to serve: memory and the store mostly answer within that.
//! An operation that takes longer is begun anew as a task that owns its data, and the thread is free. (Beginning anew
//! is harmless: a write writes the same bytes again, and store reads under way are joined.)
//!
//! Tasks are bounded. They hold at most as much written data as the kernel sends in the background (`max_background`
//! requests of `max_write` bytes, both chosen from the budget). Requests that a store leaves unanswered fail after
//! [`READ_TIMEOUT`] or [`WRITE_TIMEOUT`], so that a hung store does not fill the kernel's queues; only data that the
//! kernel has accepted before waits without end.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use overspill_runtime::{Here, Spawn};
use rustix::io::Errno;

use imp::sync::atomic::{AtomicBool, Ordering};
use imp::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(feature = "shuttle")]
use shuttle as imp;
#[cfg(not(feature = "shuttle"))]
use std as imp;

/// How long a parked read waits for a store before it fails with EIO.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a parked write waits for memory. A slow store makes some room all the time; one that hangs makes none.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(120);

/// The kinds of parked requests that end when their time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Waits for a store's answer.
    Read,
    /// Waits for memory too.
    Write,
}

/// The same if half of the kernel's background queue is parked already.
const READ_TIMEOUT_CROWDED: Duration = Duration::from_secs(5);

/// A reply that somebody waits for, who is told when there will be none.
pub(crate) trait Reply: Send {
    fn fail(self);
}

impl Reply for overspill_fuse::Reply {
    fn fail(self) {
        self.error(Errno::IO.raw_os_error());
    }
}

pub(crate) struct Parking<R = overspill_fuse::Reply> {
    here: Here,
    parked: Mutex<HashMap<u64, Parked<R>>>,
    crowded: usize,
    /// This thread must not wait: all callers of a processor stand behind it.
    never_here: AtomicBool,
}

struct Parked<R> {
    deadline: Instant,
    reply: R,
    /// Wakes the task when its time is up.
    waker: Option<Waker>,
}

impl<R: Reply> Parking<R> {
    /// `threads` serve requests; the kernel sends at most `background` background requests at once.
    pub(crate) fn new(spawn: Arc<dyn Spawn>, threads: usize, background: usize) -> Self {
        Parking {
            here: Here::new(spawn, threads),
            parked: Mutex::new(HashMap::new()),
            crowded: background / 2,
            never_here: AtomicBool::new(false),
        }
    }

    /// From now on operations are tried on the threads that receive them, and never waited for there.
    pub(crate) fn never_wait_here(&self) {
        self.never_here.store(true, Ordering::Relaxed);
    }

    /// True on threads that must not wait.
    pub(crate) fn never_waits_here(&self) -> bool {
        self.never_here.load(Ordering::Relaxed)
    }

    /// Runs `op` on this thread if it ends at once or nearly so. `None`: it does not, and was dropped.
    pub(crate) fn try_here<T>(&self, op: impl Future<Output = T>) -> Option<T> {
        if self.never_waits_here() { self.here.try_once(op) } else { self.here.run(op) }
    }

    /// Runs `op` as a task.
    pub(crate) fn park(&self, op: impl Future<Output = ()> + Send + 'static) {
        self.here.spawn().spawn(Box::pin(op));
    }

    fn parked(&self) -> MutexGuard<'_, HashMap<u64, Parked<R>>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the reply of a parked request, by the request's number, until the request ends, or its time is up.
    pub(crate) fn hold(&self, number: u64, kind: Kind, reply: R) {
        let mut parked = self.parked();
        let patience = match kind {
            Kind::Write => WRITE_TIMEOUT,
            Kind::Read if parked.len() >= self.crowded => READ_TIMEOUT_CROWDED,
            Kind::Read => READ_TIMEOUT,
        };
        parked.insert(number, Parked { deadline: Instant::now() + patience, reply, waker: None });
    }

    /// Takes the reply of a parked request, unless its time was up.
    pub(crate) fn take(&self, number: u64) -> Option<R> {
        self.parked().remove(&number).map(|parked| parked.reply)
    }

    /// Runs `op` to completion, or drops it and returns `None` when the parked read's time is up.
    pub(crate) async fn until_expired<T>(&self, number: u64, op: impl Future<Output = T>) -> Option<T> {
        let mut op = pin!(op);
        std::future::poll_fn(|cx| {
            // A request that was refused must do nothing any more: its process may have written the same bytes anew.
            if !self.parked().contains_key(&number) {
                return Poll::Ready(None);
            }
            if let Poll::Ready(value) = op.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            match self.parked().get_mut(&number) {
                Some(parked) => {
                    parked.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(None),
            }
        })
        .await
    }

    /// Fails the requests whose time is up. A thread must call it regularly.
    pub(crate) fn expire(&self, now: Instant) {
        let late: Vec<Parked<R>> =
            self.parked().extract_if(|_, parked| parked.deadline <= now).map(|(_, parked)| parked).collect();
        if !late.is_empty() {
            tracing::warn!(requests = late.len(), "the store does not answer; requests fail");
        }
        late.into_iter().for_each(Parked::fail);
    }
}

impl<R: Reply> Parked<R> {
    fn fail(self) {
        self.reply.fail();
        if let Some(waker) = self.waker {
            waker.wake();
        }
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod model {
    //! `cargo test -p overspill-fuse --features shuttle --lib park`: a lost wake-up is a deadlock.

    use super::*;
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::sync::Arc as Shared;
    use shuttle::sync::atomic::AtomicUsize;
    use shuttle::{Config, Runner, thread};
    use std::pin::Pin;

    fn explore(scenario: fn()) {
        let mut config = Config::new();
        config.silence_warnings = true;
        Runner::new(RandomScheduler::new(2000), config.clone()).run(scenario);
        Runner::new(PctScheduler::new(3, 2000), config).run(scenario);
    }

    struct Nobody;

    impl Spawn for Nobody {
        fn spawn(&self, _: Pin<Box<dyn Future<Output = ()> + Send>>) {}
    }

    /// Counts failures and answers.
    #[derive(Clone, Default)]
    struct Answers(Shared<(AtomicUsize, AtomicUsize)>);

    impl Reply for Answers {
        fn fail(self) {
            self.0.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Answers {
        fn answer(self) {
            self.0.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Opens once; an operation waits for it.
    #[derive(Clone, Default)]
    struct Gate(Shared<Mutex<(bool, Option<Waker>)>>);

    impl Gate {
        fn open(&self) {
            let waker = {
                let mut gate = self.0.lock().unwrap();
                gate.0 = true;
                gate.1.take()
            };
            waker.into_iter().for_each(Waker::wake);
        }

        async fn pass(&self) {
            std::future::poll_fn(|cx| {
                let mut gate = self.0.lock().unwrap();
                gate.1 = Some(cx.waker().clone());
                if gate.0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }

    fn parking() -> Shared<Parking<Answers>> {
        Shared::new(Parking::new(Arc::new(Nobody), 4, 8))
    }

    /// A parked read whose store never answers ends when its time is up, and fails once.
    #[test]
    fn a_parked_read_ends_when_its_time_is_up() {
        explore(|| {
            let (parking, answers) = (parking(), Answers::default());
            let number = 1;
            parking.hold(number, Kind::Read, answers.clone());
            let watch = parking.clone();
            let watcher = thread::spawn(move || watch.expire(Instant::now() + 2 * READ_TIMEOUT));
            let ended = shuttle::future::block_on(parking.until_expired(number, Gate::default().pass()));
            watcher.join().unwrap();
            assert!(ended.is_none() && parking.take(number).is_none());
            assert_eq!(answers.0.0.load(Ordering::SeqCst), 1);
        });
    }

    /// A read that ends just when its time is up is answered or failed, once.
    #[test]
    fn a_parked_read_is_answered_once() {
        explore(|| {
            let (parking, answers, gate) = (parking(), Answers::default(), Gate::default());
            let number = 1;
            parking.hold(number, Kind::Read, answers.clone());
            let (watch, store) = (parking.clone(), gate.clone());
            let watcher = thread::spawn(move || watch.expire(Instant::now() + 2 * READ_TIMEOUT));
            let store = thread::spawn(move || store.open());
            if shuttle::future::block_on(parking.until_expired(number, gate.pass())).is_some()
                && let Some(reply) = parking.take(number)
            {
                reply.answer();
            }
            watcher.join().unwrap();
            store.join().unwrap();
            let (failed, answered) = (&answers.0.0, &answers.0.1);
            assert_eq!(failed.load(Ordering::SeqCst) + answered.load(Ordering::SeqCst), 1);
        });
    }
}
