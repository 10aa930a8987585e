//! Decoding: strips of a payload to pages.

use std::cell::RefCell;
use std::ops::Range;

use lz4_flex::block;

use crate::seal::{Bound, Seal};
use crate::shape::{Compression, Encoded, HEADER, Layout, PAGE, Pages, Shape, to_u32};

thread_local! {
    /// zstd's workspace for decompression: some 100 KiB in each thread that reads a strip compressed by zstd.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The reason why a payload could not be read: in each case the bytes differ from those that were written.
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
    /// The bytes are damaged, stale or another cluster's.
    #[error("the seal of strip {strip} is broken")]
    Broken {
        /// The strip's number in the cluster.
        strip: usize,
    },
    /// Seal right, contents impossible: `Encoded` was not made by [`Encoder::encode`](crate::Encoder::encode) for this payload.
    #[error("cluster is malformed")]
    Malformed,
}

/// Decodes neighbouring strips of a cluster from `payload` (their bytes, [`Encoded::bytes_of`]) into `out`, and returns
/// the place of each page. No byte is used before its seal was checked. `out` need not be zeroed, and is scratch on
/// error; it must hold [`Encoded::room_for`] bytes.
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
    let mut pages = Pages::starting_at(strips.start * per_strip);
    for strip in strips.clone() {
        let bytes = encoded.bytes_of(strip..strip + 1);
        let bytes = &payload[bytes.start - base..bytes.end - base];
        let at = (strip - strips.start) * per_strip * PAGE;
        let count = (encoded.pages() - strip * per_strip).min(per_strip);
        let out = &mut out[at..at + count * PAGE];
        let (shape, len) = open(tag, strip, bytes, out)?;
        if shape.pages != count {
            return Err(CodecError::Malformed);
        }
        find_pages(shape, &out[..len], at, &mut pages).ok_or(CodecError::Malformed)?;
    }
    Ok(pages)
}

/// Opens a strip and decodes its body to the start of `out`; returns its shape and the decoded length.
fn open(tag: u64, strip: usize, bytes: &[u8], out: &mut [u8]) -> Result<(Shape, usize), CodecError> {
    let short = || CodecError::Short { have: bytes.len(), need: HEADER };
    let (&mark, rest) = bytes.split_first_chunk::<{ Seal::MARK }>().ok_or_else(short)?;
    let (&bits, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let bits = u32::from_le_bytes(bits);
    // A header that was really written describes a body that exists.
    let broken = CodecError::Broken { strip };
    let shape = Shape::from_bits(bits).ok_or(broken)?;
    let body = rest.get(..shape.len).ok_or(broken)?;
    let bound = Bound { tag, strip: to_u32(strip), shape: bits };
    let body = Seal::default().open(bound, body, mark).ok_or(broken)?;
    let len = match shape.compression {
        Compression::Raw => {
            out.get_mut(..body.len()).ok_or(CodecError::Malformed)?.copy_from_slice(body);
            body.len()
        }
        Compression::Lz4 => block::decompress_into(body, out).map_err(|_| CodecError::Malformed)?,
        Compression::Zstd => decompress_zstd(body, out).ok_or(CodecError::Malformed)?,
    };
    Ok((shape, len))
}

fn decompress_zstd(body: &[u8], out: &mut [u8]) -> Option<usize> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        if decompressor.is_none() {
            *decompressor = zstd::bulk::Decompressor::new().ok();
        }
        decompressor.as_mut()?.decompress_to_buffer(body, out).ok()
    })
}

/// Finds each page of a decoded strip; `None` if it is malformed. `at` is the strip's start in the output.
fn find_pages(shape: Shape, raw: &[u8], at: usize, pages: &mut Pages) -> Option<()> {
    let mut next = match shape.layout {
        Layout::Full => 0,
        Layout::Listed => shape.pages * 2,
    };
    for i in 0..shape.pages {
        let len = match shape.layout {
            Layout::Full => PAGE,
            Layout::Listed => usize::from(u16::from_le_bytes(raw.get(i * 2..i * 2 + 2)?.try_into().ok()?)),
        };
        if len > PAGE {
            return None;
        }
        pages.push(at + next, len);
        next += len;
    }
    (next == raw.len()).then_some(())
}
