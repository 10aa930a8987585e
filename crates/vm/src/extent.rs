//! Extents: where a cluster of pages lies in the store.

use overspill_slab::kept;
use overspill_store::codec::Encoded;
use overspill_store::{AllocError, BLOCK, Run, Store};

use crate::budget::Charge;
use crate::chunk::PageSet;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// The store, and what we hold of it. Runs belong to [`RunGuard`]s and so to extents: dropping one frees its blocks.
pub(crate) struct ExtentSpace {
    pub(crate) store: std::sync::Arc<dyn Store>,
    /// Blocks held by extents and batches.
    blocks: AtomicUsize,
}

impl std::fmt::Debug for ExtentSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExtentSpace({} bytes)", self.bytes())
    }
}

impl ExtentSpace {
    pub(crate) fn new(store: std::sync::Arc<dyn Store>) -> Arc<ExtentSpace> {
        Arc::new(ExtentSpace { store, blocks: AtomicUsize::new(0) })
    }

    /// Bytes of the store that hold something.
    pub(crate) fn bytes(&self) -> u64 {
        (self.blocks.load(Ordering::Relaxed) * BLOCK) as u64
    }

    pub(crate) fn allocate(self: &Arc<Self>, min: u32, max: u32) -> Result<RunGuard, AllocError> {
        let run = self.store.allocate(min, max)?;
        self.blocks.fetch_add(run.blocks as usize, Ordering::Relaxed);
        Ok(RunGuard { space: self.clone(), run })
    }
}

/// Blocks of the store, freed when dropped.
#[derive(Debug)]
pub(crate) struct RunGuard {
    space: Arc<ExtentSpace>,
    run: Run,
}

impl RunGuard {
    pub(crate) fn start(&self) -> u32 {
        self.run.start
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.run.blocks
    }

    /// Cuts the first `blocks` off as a guard of their own.
    ///
    /// # Panics
    /// Unless `0 < blocks <= self.blocks()`.
    pub(crate) fn split_front(&mut self, blocks: u32) -> RunGuard {
        assert!(blocks > 0 && blocks <= self.run.blocks);
        let front = Run { start: self.run.start, blocks };
        self.run = Run { start: self.run.start + blocks, blocks: self.run.blocks - blocks };
        RunGuard { space: self.space.clone(), run: front }
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        if self.run.blocks > 0 {
            self.space.store.free(self.run);
            self.space.blocks.fetch_sub(self.run.blocks as usize, Ordering::Relaxed);
        }
    }
}

/// What an extent costs in metadata: itself and its place in a chunk's list, as the heap rounds them.
pub(crate) const EXTENT_COST: usize = size_of::<Extent>() + 48;

/// A cluster in the store: its blocks, how to read it back, and which pages of its chunk it held.
#[derive(Debug)]
pub(crate) struct Extent {
    run: RunGuard,
    encoded: Encoded,
    /// Seeds the checksum, so that another cluster's bytes are not taken for this one's.
    tag: u64,
    pages: PageSet,
    _charge: Charge,
}

kept!(counted Extent, "extent");

impl Extent {
    pub(crate) fn new(run: RunGuard, encoded: Encoded, tag: u64, pages: PageSet, charge: Charge) -> Extent {
        Extent { run, encoded, tag, pages, _charge: charge }
    }

    pub(crate) fn start(&self) -> u32 {
        self.run.start()
    }

    /// Bytes to read: whole blocks.
    pub(crate) fn len(&self) -> usize {
        self.run.blocks() as usize * BLOCK
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.run.blocks()
    }

    pub(crate) fn encoded(&self) -> &Encoded {
        &self.encoded
    }

    pub(crate) fn tag(&self) -> u64 {
        self.tag
    }

    /// The pages it was written with, live or not.
    pub(crate) fn pages(&self) -> PageSet {
        self.pages
    }
}
