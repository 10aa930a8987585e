//! The bytes of a resident page: a frame, or for short pages a heap block of their length (R25).

use overspill_sys::{Arena, Frame};

use crate::budget::{PageCharge, Reservation};
use crate::page::PAGE;
use crate::sync::Arc;

/// Pages of up to this many bytes are kept in a heap block, longer ones in a frame.
pub(crate) const SMALL_MAX: usize = 2048;

/// The heap's part of a small page's bytes: its header, the `Arc`'s counts and the charge.
const SMALL_OVERHEAD: usize = 80;

/// Bytes of a page. Past [`Bytes::as_slice`] the page is zero. Clones share; only an unshared one can be changed.
#[derive(Debug)]
pub(crate) enum Bytes {
    Frame(Frame),
    Small(Arc<SmallBytes>),
}

#[derive(Debug)]
pub(crate) struct SmallBytes {
    data: Box<[u8]>,
    /// Keeps the block counted in the budget.
    charge: PageCharge,
}

impl Bytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Frame(frame) => frame.bytes(),
            Bytes::Small(small) => &small.data,
        }
    }

    /// Bytes of the budget that come free with the last clone.
    pub(crate) fn cost(&self) -> usize {
        match self {
            Bytes::Frame(_) => PAGE,
            Bytes::Small(small) => small.charge.bytes(),
        }
    }

    /// True if nobody else has a clone.
    pub(crate) fn is_unshared(&mut self) -> bool {
        match self {
            Bytes::Frame(frame) => frame.bytes_mut().is_some(),
            Bytes::Small(small) => Arc::get_mut(small).is_some(),
        }
    }

    pub(crate) fn share(&self) -> Bytes {
        match self {
            Bytes::Frame(frame) => Bytes::Frame(frame.share()),
            Bytes::Small(small) => Bytes::Small(small.clone()),
        }
    }

    /// Changes bytes in place, if they are unshared and there is room. Returns true if it did.
    pub(crate) fn try_write(&mut self, at: usize, data: &[u8]) -> bool {
        let room = match self {
            Bytes::Frame(frame) => frame.bytes_mut().map(|bytes| &mut bytes[..]),
            Bytes::Small(small) => Arc::get_mut(small).map(|small| &mut small.data[..]),
        };
        match room {
            Some(bytes) if at + data.len() <= bytes.len() => {
                bytes[at..at + data.len()].copy_from_slice(data);
                true
            }
            _ => false,
        }
    }

    /// New bytes: `data` at `at`, the bytes of `base` elsewhere, zeros beyond both. The space, at most a page, comes
    /// out of `reservation`.
    pub(crate) fn build(
        base: &[u8],
        at: usize,
        data: &[u8],
        reservation: &mut Reservation,
        arena: &std::sync::Arc<Arena>,
    ) -> Bytes {
        let end = at + data.len();
        let len = end.max(base.len());
        if len <= SMALL_MAX {
            let mut block = vec![0; len].into_boxed_slice();
            fill(&mut block, base, at, data);
            let charge = reservation.take_bytes(len + SMALL_OVERHEAD);
            return Bytes::Small(Arc::new(SmallBytes { data: block, charge }));
        }
        let mut frame = reservation.take_frame(arena);
        let bytes = frame.bytes_mut().expect("a frame just taken is unshared");
        fill(bytes, base, at, data);
        Bytes::Frame(frame)
    }
}

/// Overwrites all of `out`: its old bytes may be another user's (R53).
fn fill(out: &mut [u8], base: &[u8], at: usize, data: &[u8]) {
    let end = at + data.len();
    let head = base.len().min(at);
    out[..head].copy_from_slice(&base[..head]);
    out[head..at].fill(0);
    out[at..end].copy_from_slice(data);
    let tail = base.len().max(end);
    if tail > end {
        out[end..tail].copy_from_slice(&base[end..]);
    }
    out[tail..].fill(0);
}
