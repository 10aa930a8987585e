//! One chunk under the event orders of some thousands of schedules: writes, eviction, forks, punches, reads and the
//! waits between them, with all locks and counters of the crate under shuttle's scheduler.
//!
//! `cargo test -p overspill-vm --features shuttle --test shuttle`. A failure prints its schedule, which
//! `shuttle::replay` runs again. The driver here waits without a time limit, unlike the one in production: a lost
//! wake-up is a deadlock, which shuttle reports. (Shuttle knows sequential consistency only: it finds no missing
//! fence.)
#![cfg(feature = "shuttle")]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use overspill_store::{FaultyStore, MemStore, Store};
use overspill_vm::testing::{self, check, evict_all, perform, settle};
use overspill_vm::{Account, Allowance, CHUNK, Method, Object, PAGE, Pager, Signals, Step, VmConfig};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::{Config, Runner, thread};

/// Runs `scenario` under random schedules, and under as many with few but well-placed preemptions.
fn explore(schedules: usize, scenario: fn()) {
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new(schedules), config.clone()).run(scenario);
    Runner::new(PctScheduler::new(3, schedules), config).run(scenario);
}

/// Two threads that run the VM: pageout, and the store's I/O.
#[derive(Default)]
struct Driver {
    flags: Mutex<Flags>,
    changed: Condvar,
}

#[derive(Default)]
struct Flags {
    pageout: bool,
    io: bool,
    stop: bool,
}

impl Signals for Driver {
    fn pageout_wanted(&self) {
        self.flags.lock().unwrap().pageout = true;
        self.changed.notify_all();
    }

    fn reads_ready(&self) {
        self.flags.lock().unwrap().io = true;
        self.changed.notify_all();
    }

    fn writes_ready(&self) {
        self.reads_ready();
    }

    fn alarm(&self, _at: u64) {
        self.pageout_wanted();
    }
}

impl Driver {
    /// Waits for a flag and clears it; false when it is time to stop.
    fn wait(&self, flag: fn(&mut Flags) -> &mut bool) -> bool {
        let mut flags = self.flags.lock().unwrap();
        while !*flag(&mut flags) && !flags.stop {
            flags = self.changed.wait(flags).unwrap();
        }
        *flag(&mut flags) = false;
        !flags.stop
    }

    fn stop(&self) {
        self.flags.lock().unwrap().stop = true;
        self.changed.notify_all();
    }

    fn run_pageout(&self, vm: &Pager) {
        loop {
            // Time passes as soon as an operation waits for it.
            if let Some(at) = vm.next_alarm() {
                vm.tick(at);
            }
            let on = match vm.pageout() {
                Step::Worked => true,
                Step::AwaitStore => {
                    vm.prepare_space();
                    true
                }
                Step::Rest | Step::AwaitIo | Step::Stuck => self.wait(|flags| &mut flags.pageout),
            };
            if !on {
                return;
            }
        }
    }

    fn run_io(&self, vm: &Pager) {
        loop {
            let Some(io) = testing::next_io(vm) else {
                if self.wait(|flags| &mut flags.io) {
                    continue;
                }
                return;
            };
            thread::yield_now();
            perform(vm, io);
        }
    }
}

struct World {
    vm: Pager,
    account: std::sync::Arc<Account>,
    driver: Arc<Driver>,
    driven: Arc<AtomicBool>,
}

type Job = Box<dyn FnOnce() + Send>;

fn job(f: impl FnOnce() + Send + 'static) -> Job {
    Box::new(f)
}

impl World {
    /// Memory for `pages` beside the buffers: two batches, and one cluster on its way in.
    fn new(pages: usize, store: Option<std::sync::Arc<dyn Store>>) -> World {
        let mut config = VmConfig::new(4 << 20);
        (config.batch_bytes, config.batches, config.fetch_slots) = (CHUNK + 2 * PAGE, 2, 1);
        // Through compressed memory, or past it.
        config.method = if thread_rng().gen_bool(0.5) { Method::Lz4 } else { Method::None };
        config.memory_bytes = config.buffers(store.is_some()) + pages * PAGE;
        let vm = Pager::new(&config, store.into_iter().collect()).unwrap();
        let driver = Arc::new(Driver::default());
        vm.set_signals(driver.clone());
        World { vm, account: Account::new(1 << 20), driver, driven: Arc::default() }
    }

