//! Everything that can happen, chosen by one seed.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::ops::AddAssign;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use overspill_slab::{CpuMode, choose_cpu_mode, inject};
use overspill_store::codec::Method;
use overspill_store::{FaultCounts, Faults, FaultyStore, MemStore};
use overspill_vm::testing::{check, perform};
use overspill_vm::{Account, CHUNK, Io, Object, PAGE, Signals, Space, Step, Vm, VmConfig, VmError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::{Model, assert_read};

const OBJECTS: usize = 4;
/// Pages of each object: several chunks, more than the budget in sum.
const PAGES: usize = 72;
/// Operations under way at once, at most.
const CLIENTS: usize = 6;
/// The store takes at most so long, in ticks of simulated time.
const SLOWEST: u64 = 40;

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    operations: u64,
    page_outs: u64,
    page_ins: u64,
    repacked: u64,
    unpacked: u64,
    faults: u64,
    refused: u64,
    checks: u64,
}

impl Tally {
    /// Whether a good number of seeds came to nothing in some respect.
    pub(crate) fn is_idle(&self) -> bool {
        [self.page_outs, self.page_ins, self.repacked, self.unpacked, self.faults, self.refused, self.checks]
            .contains(&0)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.operations += other.operations;
        self.page_outs += other.page_outs;
        self.page_ins += other.page_ins;
        self.repacked += other.repacked;
        self.unpacked += other.unpacked;
        self.faults += other.faults;
        self.refused += other.refused;
        self.checks += other.checks;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations, {} refused, {} pages out, {} in, {} repacked, {} unpacked, {} faults, {} full checks",
            self.operations,
            self.refused,
            self.page_outs,
            self.page_ins,
            self.repacked,
            self.unpacked,
            self.faults,
            self.checks
        )
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// An object, what it should hold, and what is being done to it.
struct Subject {
    object: Rc<Object>,
    model: Model,
    /// What it will hold when the change under way is done.
    next: Option<Model>,
    /// What it would hold if the last change had not failed.
    failed: Option<Model>,
    readers: usize,
    /// A change and a read were under way together: no other change until the readers are gone, so that each read
    /// has but two right answers.
    raced: bool,
}

impl Subject {
    fn new(object: Object, model: Model) -> Subject {
        Subject { object: Rc::new(object), model, next: None, failed: None, readers: 0, raced: false }
    }

    fn may_change(&self) -> bool {
        self.next.is_none() && !(self.raced && self.readers > 0)
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
}

pub(crate) struct World {
    rng: StdRng,
    vm: Vm,
    account: Arc<Account>,
    faults: Arc<Faults>,
    subjects: Rc<RefCell<Vec<Subject>>>,
    tasks: Vec<Task>,
    /// Requests at the store, and when they are done.
    at_store: Vec<(u64, Io)>,
    now: u64,
    tally: Rc<RefCell<Tally>>,
    /// Print what happens.
    trace: bool,
    /// Whether reads may ever fail, or memory run out, with this seed.
    mode: Mode,
}

/// A clock that shows anything: whether the store outruns the compressor is anybody's guess.
struct BrokenClock(AtomicU64);

impl Signals for BrokenClock {
    fn pageout_wanted(&self) {}
    fn reads_ready(&self) {}
    fn writes_ready(&self) {}
    fn alarm(&self, _at: u64) {}

    fn nanoseconds(&self) -> u64 {
        let next = |x: u64| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(0) >> 44
    }
}

/// What the seed's store does wrong.
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
        // Without magazines every allocation can fail, and which does depends on nothing but the seed.
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
        let store = MemStore::unprepared(50_000);
        let store = if rng.random_ratio(1, 4) { store.separating() } else { store };
        let store = FaultyStore::new(Arc::new(store), seed);
        let faults = store.faults();
        faults.not_ready.store(20_000, Ordering::Relaxed);
        if mode == Mode::Full {
            faults.full_after.store(rng.random_range(0..80), Ordering::Relaxed);
        }
        let mut config = VmConfig::new(4 << 20);
        config.batches = rng.random_range(1..4);
        config.batch_bytes = CHUNK * rng.random_range(1..4);
        config.fetch_slots = rng.random_range(1..4);
        if rng.random_ratio(1, 3) {
            config.method = Method::None;
        }
        config.repack = rng.random();
        config.memory_bytes = config.buffers(true) + rng.random_range(36..120) * PAGE;
        let vm = Vm::new(&config, Some(Arc::new(store))).expect("a legal layout");
        vm.set_signals(Arc::new(BrokenClock(AtomicU64::new(seed))));
        if mode == Mode::NoObjects {
            inject::fail_one_in(rng.random_range(2..200), seed);
        }
        let limit = if mode == Mode::AccountFull { 100 } else { 1 << 20 };
        let account = Account::new(limit);
        let subject = || Subject::new(vm.object(&account), Model::new(PAGES));
        let subjects = Rc::new(RefCell::new((0..OBJECTS).map(|_| subject()).collect()));
        World {
            rng,
            vm,
            account,
            faults,
            subjects,
            tasks: Vec::new(),
            at_store: Vec::new(),
            now: 0,
            tally: Rc::default(),
            trace,
            mode,
        }
    }

