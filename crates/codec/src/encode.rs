//! Encoding: pages to a payload.

use lz4_flex::block::{self, CompressTable};

use crate::seal::{Bound, Seal};
use crate::shape::{
    Compression, Encoded, Grain, HEADER, Layout, MAX_CLUSTER, MAX_PAGES, MAX_PAYLOAD, MAX_STRIPS, Method,
    PAGE, Shape, UNIT, to_u32,
};

/// Inputs from this length on need the larger hash table.
const SMALL_TABLE_LIMIT: usize = u16::MAX as usize;

/// zstd's compression level: higher levels are slow.
const ZSTD_LEVEL: i32 = 1;

/// Encodes clusters. Holds about 280 KiB of workspaces; one for each thread that encodes.
pub struct Encoder {
    method: Method,
    seal: Seal,
    /// A strip's layout before compression.
    raw: Box<[u8]>,
    /// The payload. lz4 needs more room than its result takes.
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
            seal: Seal::default(),
            raw: vec![0; MAX_CLUSTER].into_boxed_slice(),
            out: vec![0; room].into_boxed_slice(),
            small: CompressTable::small(),
            large: CompressTable::large(),
            // Without memory for it, strips stay uncompressed.
            zstd: (method == Method::Zstd).then(|| zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()).flatten(),
        }
    }

    /// Encodes pages (each of at most [`PAGE`] bytes) as one payload, which stays in the encoder until the next one.
    /// The same `tag` is needed to decode it, and must never be used for another cluster. Allocates nothing.
    ///
    /// # Panics
    /// With more than [`MAX_PAGES`] pages, or a page longer than [`PAGE`].
    pub fn encode<'a, I>(&mut self, tag: u64, grain: Grain, pages: I) -> (Encoded, &[u8])
    where
        I: IntoIterator<Item = &'a [u8]>,
    {
        self.encode_by(self.method, tag, grain, pages)
    }

    /// The same without compression, whatever the method: as fast as memory is.
    ///
    /// # Panics
    /// As [`Encoder::encode`].
    pub fn encode_uncompressed<'a, I>(&mut self, tag: u64, grain: Grain, pages: I) -> (Encoded, &[u8])
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
            assert!(count < MAX_PAGES && page.len() <= PAGE, "a cluster is at most 16 pages of 4 KiB");
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

    /// Appends a strip at `at`; returns its end.
    fn strip(&mut self, method: Method, tag: u64, number: usize, pages: &[&[u8]], at: usize) -> usize {
        let body = at + HEADER;
        let (layout, compression, len) = if method == Method::None {
            let (layout, len) = lay_out(pages, &mut self.out[body..]);
            (layout, Compression::Raw, len)
        } else {
            let (layout, raw_len) = lay_out(pages, &mut self.raw);
            let (compression, len) = self.compress(method, raw_len, body).unwrap_or_else(|| {
                self.out[body..body + raw_len].copy_from_slice(&self.raw[..raw_len]);
                (Compression::Raw, raw_len)
            });
            (layout, compression, len)
        };
        let shape = Shape { len, pages: pages.len(), layout, compression }.to_bits();
        let mut mark = [0; Seal::MARK];
        let bound = Bound { tag, strip: to_u32(number), shape };
        self.seal.close(bound, &mut self.out[body..body + len], &mut mark);
        self.out[at..at + Seal::MARK].copy_from_slice(&mark);
        self.out[at + Seal::MARK..body].copy_from_slice(&shape.to_le_bytes());
        let end = (body + len).next_multiple_of(UNIT);
        self.out[body + len..end].fill(0);
        end
    }

    /// Compresses `raw[..raw_len]` by `method` to `out[body..]`; returns the compression and the length, if it saves
    /// enough.
    fn compress(&mut self, method: Method, raw_len: usize, body: usize) -> Option<(Compression, usize)> {
        let (raw, out) = (&self.raw[..raw_len], &mut self.out[body..]);
        let (compression, len) = match method {
            Method::None => return None,
            Method::Lz4 => {
                let table = if raw_len < SMALL_TABLE_LIMIT { &mut self.small } else { &mut self.large };
                (Compression::Lz4, block::compress_into_with_table(raw, out, table).ok()?)
            }
            Method::Zstd => (Compression::Zstd, self.zstd.as_mut()?.compress_to_buffer(raw, out).ok()?),
        };
        (len + raw_len / 16 <= raw_len && len < raw_len).then_some((compression, len))
    }
}

/// Lays pages out at the start of `out`; returns the layout and its length.
fn lay_out(pages: &[&[u8]], out: &mut [u8]) -> (Layout, usize) {
    let full = pages.len() * PAGE;
    let listed = pages.len() * 2 + pages.iter().map(|p| p.len()).sum::<usize>();
    if listed >= full {
        for (page, slot) in pages.iter().zip(out.chunks_exact_mut(PAGE)) {
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
