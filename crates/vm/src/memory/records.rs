//! The records: memory as a whole, and the data that locates each page. Definitions only.
//!
//! ```text
//!   Memory ─ page queues ···► Chunk ─ ChunkState ─ Cluster ─► Extent ─ Place ─► Payload   in compressed memory
//!      ├──── Compressed ·······························► Extent        └─────► Segment   in a store
//!      └──── Backing (a store) ·····························································► Segment
//!   Payload and Segment ···► the chunks that show their pages            ···► weak: keeps nothing alive
//! ```
//! All of them are wired: only pages page.

use overspill_codec::Encoded;
use overspill_slab::{Block, Own, Ref, WeakRef, kept};
use overspill_store::Store;
use overspill_sys::{Arena, Frame};
use smallvec::SmallVec;

use super::bytes::Bytes;
use super::health::Health;
use super::queue::{QueueSlot, Queues};
use super::states::States;
use crate::account::Account;
use crate::budget::{Budget, Charge, PageCharge};
use crate::counters::Counters;
use crate::page::PageSet;
use crate::signals::DriverSlot;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};
use crate::sync::{Arc, Mutex, rank};
use crate::wait::timer::Timers;

/// The memory that objects, page-in and pageout share.
pub(crate) struct Memory {
    pub(crate) budget: Arc<Budget>,
    pub(crate) arena: std::sync::Arc<Arena>,
    /// Chunks with resident pages.
    pub(crate) queues: Mutex<Queues<Chunk>, { rank::QUEUES }>,
    pub(crate) compressed: Compressed,
    /// The stores, in the order in which pageout fills them. A store's number is its place here.
    pub(crate) backings: Box<[Arc<Backing>]>,
    pub(crate) counters: Counters,
    pub(crate) timers: Timers,
    pub(crate) driver: std::sync::Arc<DriverSlot>,
    /// Evict everything always: for tests and `debug=evict`.
    pub(crate) eager: AtomicBool,
    pub(super) next_tag: AtomicU64,
    /// The number of the next object. After 2^32 objects two may share one: it only groups data in stores.
    pub(super) next_object: AtomicU32,
    pub(super) overhead: Mutex<Option<Charge>>,
}

/// Compressed memory: the clusters in it, in the order in which they leave.
pub(crate) struct Compressed {
    pub(super) queues: Mutex<Queues<Extent>, { rank::QUEUES }>,
    /// The recompressor's position among them.
    pub(super) cold: Mutex<QueueSlot, { rank::COLD }>,
    /// Bytes of the budget.
    pub(super) bytes: AtomicUsize,
    /// Pages encoded into clusters here; dead ones count until their cluster goes.
    pub(super) pages: AtomicUsize,
}

/// A store, and the blocks of it that batches ([`super::backing::RunGuard`]) and segments hold.
pub(crate) struct Backing {
    pub(crate) id: StoreId,
    pub(crate) store: std::sync::Arc<dyn Store>,
    pub(crate) health: Health,
    /// Set while pageout waits for space that the store must prepare, or has lately.
    pub(crate) is_wanted: AtomicBool,
    pub(super) budget: Arc<Budget>,
    /// Blocks held by batches and segments.
    pub(super) blocks: AtomicUsize,
    /// Bytes of living pages in them. The rest of the blocks is dead: pages written again, and the outer blocks of
    /// extents whose neighbours live.
    pub(super) live: AtomicUsize,
    pub(super) segments: Mutex<Segments>,
}

/// The number of a store: its place in the order in which pageout fills stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u8);

/// Location of bytes: a block of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The store.
    pub store: StoreId,
    /// The block of it.
    pub block: u64,
}

/// All segments of a store, and some that are gone: compaction searches them.
#[derive(Default)]
pub(super) struct Segments {
    pub(super) all: Vec<WeakRef<Segment>>,
    /// Position of the next look.
    pub(super) next: usize,
}

/// Blocks of a segment, at most.
pub(crate) const SEGMENT_BLOCKS: usize = 256;

/// Blocks that were written in one piece.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(super) backing: Arc<Backing>,
    pub(super) start: u64,
    /// Count of extents that touch each block. (std's atomics: under the model checker each would take as much as a
    /// page.)
    pub(super) users: [std::sync::atomic::AtomicU8; SEGMENT_BLOCKS],
    /// Extents that lie in it.
    pub(super) extents: AtomicU32,
    /// Blocks that are not free yet.
    pub(super) blocks: AtomicU32,
    /// Bytes of living pages.
    pub(super) live: AtomicU32,
    /// A compactor is at work on it.
    pub(super) taken: AtomicBool,
    /// Chunks that show clusters written here, and some that used to. A leaf lock.
    pub(super) chunks: Mutex<Vec<WeakRef<Chunk>>>,
    pub(super) _charge: Charge,
}

