//! Clusters: how up to 16 pages of a chunk become one payload of whole blocks, and pages again.
//!
//! ```text
//!   Layout::Full     page 0 (4096 bytes) | page 1 (4096 bytes) | …
//!   Layout::Listed   n lengths (u16, little endian) | bytes of page 0 | bytes of page 1 | …
//!   payload          the layout as it is, or packed by lz4 as one piece; then zeros up to a whole block
//! ```
//!
//! - Short pages take less (R25). Where the list of lengths would cost more than it saves, the pages are laid
//!   out full: a page then comes back 4096 bytes long, zeros behind what was given. So a page comes back **at
//!   least** as long as it went in, what follows is zeros, and `n` pages never take more than `n` blocks.
//! - lz4 is kept only where it saves a block: less would save nothing on the store and cost time on each read.
//! - What is needed to read a cluster, [`Encoded`], stays in memory with its owner (R5), the checksum too.
//!   It covers the caller's tag, the shape and the payload, so that a read that brings another cluster's bytes,
//!   old bytes or rotten bytes is an error and never wrong data.
//! - An [`Encoder`] allocates when it is made and never again: it runs on the pageout path (R35).

use std::ops::Range;

use lz4_flex::block::{self, CompressTable};

use crate::BLOCK;

/// Pages in a cluster, at most.
pub const MAX_PAGES: usize = 16;

/// The most bytes a cluster takes in the store, and the size of the buffer to decode into.
pub const MAX_CLUSTER: usize = MAX_PAGES * BLOCK;

/// Inputs from this length on need the larger hash table.
const SMALL_TABLE_LIMIT: usize = u16::MAX as usize;

/// Whether the payload is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is.
    Raw,
    /// By lz4, as one block without a frame.
    Lz4,
}

/// How pages lie in the unpacked payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Each page takes [`BLOCK`] bytes.
    Full,
    /// A list of lengths, then the pages at those lengths.
    Listed,
}

/// What must be kept in memory to read a cluster back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// Bytes of payload, without the zeros that fill its last block.
    pub len: u32,
    /// Bytes of the layout before packing.
    pub raw_len: u32,
    /// Checksum over tag, shape and payload.
    pub crc: u32,
    /// How many pages.
    pub pages: u8,
    /// How they lie.
    pub layout: Layout,
    /// Whether they are packed.
    pub packing: Packing,
}

impl Encoded {
    /// Blocks the payload takes.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.len.div_ceil(BLOCK_U32)
    }

    /// Bytes the payload takes, a whole number of blocks.
    #[must_use]
    pub fn padded_len(&self) -> usize {
        self.blocks() as usize * BLOCK
    }

    fn checksum(&self, tag: u64, payload: &[u8]) -> u32 {
        let mut shape = [0u8; 19];
        shape[..8].copy_from_slice(&tag.to_le_bytes());
        shape[8..12].copy_from_slice(&self.len.to_le_bytes());
        shape[12..16].copy_from_slice(&self.raw_len.to_le_bytes());
        shape[16] = self.pages;
        shape[17] = u8::from(self.layout == Layout::Listed);
        shape[18] = u8::from(self.packing == Packing::Lz4);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&shape);
        hasher.update(payload);
        hasher.finalize()
    }
}

const BLOCK_U32: u32 = 4096;
const _: () = assert!(BLOCK == BLOCK_U32 as usize);

/// Why a payload could not be read. All of them mean: these are not the bytes that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The payload or the output buffer is shorter than the cluster.
    #[error("buffer of {have} bytes is too short for a cluster of {need}")]
    Short {
        /// Bytes given.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The checksum does not match: rotten, stale or misdirected.
    #[error("checksum is {found:08x}, should be {expected:08x}")]
    Checksum {
        /// As kept in memory.
        expected: u32,
        /// As computed from what was read.
        found: u32,
    },
    /// Checksum right, contents impossible: `Encoded` was not made by [`Encoder::encode`] for this payload.
    #[error("cluster is malformed")]
    Malformed,
}

/// Where each page lies in the buffer it was decoded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    count: usize,
    /// Page `i` lies at `bounds[i]..bounds[i + 1]`.
    bounds: [u32; MAX_PAGES + 1],
}