    /// Plenty of memory, and a store.
    fn roomy() -> World {
        World::new(100, Some(std::sync::Arc::new(MemStore::new(1000))))
    }

    /// An object whose pages `0..pages` are all 1: in memory, in the store, or some here and some there.
    fn object(&self, pages: u64) -> Paged {
        let object = self.empty();
        for page in 0..pages {
            object.write(page, 1);
        }
        let (evict, again) = (thread_rng().gen_range(0..4), thread_rng().gen_range(0..pages));
        if evict > 0 {
            evict_all(&self.vm);
        }
        if evict > 1 {
            object.write(again, 1);
        }
        object
    }

    fn empty(&self) -> Paged {
        let object = Arc::new(self.vm.object(&self.account));
        Paged { object, vm: self.vm.clone(), driven: self.driven.clone() }
    }

    /// Runs `jobs` at once, with the driver beside them; the VM evicts all it can if `eager`.
    fn run(&self, eager: bool, jobs: Vec<Job>) {
        self.driven.store(true, Ordering::Relaxed);
        self.vm.set_eager(eager);
        let (vm, driver) = (self.vm.clone(), self.driver.clone());
        let pageout = thread::spawn(move || driver.run_pageout(&vm));
        let (vm, driver) = (self.vm.clone(), self.driver.clone());
        let io = thread::spawn(move || driver.run_io(&vm));
        run_all(jobs);
        self.driver.stop();
        pageout.join().unwrap();
        io.join().unwrap();
        self.driven.store(false, Ordering::Relaxed);
        self.vm.set_eager(false);
        settle(&self.vm);
    }

    /// Checks everything, before and after all is evicted; then drops all objects and checks that nothing is left.
    fn end(self, objects: Vec<Paged>) {
        let all: Vec<&Object> = objects.iter().map(|paged| &*paged.object).collect();
        check(&self.vm, &all);
        evict_all(&self.vm);
        check(&self.vm, &all);
        assert_eq!(self.vm.stats().errors, 0);
        drop(objects);
        settle(&self.vm);
        check(&self.vm, &[]);
        let stats = self.vm.stats();
        assert_eq!((stats.charged_bytes, stats.stored_bytes, self.account.used()), (0, 0, 0), "{stats:?}");
    }
}

