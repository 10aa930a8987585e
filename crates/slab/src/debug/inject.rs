//! Fault injection (R47): makes allocations of the calling thread fail at random.

use std::cell::Cell;

thread_local! {
    /// The odds, one in so many (0: none fails), and the state of the random number generator.
    static ODDS: Cell<(u32, u64)> = const { Cell::new((0, 0)) };
}

/// From now on, one in `odds` of this thread's slow-path allocations fails as if there were no memory. `seed` decides
/// which; 0 stops it. Without magazines ([`crate::choose_cpu_mode`]) all allocations take the slow path.
pub fn fail_one_in(odds: u32, seed: u64) {
    ODDS.set((odds, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
}

/// True if this allocation must fail.
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
