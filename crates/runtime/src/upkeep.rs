//! Upkeep: preallocates and frees store space, gives memory back to the kernel, compacts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_executor::Executor;
use overspill_vm::Pager;

use crate::signals::Wakeups;
use crate::watch::MemoryWatch;

/// Pause between upkeep's turns, for other threads.
const AFTER_UPKEEP: Duration = Duration::from_millis(5);
/// Interval of upkeep when no thread asks for it.
const UPKEEP: Duration = Duration::from_secs(1);
/// Budgets below this are for pages and metadata alone: the program, larger than the smallest budgets, comes on top.
const SMALL: usize = 64 << 20;

/// Segments compacted concurrently: each waits for its reads most of the time.
const COMPACTORS: usize = 3;

/// Compacts the store as tasks, one segment after the other, while too much of it is dead.
pub(crate) struct Compactor {
    tasks: Arc<Executor<'static>>,
    /// Tasks under way.
    busy: Arc<AtomicUsize>,
    looked: Instant,
}

/// A compaction that found nothing is not begun again sooner.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// This many segments should make a difference.
const ROUND: usize = 16;

/// Compacts while too much is dead and the dead bytes decrease.
async fn compact(pager: &Pager) {
    let mut before = u64::MAX;
    while pager.wants_compaction() && pager.dead_bytes() < before {
        before = pager.dead_bytes();
        for _ in 0..ROUND {
            if !pager.wants_compaction() || !pager.compact().await {
                return;
            }
        }
    }
}

impl Compactor {
    pub(crate) fn new(tasks: &Arc<Executor<'static>>) -> Compactor {
        Compactor { tasks: tasks.clone(), busy: Arc::default(), looked: Instant::now() }
    }

    fn look(&mut self, pager: &Pager) {
        if self.looked.elapsed() < BETWEEN_LOOKS {
            return;
        }
        self.looked = Instant::now();
        // Only the upkeep thread increments it.
        while pager.wants_compaction() && self.busy.load(Ordering::Acquire) < COMPACTORS {
            self.busy.fetch_add(1, Ordering::AcqRel);
            let (pager, busy) = (pager.clone(), self.busy.clone());
            self.tasks
                .spawn(async move {
                    compact(&pager).await;
                    busy.fetch_sub(1, Ordering::AcqRel);
                })
                .detach();
        }
    }
}

/// Prepares space if pageout waits for it, and reports to pageout.
fn answers_pageout(pager: &Pager, wakeups: &Wakeups) -> bool {
    let asked = wakeups.takes_question();
    if asked {
        pager.prepare_space();
        wakeups.pageout.set();
    }
    asked
}

pub(crate) fn run_upkeep(pager: &Pager, wakeups: &Wakeups, memory: Option<usize>, mut compactor: Compactor) {
    let mut watch = memory.filter(|&memory| memory >= SMALL).map(MemoryWatch::new);
    while !wakeups.stopped() {
        let woken = wakeups.upkeep.wait(UPKEEP);
        let asked = answers_pageout(pager, wakeups);
        wakeups.late.look(woken, asked, &wakeups.upkeep);
        if !asked {
            // Pageout asks at every step.
            std::thread::sleep(AFTER_UPKEEP);
        }
        while pager.maintain_stores() && !wakeups.stopped() {
            // Punching is done in large pieces and leaves the disk to other users in between.
            std::thread::sleep(Duration::from_millis(1));
            answers_pageout(pager, wakeups);
        }
        if let Some(watch) = &mut watch {
            watch.look(pager);
        }
        overspill_slab::reap_all(false);
        pager.maintain();
        compactor.look(pager);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use overspill_store::MemStore;
    use overspill_vm::{Account, Allowance, PAGE, Step, VmConfig};

    /// Pageout gets one answer for each request for space.
    #[test]
    fn pageout_hears_of_space_that_was_prepared() {
        let store = Arc::new(MemStore::unprepared(1 << 16));
        let pager = Pager::new(&VmConfig::new(4 << 20), vec![store.clone()]).unwrap();
        let wakeups = Wakeups::new();
        let object = pager.object(&Account::new(1 << 10));
        let writing = object.write(0, &[7; PAGE], Allowance::Normal);
        overspill_vm::testing::block_on(&pager, writing).unwrap();
        pager.set_eager(true);
        let mut steps = std::iter::repeat_with(|| pager.pageout()).take(100);
        assert!(steps.any(|step| step == Step::AwaitStore), "pageout never asks for space");
        assert!(!answers_pageout(&pager, &wakeups) && !wakeups.pageout.becomes_set(Duration::ZERO));
        wakeups.ask_for_space();
        assert!(wakeups.upkeep.becomes_set(Duration::ZERO), "nobody told upkeep");
        assert!(answers_pageout(&pager, &wakeups) && wakeups.pageout.becomes_set(Duration::ZERO));
        assert!(overspill_store::Space::allocate(&*store, 0, 1, 1).is_ok(), "nothing was prepared");
        assert!(!answers_pageout(&pager, &wakeups), "asked once, answered twice");
    }
}