impl Pages {
    /// How many pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where page `i` lies in the output buffer, in the order of encoding.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<Range<usize>> {
        (i < self.count).then(|| self.bounds[i] as usize..self.bounds[i + 1] as usize)
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.count).filter_map(|i| self.get(i))
    }
}

/// Makes clusters. Holds about 180 KiB of workspaces; one per thread that writes.
pub struct Encoder {
    /// The layout before packing.
    raw: Box<[u8]>,
    /// lz4's output, which may be longer than its input.
    packed: Box<[u8]>,
    small: CompressTable,
    large: CompressTable,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Allocates the workspaces.
    #[must_use]
    pub fn new() -> Encoder {
        Encoder {
            raw: vec![0; MAX_CLUSTER].into_boxed_slice(),
            packed: vec![0; block::get_maximum_output_size(MAX_CLUSTER)].into_boxed_slice(),
            small: CompressTable::small(),
            large: CompressTable::large(),
        }
    }

    /// Puts pages (each of at most [`BLOCK`] bytes) together as one payload at the start of `out`, padded with
    /// zeros to [`Encoded::padded_len`]. `tag` must be given again to read it. Allocates nothing.
    ///
    /// # Panics
    /// With more than [`MAX_PAGES`] pages, a page longer than [`BLOCK`], or an `out` shorter than a block per
    /// page ([`MAX_CLUSTER`] always does).
    pub fn encode<'a, I>(&mut self, tag: u64, pages: I, out: &mut [u8]) -> Encoded
    where
        I: IntoIterator<Item = &'a [u8]>,
    {
        let mut list: [&[u8]; MAX_PAGES] = [&[]; MAX_PAGES];
        let mut count = 0;
        for page in pages {
            assert!(count < MAX_PAGES && page.len() <= BLOCK, "a cluster is at most 16 pages of 4 KiB");
            list[count] = page;
            count += 1;
        }
        let (layout, raw_len) = self.lay_out(&list[..count]);
        let packed_len = self.pack(raw_len);
        let (packing, payload) = match packed_len {
            Some(len) => (Packing::Lz4, &self.packed[..len]),
            None => (Packing::Raw, &self.raw[..raw_len]),
        };
        let mut encoded = Encoded {
            len: to_u32(payload.len()),
            raw_len: to_u32(raw_len),
            crc: 0,
            pages: u8::try_from(count).unwrap_or(u8::MAX),
            layout,
            packing,
        };
        encoded.crc = encoded.checksum(tag, payload);
        let padded = encoded.padded_len();
        out[..payload.len()].copy_from_slice(payload);
        out[payload.len()..padded].fill(0);
        encoded
    }

    /// Fills `raw`; returns how, and how much of it.
    fn lay_out(&mut self, pages: &[&[u8]]) -> (Layout, usize) {
        let full = pages.len() * BLOCK;
        let listed = pages.len() * 2 + pages.iter().map(|p| p.len()).sum::<usize>();
        if listed >= full {
            for (page, slot) in pages.iter().zip(self.raw.chunks_exact_mut(BLOCK)) {
                slot[..page.len()].copy_from_slice(page);
                slot[page.len()..].fill(0);
            }
            return (Layout::Full, full);
        }
        let mut at = pages.len() * 2;
        for (i, page) in pages.iter().enumerate() {
            let len = u16::try_from(page.len()).unwrap_or(u16::MAX);
            self.raw[i * 2..i * 2 + 2].copy_from_slice(&len.to_le_bytes());
            self.raw[at..at + page.len()].copy_from_slice(page);
            at += page.len();
        }
        (Layout::Listed, listed)
    }

    /// Packs `raw[..raw_len]`; the packed length if that saves a block.
    fn pack(&mut self, raw_len: usize) -> Option<usize> {
        let raw_blocks = raw_len.div_ceil(BLOCK);
        if raw_blocks < 2 {
            return None;
        }
        let table = if raw_len < SMALL_TABLE_LIMIT { &mut self.small } else { &mut self.large };
        let len = block::compress_into_with_table(&self.raw[..raw_len], &mut self.packed, table).ok()?;
        (len.div_ceil(BLOCK) < raw_blocks).then_some(len)
    }
}

