//! Waiting for time. The VM has no clock of its own: the driver tells the time ([`crate::Signals::nanoseconds`]), is
//! told when an operation waits for a later one ([`crate::Signals::alarm`]), and reports its coming
//! ([`crate::Pager::tick`]).

use overspill_slab::kept;

use super::ticket::{Pending, Sender, Ticket, ticket};
use crate::error::VmError;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

kept!(counted Pending<()>, "ticket for a time");

#[derive(Debug)]
struct Sleeper {
    due: u64,
    /// None is pageout, which waits for no ticket.
    wakes: Option<Sender<()>>,
}

/// Operations that wait for a time, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// The latest time passed to [`Timers::take_due`]: where there is no clock, only that advances time.
    now: AtomicU64,
    /// A leaf lock.
    sleepers: Mutex<Vec<Sleeper>>,
}

impl Timers {
    /// The time, given the clock's reading.
    pub(crate) fn now(&self, clock: u64) -> u64 {
        clock.max(self.now.load(Ordering::Relaxed))
    }

    /// A ticket that completes at `due`.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when there is no memory for the ticket.
    pub(crate) fn sleep_until(&self, due: u64) -> Result<Ticket<()>, VmError> {
        let (sender, ticket) = ticket()?;
        self.sleepers.lock().push(Sleeper { due, wakes: Some(sender) });
        Ok(ticket)
    }

    /// Makes [`Timers::take_due`] return true at `due`: pageout should look again then.
    pub(crate) fn pageout_at(&self, due: u64) {
        self.sleepers.lock().push(Sleeper { due, wakes: None });
    }

    /// The time of the next sleeper.
    pub(crate) fn next(&self) -> Option<u64> {
        self.sleepers.lock().iter().map(|sleeper| sleeper.due).min()
    }

    /// Wakes all sleepers whose time has come. Returns true if pageout is one of them.
    pub(crate) fn take_due(&self, now: u64) -> bool {
        self.now.fetch_max(now, Ordering::Relaxed);
        let due: Vec<Sleeper> = self.sleepers.lock().extract_if(.., |sleeper| sleeper.due <= now).collect();
        let mut pageout = false;
        for sleeper in due {
            match sleeper.wakes {
                Some(sender) => sender.send(()),
                None => pageout = true,
            }
        }
        pageout
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn each_sleeper_is_woken_when_it_is_due() {
        let timers = Timers::default();
        let mut early = Box::pin(timers.sleep_until(10).unwrap());
        let mut late = Box::pin(timers.sleep_until(20).unwrap());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        timers.pageout_at(15);
        assert_eq!(timers.next(), Some(10));
        assert!(!timers.take_due(10));
        assert!(early.as_mut().poll(&mut cx).is_ready() && late.as_mut().poll(&mut cx).is_pending());
        assert!(timers.take_due(30) && late.as_mut().poll(&mut cx).is_ready());
        assert_eq!((timers.next(), timers.now(5), timers.now(50)), (None, 30, 50));
    }

    use std::future::Future as _;
}