fn run_all(jobs: Vec<Job>) {
    let threads: Vec<_> = jobs.into_iter().map(thread::spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// An object with its way of waiting: by the driver's threads while they run, else by doing their work.
#[derive(Clone)]
struct Paged {
    object: Arc<Object>,
    vm: Pager,
    driven: Arc<AtomicBool>,
}

impl Paged {
    fn wait<F: Future>(&self, f: F) -> F::Output {
        if self.driven.load(Ordering::Relaxed) { block_on(f) } else { testing::block_on(&self.vm, f) }
    }

    fn fork(&self) -> Paged {
        Paged { object: Arc::new(self.object.fork()), ..self.clone() }
    }

    fn write(&self, page: u64, fill: u8) {
        self.write_part(page, 0, &[fill; PAGE]);
    }

    fn write_part(&self, page: u64, at: usize, data: &[u8]) {
        self.wait(self.object.write(page * PAGE as u64 + at as u64, data, Allowance::Normal)).unwrap();
    }

    fn bytes(&self, page: u64) -> Vec<u8> {
        let mut buf = vec![0xee; PAGE];
        self.wait(self.object.read(page * PAGE as u64, &mut buf)).unwrap();
        buf
    }

    /// The byte that fills a page: pages change in one piece.
    fn fill(&self, page: u64) -> u8 {
        let buf = self.bytes(page);
        assert!(buf.iter().all(|&b| b == buf[0]), "page {page} is torn");
        buf[0]
    }

    /// Pages 0 and 1, by one read.
    fn both(&self) -> [u8; 2] {
        let mut buf = vec![0xee; 2 * PAGE];
        self.wait(self.object.read(0, &mut buf)).unwrap();
        [0, PAGE].map(|at| {
            assert!(buf[at..at + PAGE].iter().all(|&b| b == buf[at]), "byte {at} is in a torn page");
            buf[at]
        })
    }

    /// Pages 0 and 1, the part written of page 2, page 3, which is never written, and page 4.
    fn picture(&self) -> [u8; 5] {
        let part = self.bytes(2);
        let written = part[100];
        assert!(part[100..200].iter().all(|&b| b == written), "a partial write is torn");
        assert!(part[..100].iter().chain(&part[200..]).all(|&b| b == 1), "a partial write lost its page");
        [self.fill(0), self.fill(1), written, self.fill(3), self.fill(4)]
    }
}

/// True if `picture` is what `k` of the writer's steps and `p` of the puncher's can leave.
fn is_after(picture: [u8; 5], k: usize, p: usize) -> bool {
    let one = match (k >= 2, p >= 2) {
        (false, false) => picture[1] == 1,
        (false, true) => picture[1] == 0,
        (true, false) => picture[1] == 3,
        (true, true) => picture[1] == 3 || picture[1] == 0,
    };
    one && picture[0] == [1, 2, 2, 2, 5][k]
        && picture[2] == if k >= 3 { 4 } else { 1 }
        && picture[3] == 1
        && picture[4] == if p >= 1 { 0 } else { 1 }
}

/// R28, R40, R57, R58: a fork shows one moment and keeps it; written data stays, punched data is gone.
#[test]
fn write_evict_fork_punch() {
    explore(1000, || {
        let world = World::roomy();
        let object = world.object(5);
        let forked = Arc::new(Mutex::new(None));
        let (writer, puncher, source, target) =
            (object.clone(), object.clone(), object.clone(), forked.clone());
        world.run(
            true,
            vec![
                job(move || {
                    writer.write(0, 2);
                    writer.write(1, 3);
                    writer.write_part(2, 100, &[4; 100]);
                    writer.write(0, 5);
                }),
                job(move || {
                    puncher.object.discard(4, 5).unwrap();
                    puncher.object.discard(1, 2).unwrap();
                }),
                job(move || {
                    let fork = source.fork();
                    drop(source);
                    let first = fork.picture();
                    fork.write(5, 9);
                    let second = fork.picture();
                    assert_eq!(first, second, "a fork changed");
                    *target.lock().unwrap() = Some((fork, first));
                }),
            ],
        );
        let (fork, then) = forked.lock().unwrap().take().unwrap();
        for _ in 0..2 {
            let now = object.picture();
            assert!(is_after(now, 4, 2), "{now:?} at the end");
            assert!((0..5).any(|k| (0..3).any(|p| is_after(then, k, p))), "{then:?} in the fork");
            assert_eq!(fork.picture(), then, "a fork changed");
            assert_eq!((fork.fill(5), object.fill(5)), (9, 0));
            evict_all(&world.vm);
        }
        world.end(vec![object, fork]);
    });
}

/// A whole chunk goes from one of two objects that show it, while it is written and evicted.
#[test]
fn write_evict_fork_and_punch_all() {
    explore(1000, || {
        let world = World::roomy();
        let object = world.object(3);
        let fork = object.fork();
        let (writer, puncher, reader) = (object.clone(), object.clone(), fork.clone());
        world.run(
            true,
            vec![
                job(move || {
                    writer.write(0, 2);
                    writer.write(1, 3);
                }),
                job(move || puncher.object.discard(0, u64::MAX).unwrap()),
                job(move || (0..3).for_each(|page| assert_eq!(reader.fill(page), 1))),
            ],
        );
        let now = [0, 1, 2].map(|page| object.fill(page));
        assert!(matches!(now, [0 | 2, 3, 0] | [0, 0, 0]), "{now:?}");
        (0..3).for_each(|page| assert_eq!(fork.fill(page), 1));
        world.end(vec![object, fork]);
    });
}

/// The last reference goes while pages are on their way out: nothing of it stays, in memory or in the store.
#[test]
fn drop_during_eviction() {
    explore(500, || {
        let world = World::roomy();
        let object = world.object(4);
        let writer = object.clone();
        world.run(
            true,
            vec![
                job(move || {
                    writer.write(1, 2);
                    drop(writer.fork());
                }),
                job(move || drop(object)),
            ],
        );
        world.end(vec![]);
    });
}

/// R28: a reader never waits for an eviction to end, and never sees an older version after a newer one.
#[test]
fn readers_during_eviction() {
    explore(700, || {
        let world = World::roomy();
        let object = world.object(2);
        let writer = object.clone();
        let mut jobs = vec![job(move || {
            for fill in 2..5 {
                writer.write(0, fill);
                writer.write(1, fill);
            }
        })];
        for _ in 0..2 {
            let reader = object.clone();
            jobs.push(job(move || {
                let mut newest = [1, 1];
                let mut saw = |page: usize, seen: u8| {
                    let before = std::mem::replace(&mut newest[page], seen);
                    assert!(seen >= before, "page {page} was {before} and is {seen}");
                    newest
                };
                for _ in 0..2 {
                    let [zero, one] = reader.both();
                    saw(0, zero);
                    saw(1, one);
                    saw(1, reader.fill(1));
                    let newest = saw(0, reader.fill(0));
                    assert!(newest[0] >= newest[1], "page 0 is written first and was read last: {newest:?}");
                }
            }));
        }
        world.run(true, jobs);
        assert_eq!((object.fill(0), object.fill(1)), (4, 4));
        world.end(vec![object]);
    });
}

fn tens(n: usize) -> u8 {
    u8::try_from(n * 10).unwrap()
}

/// Two writers of one page: whole pages replace each other, disjoint parts are both kept.
#[test]
fn two_writers_of_a_page() {
    explore(1000, || {
        let world = World::roomy();
        let object = world.object(3);
        let jobs = [1usize, 2].map(|n| {
            let (writer, fill) = (object.clone(), tens(n));
            job(move || {
                writer.write_part(0, n * 1000, &[fill; 500]);
                writer.write(1, fill);
                writer.write_part(0, n * 1000 + 500, &[fill; 500]);
                writer.write(1, fill + 1);
            })
        });
        world.run(true, jobs.into());
        let whole = object.fill(1);
        assert!(whole == 11 || whole == 21, "{whole}");
        let parts = object.bytes(0);
        let expected = |at: usize| if (1000..3000).contains(&at) { tens(at / 1000) } else { 1 };
        assert!(parts.iter().enumerate().all(|(at, &b)| b == expected(at)), "one writer undid the other");
        assert_eq!(object.fill(2), 1);
        world.end(vec![object]);
    });
}

/// Two readers share one fetch (there is one slot) of a page that is overwritten meanwhile; the first try may bring
/// damage.
#[test]
fn a_fetch_joined_while_its_page_is_overwritten() {
    explore(1000, || {
        let faulty = FaultyStore::new(std::sync::Arc::new(MemStore::new(1000)), 1);
        let faults = faulty.faults();
        let world = World::new(100, Some(std::sync::Arc::new(faulty)));
        let object = world.object(2);
        let other = world.object(1);
        evict_all(&world.vm);
        let damage = thread_rng().gen_range(0..2u32);
        faults.next_read_flips.store(damage, Ordering::Relaxed);
        let (writer, elsewhere) = (object.clone(), other.clone());
        let mut jobs = vec![job(move || writer.write(0, 2)), job(move || assert_eq!(elsewhere.fill(0), 1))];
        for _ in 0..2 {
            let reader = object.clone();
            jobs.push(job(move || {
                let (first, second) = (reader.fill(0), reader.fill(0));
                assert!(first <= second && (1..=2).contains(&first) && second <= 2, "{first}, {second}");
                assert_eq!(reader.fill(1), 1);
            }));
        }
        world.run(true, jobs);
        assert_eq!((object.fill(0), object.fill(1), other.fill(0)), (2, 1, 1));
        faults.next_read_flips.store(0, Ordering::Relaxed);
        let errors = world.vm.stats().errors;
        assert!(errors <= 1, "{errors}");
        check(&world.vm, &[&object.object, &other.object]);
    });
}

/// Writers of more than memory holds: each wait ends. One gives up when it must wait and begins anew, like a parked
/// request.
#[test]
fn writers_wait_for_pageout() {
    explore(1500, || {
        let world = World::new(10, Some(std::sync::Arc::new(MemStore::new(1000))));
        let objects: Vec<_> = (0..2).map(|_| world.empty()).collect();
        // As much as one reservation may hold, or twice that.
        let pages = thread_rng().gen_range(1..=2) * 4;
        let jobs = [(0, false), (1, false), (1, true)].map(|(n, hasty)| {
            let object = objects[n].clone();
            job(move || {
                let (data, at) = (vec![7; pages * PAGE], u64::from(hasty) * (pages * PAGE) as u64);
                let write = || object.object.write(at, &data, Allowance::Normal);
                let began = hasty && pin!(write()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
                if !began {
                    block_on(write()).unwrap();
                }
            })
        });
        world.run(false, jobs.into());
        for (object, pages) in objects.iter().zip([pages, 2 * pages]) {
            (0..pages as u64).for_each(|page| assert_eq!(object.fill(page), 7));
        }
        world.end(objects);
    });
}

/// Without a store or pageout: a thread that frees memory serves its waiters, however it frees it.
#[test]
fn writers_wait_for_who_frees() {
    explore(1500, || {
        let world = World::new(12, None);
        let full = world.empty();
        full.write_part(0, 0, &vec![1; 5 * PAGE]);
        full.write_part(5, 0, &vec![1; 5 * PAGE]);
        let target = world.empty();
        let kept = Arc::new(Mutex::new(None));
        let (keep, how) = (kept.clone(), thread_rng().gen_range(0..4));
        let freer = job(move || {
            match how {
                0 => full.object.discard(0, 6).unwrap(),
                1 => full.object.discard(0, u64::MAX).unwrap(),
                2 => full.wait(full.object.zero(0, 6 * PAGE as u64)).unwrap(),
                _ => return drop(full),
            }
            *keep.lock().unwrap() = Some(full);
        });
        let writers = [0, 1].map(|page| {
            let target = target.clone();
            job(move || target.write_part(2 * page, 0, &[8; 2 * PAGE]))
        });
        world.driven.store(true, Ordering::Relaxed);
        run_all(writers.into_iter().chain([freer]).collect());
        world.driven.store(false, Ordering::Relaxed);
        (0..4).for_each(|page| assert_eq!(target.fill(page), 8));
        let left = kept.lock().unwrap().take();
        world.end(left.into_iter().chain([target]).collect());
    });
}

/// A helper's chunks are off the queues while it encodes: pageout that finds nothing must not take that for the end.
#[test]
fn what_a_helper_holds_makes_nobody_refused() {
    explore(1500, || {
        let world = World::new(14, Some(std::sync::Arc::new(MemStore::new(1000))));
        let writers = [0, 1].map(|_| world.empty());
        let vm = world.vm.clone();
        let helper = job(move || {
            for _ in 0..20 {
                vm.help_pageout();
                thread::yield_now();
            }
        });
        let write = |paged: &Paged| {
            let paged = paged.clone();
            job(move || (0..8).for_each(|page| paged.write(2 * page, 7)))
        };
        world.run(false, writers.iter().map(write).chain([helper]).collect());
        writers.iter().for_each(|paged| (0..8).for_each(|page| assert_eq!(paged.fill(2 * page), 7)));
        world.end(writers.into());
    });
}