/// Reads a cluster from `payload` (its blocks as read from the store) into `out`, and says where each page is.
/// Nothing is believed before the checksum was found right. `out` need not be zeroed, and is scratch on error.
pub fn decode(payload: &[u8], encoded: &Encoded, tag: u64, out: &mut [u8]) -> Result<Pages, CodecError> {
    let (len, raw_len) = (encoded.len as usize, encoded.raw_len as usize);
    let payload = payload.get(..len).ok_or(CodecError::Short { have: payload.len(), need: len })?;
    let found = encoded.checksum(tag, payload);
    if found != encoded.crc {
        return Err(CodecError::Checksum { expected: encoded.crc, found });
    }
    let have = out.len();
    let out = out.get_mut(..raw_len).ok_or(CodecError::Short { have, need: raw_len })?;
    match encoded.packing {
        Packing::Raw if len == raw_len => out.copy_from_slice(payload),
        Packing::Raw => return Err(CodecError::Malformed),
        Packing::Lz4 => match block::decompress_into(payload, out) {
            Ok(n) if n == raw_len => {}
            _ => return Err(CodecError::Malformed),
        },
    }
    find_pages(encoded, out).ok_or(CodecError::Malformed)
}

/// The bounds of each page in an unpacked layout, if it is one.
fn find_pages(encoded: &Encoded, raw: &[u8]) -> Option<Pages> {
    let count = usize::from(encoded.pages);
    if count > MAX_PAGES {
        return None;
    }
    let mut bounds = [0u32; MAX_PAGES + 1];
    let mut at = match encoded.layout {
        Layout::Full => 0,
        Layout::Listed => count * 2,
    };
    for (i, bound) in bounds.iter_mut().enumerate().take(count) {
        *bound = to_u32(at);
        let len = match encoded.layout {
            Layout::Full => BLOCK,
            Layout::Listed => usize::from(u16::from_le_bytes(raw.get(i * 2..i * 2 + 2)?.try_into().ok()?)),
        };
        if len > BLOCK {
            return None;
        }
        at += len;
    }
    bounds[count] = to_u32(at);
    (at == raw.len()).then_some(Pages { count, bounds })
}

