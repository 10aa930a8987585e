//! Clusters: how up to 16 pages of a chunk become one payload, and pages again.
//!
//! ```text
//!   payload   strip 0 | strip 1 | …                     a strip: 4 pages (Fine) or all 16 (Whole), read on its own
//!   strip     crc (u32) | shape (u32) | body            then zeros up to a multiple of 16 bytes
//!   body      the layout as it is, or packed by lz4 or zstd as one piece
//!   Layout::Full     page 0 (4096 bytes) | page 1 (4096 bytes) | …
//!   Layout::Listed   n lengths (u16, little endian) | bytes of page 0 | bytes of page 1 | …
//! ```
//!
//! - A reader of one page reads and unpacks one strip. Measured (docs/MEASURED.md): strips of 16 KiB pack a tenth worse
//!   than 64 KiB and unpack in a quarter of the time.
//! - Short pages take less (R25). Where the list of lengths would cost more than it saves, the pages are laid
//!   out full: a page then comes back 4096 bytes long, zeros behind what was given. So a page comes back **at
//!   least** as long as it went in, and what follows is zeros.
//! - What was packed is kept so only where it saves a sixteenth: less is not worth the time of each read.
//! - What is needed to read a cluster, [`Encoded`] and the caller's tag, stays in memory with its owner (R5). A strip's
//!   checksum covers the tag, which is never used twice, its number, its shape and its body: it may lie beside them, and
//!   a read that brings another cluster's bytes, old bytes or rotten bytes is an error and never wrong data.
//! - An [`Encoder`] allocates when it is made and never again: it runs on the pageout path (R35). (zstd, a C library, may ask
//!   malloc for its workspace again; where that fails the strip stays as it is.)

use std::cell::RefCell;
use std::ops::Range;

use lz4_flex::block::{self, CompressTable};

use crate::BLOCK;

/// Pages in a cluster, at most.
pub const MAX_PAGES: usize = 16;

/// Bytes of the largest cluster's pages.
pub const MAX_CLUSTER: usize = MAX_PAGES * BLOCK;

/// Payloads and strips are multiples of so many bytes.
pub const UNIT: usize = 16;

/// The most bytes a payload takes.
pub const MAX_PAYLOAD: usize = MAX_CLUSTER + MAX_STRIPS * UNIT;

const MAX_STRIPS: usize = 4;
const FINE_PAGES: usize = MAX_PAGES / MAX_STRIPS;
const HEADER: usize = 8;

/// Inputs from this length on need the larger hash table.
const SMALL_TABLE_LIMIT: usize = u16::MAX as usize;

/// What is packed as one piece, and so read as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Four pages: for what is read here and there.
    Fine,
    /// The whole cluster: for what is read as a whole.
    Whole,
}

impl Grain {
    fn pages(self) -> usize {
        match self {
            Grain::Fine => FINE_PAGES,
            Grain::Whole => MAX_PAGES,
        }
    }
}

/// Whether clusters are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// By lz4, where that saves something.
    #[default]
    Lz4,
    /// By zstd: 30% less than lz4, in nearly twice the time, and three times that to read.
    Zstd,
    /// Never.
    None,
}

impl Method {
    /// The names of all.
    pub const WORDS: &str = "lz4, zstd, none";

    /// The method of this name.
    #[must_use]
    pub fn named(word: &str) -> Option<Method> {
        match word {
            "lz4" => Some(Method::Lz4),
            "zstd" => Some(Method::Zstd),
            "none" => Some(Method::None),
            _ => None,
        }
    }
}

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Raw,
    Lz4,
    Zstd,
}

/// zstd's own measure of how hard to try: from here on it gets slow.
const ZSTD_LEVEL: i32 = 1;

thread_local! {
    /// What zstd needs to unpack: some 100 KiB in each thread that reads what it packed.
    static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// How pages lie in a strip's unpacked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Each page takes [`BLOCK`] bytes.
    Full,
    /// A list of lengths, then the pages at those lengths.
    Listed,
}

