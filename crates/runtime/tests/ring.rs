//! Requests that io_uring does not complete are completed by the retry threads.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use overspill_runtime::{Driver, DriverOptions, StoreIo};
use overspill_store::{AllocError, Backend, MemStore, Run, Space, Usage};
use overspill_vm::{Account, Allowance, PAGE, Pager, VmConfig};

/// A store in memory that points the driver's ring to the wrong file, which is not writable and ends at once.
#[derive(Debug)]
struct Misleading {
    store: MemStore,
    elsewhere: File,
    honest: bool,
}

impl Space for Misleading {
    fn allocate(&self, owner: u32, min: u32, max: u32) -> Result<Run, AllocError> {
        self.store.allocate(owner, min, max)
    }
    fn free(&self, run: Run) {
        self.store.free(run);
    }
    fn maintain(&self, pressure: bool) -> bool {
        self.store.maintain(pressure)
    }
    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

impl Backend for Misleading {
    fn write(&self, start: u64, buf: &[u8]) -> std::io::Result<()> {
        self.store.write(start, buf)
    }
    fn read(&self, start: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.store.read(start, buf)
    }
    fn direct(&self, start: u64, len: usize) -> Option<(BorrowedFd<'_>, u64)> {
        // At first there is a file; later a dishonest store has no more.
        (self.honest || len == 0).then(|| (self.elsewhere.as_fd(), start))
    }
}

#[test]
fn what_the_ring_cannot_do_is_done_again() {
    for honest in [true, false] {
        let elsewhere = File::open("/dev/null").unwrap();
        let store = Arc::new(Misleading { store: MemStore::new(10_000), elsewhere, honest });
        let vm = Pager::new(&VmConfig::new(4 << 20), vec![store]).unwrap();
        let driver =
            Driver::start(&vm, DriverOptions { memory: None, uring: true, source_threads: 0 }).unwrap();
        if let StoreIo::Threads(why) = driver.store_io() {
            eprintln!("skipped: no io_uring here: {why:?}");
            return;
        }
        let account = Account::new(1 << 20);
        let object = vm.object(&account);
        let page = |n: u64| {
            let mut word = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            std::array::from_fn::<u8, PAGE, _>(|_| {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                word.to_le_bytes()[3]
            })
        };
        futures_lite::future::block_on(async {
            for n in 0..3000 {
                object.write(n * PAGE as u64, &page(n), Allowance::Normal).await.unwrap();
            }
            for n in 0..3000 {
                let mut buf = [0; PAGE];
                object.read(n * PAGE as u64, &mut buf).await.unwrap();
                assert!(buf == page(n), "page {n}");
            }
        });
        let stats = vm.stats();
        assert!(stats.store_writes > 0 && stats.store_reads > 0 && stats.errors == 0, "{stats:?}");
        let begun = Instant::now();
        drop(driver);
        assert!(begun.elapsed() < Duration::from_secs(20), "threads do not see that they should stop");
    }
}
