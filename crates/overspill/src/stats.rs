//! Statistics of a mount and of its engine. The control socket gives them.

use overspill_slab::slabinfo;
use overspill_tmpfs::TmpFs;
use overspill_vm::Vm;
use serde::{Deserialize, Serialize};

pub use crate::metrics::{Group, METRICS, Metric, Stats, Unit};

/// The caches of a daemon, and the arena they take from. Bytes and counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slabinfo {
    /// Each cache: fields as in [`overspill_slab::slabinfo::CacheInfo`].
    pub caches: Vec<serde_json::Value>,
    /// Address space of the arena.
    pub imported_bytes: u64,
    /// Part of it in caches.
    pub used_bytes: u64,
    /// Part of it that may be in RAM.
    pub resident_bytes: u64,
    /// Records that describe the arena itself.
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

/// Facts that the engine and the mount know.
pub(crate) struct Facts {
    pub(crate) budget_bytes: u64,
    pub(crate) store_mode: String,
    pub(crate) signals_lost: u64,
    pub(crate) transport: &'static str,
    pub(crate) requests: u64,
}

/// The statistics of a file system and of its engine.
pub(crate) fn collect(facts: Facts, vm: &Vm, fs: &TmpFs) -> Stats {
    let v = vm.stats();
    let f = fs.stats();
    let usage = vm.store_usage();
    let (rss_bytes, rss_peak_bytes) = rss();
    let slab = slabinfo::snapshot();
    let page = overspill_vm::PAGE as u64;
    Stats {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        budget_bytes: facts.budget_bytes,
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
        buffer_bytes: facts.budget_bytes.saturating_sub(v.limit_bytes as u64),
        resident_bytes: v.resident_bytes as u64,
        dirty_bytes: v.dirty_bytes as u64,
        compressed_bytes: v.compressed_bytes as u64,
        compressed_page_bytes: v.compressed_page_bytes as u64,
        stored_page_bytes: v.stored_page_bytes as u64,
        stored_bytes: v.stored_bytes,
        stored_live_bytes: v.stored_live_bytes,
        store_file_bytes: usage.file_bytes,
        store_disk_free_bytes: usage.disk_free_bytes,
        store_mode: facts.store_mode,
        store_writes: v.store_writes,
        store_reads: v.store_reads,
        served_bytes: v.served_bytes,
        copied_bytes: v.copied_bytes,
        compressed_pages: v.compressed,
        bypassed_pages: v.bypassed,
        recompressed_pages: v.recompressed,
        page_ins: v.page_ins,
        page_outs: v.page_outs,
        compacted: v.compacted,
        errors: v.errors,
        store_failing: vm.is_store_failing(),
        signals_lost: facts.signals_lost,
        transport: facts.transport.to_owned(),
        requests: facts.requests,
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
