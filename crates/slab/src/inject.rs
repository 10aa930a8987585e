//! Fault injection (R47): allocations that fail by chance, on the thread that asked for it.

use std::cell::Cell;

thread_local! {
    /// One in so many fails, and the state of the chance; 0 is never.
    static ODDS: Cell<(u32, u64)> = const { Cell::new((0, 0)) };
}

/// From now on one in `odds` of this thread's allocations that reach the slow path fails, as if there were no memory, as
/// `seed` decides; 0 stops that. Without magazines ([`crate::choose_cpu_mode`]) all allocations reach it.
pub fn fail_one_in(odds: u32, seed: u64) {
    ODDS.set((odds, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
}

/// Whether this allocation is to fail.
pub(crate) fn strikes() -> bool {
    let (odds, mut state) = ODDS.get();
    if odds == 0 {
        return false;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    ODDS.set((odds, state));
    (state >> 32).is_multiple_of(odds.into())
}
