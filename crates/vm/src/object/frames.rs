//! Frames that a caller fills before they become pages of an object.

use overspill_sys::Frame;

use crate::budget::Reservation;
use crate::error::VmError;
use crate::memory::records::Memory;
use crate::page::PAGE;
use crate::sync::Arc;

/// Frames of the arena, charged to the budget, that are not pages yet. Their bytes are arbitrary, perhaps another
/// user's (R53): the caller fills all of each frame it installs.
#[derive(Debug)]
pub struct Frames {
    /// In reverse: the next one to install is the last.
    frames: Vec<Frame>,
    /// Spent, but alive: pageout sees that memory is only set aside.
    _reservation: Reservation,
}

impl Frames {
    /// The most frames of one reservation.
    pub const MOST: usize = 256;

    /// # Errors
    /// [`VmError::NoMemory`] when that many frames cannot be had.
    pub(crate) async fn reserve(memory: &Arc<Memory>, count: usize) -> Result<Frames, VmError> {
        if count > Frames::MOST {
            return Err(VmError::NoMemory);
        }
        let mut reservation = memory.budget.reserve(count * PAGE).await?;
        let frames = (0..count).map(|_| reservation.take_frame(&memory.arena)).collect();
        Ok(Frames { frames, _reservation: reservation })
    }

    /// The number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True if there are none, or none left.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frames' bytes, in the order in which they will be installed.
    pub fn slices_mut(&mut self) -> impl Iterator<Item = &mut [u8; PAGE]> {
        self.frames.iter_mut().rev().map(|frame| frame.bytes_mut().expect("frames that nobody else shows"))
    }

    pub(crate) fn next(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    /// Keeps the first `count`.
    pub fn truncate(&mut self, count: usize) {
        let gone = self.frames.len().saturating_sub(count);
        self.frames.drain(..gone);
    }
}
