//! An object's pages as a persistent tree of chunks.
//!
//! ```text
//!   root ─► Node[64] ─► Node[64] ─► ChunkRef      64 chunks a node, 4 MiB; as high as the object's last page asks
//! ```
//! A copy of a tree is a copy of its root (R40, R58). Whoever changes a tree first copies the nodes on the path that
//! others show too; chunks are copied by their users. No shadow chains, so nothing to collapse.

#![expect(clippy::cast_possible_truncation, reason = "what is cast is an index below the fanout")]

use overspill_slab::{OutOfMemory, Ref, kept};

use crate::budget::{Budget, Charge};
use crate::chunk::ChunkRef;
use crate::sync::Arc;

const FANOUT_BITS: u32 = 6;
const FANOUT: usize = 1 << FANOUT_BITS;

/// What a node costs in metadata, as its slab rounds it.
pub(crate) const NODE_COST: usize = std::mem::size_of::<Node>() + 32;

struct Node {
    slots: [Slot; FANOUT],
    charge: Charge,
}

kept!(counted Node, "tree node");

impl Clone for Node {
    fn clone(&self) -> Node {
        Node { slots: self.slots.clone(), charge: self.charge.again() }
    }
}

#[derive(Clone, Default)]
enum Slot {
    #[default]
    Empty,
    Node(Ref<Node>),
    Chunk(ChunkRef),
}

/// A map from chunk numbers to chunks.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    root: Slot,
    /// Levels of nodes above the chunks: the tree holds chunks below `64^height`.
    height: u32,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree(height {})", self.height)
    }
}

/// What a lookup for writing finds.
pub(crate) enum Found<'a> {
    /// A chunk that this tree alone shows.
    Own(&'a ChunkRef),
    /// Nothing, or a chunk that others show too: the tree must change first.
    MustChange,
}

fn index(chunk: u64, level: u32) -> usize {
    (chunk >> (FANOUT_BITS * level)) as usize & (FANOUT - 1)
}

impl Tree {
    fn capacity(&self) -> u64 {
        1u64.checked_shl(FANOUT_BITS * self.height).unwrap_or(u64::MAX)
    }

    pub(crate) fn get(&self, chunk: u64) -> Option<&ChunkRef> {
        if chunk >= self.capacity() {
            return None;
        }
        let mut slot = &self.root;
        let mut level = self.height;
        loop {
            match slot {
                Slot::Empty => return None,
                Slot::Chunk(found) => return Some(found),
                Slot::Node(node) => {
                    level -= 1;
                    slot = &node.slots[index(chunk, level)];
                }
            }
        }
    }

    /// The chunk if it may be written through this tree as it stands.
    pub(crate) fn get_own(&self, chunk: u64) -> Found<'_> {
        if chunk >= self.capacity() {
            return Found::MustChange;
        }
        let mut slot = &self.root;
        let mut level = self.height;
        loop {
            match slot {
                Slot::Chunk(found) if found.is_unshared() => return Found::Own(found),
                Slot::Node(node) if Ref::handles(node) == 1 => {
                    level -= 1;
                    slot = &node.slots[index(chunk, level)];
                }
                _ => return Found::MustChange,
            }
        }
    }

    /// Puts `make(what was there)` at `chunk`, copying shared nodes on the way.
    ///
    /// # Errors
    /// Those of `make`, and of want of memory; the tree then shows what it showed.
    pub(crate) fn change<E: From<OutOfMemory>>(
        &mut self,
        chunk: u64,
        budget: &Arc<Budget>,
        make: impl FnOnce(Option<&ChunkRef>) -> Result<ChunkRef, E>,
    ) -> Result<&ChunkRef, E> {
        let fresh = make(self.get(chunk))?;
        while chunk >= self.capacity() {
            if !matches!(self.root, Slot::Empty) {
                let mut node = Ref::new(Self::node(budget))?;
                Ref::make_mut(&mut node)?.slots[0] = std::mem::take(&mut self.root);
                self.root = Slot::Node(node);
            }
            self.height += 1;
        }
        let mut slot = &mut self.root;
        for level in (0..self.height).rev() {
            if matches!(slot, Slot::Empty) {
                *slot = Slot::Node(Ref::new(Self::node(budget))?);
            }
            let Slot::Node(node) = slot else { unreachable!("chunks are at level 0 only") };
            slot = &mut Ref::make_mut(node)?.slots[index(chunk, level)];
        }
        *slot = Slot::Chunk(fresh);
        let Slot::Chunk(placed) = slot else { unreachable!("just placed") };
        Ok(placed)
    }

    fn node(budget: &Arc<Budget>) -> Node {
        Node { slots: std::array::from_fn(|_| Slot::Empty), charge: budget.charge_forced(NODE_COST) }
    }

    /// Takes the chunk out, and nodes that fall empty with it.
    ///
    /// # Errors
    /// When there is no memory to copy a node that others show too; nothing is taken out then.
    pub(crate) fn remove(&mut self, chunk: u64) -> Result<Option<ChunkRef>, OutOfMemory> {
        if self.get(chunk).is_none() {
            return Ok(None);
        }
        let taken = Self::remove_below(&mut self.root, chunk, self.height)?;
        if matches!(self.root, Slot::Empty) {
            self.height = 0;
        }
        Ok(taken)
    }

    fn remove_below(slot: &mut Slot, chunk: u64, level: u32) -> Result<Option<ChunkRef>, OutOfMemory> {
        let taken = match slot {
            Slot::Node(node) => {
                let node = Ref::make_mut(node)?;
                let taken = Self::remove_below(&mut node.slots[index(chunk, level - 1)], chunk, level - 1)?;
                if node.slots.iter().any(|slot| !matches!(slot, Slot::Empty)) {
                    return Ok(taken);
                }
                taken
            }
            Slot::Chunk(found) => Some(found.clone()),
            Slot::Empty => None,
        };
        *slot = Slot::Empty;
        Ok(taken)
    }

    /// The first chunk at or after `from`, with its number.
    pub(crate) fn next(&self, from: u64) -> Option<(u64, &ChunkRef)> {
        if from >= self.capacity() {
            return None;
        }
        Self::next_below(&self.root, self.height, 0, from)
    }

    fn next_below(slot: &Slot, level: u32, base: u64, from: u64) -> Option<(u64, &ChunkRef)> {
        match slot {
            Slot::Empty => None,
            Slot::Chunk(found) => (base >= from).then_some((base, found)),
            Slot::Node(node) => {
                let span = 1u64 << (FANOUT_BITS * (level - 1));
                let first = if from > base { ((from - base) / span) as usize } else { 0 };
                (first..FANOUT).find_map(|i| {
                    let below = base + i as u64 * span;
                    Self::next_below(&node.slots[i], level - 1, below, from)
                })
            }
        }
    }
}
