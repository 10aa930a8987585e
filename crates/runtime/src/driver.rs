//! The threads that run a VM in production. The other driver is the simulation.
//!
//! | thread | does | waits for |
//! |---|---|---|
//! | pageout | [`Pager::pageout`] steps, compression included | pressure, completions |
//! | helper | compression beside it ([`Pager::help_pageout`]); recompression ([`Pager::recompress`]); tells the time ([`Pager::tick`]) | writers that wait for memory; an idle core; alarms |
//! | store (2) | writes to the store, and reads from it, neighbours together, by io_uring | requests, completions |
//! | read again, write again | requests that a ring failed or did in part | requests |
//! | upkeep | preallocation, hole punching, memory back to the kernel | a second, or pageout, which may wait for space |
//! | source | reads from sources, where a driver is asked for such threads | requests |
//! | tasks (2) | parked operations whose ticket completed | tickets |
//!
//! Where io_uring is refused, or the store's file system takes no direct I/O, two threads write (`store`) and four read
//! (`fetch`). Readers and writers do not share threads: neither can keep the other from the store. A thread that panics
//! aborts the process: a mount that answers ENOTCONN is better than one that hangs for lack of pageout.
//!
//! No operation has a thread of its own: a waiting operation is a task, and tasks hold no thread. But a thread that
//! would wait for its operation's read does the read itself ([`Spawn::begun`]): waking another thread, and being woken,
//! takes longer than a fast disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_executor::Executor;
use overspill_store::Store;
use overspill_vm::{Pager, Signals as _, Step};

use crate::idle;
use crate::signals::Wakeups;
use crate::spawn::Spawn;
use crate::spawner::Spawner;
use crate::store_io::{ring, threads};
use crate::upkeep::{Compactor, run_upkeep};
use crate::wake::{AT_MOST, RINGS};

/// Threads that only read, where there is no ring: each has one request at the store.
const FETCHERS: usize = 4;
/// Threads that only write, where there is no ring.
const WRITERS: usize = 2;
/// Threads for parked operations.
const TASKS: usize = 2;
/// Length of a turn of recompression on an idle core, and of the pause after it, in which the core is watched.
const REPACK: Duration = Duration::from_millis(100);
const BETWEEN_REPACKS: Duration = Duration::from_millis(300);

/// A running driver. Dropping it stops the threads after their current work.
pub struct Driver {
    wakeups: Arc<Wakeups>,
    tasks: Arc<Executor<'static>>,
    threads: Vec<JoinHandle<()>>,
    store_io: StoreIo,
}

/// Options of a driver.
#[derive(Debug, Clone, Copy)]
pub struct DriverOptions {
    /// Hold the whole process to this many bytes.
    pub memory: Option<usize>,
    /// Do the stores' I/O by io_uring, where there is any.
    pub uring: bool,
    /// Threads that read from sources.
    pub source_threads: usize,
}

/// The store's way of I/O.
#[derive(Debug)]
pub enum StoreIo {
    /// By io_uring.
    Ring,
    /// By threads with pread and pwrite; the error if the kernel refused a ring.
    Threads(Option<std::io::Error>),
}

/// Tries to make a ring.
///
/// # Errors
/// The reason if not.
pub fn try_ring() -> std::io::Result<()> {
    ring::new(1).map(drop)
}

