//! Where restartable sequences are not written for: none.

use super::magazine::{Magazine, Slot};

pub(super) fn offset() -> Option<isize> {
    None
}

pub(super) fn cpu(_: isize) -> usize {
    usize::MAX
}

/// # Safety
/// Never called, because there is no offset.
pub(super) unsafe fn pop(_: isize, _: *mut Slot, _: usize) -> *mut u8 {
    std::ptr::null_mut()
}

/// # Safety
/// As for [`pop`].
pub(super) unsafe fn push(_: isize, _: *mut Slot, _: usize, _: *mut u8) -> bool {
    false
}

/// # Safety
/// As for [`pop`].
pub(super) unsafe fn load(_: isize, _: *mut Slot, _: usize, _: *mut Magazine, _: *mut Magazine) -> bool {
    false
}
