//! The shape of payloads and strips: sizes, and the words that describe them.

use std::ops::Range;

use crate::seal::Seal;

/// Bytes of a page, at most.
pub const PAGE: usize = 4096;

/// Pages in a cluster, at most.
pub const MAX_PAGES: usize = 16;

/// Bytes of the largest cluster's pages.
pub const MAX_CLUSTER: usize = MAX_PAGES * PAGE;

/// Payloads and strips are multiples of this many bytes.
pub const UNIT: usize = 16;

/// Bytes of a payload, at most.
pub const MAX_PAYLOAD: usize = MAX_CLUSTER + MAX_STRIPS * HEADER.next_multiple_of(UNIT);

pub(crate) const MAX_STRIPS: usize = 4;
const FINE_PAGES: usize = MAX_PAGES / MAX_STRIPS;

/// Bytes before a strip's body: the seal's mark, then the shape.
pub(crate) const HEADER: usize = Seal::MARK + 4;

/// The part of a cluster that is encoded, and so read, as one strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Four pages: for random reads.
    Fine,
    /// The whole cluster: for reads of the whole.
    Whole,
}

impl Grain {
    /// The grain for `pages` pages of a chunk. Whole chunks are parts of large files, which are read at random as often
    /// as not; a part of a chunk is mostly the end of a small file, which is read whole and compresses better as one
    /// strip.
    #[must_use]
    pub fn for_pages(pages: usize) -> Grain {
        if pages == MAX_PAGES { Grain::Fine } else { Grain::Whole }
    }

    pub(crate) fn pages(self) -> usize {
        match self {
            Grain::Fine => FINE_PAGES,
            Grain::Whole => MAX_PAGES,
        }
    }
}

/// The compressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// lz4.
    #[default]
    Lz4,
    /// zstd: 30% smaller than lz4, in nearly twice the time, and three times that to read.
    Zstd,
    /// No compression.
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

/// The compression of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Raw,
    Lz4,
    Zstd,
}

/// The layout of pages in a strip's uncompressed body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Each page takes [`PAGE`] bytes.
    Full,
    /// A list of lengths, then the pages at those lengths.
    Listed,
}

/// The second word of a strip's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of the body.
    pub(crate) len: usize,
    pub(crate) pages: usize,
    pub(crate) layout: Layout,
    pub(crate) compression: Compression,
}

impl Shape {
    pub(crate) fn to_bits(self) -> u32 {
        let compression = match self.compression {
            Compression::Raw => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        };
        let flags = u32::from(self.layout == Layout::Listed) | compression << 1;
        to_u32(self.len) | to_u32(self.pages) << 20 | flags << 25
    }

    pub(crate) fn from_bits(bits: u32) -> Option<Shape> {
        Some(Shape {
            len: (bits & 0xf_ffff) as usize,
            pages: (bits >> 20 & 0x1f) as usize,
            layout: if bits >> 25 & 1 == 1 { Layout::Listed } else { Layout::Full },
            compression: match bits >> 26 & 3 {
                0 => Compression::Raw,
                1 => Compression::Lz4,
                2 => Compression::Zstd,
                _ => return None,
            },
        })
    }
}

/// Facts that a reader of a cluster needs besides its tag. It stays in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// The end of each strip, in [`UNIT`]s.
    pub(crate) ends: [u16; MAX_STRIPS],
    pub(crate) pages: u8,
    pub(crate) grain: Grain,
}

impl Encoded {
    /// Bytes of payload: a multiple of [`UNIT`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes_of(0..self.strips()).end
    }

    /// True if the cluster has no pages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// The number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        usize::from(self.pages)
    }

    /// The number of strips.
    #[must_use]
    pub fn strips(&self) -> usize {
        self.pages().div_ceil(self.grain.pages())
    }

    /// The strip that holds the page of this rank, in the order of encoding.
    #[must_use]
    pub fn strip_of(&self, rank: usize) -> usize {
        rank / self.grain.pages()
    }

    /// The range of neighbouring strips in the payload.
    ///
    /// # Panics
    /// When the cluster has no such strips.
    #[must_use]
    pub fn bytes_of(&self, strips: Range<usize>) -> Range<usize> {
        let end = |strip: usize| strip.checked_sub(1).map_or(0, |last| usize::from(self.ends[last]) * UNIT);
        end(strips.start)..end(strips.end)
    }

    /// Bytes of the strips after decoding, at most.
    #[must_use]
    pub fn room_for(&self, strips: &Range<usize>) -> usize {
        let rank = |strip: usize| (strip * self.grain.pages()).min(self.pages());
        (rank(strips.end) - rank(strips.start)) * PAGE
    }
}

/// The place of each page in the buffer it was decoded into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    first: usize,
    count: usize,
    /// The start of each page, and its length.
    places: [(u32, u16); MAX_PAGES],
}

impl Pages {
    /// No pages yet; the first page pushed gets rank `first`.
    pub(crate) fn starting_at(first: usize) -> Pages {
        Pages { first, count: 0, places: [(0, 0); MAX_PAGES] }
    }

    /// Pages of [`PAGE`] bytes, side by side from the buffer's start, in the order of their ranks.
    #[must_use]
    pub fn side_by_side(count: usize) -> Pages {
        let mut pages = Pages::starting_at(0);
        (0..count.min(MAX_PAGES)).for_each(|rank| pages.push(rank * PAGE, PAGE));
        pages
    }

    /// The number of pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The range of the page of this rank in the output buffer; `None` when its strip was not decoded.
    #[must_use]
    pub fn get(&self, rank: usize) -> Option<Range<usize>> {
        let i = rank.checked_sub(self.first).filter(|&i| i < self.count)?;
        let (start, len) = self.places[i];
        Some(start as usize..start as usize + usize::from(len))
    }

    pub(crate) fn push(&mut self, start: usize, len: usize) {
        self.places[self.count] = (to_u32(start), u16::try_from(len).unwrap_or(u16::MAX));
        self.count += 1;
    }
}

/// Converts lengths that cannot exceed [`MAX_PAYLOAD`] by far.
pub(crate) fn to_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
