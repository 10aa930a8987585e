//! Waiting in place: an operation is tried on the thread where it arrived, which waits with it for some milliseconds,
//! as long as enough other threads are left to serve: memory and the store mostly answer within that time.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use imp::sync::atomic::{AtomicUsize, Ordering};
use imp::thread::{self, Thread};

#[cfg(feature = "shuttle")]
use shuttle as imp;
#[cfg(not(feature = "shuttle"))]
use std as imp;

use crate::spawn::Spawn;

/// The longest wait in place, before the thread gives its operation up. When memory is short, a writer waits for some
/// tens of others, a millisecond each.
const WAIT_IN_PLACE: Duration = Duration::from_millis(40);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

imp::thread_local! {
    static WAKER: Waker = Waker::from(Arc::new(Unpark(thread::current())));
}

/// Threads that may wait with their operations.
pub struct Here {
    spawn: Arc<dyn Spawn>,
    may_wait: usize,
    waiting: AtomicUsize,
}

impl Here {
    /// Of `threads` that serve requests, all but two may wait at once.
    pub fn new(spawn: Arc<dyn Spawn>, threads: usize) -> Here {
        Here { spawn, may_wait: threads.saturating_sub(2).max(1), waiting: AtomicUsize::new(0) }
    }

    /// The spawner for operations that this thread gives up.
    pub fn spawn(&self) -> &Arc<dyn Spawn> {
        &self.spawn
    }

    /// Tries `op` on this thread, without waiting. `None` if it does not end at once: then it was dropped.
    pub fn try_once<T>(&self, op: impl Future<Output = T>) -> Option<T> {
        let op = pin!(op);
        self.spawn.begin();
        let polled = op.poll(&mut Context::from_waker(Waker::noop()));
        self.spawn.begun(false);
        match polled {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    /// Runs `op` on this thread. `None` if it does not end at once or nearly so: then it was dropped.
    pub fn run<T>(&self, op: impl Future<Output = T>) -> Option<T> {
        let mut op = pin!(op);
        WAKER.with(|waker| {
            let mut cx = Context::from_waker(waker);
            self.spawn.begin();
            if let Poll::Ready(value) = op.as_mut().poll(&mut cx) {
                self.spawn.begun(false);
                return Some(value);
            }
            if self.waiting.fetch_add(1, Ordering::AcqRel) >= self.may_wait {
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                self.spawn.begun(false);
                return None;
            }
            // Most operations wait for one read, which is done sooner here than by waking another thread.
            self.spawn.begun(true);
            let until = Instant::now() + WAIT_IN_PLACE;
            let value = loop {
                if let Poll::Ready(value) = op.as_mut().poll(&mut cx) {
                    break Some(value);
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break None;
                }
                thread::park_timeout(left);
            };
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            value
        })
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod model {
    //! `cargo test -p overspill-runtime --features shuttle --lib here`: a wake-up that is lost is a deadlock.

    use super::*;
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::sync::{Arc as Shared, Mutex};
    use shuttle::{Config, Runner};
    use std::pin::Pin;

    struct Nobody;

    impl Spawn for Nobody {
        fn spawn(&self, _: Pin<Box<dyn Future<Output = ()> + Send>>) {}
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

    /// Threads that wait in place are woken when their operations end, each by its own.
    #[test]
    fn operations_that_wait_in_place_end() {
        let scenario = || {
            let here = Shared::new(Here::new(Arc::new(Nobody), 4));
            let gates = [Gate::default(), Gate::default()];
            let run = |gate: Gate| {
                let here = here.clone();
                thread::spawn(move || here.run(async move { gate.pass().await }))
            };
            let threads: Vec<_> = gates.iter().cloned().map(run).collect();
            gates.iter().for_each(Gate::open);
            for thread in threads {
                assert!(thread.join().unwrap().is_some(), "two of four threads may wait");
            }
        };
        let mut config = Config::new();
        config.silence_warnings = true;
        Runner::new(RandomScheduler::new(2000), config.clone()).run(scenario);
        Runner::new(PctScheduler::new(3, 2000), config).run(scenario);
    }
}
