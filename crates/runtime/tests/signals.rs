//! No signal of the driver is lost: threads that wait with a bound would hide a loss.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use overspill_runtime::{Driver, DriverOptions};
use overspill_store::{AllocError, Backend, FileStore, MemStore, Run, Space, Store, Usage};
use overspill_vm::{Account, Allowance, PAGE, Pager, VmConfig};

/// Bytes that no method compresses.
fn noise(seed: u64) -> [u8; PAGE] {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::array::from_fn(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()[3]
    })
}

/// Writers and readers of three times the memory, through a store that must be prepared.
fn spill(store: Arc<dyn Store>, uring: bool) -> u64 {
    let vm = Pager::new(&VmConfig::new(6 << 20), vec![store]).unwrap();
    let driver = Driver::start(&vm, DriverOptions { memory: None, uring, source_threads: 0 }).unwrap();
    let account = Account::new(1 << 20);
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let object = vm.object(&account);
            scope.spawn(move || {
                futures_lite::future::block_on(async {
                    for turn in 0..2 {
                        for page in 0..1500 {
                            let bytes = noise(turn << 40 | thread << 20 | page);
                            object.write(page * PAGE as u64, &bytes, Allowance::Normal).await.unwrap();
                        }
                        for page in 0..1500 {
                            let mut buf = [0; PAGE];
                            object.read(page * PAGE as u64, &mut buf).await.unwrap();
                            assert!(buf == noise(turn << 40 | thread << 20 | page), "page {page}");
                        }
                    }
                });
            });
        }
    });
    assert!(vm.stats().page_outs > 3000 && vm.stats().page_ins > 3000, "{:?}", vm.stats());
    driver.lost_signals()()
}

#[test]
fn no_signal_is_lost() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for _ in 0..2 {
        let file = || Arc::new(FileStore::in_directory(dir.path(), 1 << 18).unwrap().ahead(1 << 20));
        assert_eq!(spill(file(), true), 0, "with a ring, where there is one");
        assert_eq!(spill(file(), false), 0, "with threads");
        assert_eq!(spill(Arc::new(MemStore::unprepared(1 << 18)), false), 0, "in memory");
    }
}

/// A store that notes which threads prepare its space.
struct Watched {
    store: MemStore,
    prepared_by: Mutex<BTreeSet<String>>,
}

impl Space for Watched {
    fn allocate(&self, owner: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        self.store.allocate(owner, min, max)
    }
    fn free(&self, run: Run) {
        self.store.free(run);
    }
    fn maintain(&self, pressure: bool) -> bool {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        self.prepared_by.lock().unwrap().insert(thread);
        self.store.maintain(pressure)
    }
    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

impl Backend for Watched {
    fn write(&self, start: u64, buf: &[u8]) -> std::io::Result<()> {
        self.store.write(start, buf)
    }
    fn read(&self, start: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.store.read(start, buf)
    }
}

/// Iron rule 1: preparing space may wait for a disk and for memory, so pageout leaves it to upkeep.
#[test]
fn the_pageout_thread_never_prepares_space() {
    let prepared_by = Mutex::default();
    let store = Arc::new(Watched { store: MemStore::unprepared(1 << 18), prepared_by });
    spill(store.clone(), false);
    let threads = store.prepared_by.lock().unwrap().iter().cloned().collect::<Vec<_>>();
    assert_eq!(threads, ["upkeep"]);
}