impl Driver {
    /// Starts the threads that run `vm`.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(pager: &Pager, options: DriverOptions) -> std::io::Result<Driver> {
        let wakeups = Arc::new(Wakeups::new());
        pager.set_signals(wakeups.clone());
        let store_io = StoreIo::Threads(None);
        let mut driver = Driver { wakeups, tasks: Arc::new(Executor::new()), threads: Vec::new(), store_io };
        driver.spawn_thread("pageout", pager, run_pageout)?;
        driver.spawn_thread("helper", pager, run_helper)?;
        let compactor = Compactor::new(&driver.tasks);
        driver.spawn_thread("upkeep", pager, move |pager, wakeups| {
            run_upkeep(pager, wakeups, options.memory, compactor);
        })?;
        driver.start_store_io(pager, options.uring)?;
        for _ in 0..options.source_threads {
            driver.spawn_thread("source", pager, threads::run_fill)?;
        }
        for _ in 0..TASKS {
            let (tasks, wakeups) = (driver.tasks.clone(), driver.wakeups.clone());
            let run = move || run_tasks(&tasks, &wakeups);
            driver.threads.push(overspill_sys::process::spawn_or_die("tasks", run)?);
        }
        Ok(driver)
    }

    /// Count of the times that a thread found work, after its longest wait, that it had not been woken for. Each is a
    /// lost signal: a bug, which costs half a second.
    pub fn lost_signals(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let wakeups = self.wakeups.clone();
        move || wakeups.late.count()
    }

    /// The store's way of I/O.
    pub fn store_io(&self) -> &StoreIo {
        &self.store_io
    }

    /// Starts rings where the kernel gives one; else threads.
    fn start_store_io(&mut self, pager: &Pager, uring: bool) -> std::io::Result<()> {
        let has_file = |(_, store): (_, &Arc<dyn Store>)| store.direct(0, 0).is_some();
        if uring && pager.stores().any(has_file) {
            match self.start_ring(pager)? {
                Ok(()) => {
                    // One is enough; the others may be refused for lack of memory.
                    (1..RINGS).try_for_each(|_| self.start_ring(pager).map(drop))?;
                    self.store_io = StoreIo::Ring;
                    self.spawn_thread("read again", pager, ring::read_again)?;
                    return self.spawn_thread("write again", pager, ring::write_again);
                }
                Err(error) => self.store_io = StoreIo::Threads(Some(error)),
            }
        }
        for _ in 0..FETCHERS {
            self.spawn_thread("fetch", pager, threads::run_fetch)?;
        }
        for _ in 0..WRITERS {
            self.spawn_thread("store", pager, threads::run_store)?;
        }
        Ok(())
    }

    /// Starts a thread with a ring. The thread must make the ring itself; the kernel may refuse it.
    fn start_ring(&mut self, pager: &Pager) -> std::io::Result<std::io::Result<()>> {
        let (sender, made) = std::sync::mpsc::channel();
        self.spawn_thread("store", pager, move |pager, wakeups| ring::run(pager, wakeups, &sender))?;
        Ok(made.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())))
    }

    fn spawn_thread(
        &mut self,
        name: &str,
        pager: &Pager,
        run: impl FnOnce(&Pager, &Wakeups) + Send + 'static,
    ) -> std::io::Result<()> {
        let (pager, wakeups) = (pager.clone(), self.wakeups.clone());
        self.threads.push(overspill_sys::process::spawn_or_die(name, move || run(&pager, &wakeups))?);
        Ok(())
    }

    /// The spawner for parked operations.
    pub fn spawner(&self, pager: &Pager) -> Arc<dyn Spawn> {
        Arc::new(Spawner { tasks: self.tasks.clone(), pager: pager.clone(), wakeups: self.wakeups.clone() })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.wakeups.stop.store(true, Ordering::Release);
        for _ in 0..self.threads.len() {
            self.wakeups.wake_all();
            // An empty task wakes a task thread, which then sees that it should stop.
            self.tasks.spawn(async {}).detach();
        }
        for thread in self.threads.drain(..) {
            // None has panicked: that would have ended the process.
            let _ = thread.join();
        }
    }
}

fn run_helper(pager: &Pager, wakeups: &Wakeups) {
    let mut cores = idle::Cores::default();
    let mut wait = AT_MOST;
    while !wakeups.stopped() {
        // This thread never waits for a store, so time advances whatever the store does.
        pager.tick(wakeups.nanoseconds());
        if pager.help_pageout() {
            continue;
        }
        let alarm =
            pager.next_alarm().map(|at| Duration::from_nanos(at.saturating_sub(wakeups.nanoseconds())));
        wakeups.helper.wait(alarm.map_or(wait, |alarm| wait.min(alarm)));
        wait = AT_MOST;
        if !pager.has_waiters() && cores.have_one_idle() {
            let end = Instant::now() + REPACK;
            while !pager.has_waiters() && pager.recompress() {
                if Instant::now() > end {
                    wait = BETWEEN_REPACKS;
                    break;
                }
            }
        }
    }
}

fn run_pageout(pager: &Pager, wakeups: &Wakeups) {
    let mut woken = true;
    while !wakeups.stopped() {
        if pager.has_waiters() {
            wakeups.helper.set();
        }
        let step = pager.pageout();
        wakeups.late.look(woken, step == Step::Worked, &wakeups.pageout);
        woken = match step {
            Step::Worked => {
                wakeups.upkeep.set();
                true
            }
            Step::AwaitStore => {
                wakeups.ask_for_space();
                wakeups.pageout.wait(AT_MOST)
            }
            Step::Rest | Step::AwaitIo => wakeups.pageout.wait(AT_MOST),
            Step::Stuck => {
                // Full: upkeep may have something to give back.
                wakeups.upkeep.set();
                wakeups.pageout.wait(AT_MOST)
            }
        }
    }
}

fn run_tasks(tasks: &Executor<'static>, wakeups: &Wakeups) {
    futures_lite::future::block_on(async {
        while !wakeups.stopped() {
            tasks.tick().await;
        }
    });
}