/// What a strip says of itself in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Bytes of the body.
    len: usize,
    pages: usize,
    layout: Layout,
    packing: Packing,
}

impl Shape {
    fn to_bits(self) -> u32 {
        let packing = match self.packing {
            Packing::Raw => 0,
            Packing::Lz4 => 1,
            Packing::Zstd => 2,
        };
        let flags = u32::from(self.layout == Layout::Listed) | packing << 1;
        to_u32(self.len) | to_u32(self.pages) << 20 | flags << 25
    }

    fn from_bits(bits: u32) -> Option<Shape> {
        Some(Shape {
            len: (bits & 0xf_ffff) as usize,
            pages: (bits >> 20 & 0x1f) as usize,
            layout: if bits >> 25 & 1 == 1 { Layout::Listed } else { Layout::Full },
            packing: match bits >> 26 & 3 {
                0 => Packing::Raw,
                1 => Packing::Lz4,
                2 => Packing::Zstd,
                _ => return None,
            },
        })
    }
}

/// What must be kept in memory to read a cluster back, besides its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// Where each strip ends, in [`UNIT`]s.
    ends: [u16; MAX_STRIPS],
    pages: u8,
    grain: Grain,
}

impl Encoded {
    /// Bytes of payload: a multiple of [`UNIT`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes_of(0..self.strips()).end
    }

    /// Whether it has no pages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        usize::from(self.pages)
    }

    /// How many strips.
    #[must_use]
    pub fn strips(&self) -> usize {
        self.pages().div_ceil(self.grain.pages())
    }

    /// The strip that holds the page of this rank, in the order of encoding.
    #[must_use]
    pub fn strip_of(&self, rank: usize) -> usize {
        rank / self.grain.pages()
    }

    /// Where in the payload some neighbouring strips lie.
    ///
    /// # Panics
    /// When there are no such strips.
    #[must_use]
    pub fn bytes_of(&self, strips: Range<usize>) -> Range<usize> {
        let end = |strip: usize| strip.checked_sub(1).map_or(0, |last| usize::from(self.ends[last]) * UNIT);
        end(strips.start)..end(strips.end)
    }

    /// Bytes that some strips take unpacked, at most.
    #[must_use]
    pub fn room_for(&self, strips: &Range<usize>) -> usize {
        let rank = |strip: usize| (strip * self.grain.pages()).min(self.pages());
        (rank(strips.end) - rank(strips.start)) * BLOCK
    }
}

