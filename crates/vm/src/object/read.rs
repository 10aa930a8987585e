//! Reading: resident pages at once, the others after page-in.

use smallvec::SmallVec;

use super::{Object, Piece};
use crate::error::VmError;
use crate::memory::bytes::Bytes;
use crate::memory::chunk::ChunkHandle as _;
use crate::memory::records::Extent;
use crate::memory::state::Where;
use crate::page::{CHUNK, PAGE, PageSet, members, pages};
use crate::pagein::fetch::{Begun, Decoded, Fetch, PageInError, Wanted};
use crate::pagein::service::Coming;
use crate::sync::Arc;
use overspill_slab::Ref;

/// Fetches that one read begins beyond the one it waits for.
const READ_AHEAD: usize = 16;

/// Fetches that a read has begun in advance.
pub(super) type Ahead = SmallVec<[Arc<Fetch>; READ_AHEAD]>;

/// The bytes of a page, from byte `at` on; zeros beyond their end.
pub(super) enum Content<'a> {
    Resident(&'a Bytes),
    /// From pages that were read in for this reader.
    Decoded(&'a [u8]),
    Zeros,
}

impl Object {
    /// Fills `buf` with the bytes at `offset`; absent ones are zeros.
    ///
    /// # Errors
    /// [`VmError::Lost`], [`VmError::StoreRead`] and [`VmError::SourceRead`] when a page's bytes cannot be had; it
    /// never returns zeros instead.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), VmError> {
        let mut ahead = Ahead::new();
        let mut done = 0;
        while done < buf.len() {
            let piece = Piece::first(offset + done as u64, buf.len() - done);
            tracing::trace!(target: "access", object = self.number, chunk = piece.chunk, "read");
            let (out, rest) = buf[done..].split_at_mut(piece.len);
            self.read_piece(piece, out, rest.len(), &mut ahead).await?;
            done += piece.len;
        }
        self.memory().counters.serve(done);
        Ok(())
    }

    async fn read_piece(
        &self,
        piece: Piece,
        out: &mut [u8],
        following: usize,
        ahead: &mut Ahead,
    ) -> Result<(), VmError> {
        let mut left = piece.pages();
        let mut decoded: Option<Arc<Decoded>> = None;
        loop {
            let here = decoded.take();
            let wanted = self.look(piece, &mut left, here.as_deref(), |page, content| {
                let (at, range) = piece.in_page(page);
                let bytes = match content {
                    Content::Resident(bytes) => bytes.as_slice(),
                    Content::Decoded(bytes) => bytes,
                    Content::Zeros => &[],
                };
                copy_padded(&mut out[range], bytes, at);
            })?;
            drop(here);
            let Some(wanted) = wanted else { return Ok(()) };
            decoded = self.page_in(piece, &wanted, following, ahead).await?;
        }
    }

    /// Passes the available pages of `left` to `take`, and removes them from `left`. Returns the pages to read for the
    /// first of the others.
    pub(super) fn look(
        &self,
        piece: Piece,
        left: &mut PageSet,
        decoded: Option<&Decoded>,
        mut take: impl FnMut(usize, Content<'_>),
    ) -> Result<Option<Wanted>, VmError> {
        let tree = self.tree.read();
        let Some(chunk) = tree.get(piece.chunk) else {
            let sourced = self.sourced(piece.chunk);
            for page in members(*left) {
                match decoded.filter(|_| sourced & 1 << page != 0).and_then(|decoded| decoded.page(page)) {
                    Some(base) => take(page, Content::Decoded(base.bytes)),
                    None if sourced & 1 << page != 0 => continue,
                    None => take(page, Content::Zeros),
                }
                *left &= !(1 << page);
            }
            return Ok((*left != 0).then(|| self.wanted_of_source(piece.chunk)));
        };
        let mut state = chunk.lock();
        state.referenced = true;
        let mut missing: Option<(Ref<Extent>, PageSet)> = None;
        let mut needs_source = false;
        for page in members(*left) {
            let here = decoded.and_then(|decoded| decoded.page(page));
            let content = match state.page(page) {
                Where::Bytes(bytes) => Content::Resident(bytes),
                Where::Zero => Content::Zeros,
                Where::Lost => return Err(VmError::Lost),
                Where::Source => match here.filter(|base| base.origin.is_source()) {
                    Some(base) => Content::Decoded(base.bytes),
                    None => {
                        needs_source = true;
                        continue;
                    }
                },
                Where::Cluster(extent) => match here.filter(|base| base.origin.is_extent(extent)) {
                    Some(base) => Content::Decoded(base.bytes),
                    None => {
                        let (first, set) = missing.get_or_insert_with(|| (extent.clone(), 0));
                        // Another extent's pages come next, though this one may have had them once.
                        if Ref::ptr_eq(first, extent) {
                            *set |= 1 << page;
                        }
                        continue;
                    }
                },
            };
            take(page, content);
            *left &= !(1 << page);
        }
        drop(state);
        let strips = missing.map(|(extent, set)| Wanted::strips(&extent, set));
        Ok(strips.or_else(|| needs_source.then(|| self.wanted_of_source(piece.chunk))))
    }

    pub(super) fn wanted_of_source(&self, chunk: u64) -> Wanted {
        let source = self.source.clone().expect("pages are in a source only where there is one");
        Wanted::Chunk(source, chunk)
    }

    /// Waits for pages of a piece; begins to read the `following` bytes meanwhile. A strip that stays damaged becomes
    /// lost, alone. The caller looks again: its pages may have been rewritten meanwhile.
    pub(super) async fn page_in(
        &self,
        piece: Piece,
        wanted: &Wanted,
        following: usize,
        ahead: &mut Ahead,
    ) -> Result<Option<Arc<Decoded>>, VmError> {
        let begun = ahead.iter().position(|fetch| fetch.brings(wanted));
        // A reader that waits for a slot holds none, or readers could wait for each other.
        let coming = match begun {
            Some(i) => Coming::Fetch(ahead.swap_remove(i)),
            None => self.pagein.fetch(wanted, || ahead.clear()).await?,
        };
        // After this one: with few slots the read-ahead must not take them all.
        if ahead.is_empty() && following > 0 {
            self.begin_ahead(piece, following, ahead);
        }
        match self.pagein.page_in(wanted, Some(coming), || ahead.clear()).await {
            Ok(decoded) => {
                if let Wanted::Chunk(..) = wanted {
                    self.keep(piece.chunk, &decoded);
                }
                Ok(Some(decoded))
            }
            Err(PageInError::Damaged(strip)) => {
                if let (Wanted::Strips(extent, _), Some(chunk)) = (wanted, self.tree.read().get(piece.chunk))
                {
                    chunk.lock().lose_strip(extent, strip);
                }
                Ok(None)
            }
            Err(PageInError::Failed(error)) => Err(error),
        }
    }

    /// Begins to read the pages that the rest of a read needs, as far as slots are free now.
    fn begin_ahead(&self, piece: Piece, following: usize, ahead: &mut Ahead) {
        let read_end = piece.chunk * CHUNK as u64 + (piece.at + piece.len + following) as u64;
        let end = read_end.div_ceil(CHUNK as u64);
        let mut wanted: SmallVec<[Wanted; READ_AHEAD]> = SmallVec::new();
        {
            let tree = self.tree.read();
            let mut next = piece.chunk + 1;
            while let Some((number, chunk)) = self.next_chunk(&tree, next).filter(|&(number, _)| number < end)
            {
                next = number + 1;
                let last = (read_end - number * CHUNK as u64).min(CHUNK as u64) as usize;
                let inside = pages(0, last.div_ceil(PAGE));
                let Some(chunk) = chunk else {
                    wanted.push(self.wanted_of_source(number));
                    continue;
                };
                let state = chunk.lock();
                let inside = inside & !state.resident();
                for cluster in state.clusters().iter().filter(|cluster| cluster.live & inside != 0) {
                    if wanted.len() < READ_AHEAD && cluster.extent.is_stored() {
                        wanted.push(Wanted::strips(&cluster.extent, cluster.live & inside));
                    }
                }
                if wanted.len() >= READ_AHEAD {
                    break;
                }
            }
        }
        for wanted in &wanted {
            match self.pagein.begin(wanted, None) {
                Begun::Joined(fetch) | Begun::New(fetch, _) => ahead.push(fetch),
                Begun::Done(_) => {}
                Begun::NoSlot => break,
            }
        }
    }
}

/// Copies bytes `at..` of a page into `out`; the page is zero past `page.len()`.
fn copy_padded(out: &mut [u8], page: &[u8], at: usize) {
    let here = page.get(at..).unwrap_or(&[]);
    let n = here.len().min(out.len());
    out[..n].copy_from_slice(&here[..n]);
    out[n..].fill(0);
}