/// For lengths that cannot exceed [`MAX_CLUSTER`] by far.
fn to_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One page: how long, and whether it packs well.
    fn page() -> impl Strategy<Value = Vec<u8>> {
        let len = prop_oneof![Just(0usize), Just(BLOCK), 0..=BLOCK, (BLOCK - 40)..=BLOCK];
        (len, any::<u64>(), 0u8..3).prop_map(|(len, seed, kind)| {
            let mut state = seed | 1;
            (0..len)
                .map(|i| match kind {
                    0 => 0,
                    1 => u8::try_from(((i as u64 / 7) ^ seed) & 0x3f).unwrap(),
                    _ => {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        state.to_le_bytes()[3]
                    }
                })
                .collect()
        })
    }

    fn pages() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(page(), 0..=MAX_PAGES)
    }

    fn same(pages: &[Vec<u8>], decoded: &Pages, out: &[u8]) -> bool {
        decoded.len() == pages.len()
            && pages.iter().zip(decoded.iter()).all(|(page, range)| {
                let got = &out[range];
                got.len() >= page.len()
                    && got[..page.len()] == page[..]
                    && got[page.len()..].iter().all(|&b| b == 0)
            })
    }

    fn encode(tag: u64, pages: &[Vec<u8>]) -> (Encoded, Vec<u8>) {
        let mut out = vec![0xee; MAX_CLUSTER];
        let encoded = Encoder::new().encode(tag, pages.iter().map(Vec::as_slice), &mut out);
        (encoded, out)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        // R25: short pages come back, and never cost more than their number of blocks.
        #[test]
        fn round_trip(pages in pages(), tag in any::<u64>()) {
            let (encoded, payload) = encode(tag, &pages);
            prop_assert!(encoded.blocks() as usize <= pages.len());
            prop_assert!(payload[encoded.len as usize..encoded.padded_len()].iter().all(|&b| b == 0));
            prop_assert!(payload[encoded.padded_len()..].iter().all(|&b| b == 0xee), "wrote past its blocks");
            let mut out = vec![0xaa; MAX_CLUSTER];
            let decoded = decode(&payload[..encoded.padded_len()], &encoded, tag, &mut out).unwrap();
            prop_assert!(same(&pages, &decoded, &out));
            if encoded.packing == Packing::Lz4 {
                prop_assert!(encoded.blocks() < encoded.raw_len.div_ceil(BLOCK_U32));
            }
        }

        #[test]
        fn one_flipped_bit_is_always_seen(pages in pages(), bit in any::<usize>()) {
            let (encoded, mut payload) = encode(7, &pages);
            prop_assume!(encoded.len > 0);
            let bit = bit % (encoded.len as usize * 8);
            payload[bit / 8] ^= 1 << (bit % 8);
            let mut out = vec![0; MAX_CLUSTER];
            let seen = matches!(decode(&payload, &encoded, 7, &mut out), Err(CodecError::Checksum { .. }));
            prop_assert!(seen);
        }

        #[test]
        fn another_clusters_bytes_are_refused(a in pages(), b in pages(), tag in any::<u64>()) {
            let (of_a, _) = encode(tag, &a);
            let (of_b, payload_b) = encode(!tag, &b);
            let mut out = vec![0; MAX_CLUSTER];
            let (_, payload_a) = encode(tag, &a);
            let len = of_a.len as usize;
            if payload_a[..len] != payload_b[..len] {
                prop_assert!(decode(&payload_b, &of_a, tag, &mut out).is_err());
            }
            // Right shape and bytes, wrong place.
            prop_assert!(decode(&payload_b, &of_b, tag, &mut out).is_err());
        }

        #[test]
        fn garbage_with_a_right_checksum_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..9000),
            raw_len in 0u32..80_000,
            count in 0u8..40,
            listed in any::<bool>(),
            packed in any::<bool>(),
        ) {
            let mut encoded = Encoded {
                len: to_u32(bytes.len()),
                raw_len,
                crc: 0,
                pages: count,
                layout: if listed { Layout::Listed } else { Layout::Full },
                packing: if packed { Packing::Lz4 } else { Packing::Raw },
            };
            encoded.crc = encoded.checksum(1, &bytes);
            let mut out = vec![0; MAX_CLUSTER];
            if let Ok(pages) = decode(&bytes, &encoded, 1, &mut out) {
                prop_assert!(pages.iter().all(|r| r.end <= MAX_CLUSTER && r.len() <= BLOCK));
            }
        }
    }

    #[test]
    fn a_short_page_takes_its_real_length() {
        let (encoded, payload) = encode(1, &[vec![1; 100], vec![2; 50]]);
        assert_eq!((encoded.layout, encoded.len, encoded.blocks()), (Layout::Listed, 154, 1));
        let mut out = vec![0; MAX_CLUSTER];
        let pages = decode(&payload, &encoded, 1, &mut out).unwrap();
        assert_eq!(pages.get(0), Some(4..104));
        assert_eq!(pages.get(1), Some(104..154));
        assert_eq!(pages.get(2), None);
    }

    #[test]
    fn what_does_not_shrink_by_a_block_stays_raw() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(MAX_CLUSTER)
        .collect();
        let pages: Vec<Vec<u8>> = noise.chunks(BLOCK).map(<[u8]>::to_vec).collect();
        let (encoded, _) = encode(1, &pages);
        assert_eq!((encoded.packing, encoded.blocks()), (Packing::Raw, 16));
        let (encoded, _) = encode(1, &vec![vec![5; BLOCK]; 16]);
        assert_eq!((encoded.packing, encoded.blocks()), (Packing::Lz4, 1));
    }

    #[test]
    fn short_buffers_are_errors() {
        let (encoded, payload) = encode(1, &[vec![1; BLOCK], vec![2; 10]]);
        let mut out = vec![0; MAX_CLUSTER];
        let short = decode(&payload[..encoded.len as usize - 1], &encoded, 1, &mut out);
        assert!(matches!(short, Err(CodecError::Short { .. })));
        let short = decode(&payload, &encoded, 1, &mut out[..10]);
        assert!(matches!(short, Err(CodecError::Short { have: 10, .. })));
    }
}