/// Why a payload could not be read. All of them mean: these are not the bytes that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The payload or the output buffer is shorter than the strips.
    #[error("buffer of {have} bytes is too short for strips of {need}")]
    Short {
        /// Bytes given.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The checksum does not match: rotten, stale or misdirected.
    #[error("checksum is {found:08x}, should be {expected:08x}")]
    Checksum {
        /// As the strip says.
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
    first: usize,
    count: usize,
    /// Where each page begins, and how long it is.
    places: [(u32, u16); MAX_PAGES],
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

    /// Where the page of this rank lies in the output buffer; `None` when its strip was not decoded.
    #[must_use]
    pub fn get(&self, rank: usize) -> Option<Range<usize>> {
        let i = rank.checked_sub(self.first).filter(|&i| i < self.count)?;
        let (start, len) = self.places[i];
        Some(start as usize..start as usize + usize::from(len))
    }

    fn push(&mut self, start: usize, len: usize) {
        self.places[self.count] = (to_u32(start), u16::try_from(len).unwrap_or(u16::MAX));
        self.count += 1;
    }
}

/// Makes clusters. Holds about 280 KiB of workspaces; one per thread that packs.
pub struct Encoder {
    method: Method,
    /// A strip's layout before packing.
    raw: Box<[u8]>,
    /// The payload. lz4 wants room for more than it will be.
    out: Box<[u8]>,
    small: CompressTable,
    large: CompressTable,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    /// Allocates the workspaces.
    #[must_use]
    pub fn new(method: Method) -> Encoder {
        let room = MAX_PAYLOAD + block::get_maximum_output_size(MAX_CLUSTER) + HEADER;
        Encoder {
            method,
            raw: vec![0; MAX_CLUSTER].into_boxed_slice(),
            out: vec![0; room].into_boxed_slice(),
            small: CompressTable::small(),
            large: CompressTable::large(),
            // Without memory for it strips stay as they are.
            zstd: (method == Method::Zstd).then(|| zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()).flatten(),
        }
    }

    /// Puts pages (each of at most [`BLOCK`] bytes) together as one payload, which stays in the encoder until the
    /// next one. `tag` must be given again to read it, and never again to write another. Allocates nothing.
    ///
    /// # Panics
    /// With more than [`MAX_PAGES`] pages, or a page longer than [`BLOCK`].
    pub fn encode<'a, I>(&mut self, tag: u64, grain: Grain, pages: I) -> (Encoded, &[u8])
    where
        I: IntoIterator<Item = &'a [u8]>,
    {
        self.encode_by(self.method, tag, grain, pages)
    }

    /// The same without packing them, whatever the method: as fast as memory is.
    ///
    /// # Panics
    /// As [`Encoder::encode`].
    pub fn encode_unpacked<'a, I>(&mut self, tag: u64, grain: Grain, pages: I) -> (Encoded, &[u8])
    where
        I: IntoIterator<Item = &'a [u8]>,
    {
        self.encode_by(Method::None, tag, grain, pages)
    }

    fn encode_by<'a, I>(&mut self, method: Method, tag: u64, grain: Grain, pages: I) -> (Encoded, &[u8])
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
        let mut encoded =
            Encoded { ends: [0; MAX_STRIPS], pages: u8::try_from(count).unwrap_or(u8::MAX), grain };
        let mut at = 0;
        for (strip, pages) in list[..count].chunks(grain.pages()).enumerate() {
            at = self.strip(method, tag, strip, pages, at);
            encoded.ends[strip] = u16::try_from(at / UNIT).unwrap_or(u16::MAX);
        }
        (encoded, &self.out[..at])
    }

    /// Appends a strip at `at`; returns where it ends.
    fn strip(&mut self, method: Method, tag: u64, number: usize, pages: &[&[u8]], at: usize) -> usize {
        let body = at + HEADER;
        let (layout, packing, len) = if method == Method::None {
            let (layout, len) = lay_out(pages, &mut self.out[body..]);
            (layout, Packing::Raw, len)
        } else {
            let (layout, raw_len) = lay_out(pages, &mut self.raw);
            let (packing, len) = self.pack(method, raw_len, body).unwrap_or_else(|| {
                self.out[body..body + raw_len].copy_from_slice(&self.raw[..raw_len]);
                (Packing::Raw, raw_len)
            });
            (layout, packing, len)
        };
        let shape = Shape { len, pages: pages.len(), layout, packing }.to_bits();
        let crc = checksum(tag, number, shape, &self.out[body..body + len]);
        self.out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        self.out[at + 4..body].copy_from_slice(&shape.to_le_bytes());
        let end = (body + len).next_multiple_of(UNIT);
        self.out[body + len..end].fill(0);
        end
    }

    /// Packs `raw[..raw_len]` by `method` to `out[body..]`; how, and the packed length, if that saves enough.
    fn pack(&mut self, method: Method, raw_len: usize, body: usize) -> Option<(Packing, usize)> {
        let (raw, out) = (&self.raw[..raw_len], &mut self.out[body..]);
        let (packing, len) = match method {
            Method::None => return None,
            Method::Lz4 => {
                let table = if raw_len < SMALL_TABLE_LIMIT { &mut self.small } else { &mut self.large };
                (Packing::Lz4, block::compress_into_with_table(raw, out, table).ok()?)
            }
            Method::Zstd => (Packing::Zstd, self.zstd.as_mut()?.compress_to_buffer(raw, out).ok()?),
        };
        (len + raw_len / 16 <= raw_len && len < raw_len).then_some((packing, len))
    }
}

