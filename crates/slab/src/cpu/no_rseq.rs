//! A stub for builds without restartable sequences: other architectures, and the model checker.

use super::magazine::{Magazine, Slot};

pub(super) fn offset() -> Option<isize> {
    None
}

pub(super) fn cpu(_: isize) -> usize {
    usize::MAX
}

/// # Safety
/// Never called, because [`offset`] returns `None`.
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
