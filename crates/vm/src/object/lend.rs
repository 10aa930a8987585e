//! Pages without copies: lent to a reader, installed from frames that a caller has filled, and faulted for a mapping.

use smallvec::SmallVec;

use super::frames::Frames;
use super::read::{Ahead, Content};
use super::write::Stop;
use super::{Object, Piece};
use crate::account::Allowance;
use crate::error::VmError;
use crate::memory::bytes::Bytes;
use crate::page::{CHUNK_PAGES, PAGE, PageSet, members, pages};
use crate::pagein::fetch::Decoded;
use crate::sync::Arc;

/// Bytes of an object, without a copy: shares of its pages, or of the buffer they were decoded into. A page that is
/// written meanwhile gets new bytes (R28). Keep it briefly: it holds memory, and one of few buffers.
#[derive(Debug)]
pub struct Lent {
    parts: SmallVec<[Part; 4]>,
    decoded: Option<Arc<Decoded>>,
    len: usize,
}

/// The bytes of one page.
#[derive(Debug)]
struct Part {
    from: From,
    /// Range of the bytes in the page; zeros beyond the end of the page's bytes.
    at: usize,
    len: usize,
}

#[derive(Debug)]
enum From {
    Resident(Bytes),
    Decoded(usize),
    Zeros,
}

static ZEROS: [u8; PAGE] = [0; PAGE];

impl Lent {
    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(|part| {
            let page: &[u8] = match &part.from {
                From::Resident(bytes) => bytes.as_slice(),
                From::Decoded(page) => {
                    let base = self.decoded.as_ref().and_then(|decoded| decoded.page(*page));
                    base.map_or(&[], |base| base.bytes)
                }
                From::Zeros => &[],
            };
            let here = page.get(part.at..).unwrap_or(&[]);
            let here = &here[..here.len().min(part.len)];
            [here, &ZEROS[..part.len - here.len()]]
        })
    }
}

/// A mapping's next access to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Change it: it becomes resident and dirty, and its copy in a cluster is freed.
    Write,
}

impl Object {
    /// Lends bytes from `offset` on: `len` of them, or as many as lie in one chunk and can be had with one buffer, but
    /// at least one. Waits for page-in.
    ///
    /// # Errors
    /// As [`Object::read`].
    pub async fn lend(&self, offset: u64, len: usize) -> Result<Lent, VmError> {
        let piece = Piece::first(offset, len);
        let mut decoded: Option<Arc<Decoded>> = None;
        loop {
            let mut left = piece.pages();
            let mut parts: SmallVec<[(usize, From); CHUNK_PAGES]> = SmallVec::new();
            let wanted = self.look(piece, &mut left, decoded.as_deref(), |page, content| {
                let from = match content {
                    Content::Resident(bytes) => From::Resident(bytes.share()),
                    Content::Decoded(_) => From::Decoded(page),
                    Content::Zeros => From::Zeros,
                };
                parts.push((page, from));
            })?;
            let first_missing = members(left).next().unwrap_or(CHUNK_PAGES);
            parts.retain(|(page, _)| *page < first_missing);
            match wanted {
                Some(wanted) if parts.is_empty() => {
                    drop(decoded.take());
                    decoded = self.page_in(piece, &wanted, 0, &mut Ahead::new()).await?;
                }
                _ => {
                    let parts: SmallVec<[Part; 4]> = parts
                        .into_iter()
                        .map(|(page, from)| {
                            let (at, range) = piece.in_page(page);
                            Part { from, at, len: range.len() }
                        })
                        .collect();
                    let len = parts.iter().map(|part| part.len).sum();
                    self.memory().counters.served.add_bytes(len);
                    return Ok(Lent { parts, decoded, len });
                }
            }
        }
    }

    /// Makes frames the contents of pages from `page` on, without a copy. Never waits.
    ///
    /// # Errors
    /// The number of pages installed before the failure, and its cause: as [`Object::write`].
    pub fn install(
        &self,
        page: u64,
        mut frames: Frames,
        allowance: Allowance,
    ) -> Result<(), (usize, VmError)> {
        let count = frames.len();
        let mut done = 0;
        while done < count {
            let at = page + done as u64;
            let first = (at % CHUNK_PAGES as u64) as usize;
            let set: PageSet = pages(first, (first + count - done).min(CHUNK_PAGES));
            let installed = self.change(at / CHUNK_PAGES as u64, set, allowance, |state, page| {
                let Some(frame) = frames.next() else { return Ok(()) };
                state.install(page, frame);
                done += 1;
                Ok(())
            });
            match installed {
                Ok(()) => {}
                Err(Stop::Failed(error)) => return Err((done, error)),
                Err(Stop::Read(_)) => unreachable!("whole pages need no bytes of before"),
            }
        }
        self.memory().counters.served.add_bytes(count * PAGE);
        self.memory().wrote();
        Ok(())
    }

    /// Makes a page ready for a mapping, and lends its bytes.
    ///
    /// # Errors
    /// As [`Object::read`] and [`Object::write`].
    pub async fn fault(&self, page: u64, access: Access, allowance: Allowance) -> Result<Lent, VmError> {
        let offset = page * PAGE as u64;
        if access == Access::Write {
            self.touch(page, allowance).await?;
        }
        self.lend(offset, PAGE).await
    }
}
