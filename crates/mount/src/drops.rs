//! Drops of the kernel's copies of files' data. Each may wait: the kernel first writes dirty data back, through us, and
//! waits for reads of the file in flight. So each file has a thread of its own for it, while there is something to drop;
//! at most [`THREADS`], so that files whose reads hang keep no more than that.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use overspill_fuse::Device;

/// Most files whose copies are being dropped at once.
const THREADS: usize = 8;

/// Called when the copy is gone.
pub(crate) type Then = Box<dyn FnOnce() + Send>;

/// The files to be dropped.
pub(crate) struct Drops {
    device: Arc<OnceLock<Arc<Device>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Option<Then>)>,
    /// Files that a thread is at.
    busy: HashSet<u64>,
    threads: usize,
}

impl State {
    /// The first whose file no thread is at.
    fn next(&mut self) -> Option<(u64, Option<Then>)> {
        let at = self.waiting.iter().position(|(ino, _)| !self.busy.contains(ino))?;
        let job = self.waiting.remove(at)?;
        self.busy.insert(job.0);
        Some(job)
    }
}

impl Drops {
    pub(crate) fn new(device: Arc<OnceLock<Arc<Device>>>) -> Arc<Drops> {
        Arc::new(Drops { device, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the kernel's copy of a file, then calls `then`. A drop without `then` that waits already is enough.
    pub(crate) fn ask(self: &Arc<Self>, ino: u64, then: Option<Then>) {
        let begins = {
            let mut state = self.state();
            if then.is_none() && state.waiting.iter().any(|(other, _)| *other == ino) {
                return;
            }
            state.waiting.push_back((ino, then));
            let begins = state.threads < THREADS && !state.busy.contains(&ino);
            state.threads += usize::from(begins);
            begins
        };
        if begins {
            let drops = self.clone();
            if overspill_sys::process::spawn_or_die("drop", move || drops.run()).is_err() {
                // No more threads: better on this one, late, than never.
                self.run();
            }
        }
    }

    fn run(&self) {
        loop {
            let (ino, then) = {
                let mut state = self.state();
                match state.next() {
                    Some(job) => job,
                    None => {
                        state.threads -= 1;
                        return;
                    }
                }
            };
            if let Some(device) = self.device.get() {
                // A file that the kernel has forgotten by itself is no failure.
                let _ = device.drop_copy(ino, 0, 0);
            }
            if let Some(then) = then {
                then();
            }
            self.state().busy.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Fault 18: one file's hung read kept the notifications of all others.
    #[test]
    fn a_file_that_hangs_stops_no_other() {
        let drops = Drops::new(Arc::default());
        let (release, hangs) = channel::<()>();
        let (done, is_done) = channel();
        drops.ask(1, Some(Box::new(move || assert!(hangs.recv().is_err()))));
        // More of the same file wait behind it, and take no thread.
        for _ in 0..2 * THREADS {
            drops.ask(1, Some(Box::new(|| {})));
        }
        for ino in 2..50 {
            let done = done.clone();
            drops.ask(ino, Some(Box::new(move || done.send(ino).unwrap())));
        }
        let mut seen: Vec<u64> =
            (2..50).map(|_| is_done.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (2..50).collect::<Vec<u64>>());
        drop(release);
        for _ in 0..1000 {
            if drops.state().threads == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("threads stay");
    }
}
