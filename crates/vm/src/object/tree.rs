//! An object's pages as a persistent tree of chunks.
//!
//! ```text
//!   root ─► Node[64] ─► Node[64] ─► ChunkRef      64 chunks a leaf, 4 MiB; as high as the object's last page asks
//! ```
//! A copy of a tree is a copy of its root (R40, R58). A writer first copies the nodes on its path that other trees show
//! too; chunks are copied by the tree's users. No shadow chains, so nothing to collapse.

#![expect(clippy::cast_possible_truncation, reason = "what is cast is an index below the fanout")]

use overspill_slab::{OutOfMemory, Ref, kept};

use crate::budget::{Budget, Charge};
use crate::memory::chunk::ChunkRef;
use crate::sync::Arc;

const FANOUT_BITS: u32 = 6;
const FANOUT: usize = 1 << FANOUT_BITS;

/// A node's metadata, as its slab rounds it.
pub(crate) const NODE_COST: usize = std::mem::size_of::<Node>() + 32;

/// Inner nodes and leaves apart, so that a slot is a bare pointer.
#[derive(Clone)]
enum Slots {
    Nodes([Option<Ref<Node>>; FANOUT]),
    Chunks([Option<ChunkRef>; FANOUT]),
}

impl Slots {
    fn is_empty(&self) -> bool {
        match self {
            Slots::Nodes(nodes) => nodes.iter().all(Option::is_none),
            Slots::Chunks(chunks) => chunks.iter().all(Option::is_none),
        }
    }
}

struct Node {
    slots: Slots,
    charge: Charge,
}

kept!(counted Node, "tree node");

impl Clone for Node {
    fn clone(&self) -> Node {
        Node { slots: self.slots.clone(), charge: self.charge.again() }
    }
}

/// A map from chunk numbers to chunks.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    root: Root,
    /// Levels of nodes: the tree holds chunks below `64^height`. Leaves are at level 0.
    height: u32,
}

#[derive(Clone, Default)]
enum Root {
    #[default]
    Empty,
    /// At height 0: most files are small.
    Chunk(ChunkRef),
    Node(Ref<Node>),
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree(height {})", self.height)
    }
}

