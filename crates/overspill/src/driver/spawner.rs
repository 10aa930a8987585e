//! What operations that wait are given: a task, or their own read.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_executor::Executor;
use overspill_fuse::Spawn;
use overspill_vm::{ReadIo, Vm};

use super::signals::{HELD_BACK, Wakeups};
use super::threads::Reader;

thread_local! {
    /// What this thread reads with.
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

/// Hands parked operations to the driver's task threads, and lets threads that wait do their own reads.
pub(crate) struct Spawner {
    pub(super) tasks: Arc<Executor<'static>>,
    pub(super) vm: Vm,
    pub(super) wakeups: Arc<Wakeups>,
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
            self.wakeups.reads_wait();
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
