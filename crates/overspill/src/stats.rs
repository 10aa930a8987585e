//! Statistics of a mount, byte by byte: made by the daemon, readable by every user who may look at the mount's root.

use std::path::Path;

use overspill_slab::slabinfo;
use overspill_tmpfs::TmpFs;
use overspill_vm::Vm;
use serde::{Deserialize, Serialize};

/// A snapshot of a mount. Bytes or counts unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The daemon's process.
    pub pid: u32,
    /// Version of the daemon.
    pub version: String,
    /// RAM that the daemon may use.
    pub budget_bytes: u64,
    /// RAM that it uses.
    pub rss_bytes: u64,
    /// Peak of `rss_bytes`.
    pub rss_peak_bytes: u64,
    /// Part of the budget for pages and metadata.
    pub vm_limit_bytes: u64,
    /// Part of it in use, reservations included.
    pub vm_used_bytes: u64,
    /// Part of that which is metadata.
    pub metadata_bytes: u64,
    /// Bytes of the object caches, used or not: metadata, and compressed payloads but for their whole pages.
    pub slab_bytes: u64,
    /// Part of that which is free, and not given back yet.
    pub slab_free_bytes: u64,
    /// Part of the budget for buffers of pageout, page-in and FUSE.
    pub buffer_bytes: u64,
    /// Resident pages, at full page size.
    pub resident_bytes: u64,
    /// Resident pages that no store has.
    pub dirty_bytes: u64,
    /// Bytes of compressed memory.
    pub compressed_bytes: u64,
    /// Pages in compressed memory, at full size; dead pages of living clusters count too.
    pub compressed_page_bytes: u64,
    /// Pages in the store, at full size.
    pub stored_page_bytes: u64,
    /// Bytes of the store that are not free.
    pub stored_bytes: u64,
    /// Bytes of living pages in it. More than a tenth dead is compacted.
    pub stored_live_bytes: u64,
    /// Bytes of the store on its disk, preallocated space included.
    pub store_file_bytes: u64,
    /// Bytes still free on its disk.
    pub store_disk_free_bytes: u64,
    /// The store's way of I/O.
    pub store_mode: String,
    /// Write requests to the store.
    pub store_writes: u64,
    /// Read requests to the store.
    pub store_reads: u64,
    /// Bytes given to reads and taken from writes, including those for the kernel's cache.
    pub served_bytes: u64,
    /// Bytes that the daemon copied for that within itself: copied, encoded, decoded, gathered for the store.
    pub copied_bytes: u64,
    /// Pages that went to compressed memory.
    pub packed: u64,
    /// Pages that went to the store uncompressed, because it was faster than the compressor.
    pub unpacked: u64,
    /// Pages in compressed memory that an idle core compressed again, smaller.
    pub repacked: u64,
    /// Pages read back from the store.
    pub page_ins: u64,
    /// Pages written to the store.
    pub page_outs: u64,
    /// Segments of the store that were compacted.
    pub compacted: u64,
    /// Failed store requests and damaged clusters.
    pub errors: u64,
    /// True if the store has refused all writes since the last success.
    pub store_failing: bool,
    /// Times that a thread of the driver found work it had not been woken for: a bug.
    pub signals_lost: u64,
    /// Lines that could not be logged.
    pub log_lines_lost: u64,
    /// Files, directories and everything else with a number.
    pub inodes: u64,
    /// The most inodes there may be, if that is limited.
    pub inodes_limit: Option<u64>,
    /// Removed but still open.
    pub orphan_inodes: u64,
    /// Bytes of files, in whole pages.
    pub used_bytes: u64,
    /// Bytes that files may hold: less than `size=` when the store's disk is nearly full.
    pub size_bytes: u64,
}

/// The reason why there are no statistics.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// Not a mount of ours, or not its root.
    #[error("{0} is not the root of an overspill mount")]
    NotOverspill(String),
    /// The mount did not answer.
    #[error("the mount on {0} does not answer: {1}")]
    NoAnswer(String, std::io::Error),
    /// The answer cannot be parsed: another version's daemon, perhaps.
    #[error("the mount on {0} gave an answer that cannot be read: {1}")]
    Garbled(String, serde_json::Error),
}

/// Asks a mount for its statistics.
///
/// # Errors
/// When `root` is not the root of a mount of ours, or it does not answer.
pub fn of_mount(root: &Path) -> Result<Stats, StatsError> {
    report(root, STATS)
}