    /// What is wrong with this seed's store.
    pub(crate) fn mode(&self) -> &'static str {
        match self.mode {
            Mode::Sound => "is sound",
            Mode::FailsWrites => "fails writes",
            Mode::FailsReads => "fails reads",
            Mode::Damages => "damages data",
            Mode::Full => "is full early",
            Mode::AccountFull => "is sound, with an account that is full early",
            Mode::NoObjects => "is sound, with object caches that fail",
        }
    }

    /// One thing happens.
    pub(crate) fn step(&mut self) {
        self.now += 1;
        match self.rng.random_range(0..100) {
            0..25 => self.begin(),
            25..55 => self.poll_some(),
            55..70 => self.pageout(),
            70..85 => self.take_io(),
            85..97 => self.complete_io(),
            97 => self.change_faults(),
            98 => self.vm.maintain(),
            _ if self.now.is_multiple_of(4) => self.come_to_rest(),
            _ => {}
        }
        let stats = self.vm.stats();
        assert!(
            stats.charged_bytes <= stats.limit_bytes + stats.metadata_bytes,
            "over budget at {}: {stats:?}",
            self.now
        );
    }

    fn change_faults(&mut self) {
        let chance = |rng: &mut StdRng| if rng.random() { 0 } else { rng.random_range(0..300_000) };
        let f = &self.faults;
        let set: &[_] = match self.mode {
            Mode::FailsWrites => &[&f.write_error, &f.torn_error],
            Mode::FailsReads => &[&f.read_error],
            Mode::Damages => {
                &[&f.read_flip, &f.write_flip, &f.torn_silent, &f.misdirected_write, &f.misdirected_read]
            }
            Mode::Sound | Mode::Full | Mode::AccountFull | Mode::NoObjects => &[],
        };
        for fault in set {
            fault.store(chance(&mut self.rng), Ordering::Relaxed);
        }
    }

    fn pageout(&mut self) {
        if self.rng.random_range(0..20) == 0 {
            self.vm.set_eager(self.rng.random());
        }
        if self.vm.pageout() == Step::AwaitStore {
            self.maintain_store();
        }
    }

    fn maintain_store(&self) {
        if let Some(store) = self.vm.store() {
            store.maintain(true);
        }
    }

    fn take_io(&mut self) {
        if let Some(io) = self.vm.next_io() {
            let due = self.now + self.rng.random_range(0..SLOWEST);
            self.at_store.push((due, io));
        }
    }

    fn complete_io(&mut self) {
        let due: Vec<usize> = (0..self.at_store.len()).filter(|&i| self.at_store[i].0 <= self.now).collect();
        if !due.is_empty() {
            let (_, io) = self.at_store.swap_remove(due[self.rng.random_range(0..due.len())]);
            perform(&self.vm, io);
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

    fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        self.tally.borrow_mut().operations += 1;
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        self.tasks.push(Task { future: Box::pin(future), woken });
    }

    /// Begins an operation, if there is a client for it and its object is not being changed.
    fn begin(&mut self) {
        if self.tasks.len() >= CLIENTS {
            return;
        }
        let who = self.rng.random_range(0..OBJECTS);
        let (at, len) = self.range();
        let changing = !self.subjects.borrow()[who].may_change();
        match self.rng.random_range(0..10) {
            0..4 => self.begin_read(who, at, len),
            _ if self.rng.random_ratio(1, 50) => {
                let vm = self.vm.clone();
                self.spawn(async move {
                    vm.compact().await;
                });
            }
            _ if self.rng.random_ratio(1, 10) => {
                self.vm.repack();
            }
            _ if changing => {}
            4..8 => self.begin_write(who, at, len),
            8 => self.begin_zero(who, at, len),
            _ => self.change_at_once(who, at, len),
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

    /// Says that something was done to bytes of an object, when asked to.
    fn say(&self, what: &str, who: usize, at: usize, len: usize) {
        if self.trace {
            let pages = (at / PAGE, (at + len).div_ceil(PAGE));
            println!(
                "{:6} object {who}: {what} {len} bytes at {at}, pages {}..{}",
                self.now, pages.0, pages.1
            );
        }
    }

    fn begin_read(&mut self, who: usize, at: usize, len: usize) {
        self.say("read", who, at, len);
        let (subjects, mode, tally) = (self.subjects.clone(), self.mode, self.tally.clone());
        let object = {
            let mut subjects = subjects.borrow_mut();
            let subject = &mut subjects[who];
            subject.readers += 1;
            subject.raced = subject.next.is_some() || (subject.raced && subject.readers > 1);
            subject.object.clone()
        };
        // A change that begins during the read counts as well as one that was under way.
        let before = (subjects.borrow()[who].model.clone(), subjects.borrow()[who].next.clone());
        let faults = self.faults.clone();
        self.spawn(async move {
            let mut buf = vec![0xaa; len];
            let result = object.read(at as u64, &mut buf).await;
            let mut subjects = subjects.borrow_mut();
            let subject = &mut subjects[who];
            subject.readers -= 1;
            match result {
                Ok(()) => {
                    let (old, new) = &before;
                    let later = [new.as_ref(), subject.next.as_ref(), subject.failed.as_ref()];
                    let states: Vec<&Model> =
                        [old, &subject.model].into_iter().chain(later.into_iter().flatten()).collect();
                    assert_read(&states, at, &buf);
                }
                Err(error) => {
                    tally.borrow_mut().refused += 1;
                    assert_excused(error, mode, &faults.counts());
                    if error == VmError::Lost {
                        subject.model.doubt(at, len);
                        if let Some(next) = &mut subject.next {
                            next.doubt(at, len);
                        }
                    }
                }
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
        self.say(if data.iter().all(|&b| b == 0) { "write zeros," } else { "write" }, who, at, len);
        let object = self.begin_change(who, |model| model.write(at, &data));
        let (subjects, mode, tally, faults, trace) =
            (self.subjects.clone(), self.mode, self.tally.clone(), self.faults.clone(), self.trace);
        self.spawn(async move {
            let result = object.write(at as u64, &data, Space::Normal).await;
            let mut subjects = subjects.borrow_mut();
            let subject = &mut subjects[who];
            match result {
                Ok(()) => subject.model = subject.next.take().expect("a change was under way"),
                Err((done, error)) => {
                    if trace {
                        println!("       object {who}: write at {at} failed after {done} bytes: {error}");
                    }
                    tally.borrow_mut().refused += 1;
                    assert_excused(error, mode, &faults.counts());
                    let doubts = subject.next.take().expect("a change was under way");
                    subject.model.write(at, &data[..done]);
                    subject.failed = Some(doubts.clone());
                    if doubts.is_in_doubt(at, len) || error == VmError::Lost {
                        subject.model.doubt(at, len);
                    }
                }
            }
        });
    }

    fn begin_zero(&mut self, who: usize, at: usize, len: usize) {
        if self.subjects.borrow()[who].readers > 0 {
            return;
        }
        self.say("zero", who, at, len);
        let object = self.begin_change(who, |model| model.zero(at, len));
        let (subjects, mode, faults, trace) =
            (self.subjects.clone(), self.mode, self.faults.clone(), self.trace);
        self.spawn(async move {
            let result = object.zero(at as u64, (at + len) as u64).await;
            if let Err(error) = result {
                if trace {
                    println!("       object {who}: zero at {at} failed: {error}");
                }
                assert_excused(error, mode, &faults.counts());
                // The pages at its ends may be zeroed or not; finish it in the plainest way.
                discard(&object, at / PAGE, (at + len).div_ceil(PAGE), mode);
            }
            let mut subjects = subjects.borrow_mut();
            let subject = &mut subjects[who];
            subject.model = subject.next.take().expect("a change was under way");
            if result.is_err() {
                subject.failed = Some(subject.model.clone());
                let (from, to) = (at / PAGE * PAGE, (at + len).next_multiple_of(PAGE));
                subject.model.zero(from, to.min(PAGES * PAGE) - from);
            }
        });
    }

    fn begin_change(&self, who: usize, change: impl FnOnce(&mut Model)) -> Rc<Object> {
        let mut subjects = self.subjects.borrow_mut();
        let subject = &mut subjects[who];
        let mut next = subject.model.clone();
        change(&mut next);
        subject.next = Some(next);
        subject.failed = None;
        subject.raced = subject.readers > 0;
        subject.object.clone()
    }

    /// Changes that never wait: discard, fork, and throwing an object away.
    fn change_at_once(&mut self, who: usize, at: usize, len: usize) {
        let other = self.rng.random_range(0..OBJECTS);
        let what = self.rng.random_range(0..3);
        let mut subjects = self.subjects.borrow_mut();
        if subjects[who].readers > 0 {
            return;
        }
        let (first, end) = (at / PAGE, (at + len).div_ceil(PAGE));
        self.say(["discard", "be forked,", "be replaced,"][what], who, at, len);
        match what {
            0 => {
                discard(&subjects[who].object, first, end, self.mode);
                subjects[who].model.zero(first * PAGE, (end - first) * PAGE);
            }
            1 if other != who && subjects[other].next.is_none() && subjects[other].readers == 0 => {
                let (object, model) = (subjects[who].object.fork(), subjects[who].model.clone());
                subjects[other] = Subject::new(object, model);
            }
            2 if self.mode != Mode::AccountFull => {
                subjects[who] = Subject::new(self.vm.object(&self.account), Model::new(PAGES));
            }
            _ => return,
        }
        self.tally.borrow_mut().operations += 1;
    }

    /// Lets everything under way end, in simulated time, and checks all there is.
    fn come_to_rest(&mut self) {
        self.vm.set_eager(false);
        for _ in 0..200_000 {
            if self.tasks.is_empty() && self.at_store.is_empty() && self.vm.writes_in_flight() == 0 {
                match self.vm.next_io() {
                    None => return self.check(),
                    Some(io) => self.at_store.push((self.now, io)),
                }
            }
            self.now += 1;
            match self.rng.random_range(0..4) {
                0 => self.poll_some(),
                1 => self.pageout_calmly(),
                2 => self.take_io(),
                _ => self.complete_io(),
            }
        }
        panic!("{} operations never end: {:#?}", self.tasks.len(), self.vm);
    }

    fn pageout_calmly(&self) {
        if self.vm.pageout() == Step::AwaitStore {
            self.maintain_store();
        }
    }

    fn check(&self) {
        let subjects = self.subjects.borrow();
        let objects: Vec<&Object> = subjects.iter().map(|subject| &*subject.object).collect();
        check(&self.vm, &objects);
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
        self.tally.borrow_mut().checks += 1;
    }

    /// Ends the run: all faults stop, every byte is read once more, and everything is given back.
    pub(crate) fn finish(mut self) -> Tally {
        self.come_to_rest();
        let counts = self.faults.counts();
        self.faults.stop();
        for who in 0..OBJECTS {
            // Page by page: one that is lost must not hide the others.
            for page in 0..PAGES {
                self.begin_read(who, page * PAGE, PAGE);
            }
        }
        self.come_to_rest();
        self.subjects.borrow_mut().clear();
        self.come_to_rest();
        let stats = self.vm.stats();
        assert_eq!(stats.charged_bytes, 0, "all memory comes back: {stats:?}");
        assert_eq!(self.account.used(), 0, "all pages come back");
        let mut tally = *self.tally.borrow();
        tally.page_outs = stats.page_outs;
        tally.page_ins = stats.page_ins;
        tally.repacked = stats.repacked;
        tally.unpacked = stats.unpacked;
        tally.faults = counts.errors + counts.corruptions;
        tally
    }
}

/// Asserts that an operation may fail this way with this seed.
/// Discards pages. Where that found no memory it is done again: a discard may be done twice, and must come to an end.
fn discard(object: &Object, first: usize, end: usize, mode: Mode) {
    for _ in 0..10_000 {
        match object.discard(first as u64, end as u64) {
            Ok(()) => return,
            Err(error) => assert!(mode == Mode::NoObjects && error == VmError::NoMemory, "{error}"),
        }
    }
    panic!("a discard never ends");
}

fn assert_excused(error: VmError, mode: Mode, injected: &FaultCounts) {
    let excused = match error {
        VmError::NoSpace => mode == Mode::AccountFull,
        VmError::NoMemory => matches!(mode, Mode::Full | Mode::FailsWrites | Mode::NoObjects),
        VmError::StoreRead => mode == Mode::FailsReads && injected.errors > 0,
        VmError::Lost => mode == Mode::Damages && injected.corruptions > 0,
        _ => false,
    };
    assert!(excused, "{error} in mode {mode:?} after {injected:?}");
}
