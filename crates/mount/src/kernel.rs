//! Requests to the kernel, on a thread that serves none: when the kernel drops its copy of a file it first writes dirty
//! data back, through us, and waits for reads in flight.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use overspill_fuse::Device;

enum Ask {
    /// Drop the kernel's copy of a file, then call this.
    WriteBack(u64, Box<dyn FnOnce() + Send>),
    /// Drop the entries of `stale`.
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

/// Inodes that the kernel should forget, each once however often that is requested.
#[derive(Default)]
struct Stale {
    data: HashSet<u64>,
    attributes: HashSet<u64>,
}

pub(crate) struct Kernel {
    asks: Sender<Ask>,
    stale: Arc<Mutex<Stale>>,
    turns: Arc<Mutex<Turns>>,
    device: Arc<OnceLock<Arc<Device>>>,
}

impl Kernel {
    /// # Errors
    /// If no thread can be spawned.
    pub(crate) fn new() -> std::io::Result<Kernel> {
        let (asks, asked) = channel();
        let stale = Arc::new(Mutex::new(Stale::default()));
        let device = Arc::new(OnceLock::new());
        let turns = Arc::new(Mutex::new(Turns::default()));
        let (theirs, t, n) = (stale.clone(), turns.clone(), device.clone());
        overspill_sys::process::spawn_or_die("kernel", move || run(&asked, &theirs, &t, &n))?;
        Ok(Kernel { asks, stale, turns, device })
    }

    pub(crate) fn connect(&self, device: Arc<Device>) {
        let _ = self.device.set(device);
    }

    /// Calls `then` after the kernel has written back all dirty data of a file.
    pub(crate) fn after_write_back(&self, ino: u64, then: Box<dyn FnOnce() + Send>) {
        // The thread lives as long as self; were it gone, the request would be answered late rather than never.
        if let Err(unsent) = self.asks.send(Ask::WriteBack(ino, then))
            && let Ask::WriteBack(_, then) = unsent.0
        {
            then();
        }
    }

    /// Drops the kernel's copy of a file's data, soon.
    pub(crate) fn drop_copy(&self, ino: u64) {
        self.drop_soon(|stale| stale.data.insert(ino));
    }

    /// Drops the kernel's copy of a file's attributes, soon: the kernel then asks for them before a write(2) to it.
    pub(crate) fn drop_attributes(&self, ino: u64) {
        self.drop_soon(|stale| stale.attributes.insert(ino));
    }

    /// The same before this returns. It waits for no request of ours: the kernel drops attributes alone under no lock
    /// that a request holds, and an inode that the kernel is just freeing has no request under way.
    pub(crate) fn drop_attributes_now(&self, ino: u64) {
        forget(&self.device, ino, ATTRIBUTES);
    }

    /// The same, but attributes of a file that were dropped just now are dropped again when [`TURN`] has passed.
    pub(crate) fn drop_attributes_in_turn(&self, ino: u64) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn drop_soon(&self, insert: impl FnOnce(&mut Stale) -> bool) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let first = stale.data.is_empty() && stale.attributes.is_empty();
        if insert(&mut stale) && first {
            let _ = self.asks.send(Ask::DropStale);
        }
    }
}

/// Offset that drops attributes only: there is no data from a negative offset on.
const ATTRIBUTES: i64 = -1;
/// Offset that drops attributes and all data.
const ALL: i64 = 0;

/// Makes the kernel drop its copy of an inode from this offset to the end.
fn forget(device: &OnceLock<Arc<Device>>, ino: u64, from: i64) {
    if let Some(device) = device.get() {
        // An inode that the kernel has forgotten by itself is no failure.
        let _ = device.drop_copy(ino, from, 0);
    }
}

fn run(asked: &Receiver<Ask>, stale: &Mutex<Stale>, turns: &Mutex<Turns>, device: &OnceLock<Arc<Device>>) {
    let mut turn_ends: Option<Instant> = None;
    loop {
        if turn_ends.is_some_and(|end| end <= Instant::now()) {
            turn_ends = None;
            // The next change of each file is passed on at once again.
            let turns = std::mem::take(&mut *turns.lock().unwrap_or_else(PoisonError::into_inner));
            turns.wait.into_iter().for_each(|ino| forget(device, ino, ATTRIBUTES));
        }
        let ask = match turn_ends {
            None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(end) => asked.recv_timeout(end.saturating_duration_since(Instant::now())),
        };
        match ask {
            Ok(Ask::WriteBack(ino, then)) => {
                forget(device, ino, ALL);
                then();
            }
            Ok(Ask::DropStale) => {
                let stale = std::mem::take(&mut *stale.lock().unwrap_or_else(PoisonError::into_inner));
                stale.attributes.into_iter().for_each(|ino| forget(device, ino, ATTRIBUTES));
                stale.data.into_iter().for_each(|ino| forget(device, ino, ALL));
            }
            Ok(Ask::Turn) => turn_ends = Some(Instant::now() + TURN),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