/// The result of a lookup for writing.
pub(crate) enum Found<'a> {
    /// A chunk that this tree alone shows.
    Own(&'a ChunkRef),
    /// No chunk, or one that other trees show too: the tree must change first.
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
        let mut node = match &self.root {
            Root::Empty => return None,
            Root::Chunk(found) => return Some(found),
            Root::Node(node) => node,
        };
        let mut level = self.height - 1;
        loop {
            match &node.slots {
                Slots::Chunks(chunks) => return chunks[index(chunk, 0)].as_ref(),
                Slots::Nodes(nodes) => node = nodes[index(chunk, level)].as_ref()?,
            }
            level -= 1;
        }
    }

    /// The chunk if it may be written through this tree without changing the tree.
    pub(crate) fn get_own(&self, chunk: u64) -> Found<'_> {
        self.find_own(chunk).map_or(Found::MustChange, Found::Own)
    }

    fn find_own(&self, chunk: u64) -> Option<&ChunkRef> {
        if chunk >= self.capacity() {
            return None;
        }
        let mut node = match &self.root {
            Root::Empty => return None,
            Root::Chunk(found) => return Some(found).filter(|found| found.is_unshared()),
            Root::Node(node) => node,
        };
        let mut level = self.height - 1;
        while Ref::handles(node) == 1 {
            match &node.slots {
                Slots::Chunks(chunks) => {
                    return chunks[index(chunk, 0)].as_ref().filter(|found| found.is_unshared());
                }
                Slots::Nodes(nodes) => node = nodes[index(chunk, level)].as_ref()?,
            }
            level -= 1;
        }
        None
    }

    /// Puts `make(old chunk)` at `chunk`, copying shared nodes on the way.
    ///
    /// # Errors
    /// Those of `make`, and lack of memory; the tree is then unchanged.
    pub(crate) fn change<E: From<OutOfMemory>>(
        &mut self,
        chunk: u64,
        budget: &Arc<Budget>,
        make: impl FnOnce(Option<&ChunkRef>) -> Result<ChunkRef, E>,
    ) -> Result<&ChunkRef, E> {
        let fresh = make(self.get(chunk))?;
        while chunk >= self.capacity() {
            self.grow(budget)?;
        }
        if self.height == 0 {
            self.root = Root::Chunk(fresh);
            let Root::Chunk(placed) = &self.root else { unreachable!("just placed") };
            return Ok(placed);
        }
        if matches!(self.root, Root::Empty) {
            self.root = Root::Node(Ref::new(Self::node(budget, self.height - 1))?);
        }
        let Root::Node(root) = &mut self.root else { unreachable!("chunks are at height 0 only") };
        let mut node = root;
        for level in (0..self.height).rev() {
            match &mut Ref::make_mut(node)?.slots {
                Slots::Chunks(chunks) => return Ok(chunks[index(chunk, 0)].insert(fresh)),
                Slots::Nodes(nodes) => {
                    let slot = &mut nodes[index(chunk, level)];
                    if slot.is_none() {
                        *slot = Some(Ref::new(Self::node(budget, level - 1))?);
                    }
                    node = slot.as_mut().expect("just made if it was missing");
                }
            }
        }
        unreachable!("level 0 has leaves")
    }

    /// Adds a level.
    fn grow(&mut self, budget: &Arc<Budget>) -> Result<(), OutOfMemory> {
        if !matches!(self.root, Root::Empty) {
            let mut above = Ref::new(Self::node(budget, self.height))?;
            match (&mut Ref::make_mut(&mut above)?.slots, std::mem::take(&mut self.root)) {
                (Slots::Chunks(chunks), Root::Chunk(chunk)) => chunks[0] = Some(chunk),
                (Slots::Nodes(nodes), Root::Node(node)) => nodes[0] = Some(node),
                _ => unreachable!("chunks are at height 0 only"),
            }
            self.root = Root::Node(above);
        }
        self.height += 1;
        Ok(())
    }

    fn node(budget: &Arc<Budget>, level: u32) -> Node {
        let slots = match level {
            0 => Slots::Chunks([const { None }; FANOUT]),
            _ => Slots::Nodes([const { None }; FANOUT]),
        };
        Node { slots, charge: budget.charge_forced(NODE_COST) }
    }

    /// Removes a chunk, and the nodes that become empty.
    ///
    /// # Errors
    /// When there is no memory to copy a node that other trees show too; nothing is removed then.
    pub(crate) fn remove(&mut self, chunk: u64) -> Result<Option<ChunkRef>, OutOfMemory> {
        if self.get(chunk).is_none() {
            return Ok(None);
        }
        let taken = match &mut self.root {
            Root::Node(node) => {
                let (taken, empty) = Self::remove_below(node, chunk, self.height - 1)?;
                if empty {
                    *self = Tree::default();
                }
                taken
            }
            _ => match std::mem::take(self).root {
                Root::Chunk(found) => Some(found),
                _ => None,
            },
        };
        Ok(taken)
    }

    /// Takes a chunk out below `node`; says too if that left it empty.
    fn remove_below(
        node: &mut Ref<Node>,
        chunk: u64,
        level: u32,
    ) -> Result<(Option<ChunkRef>, bool), OutOfMemory> {
        let slots = &mut Ref::make_mut(node)?.slots;
        let taken = match slots {
            Slots::Chunks(chunks) => chunks[index(chunk, 0)].take(),
            Slots::Nodes(nodes) => {
                let slot = &mut nodes[index(chunk, level)];
                let Some(below) = slot else { return Ok((None, false)) };
                let (taken, empty) = Self::remove_below(below, chunk, level - 1)?;
                if empty {
                    *slot = None;
                }
                taken
            }
        };
        Ok((taken, slots.is_empty()))
    }

    /// The first chunk at or after `from`, with its number.
    pub(crate) fn next(&self, from: u64) -> Option<(u64, &ChunkRef)> {
        if from >= self.capacity() {
            return None;
        }
        match &self.root {
            Root::Empty => None,
            Root::Chunk(found) => Some((0, found)),
            Root::Node(node) => Self::next_below(node, self.height - 1, 0, from),
        }
    }

    fn next_below(node: &Node, level: u32, base: u64, from: u64) -> Option<(u64, &ChunkRef)> {
        let span = 1u64 << (FANOUT_BITS * level);
        let first = if from > base { ((from - base) / span) as usize } else { 0 };
        let number = |i: usize| base + i as u64 * span;
        (first..FANOUT).find_map(|i| match &node.slots {
            Slots::Chunks(chunks) => chunks[i].as_ref().map(|found| (number(i), found)),
            Slots::Nodes(nodes) => Self::next_below(nodes[i].as_ref()?, level - 1, number(i), from),
        })
    }
}
