//! Inodes by number.
//!
//! The table has 64 shards, each under a lock that readers share: two lookups never exclude each other. Inode numbers
//! are handed out in order, so shards and the branches of their tries fill evenly.

use std::array;
use std::sync::RwLock;

use overspill_slab::Ref;

use crate::inode::Inode;
use crate::sync::{read, write};
use crate::trie::HashTrie;

const SHARDS: usize = 64;

/// The inodes that exist: those with a name, and those without one that are still referenced.
#[derive(Debug)]
pub(crate) struct Table {
    shards: [RwLock<HashTrie<Ref<Inode>>>; SHARDS],
}

impl Table {
    pub(crate) fn new() -> Self {
        Table { shards: array::from_fn(|_| RwLock::new(HashTrie::new())) }
    }

    fn shard(&self, ino: u64) -> &RwLock<HashTrie<Ref<Inode>>> {
        &self.shards[usize::try_from(ino % SHARDS as u64).unwrap_or(0)]
    }

    pub(crate) fn get(&self, ino: u64) -> Option<Ref<Inode>> {
        read(self.shard(ino)).get(ino / SHARDS as u64, |inode| inode.ino == ino).cloned()
    }

    pub(crate) fn insert(&self, inode: Ref<Inode>) {
        let ino = inode.ino;
        write(self.shard(ino)).insert(ino / SHARDS as u64, inode);
    }

    pub(crate) fn remove(&self, ino: u64) -> Option<Ref<Inode>> {
        write(self.shard(ino)).remove(ino / SHARDS as u64, |inode| inode.ino == ino)
    }
}
