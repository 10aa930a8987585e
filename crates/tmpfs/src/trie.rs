//! A hash table that grows leaf by leaf.
//!
//! Lookup costs a few steps for any number of entries; no insertion moves more than one leaf, so none is slow
//! (R51), and nothing needs one growing contiguous block (R75). Leaves split on the next four bits of the hash and
//! are merged again when they empty, so that removal returns memory.

use std::array;

const BITS: u32 = 4;
const FANOUT: usize = 1 << BITS;
/// A leaf with more entries than this splits.
const LEAF_MAX: usize = 32;
/// A branch over leaves with this few entries becomes a leaf. Well below `LEAF_MAX`, so that it does not split at once.
const MERGE_MAX: usize = LEAF_MAX / 4;

/// A map from hashes to values. Several values may share a hash: the caller tells them apart.
#[derive(Debug)]
pub(crate) struct HashTrie<T> {
    root: Node<T>,
}

#[derive(Debug)]
enum Node<T> {
    Leaf(Vec<(u64, T)>),
    Branch(Box<[Node<T>; FANOUT]>),
}

/// Index of a hash's child in a branch whose leaves differ from bit `shift` on.
fn child(hash: u64, shift: u32) -> usize {
    // Four bits fit any usize.
    usize::try_from((hash >> shift) & (FANOUT as u64 - 1)).unwrap_or(0)
}

impl<T> HashTrie<T> {
    pub(crate) fn new() -> Self {
        HashTrie { root: Node::Leaf(Vec::new()) }
    }

    pub(crate) fn get(&self, hash: u64, mut same: impl FnMut(&T) -> bool) -> Option<&T> {
        let mut node = &self.root;
        let mut shift = 0;
        loop {
            match node {
                Node::Branch(children) => node = &children[child(hash, shift)],
                Node::Leaf(entries) => {
                    return entries.iter().find(|(h, t)| *h == hash && same(t)).map(|(_, t)| t);
                }
            }
            shift += BITS;
        }
    }

    /// Adds a value. The caller makes sure that it is not there yet.
    pub(crate) fn insert(&mut self, hash: u64, value: T) {
        let mut node = &mut self.root;
        let mut shift = 0;
        while let Node::Branch(children) = node {
            node = &mut children[child(hash, shift)];
            shift += BITS;
        }
        let Node::Leaf(entries) = node else { return };
        entries.push((hash, value));
        // Past the last bit all hashes of a leaf are equal: the leaf just grows.
        if entries.len() > LEAF_MAX && shift < u64::BITS {
            let mut leaves: [Vec<(u64, T)>; FANOUT] = array::from_fn(|_| Vec::new());
            for entry in entries.drain(..) {
                leaves[child(entry.0, shift)].push(entry);
            }
            *node = Node::Branch(Box::new(leaves.map(Node::Leaf)));
        }
    }

    pub(crate) fn remove(&mut self, hash: u64, mut same: impl FnMut(&T) -> bool) -> Option<T> {
        remove(&mut self.root, hash, 0, &mut same)
    }
}

fn remove<T>(node: &mut Node<T>, hash: u64, shift: u32, same: &mut impl FnMut(&T) -> bool) -> Option<T> {
    match node {
        Node::Leaf(entries) => {
            let at = entries.iter().position(|(h, t)| *h == hash && same(t))?;
            let (_, value) = entries.swap_remove(at);
            if entries.capacity() > 8 && entries.len() <= entries.capacity() / 4 {
                entries.shrink_to(entries.len() * 2);
            }
            Some(value)
        }
        Node::Branch(children) => {
            let value = remove(&mut children[child(hash, shift)], hash, shift + BITS, same)?;
            merge(node);
            Some(value)
        }
    }
}

/// Turns a branch into a leaf if all its children are leaves and have few entries together.
fn merge<T>(node: &mut Node<T>) {
    let Node::Branch(children) = node else { return };
    let mut total = 0;
    for child in children.iter() {
        match child {
            Node::Leaf(entries) => total += entries.len(),
            Node::Branch(_) => return,
        }
        if total > MERGE_MAX {
            return;
        }
    }
    let mut all = Vec::with_capacity(total);
    for child in children.iter_mut() {
        if let Node::Leaf(entries) = child {
            all.append(entries);
        }
    }
    *node = Node::Leaf(all);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::collections::hash_map::Entry;

    #[test]
    fn agrees_with_a_hash_map_while_growing_and_shrinking() {
        let mut trie = HashTrie::new();
        let mut model = HashMap::new();
        let mut state = 7_u64;
        for round in 0..20_000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Few distinct hashes, so that some are shared and some are removed again.
            let key = (state >> 33) % 3000;
            let hash = (key / 2).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let removing = state.is_multiple_of(3) == (round < 12_000);
            if removing {
                assert_eq!(trie.remove(hash, |&(k, _)| k == key), model.remove(&key).map(|v| (key, v)));
            } else if let Entry::Vacant(vacant) = model.entry(key) {
                trie.insert(hash, (key, round));
                vacant.insert(round);
            }
            assert_eq!(trie.get(hash, |&(k, _)| k == key).map(|e| e.1), model.get(&key).copied());
        }
        for key in 0..3000_u64 {
            let hash = (key / 2).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            assert_eq!(trie.remove(hash, |&(k, _)| k == key).is_some(), model.remove(&key).is_some());
        }
        assert!(matches!(trie.root, Node::Leaf(ref l) if l.is_empty() && l.capacity() <= 8));
    }

    #[test]
    fn equal_hashes_end_in_one_leaf() {
        let mut trie = HashTrie::new();
        for value in 0..200 {
            trie.insert(42, value);
        }
        assert!((0..200).all(|value| trie.get(42, |&v| v == value).is_some()));
        assert!((0..200).all(|value| trie.remove(42, |&v| v == value).is_some()));
        assert!(trie.get(42, |_| true).is_none());
    }
}
