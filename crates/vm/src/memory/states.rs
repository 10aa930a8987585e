//! The state of each page of a chunk, in three bits a page: a page is in exactly one state.

use crate::page::PageSet;

/// The states of a page. A page in state `None` is absent, or in a cluster and not resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// None of the others.
    None,
    /// Exists, reads as zeros, has no bytes.
    Zero,
    /// Its bytes are gone; reads fail.
    Lost,
    /// In the object's source only.
    Sourced,
    /// Resident, and in a cluster as well.
    Clean,
    /// Resident and nowhere else.
    Dirty,
    /// Resident; its bytes are on their way into a cluster.
    Writing,
}

/// The states of all pages of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct States {
    resident: PageSet,
    /// For resident pages: dirty, writing. For others: zero, lost. For both: sourced.
    first: PageSet,
    second: PageSet,
}

impl State {
    fn bits(self) -> (bool, bool, bool) {
        match self {
            State::None => (false, false, false),
            State::Zero => (false, true, false),
            State::Lost => (false, false, true),
            State::Sourced => (false, true, true),
            State::Clean => (true, false, false),
            State::Dirty => (true, true, false),
            State::Writing => (true, false, true),
        }
    }
}

fn put(mask: &mut PageSet, set: PageSet, on: bool) {
    *mask = if on { *mask | set } else { *mask & !set };
}

impl States {
    /// Sets the state of pages.
    pub(crate) fn set(&mut self, set: PageSet, state: State) {
        let (resident, first, second) = state.bits();
        put(&mut self.resident, set, resident);
        put(&mut self.first, set, first);
        put(&mut self.second, set, second);
    }

    /// All pages in a state.
    pub(crate) fn all(self, state: State) -> PageSet {
        let (resident, first, second) = state.bits();
        let pages = |mask: PageSet, on: bool| if on { mask } else { !mask };
        pages(self.resident, resident) & pages(self.first, first) & pages(self.second, second)
    }

    /// The pages that are clean, dirty or writing.
    pub(crate) fn resident(self) -> PageSet {
        self.resident
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use State::{Clean, Dirty, Lost, None, Sourced, Writing, Zero};

    #[test]
    fn a_page_is_in_the_state_it_was_put_in_last_and_in_no_other() {
        let all = [None, Zero, Lost, Sourced, Clean, Dirty, Writing];
        for from in all {
            for to in all {
                let mut states = States::default();
                states.set(0b1110, from);
                states.set(0b0110, to);
                for state in all {
                    let expected = (PageSet::from(state == to) * 0b0110)
                        | (PageSet::from(state == from) * 0b1000)
                        | (PageSet::from(state == None) * !0b1110);
                    assert_eq!(states.all(state), expected, "{from:?} then {to:?}: {state:?}");
                }
                let resident = states.all(Clean) | states.all(Dirty) | states.all(Writing);
                assert_eq!(states.resident(), resident);
            }
        }
    }
}
