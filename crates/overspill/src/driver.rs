//! The threads that run a VM in production: the other driver is the simulation.
//!
//! | thread | does | waits for |
//! |---|---|---|
//! | pageout | [`Vm::pageout`] steps, compression included | pressure, completions |
//! | helper | compression beside it ([`Vm::help_pageout`]); again where it is cold ([`Vm::repack`]) | writers that wait for memory; an idle core |
//! | store (2) | writes to the store | requests |
//! | fetch (4) | reads from the store, neighbours together | requests |
//! | upkeep | preallocation, hole punching, memory back to the kernel | a second, or pageout |
//! | tasks (2) | parked operations whose ticket completed | tickets |
//!
//! Readers and writers do not share threads: neither can keep the other from the store. A thread that panics takes the
//! process with it: a mount that answers ENOTCONN is better than one that hangs for want of pageout.
//!
//! None of them is an operation's own: what waits is a task, and tasks hold no thread. But a thread that would wait for its
//! operation's read does it itself ([`Spawn::begun`]): waking another one, and being woken, takes longer than a fast disk.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_executor::Executor;
use overspill_fuse::Spawn;
use overspill_store::BLOCK;
use overspill_sys::AlignedBuf;
use overspill_vm::{ReadIo, Signals, Step, Vm, WriteIo};

use crate::idle;

/// Threads that only read: each has one request at the store, so this is the depth that random readers see.
const FETCHERS: usize = 4;
/// What one of them reads at once, at most.
const FETCH_BYTES: usize = 256 << 10;
/// How long a store that refused a write is left alone.
const AFTER_FAILED_WRITE: Duration = Duration::from_millis(100);
/// How long an idle core is taken for packing again what is cold, and how long it is left alone, and watched, then.
const REPACK: Duration = Duration::from_millis(100);
const BETWEEN_REPACKS: Duration = Duration::from_millis(300);
/// How long upkeep lets others work between its turns.
const AFTER_UPKEEP: Duration = Duration::from_millis(5);
/// How often upkeep runs when nobody asks.
const UPKEEP: Duration = Duration::from_secs(1);
/// Budgets below this are for pages and metadata alone: the program, larger than the smallest of them, comes on top.
const SMALL: usize = 64 << 20;
/// Metadata that may have gone before the heap is trimmed.
const TRIM_ABOVE: usize = 4 << 20;
/// How often the process's memory is measured, at most.
const MEASURE: Duration = Duration::from_millis(50);
/// How often the heap is gone through for pages that are free, at most.
const TRIM: Duration = Duration::from_secs(2);

/// A flag to wait for: set by anybody, cleared by who waits.
#[derive(Default)]
struct Event {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self) {
        *self.lock() = true;
        self.changed.notify_one();
    }

    fn wait(&self, at_most: Duration) {
        let guard = self.lock();
        let (mut guard, _) = self
            .changed
            .wait_timeout_while(guard, at_most, |set| !*set)
            .unwrap_or_else(PoisonError::into_inner);
        *guard = false;
    }
}

/// Threads wait with a bound, so that a signal lost to a bug costs time and not the mount.
const AT_MOST: Duration = Duration::from_millis(500);