/// Lays pages out at the start of `out`; returns how, and how much of it.
fn lay_out(pages: &[&[u8]], out: &mut [u8]) -> (Layout, usize) {
    let full = pages.len() * BLOCK;
    let listed = pages.len() * 2 + pages.iter().map(|p| p.len()).sum::<usize>();
    if listed >= full {
        for (page, slot) in pages.iter().zip(out.chunks_exact_mut(BLOCK)) {
            slot[..page.len()].copy_from_slice(page);
            slot[page.len()..].fill(0);
        }
        return (Layout::Full, full);
    }
    let mut at = pages.len() * 2;
    for (i, page) in pages.iter().enumerate() {
        let len = u16::try_from(page.len()).unwrap_or(u16::MAX);
        out[i * 2..i * 2 + 2].copy_from_slice(&len.to_le_bytes());
        out[at..at + page.len()].copy_from_slice(page);
        at += page.len();
    }
    (Layout::Listed, listed)
}

fn checksum(tag: u64, strip: usize, shape: u32, body: &[u8]) -> u32 {
    let mut head = [0u8; 16];
    head[..8].copy_from_slice(&tag.to_le_bytes());
    head[8..12].copy_from_slice(&to_u32(strip).to_le_bytes());
    head[12..].copy_from_slice(&shape.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(body);
    hasher.finalize()
}

/// Reads some neighbouring strips of a cluster from `payload` (their bytes, [`Encoded::bytes_of`]) into `out`, and says
/// where each page is. Nothing is believed before its checksum was found right. `out` need not be zeroed, and is
/// scratch on error; it must hold [`Encoded::room_for`] bytes.
pub fn decode(
    encoded: &Encoded,
    tag: u64,
    strips: Range<usize>,
    payload: &[u8],
    out: &mut [u8],
) -> Result<Pages, CodecError> {
    let need = encoded.bytes_of(strips.clone()).len();
    if payload.len() < need {
        return Err(CodecError::Short { have: payload.len(), need });
    }
    let room = encoded.room_for(&strips);
    if out.len() < room {
        return Err(CodecError::Short { have: out.len(), need: room });
    }
    let per_strip = encoded.grain.pages();
    let base = encoded.bytes_of(strips.clone()).start;
    let mut pages = Pages { first: strips.start * per_strip, count: 0, places: [(0, 0); MAX_PAGES] };
    for strip in strips.clone() {
        let bytes = encoded.bytes_of(strip..strip + 1);
        let bytes = &payload[bytes.start - base..bytes.end - base];
        let at = (strip - strips.start) * per_strip * BLOCK;
        let count = (encoded.pages() - strip * per_strip).min(per_strip);
        let out = &mut out[at..at + count * BLOCK];
        let (shape, len) = unpack(tag, strip, bytes, out)?;
        if shape.pages != count {
            return Err(CodecError::Malformed);
        }
        find_pages(shape, &out[..len], at, &mut pages).ok_or(CodecError::Malformed)?;
    }
    Ok(pages)
}

/// Checks a strip and unpacks its body to the start of `out`; returns its shape and how much that is.
fn unpack(tag: u64, strip: usize, bytes: &[u8], out: &mut [u8]) -> Result<(Shape, usize), CodecError> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(expected), Some(bits)) = (word(0), word(4)) else {
        return Err(CodecError::Short { have: bytes.len(), need: HEADER });
    };
    let shape = Shape::from_bits(bits);
    let Some((shape, body)) = shape.and_then(|s| Some((s, bytes.get(HEADER..HEADER + s.len)?))) else {
        // The header is not what was written, or its length would fit.
        return Err(CodecError::Checksum { expected, found: !expected });
    };
    let found = checksum(tag, strip, bits, body);
    if found != expected {
        return Err(CodecError::Checksum { expected, found });
    }
    let len = match shape.packing {
        Packing::Raw => {
            out.get_mut(..body.len()).ok_or(CodecError::Malformed)?.copy_from_slice(body);
            body.len()
        }
        Packing::Lz4 => block::decompress_into(body, out).map_err(|_| CodecError::Malformed)?,
        Packing::Zstd => unpack_zstd(body, out).ok_or(CodecError::Malformed)?,
    };
    Ok((shape, len))
}

