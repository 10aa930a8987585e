//! Leases: parts of the budget that are given out to memory outside the VM (a transport's buffers, a program's resident
//! pages), and asked back when memory is short.

use crate::budget::Budget;
use crate::error::VmError;
use crate::revoke::{Leased, Lessee};
use crate::sync::Arc;

/// Bytes of the budget in the hands of a [`Lessee`]. They return when the lease is dropped.
pub struct Lease {
    budget: Arc<Budget>,
    leased: Arc<Leased>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({} bytes, {} asked back)", self.bytes(), self.leased.asked())
    }
}

impl Lease {
    /// A lease of no bytes.
    pub(crate) fn new(budget: &Arc<Budget>, lessee: std::sync::Arc<dyn Lessee>) -> Lease {
        let leased = Leased::new(lessee);
        budget.leases().add(&leased);
        Lease { budget: budget.clone(), leased }
    }

    /// Bytes on lease.
    pub fn bytes(&self) -> usize {
        self.leased.bytes()
    }

    /// Adds `bytes`, after waiting for pageout to make room if need be.
    ///
    /// # Errors
    /// [`VmError::NoMemory`] when pageout can free no more.
    pub async fn grow(&self, bytes: usize) -> Result<(), VmError> {
        let mut left = bytes;
        while left > 0 {
            let part = left.min(self.budget.max_reservation());
            self.budget.reserve(part).await?.become_lease();
            self.leased.add(part);
            left -= part;
        }
        Ok(())
    }

    /// Gives `bytes` back, or all there are.
    pub fn shrink(&self, bytes: usize) {
        let given = self.leased.sub(bytes);
        self.budget.end_lease(given);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shrink(usize::MAX);
    }
}
