//! A source that fails now and then, and a lessee that gives memory back when it has time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use overspill_vm::{Lease, Lessee, PAGE, Source, Vm};

/// A source whose bytes follow from their offset.
#[derive(Debug)]
pub(super) struct Origin {
    seed: u64,
    len: usize,
    /// Chance of a failed read, in millionths.
    pub(super) error: AtomicU32,
    reads: AtomicU64,
    failed: AtomicU64,
}

impl Origin {
    pub(super) fn new(seed: u64, len: usize) -> Arc<Origin> {
        Arc::new(Origin {
            seed,
            len,
            error: AtomicU32::new(0),
            reads: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// All bytes, and zeros up to `len`.
    pub(super) fn bytes(&self, len: usize) -> Vec<u8> {
        (0..len).map(|at| self.byte(at)).collect()
    }

    fn byte(&self, at: usize) -> u8 {
        if at >= self.len {
            return 0;
        }
        // Alike within a page, so that it compresses, and never zero.
        let word = (at / PAGE) as u64 ^ self.seed;
        word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0] | 1
    }

    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Source for Origin {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        let chance = (read ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        if chance % 1_000_000 < u64::from(self.error.load(Ordering::Relaxed)) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(5));
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = self.byte(offset + i);
        }
        Ok(())
    }
}

/// Bytes that the lessee was asked for and has not given back.
#[derive(Debug, Default)]
struct Asked(AtomicUsize);

impl Lessee for Asked {
    fn revoke(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A holder of memory on lease.
pub(super) struct Tenant {
    pub(super) lease: std::rc::Rc<Lease>,
    asked: Arc<Asked>,
}

impl Tenant {
    pub(super) fn new(vm: &Vm) -> Tenant {
        let asked = Arc::new(Asked::default());
        Tenant { lease: std::rc::Rc::new(vm.lease(asked.clone())), asked }
    }

    /// Gives back the bytes it was asked for.
    pub(super) fn gives_back(&self) {
        let asked = self.asked.0.swap(0, Ordering::Relaxed);
        if asked > 0 {
            self.lease.shrink(asked);
        }
    }
}
