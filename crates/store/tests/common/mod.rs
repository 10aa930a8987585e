//! Helpers of the tests of stores.
#![allow(dead_code, reason = "each test binary uses its part")]

use overspill_store::{AllocError, BLOCK, Run, Store};
use overspill_sys::AlignedBuf;

/// A directory on a real disk if there is one: beside the build, not in a /tmp that may be a tmpfs.
pub(crate) fn disk_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Allocates as a pager does: maintains the store when it is not ready.
pub(crate) fn allocate(store: &dyn Store, min: u32, max: u32) -> Result<Run, AllocError> {
    allocate_for(store, None, min, max)
}

/// The same for an owner, or for none.
pub(crate) fn allocate_for(
    store: &dyn Store,
    owner: Option<u32>,
    min: u32,
    max: u32,
) -> Result<Run, AllocError> {
    for _ in 0..100_000 {
        let result = match owner {
            Some(owner) => store.allocate(owner, min, max),
            None => store.allocate(0, min, max),
        };
        if result != Err(AllocError::NotReady) {
            return result;
        }
        store.maintain(true);
    }
    panic!("never ready");
}

/// Bytes that only this run of this owner has.
pub(crate) fn pattern(run: Run, owner: u64) -> AlignedBuf {
    let mut buf = AlignedBuf::new(run.blocks as usize * BLOCK);
    for (i, word) in buf.chunks_exact_mut(8).enumerate() {
        let value = (run.start << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ owner;
        word.copy_from_slice(&value.to_le_bytes());
    }
    buf
}

/// Returns true if the store holds exactly the bytes of `pattern`.
pub(crate) fn holds(store: &dyn Store, run: Run, owner: u64) -> bool {
    let mut buf = AlignedBuf::new(run.blocks as usize * BLOCK);
    store.read(run.start, &mut buf).unwrap();
    buf[..] == pattern(run, owner)[..]
}

/// Maintains until there is nothing more to do.
pub(crate) fn settle(store: &dyn Store, pressure: bool) {
    for _ in 0..100_000 {
        if !store.maintain(pressure) {
            return;
        }
    }
    panic!("upkeep never ends");
}