kept!(counted Segment, "segment");

/// A segment's metadata, with its share of a slab.
pub(crate) const SEGMENT_COST: usize = size_of::<Segment>() + 32;

/// A cluster: where its payload is, how to read it, and which pages of its chunk it held.
#[derive(Debug)]
pub(crate) struct Extent {
    /// A leaf lock, but for the queues of compressed memory.
    pub(super) location: Mutex<Location, { rank::LOCATION }>,
    pub(super) encoded: Encoded,
    /// Part of every seal, so that another cluster's bytes are not taken for this one's. Never used twice.
    pub(super) tag: u64,
    pub(super) pages: PageSet,
    /// Count of chunks that show pages of it: a fork shows the same pages as its original. Readers and batches that
    /// hold the extent for a moment do not count. This and the next two change under the location's lock. At
    /// [`super::extent::MANY`] it stays.
    pub(super) shows: AtomicU8,
    /// Pages that no chunk shows any more.
    pub(super) dead: AtomicU8,
    /// While two chunks show it: the pages that one of them has given up.
    pub(super) given_up: AtomicU16,
}

kept!(counted Extent, "extent");

/// An extent's metadata: itself and its place in a chunk's list, with its share of a slab.
pub(crate) const EXTENT_COST: usize = size_of::<Extent>() + 24;

/// Where an extent's payload is.
#[derive(Debug)]
pub(crate) enum Location {
    Memory(Own<Payload>),
    /// In a segment, at a multiple of [`super::extent::EXTENT_ALIGN`] of it.
    Store(Ref<Segment>, u16),
}

/// A cluster's payload in compressed memory.
pub(crate) struct Payload {
    pub(super) frames: Vec<Frame>,
    pub(super) tail: Option<Block>,
    pub(super) charge: PageCharge,
    pub(super) pages: usize,
    /// The chunk whose pages these are: the segment that the payload goes to must know it.
    pub(super) chunk: WeakRef<Chunk>,
    /// Forks of that chunk that show these pages too.
    #[expect(clippy::box_collection, reason = "mostly there are none, and then it takes a word")]
    pub(super) forks: Option<Box<Vec<WeakRef<Chunk>>>>,
    pub(super) object: u32,
    pub(super) memory: Arc<Memory>,
    pub(super) slot: QueueSlot,
    /// Read since pageout last looked.
    pub(super) referenced: bool,
    /// The recompressor has checked it.
    pub(super) recompressed: bool,
    /// Pageout has tried to remove its dead pages.
    pub(super) cleaned: bool,
    /// A batch has a copy of its bytes: it becomes stored, or stays.
    pub(super) going_out: bool,
}

kept!(Payload, "payload in compressed memory");

/// A chunk of some object's tree. Counted twice: by `Ref` for its memory, and by `owners` for the trees that show it,
/// because pageout holding it for a moment must not make a write copy it.
pub(crate) struct Chunk {
    pub(super) owners: AtomicU32,
    /// The object it was made for: stores may keep each object's data apart.
    pub(super) object: u32,
    pub(super) state: Mutex<ChunkState, { rank::CHUNK }>,
    pub(super) memory: Arc<Memory>,
    /// The account that pays for its pages: the first owner's, even while others go on showing them.
    pub(super) account: std::sync::Arc<Account>,
}

kept!(counted Chunk, "chunk");

/// The counts and the share of a slab that a handle adds to an object.
const HEAP: usize = 16;

/// A chunk's metadata: itself, and its place on the page queues.
pub(crate) const CHUNK_COST: usize = size_of::<Chunk>() + HEAP + 32;

/// The part of a chunk that its lock guards.
#[derive(Debug)]
pub(crate) struct ChunkState {
    pub(super) states: States,
    /// A cluster of this chunk is on its way to the store, perhaps with all of its pages written again since. No second
    /// one starts before it ends: its end must not be taken for the second one's.
    pub(super) going_out: bool,
    /// Read or written again since pageout last looked.
    pub(crate) referenced: bool,
    /// The chunk's place on the page queues.
    pub(crate) queue: QueueSlot,
    pub(super) bytes: SmallVec<[Bytes; 1]>,
    pub(super) clusters: SmallVec<[Cluster; 1]>,
}

/// Pages of a chunk that lie in one extent. While this lives, the extent counts the chunk among those that show it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) extent: Ref<Extent>,
    /// The extent's pages that are still this chunk's; empty only for a moment.
    pub(crate) live: PageSet,
}
