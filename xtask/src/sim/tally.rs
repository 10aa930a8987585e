//! The results of runs, in numbers.

use std::fmt;
use std::ops::AddAssign;

/// The result of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(super) operations: u64,
    pub(super) page_outs: u64,
    pub(super) page_ins: u64,
    pub(super) recompressed: u64,
    pub(super) bypassed: u64,
    pub(super) faults: u64,
    pub(super) refused: u64,
    /// Operations that were dropped while they waited, and begun anew.
    pub(super) begun_anew: u64,
    /// Turns of a helper, and segments compacted.
    pub(super) helped: u64,
    pub(super) compacted: u64,
    /// Reads from sources, and batches that the second store took over.
    pub(super) fills: u64,
    pub(super) taken_over: u64,
    pub(super) checks: u64,
}

impl Tally {
    /// True if a good number of seeds came to nothing in some respect.
    pub(crate) fn is_idle(&self) -> bool {
        [
            self.page_outs,
            self.page_ins,
            self.recompressed,
            self.bypassed,
            self.faults,
            self.refused,
            self.begun_anew,
            self.helped,
            self.compacted,
            self.fills,
            self.taken_over,
            self.checks,
        ]
        .contains(&0)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.operations += other.operations;
        self.page_outs += other.page_outs;
        self.page_ins += other.page_ins;
        self.recompressed += other.recompressed;
        self.bypassed += other.bypassed;
        self.faults += other.faults;
        self.refused += other.refused;
        self.begun_anew += other.begun_anew;
        self.helped += other.helped;
        self.compacted += other.compacted;
        self.fills += other.fills;
        self.taken_over += other.taken_over;
        self.checks += other.checks;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations, {} refused, {} begun anew, {} pages out, {} in, {} recompressed, {} bypassed, {} helped, \
             {} compacted, {} fills, {} to the second store, {} faults, {} full checks",
            self.operations,
            self.refused,
            self.begun_anew,
            self.page_outs,
            self.page_ins,
            self.recompressed,
            self.bypassed,
            self.helped,
            self.compacted,
            self.fills,
            self.taken_over,
            self.faults,
            self.checks
        )
    }
}