thread_local! {
    /// Reads that the operation which this thread just begins has asked for, and nobody was woken for.
    static HELD_BACK: Cell<Option<u32>> = const { Cell::new(None) };
    /// What this thread reads with.
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

struct Wakeups {
    started: Instant,
    pageout: Event,
    helper: Event,
    store: Event,
    fetch: Event,
    upkeep: Event,
    stop: AtomicBool,
}

impl Wakeups {
    fn new() -> Wakeups {
        let event = Event::default;
        Wakeups {
            started: Instant::now(),
            pageout: event(),
            helper: event(),
            store: event(),
            fetch: event(),
            upkeep: event(),
            stop: AtomicBool::new(false),
        }
    }

    fn stopped(&self) -> bool {
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
            None => self.fetch.set(),
        }
    }

    fn writes_ready(&self) {
        self.store.set();
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A running driver. Dropping it stops the threads after what they are doing.
pub struct Driver {
    wakeups: Arc<Wakeups>,
    tasks: Arc<Executor<'static>>,
    threads: Vec<JoinHandle<()>>,
}

/// Hands parked operations to the driver's task threads, and lets threads that wait do their own reads.
pub(crate) struct Spawner {
    tasks: Arc<Executor<'static>>,
    vm: Vm,
    wakeups: Arc<Wakeups>,
}

impl Spawn for Spawner {
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.spawn(task).detach();
    }

    fn begin(&self) {
        HELD_BACK.set(Some(0));
    }

    fn begun(&self, help: bool) {
        let reads = HELD_BACK.take().unwrap_or(0);
        let own = u32::from(help);
        if reads > own {
            self.wakeups.fetch.set();
        }
        if help
            && reads > 0
            && let Some(read) = self.vm.newest_read()
        {
            READER.with_borrow_mut(|reader| {
                let reader = reader.get_or_insert_with(|| Reader::new(ReadIo::MAX));
                reader.reads.push(read);
                reader.perform(&self.vm);
            });
        }
    }
}

impl Driver {
    /// Starts the threads that run `vm`. With `memory` they hold the whole process to so many bytes.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(vm: &Vm, memory: Option<usize>) -> std::io::Result<Driver> {
        let wakeups = Arc::new(Wakeups::new());
        vm.set_signals(wakeups.clone());
        let mut driver = Driver { wakeups, tasks: Arc::new(Executor::new()), threads: Vec::new() };
        driver.spawn_thread("pageout", vm, run_pageout)?;
        driver.spawn_thread("helper", vm, run_helper)?;
        let compactor = Compactor { tasks: driver.tasks.clone(), busy: Arc::default() };
        driver.spawn_thread("upkeep", vm, move |vm, wakeups| run_upkeep(vm, wakeups, memory, &compactor))?;
        for _ in 0..FETCHERS {
            driver.spawn_thread("fetch", vm, run_fetch)?;
        }
        for _ in 0..2 {
            driver.spawn_thread("store", vm, run_store)?;
            let (tasks, wakeups) = (driver.tasks.clone(), driver.wakeups.clone());
            let run = move || run_tasks(&tasks, &wakeups);
            driver.threads.push(std::thread::Builder::new().name("tasks".into()).spawn(run)?);
        }
        Ok(driver)
    }

    fn spawn_thread(
        &mut self,
        name: &str,
        vm: &Vm,
        run: impl FnOnce(&Vm, &Wakeups) + Send + 'static,
    ) -> std::io::Result<()> {
        let (vm, wakeups) = (vm.clone(), self.wakeups.clone());
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| run(&vm, &wakeups))).is_err() {
                tracing::error!("a thread of the pager failed: giving up");
                std::process::abort();
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    pub(crate) fn spawner(&self, vm: &Vm) -> Arc<Spawner> {
        Arc::new(Spawner { tasks: self.tasks.clone(), vm: vm.clone(), wakeups: self.wakeups.clone() })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.wakeups.stop.store(true, Ordering::Release);
        for _ in 0..self.threads.len() {
            self.wakeups.pageout.set();
            self.wakeups.helper.set();
            self.wakeups.store.set();
            self.wakeups.fetch.set();
            self.wakeups.upkeep.set();
            // A task that does nothing wakes a task thread, which then sees that it should stop.
            self.tasks.spawn(async {}).detach();
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr; there is nothing left to do for it.
            let _ = thread.join();
        }
    }
}

fn run_helper(vm: &Vm, wakeups: &Wakeups) {
    let mut cores = idle::Cores::default();
    let mut wait = AT_MOST;
    while !wakeups.stopped() {
        if vm.help_pageout() {
            continue;
        }
        wakeups.helper.wait(wait);
        wait = AT_MOST;
        if cores.have_one_idle() {
            let end = Instant::now() + REPACK;
            while !vm.has_waiters() && vm.repack() {
                if Instant::now() > end {
                    wait = BETWEEN_REPACKS;
                    break;
                }
            }
        }
    }
}

fn run_pageout(vm: &Vm, wakeups: &Wakeups) {
    while !wakeups.stopped() {
        if vm.has_waiters() {
            wakeups.helper.set();
        }
        match vm.pageout() {
            Step::Worked => wakeups.upkeep.set(),
            Step::AwaitStore => {
                if let Some(store) = vm.store() {
                    store.maintain(true);
                }
            }
            Step::Rest | Step::AwaitIo => wakeups.pageout.wait(AT_MOST),
            Step::Stuck => {
                // Full and nothing to do: look again when something may have been freed.
                wakeups.upkeep.set();
                wakeups.pageout.wait(Duration::from_millis(20));
            }
        }
    }
}

fn run_store(vm: &Vm, wakeups: &Wakeups) {
    while !wakeups.stopped() {
        match vm.next_write() {
            Some(write) => {
                // This one takes a while.
                if vm.has_writes() {
                    wakeups.store.set();
                }
                perform_write(vm, write);
                wakeups.pageout.set();
            }
            None => wakeups.store.wait(AT_MOST),
        }
    }
}

fn run_fetch(vm: &Vm, wakeups: &Wakeups) {
    let mut reader = Reader::new(FETCH_BYTES);
    while !wakeups.stopped() {
        vm.next_reads(FETCH_BYTES, &mut reader.reads);
        if reader.reads.is_empty() {
            wakeups.fetch.wait(AT_MOST);
            continue;
        }
        if vm.has_reads() {
            wakeups.fetch.set();
        }
        reader.perform(vm);
    }
}

/// Performs neighbouring reads as one.
struct Reader {
    reads: Vec<ReadIo>,
    buf: AlignedBuf,
}

