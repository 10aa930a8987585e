//! Upkeep: store space ahead and behind, memory back to the kernel, compaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_executor::Executor;
use overspill_vm::Vm;

use super::signals::Wakeups;
use super::watch::MemoryWatch;

/// How long upkeep lets others work between its turns.
const AFTER_UPKEEP: Duration = Duration::from_millis(5);
/// How often upkeep runs when nobody asks.
const UPKEEP: Duration = Duration::from_secs(1);
/// Budgets below this are for pages and metadata alone: the program, larger than the smallest of them, comes on top.
const SMALL: usize = 64 << 20;

/// Compacts the store as a task, one segment after the other, while too much of it is dead.
pub(super) struct Compactor {
    tasks: Arc<Executor<'static>>,
    busy: Arc<AtomicBool>,
}

impl Compactor {
    pub(super) fn new(tasks: &Arc<Executor<'static>>) -> Compactor {
        Compactor { tasks: tasks.clone(), busy: Arc::default() }
    }

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

pub(super) fn run_upkeep(vm: &Vm, wakeups: &Wakeups, memory: Option<usize>, compactor: &Compactor) {
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
