//! Everything that can happen, chosen by one seed.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use overspill_slab::{CpuMode, choose_cpu_mode, inject};
use overspill_store::{FaultCounts, Faults, FaultyStore, MemStore, Store};
use overspill_vm::testing::check;
use overspill_vm::{Account, Allowance, CHUNK, Method, Object, PAGE, Pager, VmConfig, VmError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::clients::{Subject, Task, Woken, begun_anew, discard};
use super::driver::Driver;
use super::model::{Model, Outcome};
use super::origin::{Origin, Tenant};
use super::tally::Tally;

const OBJECTS: usize = 4;
/// Pages of each object: several chunks, more than the budget in sum.
const PAGES: usize = 72;
/// Operations under way at once, at most.
const CLIENTS: usize = 6;

/// State that operations share with the world.
#[derive(Clone)]
struct Shared {
    subjects: Rc<RefCell<Vec<Subject>>>,
    tally: Rc<RefCell<Tally>>,
    /// Faults of the first store, and of the second, if there is one.
    faults: Vec<Arc<Faults>>,
    origin: Arc<Origin>,
    now: Rc<Cell<u64>>,
    /// The store has failed for so long that waiters may be refused.
    was_broken: Rc<Cell<bool>>,
    mode: Mode,
    trace: bool,
}

pub(crate) struct World {
    rng: StdRng,
    pager: Pager,
    account: Arc<Account>,
    driver: Driver,
    tenant: Tenant,
    /// The two sizes of memory, and the bytes that may be charged until pageout has made up for a change.
    memories: [usize; 2],
    charged_at_most: usize,
    shared: Shared,
    tasks: Vec<Task>,
}

/// The trouble of the seed's stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sound,
    FailsWrites,
    FailsReads,
    Damages,
    Full,
    AccountFull,
    /// The VM's object caches now and then have no memory (R47).
    NoObjects,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        // Without magazines every allocation can fail, and the seed alone decides which.
        choose_cpu_mode(CpuMode::Off);
        inject::fail_one_in(0, 0);
        let modes = [
            Mode::Sound,
            Mode::FailsWrites,
            Mode::FailsReads,
            Mode::Damages,
            Mode::Full,
            Mode::AccountFull,
            Mode::NoObjects,
        ];
        let mode = modes[rng.random_range(0..modes.len())];
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        let mut faults = Vec::new();
        for number in 0..rng.random_range(1..=2) {
            let mut store = MemStore::unprepared(50_000);
            if rng.random_ratio(1, 4) {
                store = store.separating();
            }
            if rng.random_ratio(1, 4) {
                store = store.freeing_whole_runs();
            }
            let store = FaultyStore::new(Arc::new(store), seed ^ number);
            store.faults().not_ready.store(20_000, Ordering::Relaxed);
            faults.push(store.faults());
            stores.push(Arc::new(store));
        }
        if mode == Mode::Full {
            faults[0].full_after.store(rng.random_range(0..80), Ordering::Relaxed);
        }
        let mut config = VmConfig::new(4 << 20);
        config.batches = rng.random_range(1..4);
        config.batch_bytes = CHUNK * rng.random_range(1..4);
        config.fetch_slots = rng.random_range(1..4);
        if rng.random_ratio(1, 3) {
            config.method = Method::None;
        }
        config.recompress = rng.random();
        config.always_bypass = rng.random_ratio(1, 4);
        config.memory_bytes = config.buffers(true) + rng.random_range(36..120) * PAGE;
        config.most_memory_bytes = config.memory_bytes + 40 * PAGE;
        let memories = [config.memory_bytes, config.most_memory_bytes];
        let pager = Pager::new(&config, stores).expect("a legal layout");
        let (driver, tenant) = (Driver::new(&pager), Tenant::new(&pager));
        let origin = Origin::new(seed, PAGES * PAGE - 1234);
        if mode == Mode::NoObjects {
            inject::fail_one_in(rng.random_range(2..200), seed);
        }
        let limit = if mode == Mode::AccountFull { 100 } else { 1 << 20 };
        let account = Account::new(limit);
        let subject = || Subject::new(pager.object(&account), Model::new(PAGES));
        let subjects = Rc::new(RefCell::new((0..OBJECTS).map(|_| subject()).collect()));
        let (tally, now, was_broken) = (Rc::default(), Rc::default(), Rc::default());
        let shared = Shared { subjects, tally, faults, origin, now, was_broken, mode, trace };
        let charged_at_most = pager.stats().limit_bytes;
        World { rng, pager, account, driver, tenant, memories, charged_at_most, shared, tasks: Vec::new() }
    }

    /// The trouble of this seed's stores, in words.
    pub(crate) fn mode(&self) -> &'static str {
        match self.shared.mode {
            Mode::Sound => "is sound",
            Mode::FailsWrites => "fails writes",
            Mode::FailsReads => "fails reads",
            Mode::Damages => "damages data",
            Mode::Full => "is full early",
            Mode::AccountFull => "is sound, with an account that is full early",
            Mode::NoObjects => "is sound, with object caches that fail",
        }
    }

    /// Makes one event happen.
    pub(crate) fn step(&mut self) {
        self.tick();
        match self.rng.random_range(0..100) {
            0..25 => self.begin(),
            25..55 => self.poll_some(),
            55..97 => self.driver.step(&mut self.rng),
            97 => self.change_faults(),
            98 => self.change_memory(),
            _ if self.rng.random_ratio(1, 4) => self.come_to_rest(),
            _ if self.rng.random_ratio(1, 4) => self.pager.set_eager(self.rng.random()),
            _ => {}
        }
        self.hold_to_budget();
    }

    /// The charged bytes stay below the limit; after the limit went down, what is above it only shrinks.
    fn hold_to_budget(&mut self) {
        let stats = self.pager.stats();
        let pages = stats.charged_bytes.saturating_sub(stats.metadata_bytes);
        // Pageout takes the memory for a cluster before it frees the pages.
        let under_way = if self.charged_at_most > stats.limit_bytes { 2 * CHUNK } else { 0 };
        assert!(
            pages <= self.charged_at_most + under_way,
            "over budget at {}: at most {}, {stats:?}",
            self.driver.now,
            self.charged_at_most
        );
        self.charged_at_most = self.charged_at_most.min(pages).max(stats.limit_bytes);
    }

    /// Grows or shrinks memory, gives some back to the kernel, or leases some.
    fn change_memory(&mut self) {
        match self.rng.random_range(0..4) {
            0 => {
                let bytes = self.memories[self.rng.random_range(0..2)];
                // Refused where metadata alone would not fit.
                let _ = self.pager.set_memory(bytes);
                self.charged_at_most = self.charged_at_most.max(self.pager.stats().limit_bytes);
            }
            1 => self.tenant.gives_back(),
            2 if self.tasks.len() < CLIENTS && self.tenant.lease.bytes() < 8 * PAGE => {
                let (lease, shared) = (self.tenant.lease.clone(), self.shared.clone());
                let bytes = PAGE * self.rng.random_range(1..4);
                self.spawn("lease".to_owned(), async move {
                    if let Err(error) = lease.grow(bytes).await {
                        shared.refused("lease", 0, 0, error);
                    }
                });
            }
            _ => self.pager.maintain(),
        }
    }

    fn tick(&mut self) {
        self.driver.tick();
        self.shared.now.set(self.driver.now);
        let broken = self.shared.was_broken.get() || self.pager.is_store_broken();
        self.shared.was_broken.set(broken);
    }

    fn change_faults(&mut self) {
        let chance = |rng: &mut StdRng| if rng.random() { 0 } else { rng.random_range(0..300_000) };
        let which = self.rng.random_range(0..self.shared.faults.len());
        let f = &self.shared.faults[which];
        let set: &[_] = match self.shared.mode {
            // Now and then it refuses all.
            Mode::FailsWrites if self.rng.random_ratio(1, 4) => {
                return f.write_error.store(1_000_000, Ordering::Relaxed);
            }
            Mode::FailsWrites => &[&f.write_error, &f.torn_error],
            Mode::FailsReads => &[&f.read_error, &self.shared.origin.error],
            Mode::Damages => {
                &[&f.read_flip, &f.write_flip, &f.torn_silent, &f.misdirected_write, &f.misdirected_read]
            }
            Mode::Sound | Mode::Full | Mode::AccountFull | Mode::NoObjects => &[],
        };
        for fault in set {
            fault.store(chance(&mut self.rng), Ordering::Relaxed);
        }
    }

    fn poll_some(&mut self) {
        let ready: Vec<usize> =
            (0..self.tasks.len()).filter(|&i| self.tasks[i].woken.0.load(Ordering::Acquire)).collect();
        if !ready.is_empty() {
            let i = ready[self.rng.random_range(0..ready.len())];
            self.poll(i);
        }
    }

    fn poll(&mut self, i: usize) {
        let task = &mut self.tasks[i];
        task.woken.0.store(false, Ordering::Release);
        let waker = Waker::from(task.woken.clone());
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
            drop(self.tasks.swap_remove(i));
        }
    }

    fn spawn(&mut self, what: String, future: impl Future<Output = ()> + 'static) {
        self.shared.tally.borrow_mut().operations += 1;
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        self.tasks.push(Task { what, future: Box::pin(future), woken });
    }

    /// Begins an operation, if there is a client for it and no other change at its pages.
    fn begin(&mut self) {
        if self.tasks.len() >= CLIENTS {
            return;
        }
        let who = self.rng.random_range(0..OBJECTS);
        let (at, len) = self.range();
        let is_free = self.shared.subjects.borrow()[who].model.is_free(at, len);
        match self.rng.random_range(0..10) {
            0..4 => self.begin_read(who, at, len),
            _ if self.rng.random_ratio(1, 50) => {
                let pager = self.pager.clone();
                self.spawn("compaction".to_owned(), async move {
                    pager.compact().await;
                });
            }
            _ if self.rng.random_ratio(1, 10) => {
                self.pager.recompress();
            }
            4..8 if is_free => self.begin_write(who, at, len),
            8 if is_free => self.begin_zero(who, at, len),
            9 => self.change_at_once(who, at, len),
            _ => {}
        }
    }

    fn range(&mut self) -> (usize, usize) {
        let end = PAGES * PAGE;
        let mut at = self.rng.random_range(0..end);
        if self.rng.random() {
            at -= at % PAGE;
        }
        let most = if self.rng.random() { 3 * PAGE } else { 3 * CHUNK };
        (at, self.rng.random_range(1..=most).min(end - at))
    }

    /// An operation on bytes of an object, in words; said aloud when asked to.
    fn say(&self, what: &str, who: usize, at: usize, len: usize) -> String {
        let pages = (at / PAGE, (at + len).div_ceil(PAGE));
        let now = self.driver.now;
        let said =
            format!("{now:6} object {who}: {what} {len} bytes at {at}, pages {}..{}", pages.0, pages.1);
        if self.shared.trace {
            println!("{said}");
        }
        said
    }

    /// The number of waits before each try of an operation is dropped and begun anew, as a transport that parks
    /// requests does.
    fn drops(&mut self) -> Vec<u32> {
        let times = if self.rng.random_ratio(1, 3) { self.rng.random_range(1..3) } else { 0 };
        (0..times).map(|_| self.rng.random_range(0..3)).collect()
    }

    fn begin_read(&mut self, who: usize, at: usize, len: usize) {
        let said = self.say("read", who, at, len);
        let (drops, shared, since) = (self.drops(), self.shared.clone(), self.driver.now);
        let object = {
            let subject = &mut shared.subjects.borrow_mut()[who];
            subject.readers += 1;
            subject.object.clone()
        };
        self.spawn(said, async move {
            let read = || async {
                let mut buf = vec![0xaa; len];
                object.read(at as u64, &mut buf).await.map(|()| buf)
            };
            let (result, _) = begun_anew(drops, &shared.tally, read).await;
            let subject = &mut shared.subjects.borrow_mut()[who];
            subject.readers -= 1;
            match result {
                Ok(buf) => subject.model.assert_read(at, &buf, since),
                Err(error) => {
                    shared.refused("read", who, at, error);
                    if error == VmError::Lost {
                        subject.model.doubt(at, len);
                    }
                }
            }
            if subject.readers == 0 {
                subject.model.forget_past();
            }
        });
    }

    fn begin_write(&mut self, who: usize, at: usize, len: usize) {
        let seed: u8 = self.rng.random();
        // Some of it compresses, some does not, some is zero.
        let data: Vec<u8> = match self.rng.random_range(0..3) {
            0 => (0..len).map(|i| seed.wrapping_add(((i / 100) % 256).try_into().unwrap_or(0))).collect(),
            1 => (0..len).map(|_| self.rng.random()).collect(),
            _ => vec![0; len],
        };
        let said =
            self.say(if data.iter().all(|&b| b == 0) { "write zeros," } else { "write" }, who, at, len);
        let (drops, shared) = (self.drops(), self.shared.clone());
        let object = self.begin_change(who, at, &data);
        self.spawn(said, async move {
            let write = || object.write(at as u64, &data, Allowance::Normal);
            let (result, dropped) = begun_anew(drops, &shared.tally, write).await;
            let subject = &mut shared.subjects.borrow_mut()[who];
            subject.changes -= 1;
            let (done, error) = match result {
                Ok(()) => (len, None),
                Err((done, error)) => (done, Some(error)),
            };
            // A dropped try may have come further than the one that was refused.
            let beyond = if dropped { Outcome::Unknown } else { Outcome::NotDone };
            subject.model.end(
                at,
                len,
                shared.now.get(),
                |end| if end <= done { Outcome::Done } else { beyond },
            );
            if let Some(error) = error {
                shared.refused("write", who, at, error);
                if error == VmError::Lost || subject.model.is_in_doubt(at, len) {
                    subject.model.doubt(at, len);
                }
            }
        });
    }

    fn begin_zero(&mut self, who: usize, at: usize, len: usize) {
        let said = self.say("zero", who, at, len);
        let (drops, shared) = (self.drops(), self.shared.clone());
        let object = self.begin_change(who, at, &vec![0; len]);
        self.spawn(said, async move {
            let zero = || object.zero(at as u64, (at + len) as u64);
            let (result, _) = begun_anew(drops, &shared.tally, zero).await;
            if let Err(error) = result {
                shared.refused("zero", who, at, error);
                // The pages at its ends may be zeroed or not; a plain discard finishes it.
                discard(&object, at / PAGE, (at + len).div_ceil(PAGE), shared.mode == Mode::NoObjects);
            }
            let subject = &mut shared.subjects.borrow_mut()[who];
            subject.changes -= 1;
            let now = shared.now.get();
            subject.model.end(at, len, now, |_| Outcome::Done);
            if result.is_err() {
                let (from, to) = (at / PAGE * PAGE, (at + len).next_multiple_of(PAGE).min(PAGES * PAGE));
                subject.model.write(from, &vec![0; to - from], now);
            }
        });
    }

    fn begin_change(&self, who: usize, at: usize, data: &[u8]) -> Rc<Object> {
        let subject = &mut self.shared.subjects.borrow_mut()[who];
        subject.model.begin(at, data);
        subject.changes += 1;
        subject.object.clone()
    }

    /// Changes that never wait: discard, fork, and dropping an object.
    fn change_at_once(&mut self, who: usize, at: usize, len: usize) {
        let other = self.rng.random_range(0..OBJECTS);
        let what = self.rng.random_range(0..3);
        let shared = self.shared.clone();
        let mut subjects = shared.subjects.borrow_mut();
        let (first, end) = (at / PAGE, (at + len).div_ceil(PAGE));
        let bytes = (first * PAGE, (end - first) * PAGE);
        self.say(["discard", "be forked,", "be replaced,"][what], who, at, len);
        match what {
            0 if subjects[who].model.is_free(bytes.0, bytes.1) => {
                discard(&subjects[who].object, first, end, shared.mode == Mode::NoObjects);
                subjects[who].model.write(bytes.0, &vec![0; bytes.1], self.driver.now);
            }
            1 if other != who && subjects[who].changes == 0 && subjects[other].is_quiet() => {
                let (object, mut model) = (subjects[who].object.fork(), subjects[who].model.clone());
                model.forget_past();
                subjects[other] = Subject::new(object, model);
            }
            2 if self.shared.mode != Mode::AccountFull && subjects[who].is_quiet() => {
                subjects[who] = self.new_subject();
            }
            _ => return,
        }
        shared.tally.borrow_mut().operations += 1;
    }

    /// An empty object, or one with a source.
    fn new_subject(&self) -> Subject {
        // Chosen by the driver's clock, which is as good as the seed and draws nothing from it.
        if self.driver.now.is_multiple_of(2) {
            return Subject::new(self.pager.object(&self.account), Model::new(PAGES));
        }
        let origin = self.shared.origin.clone();
        let model = Model::of(&origin.bytes(PAGES * PAGE));
        Subject::new(self.pager.object_from(origin, &self.account), model)
    }

    /// Lets everything under way end, in simulated time, and checks everything. If nothing can act while operations
    /// wait, a signal was lost.
    fn come_to_rest(&mut self) {
        self.pager.set_eager(false);
        for _ in 0..400_000 {
            self.tenant.gives_back();
            let is_woken = |task: &Task| task.woken.0.load(Ordering::Acquire);
            if !self.driver.may_run() && !self.tasks.iter().any(is_woken) {
                assert!(
                    self.tasks.is_empty(),
                    "a signal was lost: nobody is at work, and these wait: {:#?}\n{:#?}",
                    self.waiting(),
                    self.pager
                );
                return self.check();
            }
            if !self.tasks.iter().any(is_woken) {
                self.driver.skip_idle_time();
            }
            if self.tasks.is_empty() && self.pager.is_store_broken() {
                // No operation waits, but pageout would retry for ever.
                self.shared.faults.iter().for_each(|faults| faults.write_error.store(0, Ordering::Relaxed));
            }
            self.tick();
            if self.rng.random_ratio(1, 4) { self.poll_some() } else { self.driver.step(&mut self.rng) }
        }
        panic!("these never end: {:#?}\n{:#?}", self.waiting(), self.pager);
    }

    fn waiting(&self) -> Vec<&str> {
        self.tasks.iter().map(|task| task.what.as_str()).collect()
    }

    fn check(&self) {
        let subjects = self.shared.subjects.borrow();
        let objects: Vec<&Object> = subjects.iter().map(|subject| &*subject.object).collect();
        check(&self.pager, &objects);
        for subject in subjects.iter() {
            for page in 0..PAGES {
                if subject.model.page_has_data(page) {
                    assert_eq!(
                        subject.object.next_data(page as u64),
                        Some(page as u64),
                        "a page with data exists"
                    );
                }
            }
        }
        self.shared.tally.borrow_mut().checks += 1;
    }

    /// Compaction finishes where nothing blocks it.
    fn compact_to_the_end(&mut self) {
        let mut turns = 0;
        while self.pager.wants_compaction() {
            for _ in 0..4 {
                let pager = self.pager.clone();
                self.spawn("compaction".to_owned(), async move {
                    pager.compact().await;
                });
            }
            self.come_to_rest();
            self.pager.set_eager(true);
            (0..2_000).for_each(|_| {
                self.tick();
                self.driver.step(&mut self.rng);
            });
            self.come_to_rest();
            turns += 1;
            assert!(turns < 200, "compaction never ends: {:?}", self.pager.stats());
        }
    }

    /// Ends the run: all faults stop, every byte is read once more, and everything is given back.
    pub(crate) fn finish(mut self) -> Tally {
        self.come_to_rest();
        let counts = self.shared.injected();
        self.shared.faults.iter().for_each(|faults| faults.stop());
        self.shared.origin.error.store(0, Ordering::Relaxed);
        if self.shared.mode == Mode::Sound {
            self.compact_to_the_end();
        }
        for who in 0..OBJECTS {
            // Page by page: one that is lost must not hide the others.
            for page in 0..PAGES {
                self.begin_read(who, page * PAGE, PAGE);
            }
        }
        self.come_to_rest();
        self.tenant.lease.shrink(usize::MAX);
        self.shared.subjects.borrow_mut().clear();
        self.come_to_rest();
        let stats = self.pager.stats();
        assert_eq!(stats.charged_bytes, 0, "all memory comes back: {stats:?}");
        assert_eq!(stats.stored_live_bytes, 0, "nothing lives in the store: {stats:?}");
        assert_eq!(self.account.used(), 0, "all pages come back");
        let mut tally = *self.shared.tally.borrow();
        tally.page_outs = stats.page_outs;
        tally.page_ins = stats.page_ins;
        tally.recompressed = stats.recompressed;
        tally.bypassed = stats.bypassed;
        tally.fills = self.shared.origin.reads();
        tally.taken_over = self.driver.to_second;
        tally.compacted = stats.compacted;
        tally.helped = self.driver.helped;
        tally.faults = counts.errors + counts.corruptions;
        tally
    }
}

