//! Waiting operations become tasks, or their threads do their reads.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_executor::Executor;
use overspill_vm::{Pager, ReadIo};

use crate::signals::Wakeups;
use crate::spawn::Spawn;
use crate::store_io::threads::Reader;

thread_local! {
    /// A reader with a buffer, for reads by this thread.
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

/// Hands parked operations to the driver's task threads, and lets waiting threads do their own reads.
pub(crate) struct Spawner {
    pub(crate) tasks: Arc<Executor<'static>>,
    pub(crate) pager: Pager,
    pub(crate) wakeups: Arc<Wakeups>,
}

impl Spawn for Spawner {
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.spawn(task).detach();
    }

    fn begin(&self) {
        self.wakeups.operation_begins();
    }

    fn begun(&self, help: bool) {
        if self.wakeups.operation_has_begun(help)
            && let Some(read) = self.pager.newest_read()
        {
            READER.with_borrow_mut(|reader| {
                let reader = reader.get_or_insert_with(|| Reader::new(ReadIo::MAX));
                reader.reads.push(read);
                reader.perform(&self.pager);
            });
        }
    }
}
