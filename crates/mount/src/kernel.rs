//! Requests to the kernel, on threads that serve none.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use overspill_fuse::Device;

use crate::drops::{Drops, Then};

enum Ask {
    /// Drop the attributes in `stale`.
    DropStale,
    /// The turn of `turns` has begun.
    Turn,
}

/// Least time between two drops of one file's attributes: each makes its writer ask for them, behind all of its data
/// under way to us, which takes some milliseconds. (Twenty milliseconds made sequential writes a seventh slower.)
const TURN: Duration = Duration::from_millis(250);

/// Files whose attributes were dropped in this turn, and those of them to be dropped again when it ends.
#[derive(Default)]
struct Turns {
    had: HashSet<u64>,
    wait: HashSet<u64>,
}

/// State that the threads share.
#[derive(Default)]
struct Shared {
    /// Files whose attributes the kernel should forget, each once however often that is requested.
    stale: Mutex<HashSet<u64>>,
    turns: Mutex<Turns>,
    device: Arc<OnceLock<Arc<Device>>>,
}

pub(crate) struct Kernel {
    asks: Sender<Ask>,
    shared: Arc<Shared>,
    drops: Arc<Drops>,
}

impl Kernel {
    /// # Errors
    /// If no thread can be spawned.
    pub(crate) fn new() -> std::io::Result<Kernel> {
        let (asks, asked) = channel();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        overspill_sys::process::spawn_or_die("kernel", move || theirs.run(&asked))?;
        let drops = Drops::new(shared.device.clone());
        Ok(Kernel { asks, shared, drops })
    }

    pub(crate) fn connect(&self, device: Arc<Device>) {
        let _ = self.shared.device.set(device);
    }

    /// Calls `then` after the kernel has written back all dirty data of a file.
    pub(crate) fn after_write_back(&self, ino: u64, then: Then) {
        self.drops.ask(ino, Some(then));
    }

    /// Drops the kernel's copy of a file's data, soon.
    pub(crate) fn drop_copy(&self, ino: u64) {
        self.drops.ask(ino, None);
    }

    /// Drops the kernel's copy of a file's attributes, soon: the kernel then asks for them before a write(2) to it.
    pub(crate) fn drop_attributes(&self, ino: u64) {
        let mut stale = self.shared.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let first = stale.is_empty();
        if stale.insert(ino) && first {
            let _ = self.asks.send(Ask::DropStale);
        }
    }

    /// The same before this returns. It waits for no request of ours: the kernel drops attributes alone under no lock
    /// that a request holds, and an inode that the kernel is just freeing has no request under way.
    pub(crate) fn drop_attributes_now(&self, ino: u64) {
        self.shared.drop_attributes(ino);
    }

    /// The same, but attributes of a file that were dropped just now are dropped again when [`TURN`] has passed.
    pub(crate) fn drop_attributes_in_turn(&self, ino: u64) {
        let mut turns = self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = turns.had.is_empty();
        if !turns.had.insert(ino) {
            turns.wait.insert(ino);
            return;
        }
        drop(turns);
        if begins {
            let _ = self.asks.send(Ask::Turn);
        }
        self.drop_attributes_now(ino);
    }
}

/// An offset before all data: attributes only.
const ATTRIBUTES: i64 = -1;

impl Shared {
    fn drop_attributes(&self, ino: u64) {
        if let Some(device) = self.device.get() {
            // An inode that the kernel has forgotten by itself is no failure.
            let _ = device.drop_copy(ino, ATTRIBUTES, 0);
        }
    }

    fn run(&self, asked: &Receiver<Ask>) {
        let mut turn_ends: Option<Instant> = None;
        loop {
            if turn_ends.is_some_and(|end| end <= Instant::now()) {
                turn_ends = None;
                // The next change of each file is passed on at once again.
                let turns = std::mem::take(&mut *self.turns.lock().unwrap_or_else(PoisonError::into_inner));
                turns.wait.into_iter().for_each(|ino| self.drop_attributes(ino));
            }
            let ask = match turn_ends {
                None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(end) => asked.recv_timeout(end.saturating_duration_since(Instant::now())),
            };
            match ask {
                Ok(Ask::DropStale) => {
                    let stale =
                        std::mem::take(&mut *self.stale.lock().unwrap_or_else(PoisonError::into_inner));
                    stale.into_iter().for_each(|ino| self.drop_attributes(ino));
                }
                Ok(Ask::Turn) => turn_ends = Some(Instant::now() + TURN),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
