//! The options of an engine.

use std::path::PathBuf;

pub use overspill_vm::Method;

/// An engine: its memory and its store.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Bytes of RAM that the process may use, everything counted.
    pub memory: u64,
    /// Bytes that all faces together may hold: the store numbers its blocks for so many, and for what is on the way.
    pub capacity: u64,
    /// The store for pages that memory cannot hold.
    pub store: StoreChoice,
    /// The store's layout on its disk.
    pub layout: Layout,
    /// The compressor of pages, in memory and on the way to the store.
    pub compress: Method,
    /// Take a store that would otherwise be refused: an existing file, one on a tmpfs.
    pub force: bool,
    /// Answer on a control socket, for `overspill stats` and the like.
    pub control: bool,
    /// For tests.
    pub debug: Debugging,
}

impl EngineOptions {
    /// Bytes that the kernel may hold dirty for a mount on this engine.
    pub(crate) fn dirty_max(&self, writeback: bool) -> u64 {
        match self.store {
            // Written through, only mappings make dirty pages.
            _ if !writeback => (self.memory / 16).clamp(1 << 20, 64 << 20),
            // Promised data must fit into memory itself.
            StoreChoice::None => (self.memory / 16).clamp(1 << 20, 64 << 20),
            // Each dirty page may be far from all others, and then takes half as much again in metadata.
            _ => (self.memory / 4).clamp(1 << 20, 256 << 20),
        }
    }
}

/// The store for pages that memory cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// An unnamed file in this directory.
    Directory(PathBuf),
    /// This file, which must not exist; it loses its name as soon as it is open.
    File(PathBuf),
    /// None: data that memory cannot hold is refused.
    None,
}

/// The layout of a store in a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// One file for all.
    #[default]
    Shared,
    /// A file for each object.
    PerObject,
}

impl Layout {
    /// The names of all.
    pub const WORDS: &str = "shared, per-object";

    /// The layout of this name.
    #[must_use]
    pub fn named(word: &str) -> Option<Layout> {
        match word {
            "shared" => Some(Layout::Shared),
            "per-object" => Some(Layout::PerObject),
            _ => None,
        }
    }
}

/// Switches that make a mount show more of itself to tests (`-o debug=WORD`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Debugging {
    /// `evict`: every page is evicted at once, and the kernel's copy dropped.
    pub evict: bool,
    /// `fail-reads`: all reads of the store fail.
    pub fail_reads: bool,
    /// `fail-writes`: all writes to the store fail.
    pub fail_writes: bool,
    /// `fail-writes-2s`: all writes to the store fail within two seconds of the first.
    pub fail_writes_briefly: bool,
    /// `damage-reads`: all reads of the store bring damaged data.
    pub damage_reads: bool,
    /// `hang-reads`: no read of the store ends.
    pub hang_reads: bool,
    /// `no-uring`: the store's I/O runs as if io_uring were refused.
    pub no_uring: bool,
}

impl Debugging {
    /// The words of `-o debug=`.
    pub const WORDS: &str =
        "evict, fail-reads, fail-writes, fail-writes-2s, damage-reads, hang-reads, no-uring";

    /// Turns on a word of [`Debugging::WORDS`]. False for any other word.
    pub fn turn_on(&mut self, word: &str) -> bool {
        let switch = match word {
            "evict" => &mut self.evict,
            "fail-reads" => &mut self.fail_reads,
            "fail-writes" => &mut self.fail_writes,
            "fail-writes-2s" => &mut self.fail_writes_briefly,
            "damage-reads" => &mut self.damage_reads,
            "hang-reads" => &mut self.hang_reads,
            "no-uring" => &mut self.no_uring,
            _ => return false,
        };
        *switch = true;
        true
    }

    pub(crate) fn has_faults(self) -> bool {
        self.fail_reads
            || self.fail_writes
            || self.fail_writes_briefly
            || self.damage_reads
            || self.hang_reads
    }
}
