//! The depot: the magazines of a cache that no CPU has.

use std::ptr::{NonNull, null_mut};
use std::time::Instant;

use super::magazine::Magazine;

/// A stack of magazines, linked through `next`.
pub(crate) struct Stack {
    top: *mut Magazine,
    len: usize,
}

impl Stack {
    pub(crate) const fn new() -> Self {
        Stack { top: null_mut(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// # Safety
    /// The caller holds the magazine, and gives it away.
    pub(crate) unsafe fn push(&mut self, magazine: *mut Magazine) {
        // SAFETY: by contract.
        unsafe { (*magazine).next = self.top };
        self.top = magazine;
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<*mut Magazine> {
        let top = NonNull::new(self.top)?.as_ptr();
        // SAFETY: a magazine on a stack is alive, and the stack holds it.
        self.top = unsafe { (*top).next };
        self.len -= 1;
        Some(top)
    }

    /// Takes out the first magazine without objects.
    pub(crate) fn pop_empty(&mut self) -> Option<*mut Magazine> {
        let mut at = &raw mut self.top;
        // SAFETY: as in `pop`; `at` points to `top` or to a magazine's `next`.
        unsafe {
            while let Some(here) = NonNull::new(*at) {
                if Magazine::count(here.as_ptr()) == 0 {
                    *at = (*here.as_ptr()).next;
                    self.len -= 1;
                    return Some(here.as_ptr());
                }
                at = &raw mut (*here.as_ptr()).next;
            }
        }
        None
    }

    /// Every magazine, from the top. They stay on the stack.
    pub(crate) fn iter(&self) -> impl Iterator<Item = *mut Magazine> {
        let mut at = self.top;
        std::iter::from_fn(move || {
            let here = NonNull::new(at)?.as_ptr();
            // SAFETY: as in `pop`.
            at = unsafe { (*here).next };
            Some(here)
        })
    }
}

pub(crate) struct Depot {
    pub(crate) filled: Stack,
    pub(crate) empty: Stack,
    /// Magazines filled from slabs, drained into slabs, and exchanged between slots and depot.
    pub(crate) fills: u64,
    pub(crate) drains: u64,
    pub(crate) exchanges: u64,
    pub(crate) last_reap: Option<Instant>,
}

// SAFETY: the depot holds the magazines on its stacks.
unsafe impl Send for Depot {}

impl Depot {
    pub(crate) const fn new() -> Self {
        Depot {
            filled: Stack::new(),
            empty: Stack::new(),
            fills: 0,
            drains: 0,
            exchanges: 0,
            last_reap: None,
        }
    }
}
