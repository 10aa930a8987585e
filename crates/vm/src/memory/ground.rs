//! The memory itself: its clock, its tags, and memory that goes back to the kernel.

use overspill_store::Store;
use overspill_sys::{Arena, REGION_FRAMES};

use super::queue::Queues;
use super::records::{Backing, Compressed, Memory, StoreId};
use crate::budget::Budget;
use crate::counters::Counters;
use crate::error::{IoFailure, VmError};
use crate::page::PAGE;
use crate::signals::DriverSlot;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use crate::wait::timer::Timers;

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("budget", &self.budget)
            .field("queues", &self.queues)
            .field("compressed", &self.compressed)
            .field("backings", &self.backings)
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// Memory for `limit` bytes of pages and metadata, which may be raised to `most`.
    ///
    /// # Errors
    /// [`VmError::Arena`] when address space cannot be had.
    pub(crate) fn new(
        limit: usize,
        most: usize,
        stores: Vec<std::sync::Arc<dyn Store>>,
    ) -> Result<Arc<Memory>, VmError> {
        let charged = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        // A region more than the budget can take: one may be unavailable while its memory is given back.
        let arena = Arena::new(most.div_ceil(PAGE) + REGION_FRAMES, charged.clone()).map_err(|error| {
            tracing::error!(%error, "no arena");
            VmError::Arena(IoFailure::of(&std::io::Error::other(error)))
        })?;
        let driver = std::sync::Arc::new(DriverSlot::default());
        let budget = Budget::new(charged, limit, most, driver.clone());
        let backing = |(id, store)| Backing::new(StoreId(id), store, &budget);
        let backings = (0..).zip(stores).map(backing).collect();
        Ok(Arc::new(Memory {
            budget,
            arena,
            queues: Mutex::new(Queues::new()),
            compressed: Compressed::new(),
            backings,
            counters: Counters::default(),
            timers: Timers::default(),
            driver,
            eager: AtomicBool::new(false),
            next_tag: AtomicU64::new(1),
            next_object: AtomicU32::new(0),
            overhead: Mutex::new(None),
        }))
    }

    pub(crate) fn is_eager(&self) -> bool {
        self.eager.load(Ordering::Relaxed)
    }

    /// Takes a tag for a cluster that is about to be encoded; never the same again.
    pub(crate) fn next_tag(&self) -> u64 {
        self.next_tag.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a number for a new object.
    pub(crate) fn next_object(&self) -> u32 {
        self.next_object.fetch_add(1, Ordering::Relaxed)
    }

    /// The time, by the driver's clock.
    pub(crate) fn now(&self) -> u64 {
        self.timers.now(self.driver.get().nanoseconds())
    }

    /// Waits for this many nanoseconds.
    pub(crate) async fn sleep(&self, ns: u64) -> Result<(), VmError> {
        let due = self.now() + ns;
        let ticket = self.timers.sleep_until(due)?;
        self.driver.get().alarm(due);
        ticket.await.ok_or(VmError::ShutDown)
    }

    /// Has pageout look again at `due`.
    pub(crate) fn pageout_at(&self, due: u64) {
        self.timers.pageout_at(due);
        self.driver.get().alarm(due);
    }

    /// Pages were written: an eager pageout wants them at once.
    pub(crate) fn wrote(&self) {
        if self.is_eager() {
            self.driver.get().pageout_wanted();
        }
    }

    /// Gives free memory back to the kernel. Freed frames leave their memory in the arena; if the heap has taken their
    /// share of the budget, that much goes back at once (iron rule 3), the rest once it has been idle for a while.
    pub(crate) fn give_back(&self) {
        let heap = self.budget.charged().saturating_sub(self.arena.live_bytes());
        let excess = (self.arena.touched_bytes() + heap).saturating_sub(self.budget.limit());
        if excess > 0 {
            self.arena.trim(excess);
        }
        if !self.budget.below_low() {
            self.arena.release();
        }
        self.budget.grant();
    }

    /// Counts `bytes` of the process's memory that nothing else charged in the budget. Replaces the last call's bytes.
    pub(crate) fn set_overhead(&self, bytes: usize) {
        let charge = (bytes > 0).then(|| self.budget.charge_forced(bytes));
        // The old charge goes after the new one came, and outside the lock.
        let old = std::mem::replace(&mut *self.overhead.lock(), charge);
        drop(old);
    }

    /// Bytes that the stores hold.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.backings.iter().map(|backing| backing.bytes()).sum()
    }

    /// Bytes of living pages among them.
    pub(crate) fn stored_live_bytes(&self) -> u64 {
        self.backings.iter().map(|backing| backing.live_bytes()).sum()
    }
}
