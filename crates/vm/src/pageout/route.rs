//! The route of an evicted cluster: a pure decision.

/// Memory's state, as far as it decides where clusters go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// There is a store to send clusters to.
    pub(super) has_store: bool,
    /// Compressed memory has its share of the budget.
    pub(super) full: bool,
    /// It has even more: compressed clusters must not gradually take the rest of memory.
    pub(super) overfull: bool,
    /// Writers wait for memory.
    pub(super) has_waiters: bool,
    /// Incompressible clusters may stay in compressed memory while it has room.
    pub(super) holds_incompressible: bool,
}

/// How a cluster is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Compressed,
    /// Uncompressed, past compressed memory: writers wait, and the store is faster than the compressor.
    Uncompressed,
}

/// Where an encoded cluster goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// To compressed memory: it takes less there than its pages.
    Hold,
    /// To compressed memory, though it takes as much as before: it awaits its turn there.
    HoldIncompressible,
    /// To the store at once.
    Send,
    /// Not now: its pages stay dirty.
    Later,
}

impl Load {
    /// True if a raw cluster could help; the caller then compares the store with the compressor.
    pub(super) fn may_bypass(self) -> bool {
        self.full && !self.overfull && self.has_waiters
    }

    /// The route of a cluster whose pages took `cost` bytes of the budget and whose payload takes `payload`.
    pub(super) fn route(self, payload: usize, cost: usize) -> Route {
        // Compressed memory pays from a saving of a ninth on.
        if payload + payload / 8 <= cost {
            return Route::Hold;
        }
        // A raw cluster takes as much as before, and compressible ones hold more pages in the same memory.
        if self.holds_incompressible && !self.full && payload <= cost + cost / 64 {
            return Route::HoldIncompressible;
        }
        if self.has_store { Route::Send } else { Route::Later }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const EMPTY: Load = Load {
        has_store: true,
        full: false,
        overfull: false,
        has_waiters: false,
        holds_incompressible: true,
    };

    #[test]
    fn clusters_that_save_a_ninth_are_held_however_full_memory_is() {
        for load in [EMPTY, Load { full: true, overfull: true, ..EMPTY }, Load { has_store: false, ..EMPTY }]
        {
            assert_eq!(load.route(8 << 10, 9 << 10), Route::Hold);
            assert_ne!(load.route((8 << 10) + 1, 9 << 10), Route::Hold);
        }
    }

    #[test]
    fn raw_clusters_wait_in_memory_only_while_it_has_room() {
        let raw = |load: Load| load.route(65 << 10, 64 << 10);
        assert_eq!(raw(EMPTY), Route::HoldIncompressible);
        assert_eq!(raw(Load { full: true, ..EMPTY }), Route::Send);
        assert_eq!(raw(Load { holds_incompressible: false, ..EMPTY }), Route::Send);
        assert_eq!(raw(Load { holds_incompressible: false, has_store: false, ..EMPTY }), Route::Later);
        // Bytes that a fork shows too are not freed: a copy gains nothing.
        assert_eq!(EMPTY.route(65 << 10, 32 << 10), Route::Send);
    }

    #[test]
    fn only_a_full_memory_that_writers_wait_for_is_bypassed() {
        let pressed = Load { full: true, has_waiters: true, ..EMPTY };
        assert!(pressed.may_bypass());
        for load in [EMPTY, Load { overfull: true, ..pressed }, Load { has_waiters: false, ..pressed }] {
            assert!(!load.may_bypass());
        }
    }
}
