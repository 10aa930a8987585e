//! The server of one mount: shared by the threads that read requests and by parked requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use overspill_fuse::Request;
use overspill_tmpfs::{FsError, Orphans, TmpFs};

use crate::kernel::Kernel;
use crate::park::Parking;
use crate::prime::Prime;
use crate::space::Space;

/// Sizes of the transport, chosen from the memory that may be spent on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Threads that read requests, without io_uring.
    pub threads: usize,
    /// Queues of io_uring; none where the kernel has no such transport, or memory is too short for them.
    pub rings: Option<Rings>,
    /// Most bytes of a request.
    pub max_write: u32,
    /// Most requests that the kernel sends at once without a process known to wait for them.
    pub max_background: u16,
}

/// Places for each place that the budget counts: the kernel takes the place that was free last, so most of them are
/// used only when a store hangs. (Their buffers are resident all the same; the watch on the process's memory makes up
/// for that.)
const COLD: usize = 4;

/// The fewest places for each processor with which rings are worth having, and the most.
const PLACES: (usize, usize) = (8, 64);

impl Tuning {
    /// A transport that takes about a tenth of `memory` bytes: by io_uring, where the kernel has rings and there is
    /// memory for them.
    pub fn for_memory(memory: usize) -> Tuning {
        // Many requests matter more than large ones: sixteen readers fill a queue of sixteen, and then wait for a
        // place. Requests of more than 256 KiB are no faster.
        let max_write = (memory / 1024).next_power_of_two().clamp(32 << 10, 256 << 10);
        let background = (memory / 32 / max_write).clamp(4, 64);
        let rings = overspill_fuse::ring_queues().and_then(|processors| {
            let places = memory / 16 / max_write / processors * COLD;
            (places >= PLACES.0).then_some(Rings { processors, places: places.min(PLACES.1) })
        });
        // The kernel sends what it does in the background from any processor: half of a queue stays free of that.
        let background = rings.map_or(background, |rings: Rings| background.min(rings.places / 2));
        Tuning {
            threads: (memory >> 24).clamp(4, 16),
            rings,
            max_write: u32::try_from(max_write).unwrap_or(256 << 10),
            max_background: u16::try_from(background).unwrap_or(64),
        }
    }

    /// Most bytes that the transport may take: a request and a reply per thread, or the places of the rings; and each
    /// parked request's data.
    pub fn memory(self) -> usize {
        let requests = self.rings.map_or(2 * self.threads, |rings| rings.processors * rings.places / COLD);
        (requests + usize::from(self.max_background)) * self.max_write as usize
    }
}

/// Queues of requests, one for each processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// Processors that this machine can have.
    pub processors: usize,
    /// Requests at once for each.
    pub places: usize,
}

pub(crate) struct Server {
    pub(crate) fs: Arc<TmpFs>,
    pub(crate) tuning: Tuning,
    pub(crate) parking: Parking,
    pub(crate) kernel: Kernel,
    pub(crate) space: Arc<Space>,
    /// True if write(2) returns before its data comes here.
    pub(crate) writeback: bool,
    pub(crate) xattrs: bool,
    pub(crate) prime: Prime,
    /// Requests that came and wanted an answer: round trips.
    pub(crate) requests: AtomicU64,
    /// A thread waits for FORGETs: at most one, the others are needed to receive them.
    pub(crate) awaiting_forgets: AtomicBool,
    /// Number of orphans left after a fruitless wait: files that are still open.
    pub(crate) lasting_orphans: AtomicU64,
    /// `debug=evict`: the kernel's copy of each file that is read or written is dropped at once.
    pub(crate) evict: AtomicBool,
}

/// Time that a request about to fail with ENOSPC waits for FORGETs under way.
const FORGETS_TAKE: Duration = Duration::from_millis(200);

impl Server {
    pub(crate) fn count(&self, request: &Request<'_>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(target: "requests", ?request);
    }

    pub(crate) fn is_full(&self, error: FsError) -> bool {
        error.errno() == rustix::io::Errno::NOSPC.raw_os_error()
    }

    /// Waits a little while removed files go away, because FORGET lags behind the last close. Returns true if some
    /// files went.
    pub(crate) fn await_forgets(&self) -> bool {
        let before = self.fs.orphans();
        if before.inodes <= self.lasting_orphans.load(Ordering::Relaxed)
            || self.awaiting_forgets.swap(true, Ordering::AcqRel)
        {
            return false;
        }
        let freed = self.orphans_go(before);
        let lasting = if freed { 0 } else { before.inodes };
        self.lasting_orphans.store(lasting, Ordering::Relaxed);
        self.awaiting_forgets.store(false, Ordering::Release);
        freed
    }

    fn orphans_go(&self, before: Orphans) -> bool {
        let until = Instant::now() + FORGETS_TAKE;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
            let now = self.fs.orphans();
            if now.inodes < before.inodes || now.pages < before.pages {
                return true;
            }
        }
        false
    }

    /// Near the end of space, makes the kernel ask for room before each write(2) to a file.
    pub(crate) fn ask_before_writes(&self, ino: u64) {
        if self.space.wants_to_be_asked(&self.fs) {
            self.kernel.drop_attributes(ino);
        }
    }

    pub(crate) fn evict_copy(&self, ino: u64) {
        if self.evict.load(Ordering::Relaxed) {
            self.kernel.drop_copy(ino);
        }
    }
}