fn unpack_zstd(body: &[u8], out: &mut [u8]) -> Option<usize> {
    UNPACKER.with_borrow_mut(|unpacker| {
        if unpacker.is_none() {
            *unpacker = zstd::bulk::Decompressor::new().ok();
        }
        unpacker.as_mut()?.decompress_to_buffer(body, out).ok()
    })
}

/// Where each page of an unpacked strip is, if it is one. `at` is where the strip begins in the output.
fn find_pages(shape: Shape, raw: &[u8], at: usize, pages: &mut Pages) -> Option<()> {
    let mut next = match shape.layout {
        Layout::Full => 0,
        Layout::Listed => shape.pages * 2,
    };
    for i in 0..shape.pages {
        let len = match shape.layout {
            Layout::Full => BLOCK,
            Layout::Listed => usize::from(u16::from_le_bytes(raw.get(i * 2..i * 2 + 2)?.try_into().ok()?)),
        };
        if len > BLOCK {
            return None;
        }
        pages.push(at + next, len);
        next += len;
    }
    (next == raw.len()).then_some(())
}

/// For lengths that cannot exceed [`MAX_PAYLOAD`] by far.
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

    fn grain() -> impl Strategy<Value = Grain> {
        prop_oneof![Just(Grain::Fine), Just(Grain::Whole)]
    }

    fn is_same(page: &[u8], got: &[u8]) -> bool {
        got.len() >= page.len() && got[..page.len()] == page[..] && got[page.len()..].iter().all(|&b| b == 0)
    }

    fn encode(tag: u64, grain: Grain, pages: &[Vec<u8>]) -> (Encoded, Vec<u8>) {
        let mut encoder = Encoder::new(if tag.is_multiple_of(2) { Method::Lz4 } else { Method::Zstd });
        let (encoded, payload) = encoder.encode(tag, grain, pages.iter().map(Vec::as_slice));
        (encoded, payload.to_vec())
    }

    fn decode_all(encoded: &Encoded, tag: u64, payload: &[u8]) -> Result<(Pages, Vec<u8>), CodecError> {
        let mut out = vec![0xaa; MAX_CLUSTER];
        let pages = decode(encoded, tag, 0..encoded.strips(), payload, &mut out)?;
        Ok((pages, out))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        // R25: short pages come back, and a payload is never much longer than its pages.
        #[test]
        fn round_trip(pages in pages(), grain in grain(), tag in any::<u64>(), from in 0usize..4, to in 1usize..5) {
            let (encoded, payload) = encode(tag, grain, &pages);
            prop_assert_eq!(payload.len(), encoded.len());
            prop_assert!(payload.len() <= pages.len() * BLOCK + encoded.strips() * UNIT);
            let (decoded, out) = decode_all(&encoded, tag, &payload).unwrap();
            prop_assert_eq!(decoded.len(), pages.len());
            for (rank, page) in pages.iter().enumerate() {
                prop_assert!(is_same(page, &out[decoded.get(rank).unwrap()]));
            }
            // Some strips alone.
            let strips = from.min(encoded.strips())..to.min(encoded.strips());
            prop_assume!(!strips.is_empty());
            let mut out = vec![0xaa; encoded.room_for(&strips)];
            let bytes = &payload[encoded.bytes_of(strips.clone())];
            let decoded = decode(&encoded, tag, strips.clone(), bytes, &mut out).unwrap();
            for (rank, page) in pages.iter().enumerate() {
                let range = decoded.get(rank);
                prop_assert_eq!(range.is_some(), strips.contains(&encoded.strip_of(rank)));
                prop_assert!(range.is_none_or(|range| is_same(page, &out[range])));
            }
        }

        #[test]
        fn one_flipped_bit_is_always_seen(pages in pages(), grain in grain(), bit in any::<usize>()) {
            let (encoded, mut payload) = encode(7, grain, &pages);
            prop_assume!(!payload.is_empty());
            let bit = bit % (payload.len() * 8);
            let before = payload.clone();
            payload[bit / 8] ^= 1 << (bit % 8);
            match decode_all(&encoded, 7, &payload) {
                Err(CodecError::Checksum { .. }) => {}
                // What fills a strip up to its unit belongs to nobody.
                Ok((decoded, out)) => {
                    prop_assert_eq!(before[bit / 8], 0);
                    for (rank, page) in pages.iter().enumerate() {
                        prop_assert!(is_same(page, &out[decoded.get(rank).unwrap()]));
                    }
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn another_clusters_bytes_are_refused(a in pages(), b in pages(), grain in grain(), tag in any::<u64>()) {
            let (of_a, payload_a) = encode(tag, grain, &a);
            let (of_b, payload_b) = encode(tag ^ 2, grain, &b);
            if !of_a.is_empty() && payload_a != payload_b {
                prop_assert!(decode_all(&of_a, tag, &payload_b).is_err());
            }
            // Right shape and bytes, wrong place.
            prop_assert!(of_b.is_empty() || decode_all(&of_b, tag, &payload_b).is_err());
        }

        #[test]
        fn garbage_with_a_right_checksum_never_panics(
            body in prop::collection::vec(any::<u8>(), 0..9000),
            pages in 0u8..40,
            count in 0u8..32,
            flags in 0u32..16,
            fine in any::<bool>(),
        ) {
            let shape = to_u32(body.len()) | u32::from(count) << 20 | flags << 25;
            let mut payload = checksum(1, 0, shape, &body).to_le_bytes().to_vec();
            payload.extend(shape.to_le_bytes());
            payload.extend(&body);
            payload.resize(payload.len().next_multiple_of(UNIT), 0);
            let end = u16::try_from(payload.len() / UNIT).unwrap();
            let grain = if fine { Grain::Fine } else { Grain::Whole };
            let pages = pages.min(u8::try_from(grain.pages()).unwrap());
            let encoded = Encoded { ends: [end; 4], pages, grain };
            if let Ok((pages, out)) = decode_all(&encoded, 1, &payload) {
                prop_assert!((0..pages.len()).all(|rank| out.get(pages.get(rank).unwrap()).is_some()));
            }
        }
    }

    #[test]
    fn a_short_page_takes_its_real_length() {
        let (encoded, payload) = encode(1, Grain::Whole, &[(0..100).collect(), (100..150).collect()]);
        assert_eq!(encoded.len(), (HEADER + 4 + 150).next_multiple_of(UNIT));
        let (pages, _) = decode_all(&encoded, 1, &payload).unwrap();
        assert_eq!((pages.get(0), pages.get(1), pages.get(2)), (Some(4..104), Some(104..154), None));
    }

    #[test]
    fn what_does_not_shrink_stays_raw() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(MAX_CLUSTER)
        .collect();
        let pages: Vec<Vec<u8>> = noise.chunks(BLOCK).map(<[u8]>::to_vec).collect();
        assert_eq!(encode(1, Grain::Fine, &pages).0.len(), MAX_PAYLOAD);
        let same = vec![vec![5; BLOCK]; 16];
        assert!(encode(1, Grain::Whole, &same).0.len() < 400);
        let mut never = Encoder::new(Method::None);
        assert_eq!(never.encode(1, Grain::Fine, same.iter().map(Vec::as_slice)).1.len(), MAX_PAYLOAD);
    }

    #[test]
    fn short_buffers_are_errors() {
        let (encoded, payload) = encode(1, Grain::Fine, &[vec![1; BLOCK], vec![2; 10]]);
        let mut out = vec![0; MAX_CLUSTER];
        let short = decode(&encoded, 1, 0..1, &payload[..payload.len() - 1], &mut out);
        assert!(matches!(short, Err(CodecError::Short { .. })));
        let short = decode(&encoded, 1, 0..1, &payload, &mut out[..10]);
        assert!(matches!(short, Err(CodecError::Short { have: 10, .. })));
    }
}
