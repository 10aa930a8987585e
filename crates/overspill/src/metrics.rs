//! The one table of metrics: from it come the JSON of `overspill stats`, its labels for people, and docs/METRICS.md.

use serde::{Deserialize, Serialize};

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Pages of 4 KiB.
    Pages,
    /// Things: requests, files, events.
    Count,
    /// Not a number.
    Text,
    /// Yes or no.
    Flag,
}

impl Unit {
    /// Its name in documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Unit::Bytes => "bytes",
            Unit::Pages => "pages",
            Unit::Count => "count",
            Unit::Text => "text",
            Unit::Flag => "yes or no",
        }
    }
}

/// Metrics that are shown together, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The daemon.
    Daemon,
    /// Its memory.
    Memory,
    /// The store.
    Store,
    /// Pages on their way.
    Paging,
    /// Files.
    Files,
}

impl Group {
    /// All of them, in order.
    pub const ALL: [Group; 5] = [Group::Daemon, Group::Memory, Group::Store, Group::Paging, Group::Files];

    /// Its title.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Group::Daemon => "daemon",
            Group::Memory => "memory",
            Group::Store => "store",
            Group::Paging => "paging",
            Group::Files => "files",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its field of the JSON.
    pub name: &'static str,
    /// Where it is shown.
    pub group: Group,
    /// Its unit.
    pub unit: Unit,
    /// Its label for people; two spaces before it say that it is a part of the one above.
    pub label: &'static str,
    /// One sentence.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($group:ident $name:ident: $type:ty, $unit:ident, $label:literal, $help:literal;)*) => {
        /// A snapshot of a mount.
        // A field that another version does not have is nothing: old daemons are asked by new commands.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Stats {
            $(#[doc = $help] pub $name: $type,)*
        }

        /// Every metric of a mount.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: stringify!($name),
            group: Group::$group,
            unit: Unit::$unit,
            label: $label,
            help: $help,
        }),*];
    };
}

metrics! {
    Daemon pid: u32, Count, "process", "The daemon's process number.";
    Daemon version: String, Text, "version", "The daemon's version.";
    Daemon transport: String, Text, "requests by", "How the kernel's requests come: io_uring or /dev/fuse.";
    Daemon requests: u64, Count, "requests", "Requests of the kernel that wanted an answer: round trips.";
    Daemon signals_lost: u64, Count, "signals lost", "Times that a thread found work which no signal had announced: a bug.";
    Daemon log_lines_lost: u64, Count, "log lines lost", "Lines that could not be written to the log.";
    Memory budget_bytes: u64, Bytes, "budget", "RAM that the daemon may use.";
    Memory rss_bytes: u64, Bytes, "resident set", "RAM that the daemon uses.";
    Memory rss_peak_bytes: u64, Bytes, "  peak", "The most RAM that the daemon used.";
    Memory buffer_bytes: u64, Bytes, "buffers", "The budget's part for buffers of pageout, page-in and FUSE, and for the program itself.";
    Memory vm_limit_bytes: u64, Bytes, "pages and metadata may take", "The budget's part for pages and metadata.";
    Memory vm_used_bytes: u64, Bytes, "  in use", "Bytes that pages and metadata take, reservations included.";
    Memory metadata_bytes: u64, Bytes, "  metadata", "Bytes that metadata takes.";
    Memory slab_bytes: u64, Bytes, "slabs", "Bytes that object caches hold: metadata, and the tails of compressed payloads.";
    Memory slab_free_bytes: u64, Bytes, "  free", "Bytes of the slabs that no object uses.";
    Memory resident_bytes: u64, Bytes, "resident", "Pages with bytes in memory, each counted whole.";
    Memory dirty_bytes: u64, Bytes, "  dirty", "Resident pages that are nowhere else, each counted whole.";
    Memory compressed_bytes: u64, Bytes, "compressed", "Bytes that compressed memory takes.";
    Memory compressed_page_bytes: u64, Bytes, "  uncompressed", "Pages in compressed memory, each counted whole; dead pages of living clusters count.";
    Store store_mode: String, Text, "I/O", "How the store does its I/O.";
    Store store_failing: bool, Flag, "failing", "True if the store has refused all writes since one last went through.";
    Store stored_page_bytes: u64, Bytes, "pages", "Pages in the store, each counted whole.";
    Store stored_bytes: u64, Bytes, "allocated", "Bytes of the store that are not free.";
    Store stored_live_bytes: u64, Bytes, "  live", "Bytes of living pages among the allocated ones. More than a tenth dead is compacted.";
    Store store_file_bytes: u64, Bytes, "on disk", "Bytes that the store takes on its disk, space prepared ahead included.";
    Store store_disk_free_bytes: u64, Bytes, "  disk free", "Bytes that its disk could still give.";
    Store store_writes: u64, Count, "writes", "Write requests to the store.";
    Store store_reads: u64, Count, "reads", "Read requests to the store.";
    Store errors: u64, Count, "errors", "Failed requests to the store or a source, and damaged clusters.";
    Paging compressed_pages: u64, Pages, "compressed", "Pages that went to compressed memory.";
    Paging recompressed_pages: u64, Pages, "  recompressed", "Pages of them that an idle core compressed again, smaller.";
    Paging bypassed_pages: u64, Pages, "bypassed", "Pages that went to the store uncompressed, because it outran the compressor.";
    Paging page_ins: u64, Pages, "paged in", "Pages read from the store.";
    Paging page_outs: u64, Pages, "paged out", "Pages written to the store.";
    Paging compacted: u64, Count, "segments compacted", "Segments of the store whose living pages were brought back.";
    Paging served_bytes: u64, Bytes, "served", "Bytes that readers got and writers gave.";
    Paging copied_bytes: u64, Bytes, "  copied", "Bytes that the daemon copied for that within itself.";
    Files inodes: u64, Count, "inodes", "Files, directories and everything else with an inode number.";
    Files inodes_limit: Option<u64>, Count, "  limit", "How many inodes there may be, if that is limited.";
    Files orphan_inodes: u64, Count, "  removed but open", "Inodes without a name that are still open.";
    Files used_bytes: u64, Bytes, "used", "Bytes that files hold, in whole pages.";
    Files size_bytes: u64, Bytes, "size", "Bytes that files may hold: less than size= when the store's disk is nearly full.";
}

/// docs/METRICS.md.
#[must_use]
pub fn document() -> String {
    let mut out = String::from(
        "# Metrics\n\nThe fields of `overspill stats --json`, from the table in `crates/overspill/src/metrics.rs`.\n",
    );
    for group in Group::ALL {
        out += &format!("\n## {}\n\n| field | unit | |\n|---|---|---|\n", group.title());
        for metric in METRICS.iter().filter(|metric| metric.group == group) {
            out += &format!("| `{}` | {} | {} |\n", metric.name, metric.unit.name(), metric.help);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/METRICS.md");
        if std::env::var_os("OVERSPILL_WRITE_DOCS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == document(),
            "docs/METRICS.md is old: OVERSPILL_WRITE_DOCS=1 cargo test -p overspill document"
        );
    }

    #[test]
    fn names_say_their_units() {
        for metric in METRICS {
            assert_eq!(metric.name.ends_with("_bytes"), metric.unit == Unit::Bytes, "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.label.trim().is_empty(), "{}", metric.name);
        }
    }
}
