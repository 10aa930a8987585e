//! Everything that a bench makes on the machine (mounts, loops, swap, groups, files) is unmade, in reverse order: when
//! its guard is dropped, in a panic too, and on Ctrl-C, SIGTERM and SIGHUP. Only `kill -9` leaves things behind.
//!
//! The list's lock is held while a thing is made and while it is unmade. So a signal never finds a thing that is made
//! but not on the list, and never leaves one half unmade. Neither step may use this module: it would deadlock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::tools::{During as _, Outcome};

/// Unmakes one thing.
pub(crate) type Undo = Box<dyn FnOnce() -> Outcome<()> + Send>;

/// Everything made and not yet unmade, in the order in which it was made.
static MADE: Mutex<BTreeMap<u64, Undo>> = Mutex::new(BTreeMap::new());

fn made() -> MutexGuard<'static, BTreeMap<u64, Undo>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unmakes its thing on drop.
#[must_use = "dropped at once, it unmakes at once"]
#[derive(Debug)]
pub(crate) struct Guard {
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut made = made();
        if let Some(undo) = made.remove(&self.id) {
            complain(undo());
        }
    }
}

/// Guards of things that rest on each other: the one made last is dropped first.
#[derive(Debug, Default)]
pub(crate) struct Guards(Vec<Guard>);

impl Guards {
    /// Adds the guard of the thing made last.
    pub(crate) fn push(&mut self, guard: Guard) {
        self.0.push(guard);
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// Makes a thing, and puts the way to unmake it on the list.
pub(crate) fn make<T>(make: impl FnOnce() -> Outcome<(T, Undo)>) -> Outcome<(T, Guard)> {
    let mut made = made();
    let (thing, undo) = make()?;
    let id = made.last_key_value().map_or(0, |(id, _)| id + 1);
    made.insert(id, undo);
    Ok((thing, Guard { id }))
}

/// From now on, a signal that ends the process unmakes everything first.
pub(crate) fn on_signals() -> Outcome<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).during("catching signals")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("bench: ended by signal {signal}, cleaning up");
            let mut made = made();
            while let Some((_, undo)) = made.pop_last() {
                complain(undo());
            }
            // The lock stays held, so that the main thread can make nothing more.
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn complain(unmade: Outcome<()>) {
    if let Err(error) = unmade {
        eprintln!("bench: left behind: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn things_are_unmade_last_first_even_in_a_panic() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let thing = |name: &'static str| {
            let order = Arc::clone(&order);
            let undo: Undo = Box::new(move || {
                order.lock().unwrap().push(name);
                Ok(())
            });
            make(|| Ok(((), undo))).unwrap().1
        };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut guards = Guards::default();
            guards.push(thing("disk"));
            guards.push(thing("file system"));
            guards.push(thing("swap"));
            panic!("a planted one");
        }));
        assert!(panicked.is_err());
        assert_eq!(*order.lock().unwrap(), ["swap", "file system", "disk"]);
    }

    #[test]
    fn what_could_not_be_made_is_not_unmade() {
        let failed = make::<()>(|| Err("no".into()));
        assert_eq!(failed.unwrap_err(), "no");
    }
}