impl Reader {
    /// For at most `bytes` at once.
    fn new(bytes: usize) -> Reader {
        Reader { reads: Vec::new(), buf: AlignedBuf::new(bytes) }
    }

    fn perform(&mut self, vm: &Vm) {
        let Reader { reads, buf } = self;
        let (Some(store), Some(start)) = (vm.store(), reads.first().map(ReadIo::start)) else { return };
        let place = |read: &ReadIo| {
            let at = (read.start() - start) as usize * BLOCK;
            at..at + read.len()
        };
        let end = reads.last().map_or(0, |read| place(read).end);
        let result = store.read(start, &mut buf[..end]);
        for read in reads.drain(..) {
            let bytes = match &result {
                Ok(()) => Ok(&buf[place(&read)]),
                Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
            };
            vm.complete_read(read, bytes);
        }
    }
}

fn perform_write(vm: &Vm, write: WriteIo) {
    let Some(store) = vm.store() else { return };
    let result = store.write(write.start(), write.bytes());
    if result.is_err() {
        std::thread::sleep(AFTER_FAILED_WRITE);
    }
    vm.complete_write(write, result);
}

/// Compacts the store as a task, one segment after the other, while too much of it is dead.
struct Compactor {
    tasks: Arc<Executor<'static>>,
    busy: Arc<AtomicBool>,
}

impl Compactor {
    fn look(&self, vm: &Vm) {
        if !vm.wants_compaction() || self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let (vm, busy) = (vm.clone(), self.busy.clone());
        let task = async move {
            while vm.wants_compaction() && vm.compact().await {}
            busy.store(false, Ordering::Release);
        };
        self.tasks.spawn(task).detach();
    }
}

fn run_upkeep(vm: &Vm, wakeups: &Wakeups, memory: Option<usize>, compactor: &Compactor) {
    let mut watch = memory.filter(|&memory| memory >= SMALL).map(MemoryWatch::new);
    while !wakeups.stopped() {
        wakeups.upkeep.wait(UPKEEP);
        // Pageout asks at every step.
        std::thread::sleep(AFTER_UPKEEP);
        let short = vm.is_short();
        if let Some(store) = vm.store() {
            while store.maintain(short) && !wakeups.stopped() {
                // Punching is done in large pieces and leaves the disk to others in between.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if let Some(watch) = &mut watch {
            watch.look(vm);
        }
        overspill_slab::reap_all(false);
        vm.maintain();
        compactor.look(vm);
    }
}

/// Holds the process to its memory, whatever it went to (iron rule 3): what the budget's own counting misses, mostly
/// holes in heap and slabs, is measured and counted as overhead.
struct MemoryWatch {
    memory: usize,
    overhead: usize,
    /// The most metadata there was since the heap was last trimmed.
    metadata: usize,
    measured: Instant,
    trimmed: Instant,
}

impl MemoryWatch {
    fn new(memory: usize) -> MemoryWatch {
        let now = Instant::now();
        // Some way below, because it is looked at now and then and not always.
        MemoryWatch { memory: memory / 8 * 7, overhead: 0, metadata: 0, measured: now, trimmed: now }
    }

    fn look(&mut self, vm: &Vm) {
        if self.measured.elapsed() < MEASURE {
            return;
        }
        self.measured = Instant::now();
        let resident = resident_bytes();
        let stats = vm.stats();
        // Memory that is free here but not given back is no reason to page out.
        let idle = stats.arena_idle_bytes;
        let metadata = stats.metadata_bytes - self.overhead.min(stats.metadata_bytes);
        self.metadata = self.metadata.max(metadata);
        let much_freed = metadata + TRIM_ABOVE < self.metadata;
        if (resident > self.memory || much_freed) && self.trimmed.elapsed() > TRIM {
            self.trimmed = Instant::now();
            self.metadata = metadata;
            overspill_sys::process::trim_heap();
        }
        if resident > self.memory {
            // Others need it now: what is held in reserve is asked for again soon enough. Files that were deleted leave
            // their compressed pages' slabs empty, and whoever writes next has their share of the budget already.
            overspill_slab::reap_all(true);
            vm.trim((resident - self.memory).min(idle));
        }
        let needed = resident.saturating_sub(idle);
        if needed > self.memory {
            self.overhead += needed - self.memory;
        } else {
            self.overhead -= ((self.memory - needed) / 8).min(self.overhead);
        }
        // Not so much that there is nothing left to work with.
        self.overhead = self.overhead.min(stats.limit_bytes / 4);
        vm.set_overhead(self.overhead);
    }
}

/// This process's resident memory.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * rustix::param::page_size()
}

fn run_tasks(tasks: &Executor<'static>, wakeups: &Wakeups) {
    futures_lite::future::block_on(async {
        while !wakeups.stopped() {
            tasks.tick().await;
        }
    });
}
