//! Queues of pageout's candidates, in order: chunks with resident pages, and clusters in compressed memory.
//!
//! Two lists, as in Mach and BSD: new members enter the inactive queue; a member that was used again by the time
//! pageout reaches it moves to the active queue, which refills the inactive one when that runs short. Below another
//! cache (the kernel's) an access that we see is a miss there, so we keep one bit of history only.
//!
//! Entries are links in a pool, not in the members: leaving is O(1), and dead members' entries never pile up.

use std::collections::VecDeque;

use overspill_slab::{Ref, RefCounted, WeakRef};

/// A position on the queues, kept by its member.
pub(crate) type QueueSlot = u32;
/// The slot of a record that is on no queue.
pub(crate) const NOT_QUEUED: QueueSlot = u32::MAX;

const NONE: u32 = u32::MAX;
/// Entries in a block.
const BLOCK: u32 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Inactive,
    Active,
}

struct Entry<T: RefCounted> {
    prev: u32,
    next: u32,
    on: Which,
    queued: Option<WeakRef<T>>,
}

#[derive(Debug)]
struct List {
    head: u32,
    tail: u32,
    len: usize,
}

const EMPTY: List = List { head: NONE, tail: NONE, len: 0 };

/// The result of asking a queue for its next one.
pub(crate) enum Victim<T: RefCounted> {
    Found(Ref<T>),
    /// The member is just being dropped: ask again.
    Dying,
    /// The queues are empty, or their end is reached.
    None,
}

impl<T: RefCounted> Victim<T> {
    fn of(queued: Option<&WeakRef<T>>) -> Victim<T> {
        queued.and_then(WeakRef::upgrade).map_or(Victim::Dying, Victim::Found)
    }
}

/// Both queues. Leaf locks but for the store's allocator: taken with a member locked, never the other way round.
pub(crate) struct Queues<T: RefCounted> {
    /// Blocks of entries: nothing grows as one piece (R75).
    pool: VecDeque<Box<[Entry<T>]>>,
    free: u32,
    inactive: List,
    active: List,
}

impl<T: RefCounted> std::fmt::Debug for Queues<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queues(inactive {}, active {})", self.inactive.len, self.active.len)
    }
}

impl<T: RefCounted> Queues<T> {
    pub(crate) fn new() -> Queues<T> {
        Queues { pool: VecDeque::new(), free: NONE, inactive: EMPTY, active: EMPTY }
    }

    pub(crate) fn len(&self) -> usize {
        self.inactive.len + self.active.len
    }

    fn entry(&mut self, slot: u32) -> &mut Entry<T> {
        &mut self.pool[(slot / BLOCK) as usize][(slot % BLOCK) as usize]
    }

    fn list(&mut self, which: Which) -> &mut List {
        match which {
            Which::Inactive => &mut self.inactive,
            Which::Active => &mut self.active,
        }
    }

    /// Appends a member to the inactive queue.
    pub(crate) fn insert(&mut self, new: WeakRef<T>) -> QueueSlot {
        if self.free == NONE {
            self.grow();
        }
        let slot = self.free;
        self.free = self.entry(slot).next;
        self.entry(slot).queued = Some(new);
        self.append(slot, Which::Inactive);
        slot
    }

    /// Takes a member off its queue.
    pub(crate) fn remove(&mut self, slot: QueueSlot) {
        self.unlink(slot);
        let free = self.free;
        let entry = self.entry(slot);
        entry.queued = None;
        entry.next = free;
        self.free = slot;
    }

    /// Moves a member that was used again to the end of the active queue.
    pub(crate) fn activate(&mut self, slot: QueueSlot) {
        self.unlink(slot);
        self.append(slot, Which::Active);
    }

    /// The entry that was just given out is the next one again.
    pub(crate) fn put_first(&mut self, slot: QueueSlot) {
        self.unlink(slot);
        let head = self.inactive.head;
        let entry = self.entry(slot);
        (entry.prev, entry.next, entry.on) = (NONE, head, Which::Inactive);
        if head == NONE {
            self.inactive.tail = slot;
        } else {
            self.entry(head).prev = slot;
        }
        self.inactive.head = slot;
        self.inactive.len += 1;
    }

    /// The entry that pageout should look at next. It goes to the end of its queue, so that one that cannot be had now
    /// does not stand in the way.
    pub(crate) fn next_victim(&mut self) -> Victim<T> {
        // A third of all is enough to tell reused members from others.
        if self.inactive.len * 2 < self.active.len {
            let oldest = self.active.head;
            self.unlink(oldest);
            self.append(oldest, Which::Inactive);
        }
        let slot = match (self.inactive.head, self.active.head) {
            (NONE, NONE) => return Victim::None,
            (NONE, active) => active,
            (inactive, _) => inactive,
        };
        self.unlink(slot);
        self.append(slot, Which::Inactive);
        Victim::of(self.entry(slot).queued.as_ref())
    }

    /// The entry after `at` in its queue, oldest first, starting with the inactive queue; it is not moved. After the
    /// end the next call starts over.
    pub(crate) fn next_oldest(&mut self, at: &mut QueueSlot) -> Victim<T> {
        // If `at` now belongs to another member, it is as good a position to go on from.
        let known = (*at as usize) < self.pool.len() * BLOCK as usize && self.entry(*at).queued.is_some();
        *at = if known { self.entry(*at).next } else { self.inactive.head };
        if *at == NONE {
            return Victim::None;
        }
        let slot = *at;
        Victim::of(self.entry(slot).queued.as_ref())
    }

    /// Gives a position on the queues to another member.
    pub(crate) fn replace(&mut self, slot: QueueSlot, new: WeakRef<T>) {
        self.entry(slot).queued = Some(new);
    }

    fn grow(&mut self) {
        let base = u32::try_from(self.pool.len() * BLOCK as usize).expect("fewer entries than 2^32");
        let last = BLOCK - 1;
        let block = (0..=last).map(|i| Entry {
            prev: NONE,
            next: if i == last { NONE } else { base + i + 1 },
            on: Which::Inactive,
            queued: None,
        });
        self.pool.push_back(block.collect());
        self.free = base;
    }

    fn append(&mut self, slot: u32, which: Which) {
        let tail = self.list(which).tail;
        let entry = self.entry(slot);
        (entry.prev, entry.next, entry.on) = (tail, NONE, which);
        if tail == NONE {
            self.list(which).head = slot;
        } else {
            self.entry(tail).next = slot;
        }
        let list = self.list(which);
        list.tail = slot;
        list.len += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Entry { prev, next, on, .. } = *self.entry(slot);
        if prev == NONE {
            self.list(on).head = next;
        } else {
            self.entry(prev).next = next;
        }
        if next == NONE {
            self.list(on).tail = prev;
        } else {
            self.entry(next).prev = prev;
        }
        self.list(on).len -= 1;
    }
}
