//! Blocks: allocations of 1 to 4096 bytes, from caches in steps of 64 bytes.
//!
//! For data of varying length, such as compressed pages. Rounding wastes 31 bytes per block on average, slabs waste an
//! eighth at most. (A malloc could serve its small sizes from the same caches.)

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;

use super::object::ObjectCache;
use crate::options::Options;
use crate::{OutOfMemory, PAGE};

/// Bytes from one size class to the next.
const STEP: usize = 64;

const fn class(name: &'static str, size: usize) -> ObjectCache {
    ObjectCache::lazy(Options::new(name, size))
}

static CLASSES: [ObjectCache; PAGE / STEP] = [
    class("bytes-64", 64),
    class("bytes-128", 128),
    class("bytes-192", 192),
    class("bytes-256", 256),
    class("bytes-320", 320),
    class("bytes-384", 384),
    class("bytes-448", 448),
    class("bytes-512", 512),
    class("bytes-576", 576),
    class("bytes-640", 640),
    class("bytes-704", 704),
    class("bytes-768", 768),
    class("bytes-832", 832),
    class("bytes-896", 896),
    class("bytes-960", 960),
    class("bytes-1024", 1024),
    class("bytes-1088", 1088),
    class("bytes-1152", 1152),
    class("bytes-1216", 1216),
    class("bytes-1280", 1280),
    class("bytes-1344", 1344),
    class("bytes-1408", 1408),
    class("bytes-1472", 1472),
    class("bytes-1536", 1536),
    class("bytes-1600", 1600),
    class("bytes-1664", 1664),
    class("bytes-1728", 1728),
    class("bytes-1792", 1792),
    class("bytes-1856", 1856),
    class("bytes-1920", 1920),
    class("bytes-1984", 1984),
    class("bytes-2048", 2048),
    class("bytes-2112", 2112),
    class("bytes-2176", 2176),
    class("bytes-2240", 2240),
    class("bytes-2304", 2304),
    class("bytes-2368", 2368),
    class("bytes-2432", 2432),
    class("bytes-2496", 2496),
    class("bytes-2560", 2560),
    class("bytes-2624", 2624),
    class("bytes-2688", 2688),
    class("bytes-2752", 2752),
    class("bytes-2816", 2816),
    class("bytes-2880", 2880),
    class("bytes-2944", 2944),
    class("bytes-3008", 3008),
    class("bytes-3072", 3072),
    class("bytes-3136", 3136),
    class("bytes-3200", 3200),
    class("bytes-3264", 3264),
    class("bytes-3328", 3328),
    class("bytes-3392", 3392),
    class("bytes-3456", 3456),
    class("bytes-3520", 3520),
    class("bytes-3584", 3584),
    class("bytes-3648", 3648),
    class("bytes-3712", 3712),
    class("bytes-3776", 3776),
    class("bytes-3840", 3840),
    class("bytes-3904", 3904),
    class("bytes-3968", 3968),
    class("bytes-4032", 4032),
    class("bytes-4096", 4096),
];

/// Bytes in an allocation of their own, freed on drop.
pub struct Block {
    bytes: NonNull<u8>,
    /// From 1 to [`PAGE`].
    len: u16,
}

// SAFETY: owns its bytes; caches are Sync.
unsafe impl Send for Block {}
// SAFETY: gives out `&[u8]` only.
unsafe impl Sync for Block {}

impl Block {
    /// A copy of `bytes`.
    ///
    /// # Errors
    /// When there is no memory.
    ///
    /// # Panics
    /// When `bytes` is empty or longer than a page.
    pub fn new(bytes: &[u8]) -> Result<Block, OutOfMemory> {
        assert!((1..=PAGE).contains(&bytes.len()), "blocks have 1 to 4096 bytes");
        let block = Self::cache(bytes.len()).alloc()?;
        // SAFETY: a fresh object, at least as long as `bytes`.
        unsafe { block.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Ok(Block { bytes: block, len: u16::try_from(bytes.len()).unwrap_or(u16::MAX) })
    }

    /// Bytes of memory that a block of `len` bytes takes, without its share of slab headers.
    #[must_use]
    pub const fn cost(len: usize) -> usize {
        len.next_multiple_of(STEP)
    }

    fn cache(len: usize) -> &'static ObjectCache {
        &CLASSES[(len - 1) / STEP]
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the object is owned, and `new` wrote `len` bytes.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), usize::from(self.len)) }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: owned, allocated from this length's cache, and used no more.
        unsafe { Self::cache(usize::from(self.len)).free(self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_every_length_keep_their_bytes() {
        let bytes: Vec<u8> = (0..PAGE).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let blocks: Vec<Block> = (1..=PAGE).map(|len| Block::new(&bytes[..len]).unwrap()).collect();
        for (len, block) in (1..=PAGE).zip(&blocks) {
            assert_eq!(**block, bytes[..len]);
            assert!(Block::cost(len) >= len && Block::cost(len) - len < STEP);
        }
        assert_eq!(CLASSES[PAGE / STEP - 1].info().unwrap().object_size, PAGE);
        drop(blocks);
    }
}
