//! The pageout daemon: it steps until enough memory is free.

use super::state::{Outcome, Pageout, SCAN, SHARE, Search};
use crate::error::VmError;
use crate::revoke;
use crate::sync::atomic::Ordering;

/// The result of one step of pageout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Memory is plentiful: do nothing until the VM signals pageout again.
    Rest,
    /// Something was freed or is being written: step again.
    Worked,
    /// Writes are under way, or memory on lease was asked back: step again when the VM signals pageout.
    AwaitIo,
    /// A store must prepare space: call [`Pager::prepare_space`](crate::Pager::prepare_space), then step again.
    AwaitStore,
    /// Nothing can be freed: all is pinned, or the stores are full, failing or absent. Operations that waited for memory were
    /// refused, unless a reservation or a helper may still give some back. Step again when the VM signals pageout.
    Stuck,
}

impl Pageout {
    /// One step.
    pub(crate) fn step(&self) -> Step {
        let budget = &self.memory.budget;
        budget.grant();
        let wanted = self.wanted();
        if wanted == 0 {
            if self.in_flight() > 0 {
                return Step::AwaitIo;
            }
            // Swap, not store: a writer that ran short before it is seen below; one after it signals again.
            budget.short.swap(false, Ordering::AcqRel);
            if self.wanted() == 0 {
                return Step::Rest;
            }
            budget.short.store(true, Ordering::Release);
        }
        let mut search = self.search.lock();
        let step = self.launder(&mut search, wanted);
        if step != Step::Stuck {
            return step;
        }
        search.in_vain = 0;
        budget.short.swap(false, Ordering::AcqRel);
        let quiet = self.quiet();
        let before = std::mem::replace(&mut search.stuck_at, quiet);
        drop(search);
        // Unspent reservations and chunks in a helper's hands come back, or become pages to look at. Waiters are refused only
        // after two fruitless looks in a row, with no reservation made and no helper at work in between.
        if quiet.is_some() && quiet != before {
            return Step::Worked;
        }
        if quiet.is_some() {
            budget.refuse_all(VmError::NoMemory);
        }
        Step::Stuck
    }

    /// Evicts some pages beside the thread that steps, while writers wait. Returns true if it did.
    pub(crate) fn help(&self) -> bool {
        let wanted = self.wanted();
        if !self.memory.budget.has_waiters() || wanted == 0 {
            return false;
        }
        let Some(mut packer) = self.helper.try_lock() else { return false };
        self.helping.fetch_add(1, Ordering::AcqRel);
        self.turns.fetch_add(1, Ordering::AcqRel);
        let outcome = self.evict(&mut packer, wanted);
        self.helping.fetch_sub(1, Ordering::AcqRel);
        // Pageout may have stopped because this helper was at work.
        if self.memory.budget.has_waiters() {
            self.memory.driver.get().pageout_wanted();
        }
        matches!(outcome, Outcome::Done | Outcome::Bypassed)
    }

    /// Evicts pages, and writes out the excess clusters of compressed memory.
    fn launder(&self, search: &mut Search, wanted: usize) -> Step {
        let memory = &self.memory;
        let evicted = self.evict(&mut self.packer.lock(), wanted);
        let mut outcomes = [evicted, Outcome::Nothing];
        // Before compressed memory has its share, only if a whole scan of the pages found none to evict.
        let looked_at_all = search.in_vain > memory.queues.lock().len();
        let full = evicted != Outcome::Bypassed && self.holds_more_than(SHARE);
        if memory.is_eager() || looked_at_all || evicted == Outcome::Moved || full {
            outcomes[1] = self.write_out();
        }
        if outcomes.contains(&Outcome::Done) || evicted == Outcome::Bypassed {
            search.in_vain = 0;
            memory.budget.grant();
            return Step::Worked;
        }
        if outcomes.contains(&Outcome::NotReady) {
            return Step::AwaitStore;
        }
        if outcomes.contains(&Outcome::NoBatch) && (self.in_flight() > 0 || self.a_store_rests()) {
            return Step::AwaitIo;
        }
        // Search on, until every chunk and cluster was checked twice in vain.
        search.in_vain += SCAN;
        if search.in_vain <= 2 * (memory.queues.lock().len() + memory.compressed.len()) + SCAN {
            return Step::Worked;
        }
        search.in_vain = 0;
        if self.in_flight() > 0 || self.revokes(wanted) { Step::AwaitIo } else { Step::Stuck }
    }

    /// Asks for leased memory. Returns true while some may still come; pageout then looks again when it is due.
    fn revokes(&self, wanted: usize) -> bool {
        let now = self.memory.now();
        let comes = self.memory.budget.leases().revoke(wanted, now);
        if comes {
            self.memory.pageout_at(now + revoke::PATIENCE);
        }
        comes
    }
}