impl Shared {
    /// Faults that the stores have injected.
    fn injected(&self) -> FaultCounts {
        let counts = self.faults.iter().map(|faults| faults.counts());
        counts.fold(FaultCounts::default(), |all, one| FaultCounts {
            errors: all.errors + one.errors,
            corruptions: all.corruptions + one.corruptions,
        })
    }

    /// An operation was refused: asserts that this seed allows it.
    fn refused(&self, what: &str, who: usize, at: usize, error: VmError) {
        if self.trace {
            println!("       object {who}: {what} at {at} failed: {error}");
        }
        self.tally.borrow_mut().refused += 1;
        let injected = self.injected();
        let excused = match error {
            VmError::NoSpace => self.mode == Mode::AccountFull,
            VmError::NoMemory => match self.mode {
                Mode::Full | Mode::NoObjects => true,
                Mode::FailsWrites => self.was_broken.get(),
                _ => false,
            },
            VmError::StoreRead(_) => self.mode == Mode::FailsReads && injected.errors > 0,
            VmError::SourceRead(_) => self.mode == Mode::FailsReads && self.origin.failed() > 0,
            VmError::Lost => self.mode == Mode::Damages && injected.corruptions > 0,
            _ => false,
        };
        assert!(excused, "{error} in mode {:?} after {injected:?}", self.mode);
    }
}