/// Asks a mount for the object caches of its metadata.
///
/// # Errors
/// As [`of_mount`].
pub fn slabinfo_of_mount(root: &Path) -> Result<Slabinfo, StatsError> {
    report(root, SLABINFO)
}

fn report<T: serde::de::DeserializeOwned>(root: &Path, which: &str) -> Result<T, StatsError> {
    let name = || root.display().to_string();
    let mut buf = vec![0; 64 << 10];
    let attribute = format!("{}{which}", overspill_fuse::REPORTS);
    let len = rustix::fs::getxattr(root, attribute, &mut buf).map_err(|error| match error {
        rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP => StatsError::NotOverspill(name()),
        error => StatsError::NoAnswer(name(), error.into()),
    })?;
    serde_json::from_slice(&buf[..len]).map_err(|error| StatsError::Garbled(name(), error))
}

/// Names of the reports a mount gives.
pub(crate) const STATS: &str = "stats";
pub(crate) const SLABINFO: &str = "slabinfo";

/// The caches of a daemon, and the arena they take from. Bytes and counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slabinfo {
    /// Each cache: fields as in [`overspill_slab::slabinfo::CacheInfo`].
    pub caches: Vec<serde_json::Value>,
    /// Address space of the arena.
    pub imported_bytes: u64,
    /// Part of it in caches.
    pub used_bytes: u64,
    /// Part of it that may be in RAM.
    pub resident_bytes: u64,
    /// The arena's own records.
    pub record_bytes: u64,
}

pub(crate) fn slabinfo() -> Slabinfo {
    let arena = overspill_slab::global().info();
    let caches = slabinfo::snapshot();
    Slabinfo {
        caches: caches.iter().filter_map(|cache| serde_json::to_value(cache).ok()).collect(),
        imported_bytes: arena.imported as u64,
        used_bytes: arena.used as u64,
        resident_bytes: arena.resident as u64,
        record_bytes: arena.records as u64,
    }
}

/// The fixed data of a mount.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub(crate) budget_bytes: u64,
    pub(crate) store_mode: String,
}

pub(crate) fn collect(fixed: &Fixed, vm: &Vm, fs: &TmpFs, signals_lost: u64) -> Stats {
    let v = vm.stats();
    let f = fs.stats();
    let usage = vm.store_usage();
    let (rss_bytes, rss_peak_bytes) = rss();
    let slab = slabinfo::snapshot();
    let page = overspill_vm::PAGE as u64;
    Stats {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        budget_bytes: fixed.budget_bytes,
        rss_bytes,
        rss_peak_bytes,
        vm_limit_bytes: v.limit_bytes as u64,
        vm_used_bytes: v.charged_bytes as u64,
        metadata_bytes: v.metadata_bytes as u64,
        slab_bytes: slab.iter().map(|cache| cache.memory as u64).sum(),
        slab_free_bytes: slab
            .iter()
            .map(|cache| (cache.memory - cache.active * cache.object_size) as u64)
            .sum(),
        buffer_bytes: fixed.budget_bytes.saturating_sub(v.limit_bytes as u64),
        resident_bytes: v.resident_bytes as u64,
        dirty_bytes: v.dirty_bytes as u64,
        compressed_bytes: v.compressed_bytes as u64,
        compressed_page_bytes: v.compressed_page_bytes as u64,
        stored_page_bytes: v.stored_page_bytes as u64,
        stored_bytes: v.stored_bytes,
        stored_live_bytes: v.stored_live_bytes,
        store_file_bytes: usage.file_bytes,
        store_disk_free_bytes: usage.disk_free_bytes,
        store_mode: fixed.store_mode.clone(),
        store_writes: v.store_writes,
        store_reads: v.store_reads,
        served_bytes: v.served_bytes,
        copied_bytes: v.copied_bytes,
        packed: v.compressed,
        unpacked: v.bypassed,
        repacked: v.recompressed,
        page_ins: v.page_ins,
        page_outs: v.page_outs,
        compacted: v.compacted,
        errors: v.errors,
        store_failing: vm.is_store_failing(),
        signals_lost,
        log_lines_lost: crate::log::lost_lines(),
        inodes: f.inodes,
        inodes_limit: f.inodes_limit,
        orphan_inodes: f.orphans.inodes,
        used_bytes: f.pages * page,
        size_bytes: f.pages_limit * page,
    }
}

/// This process's resident memory, now and at its peak.
fn rss() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    (field("VmRSS:").unwrap_or(0) << 10, field("VmHWM:").unwrap_or(0) << 10)
}
