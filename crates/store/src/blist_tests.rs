#![expect(clippy::cast_possible_truncation, reason = "blocks of small trees")]
use proptest::prelude::*;

use super::*;

/// The expected state, one flag per block: `None` is not prepared.
struct Model {
    free: Vec<Option<bool>>,
}

impl Model {
    fn longest(&self) -> u32 {
        self.free
            .chunks(SEG)
            .flat_map(|segment| segment.split(|f| *f != Some(true)))
            .map(|run| to_u32(run.len()))
            .max()
            .unwrap_or(0)
    }

    fn take(&mut self, run: Run) -> bool {
        let cells = &mut self.free[run.start as usize..run.end() as usize];
        let free = cells.iter().all(|f| *f == Some(true));
        cells.fill(Some(false));
        free
    }

    fn free_blocks(&self) -> u32 {
        to_u32(self.free.iter().filter(|f| **f == Some(true)).count())
    }

    fn whole_groups(&self) -> u32 {
        let whole = |g: &&[Option<bool>]| g.len() == GROUP as usize && g.iter().all(|f| *f == Some(true));
        to_u32(self.free.chunks(GROUP as usize).filter(whole).count())
    }

    fn last_free_groups(&self, below: u32) -> Option<u32> {
        let group = GROUP as usize;
        (0..below as usize / group)
            .rev()
            .find(|g| self.free[g * group..(g + 1) * group].iter().all(|f| *f == Some(true)))
            .map(|g| to_u32((g + 1) * group))
    }
}

#[derive(Debug, Clone)]
enum Op {
    Prepare(u32),
    Allocate(u32, u32),
    /// Index of a held run, and how many blocks of its front and back to keep.
    Free(usize, u32, u32),
    TakeGroups(u32),
    FreeAll,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (1u32..6000).prop_map(Op::Prepare),
        8 => (1u32..20, 0u32..300).prop_map(|(min, more)| Op::Allocate(min, min + more)),
        2 => (1u32..5000, 0u32..5000).prop_map(|(min, more)| Op::Allocate(min, min + more)),
        6 => (any::<usize>(), 0u32..3, 0u32..3).prop_map(|(i, a, b)| Op::Free(i, a, b)),
        1 => (0u32..20_000).prop_map(Op::TakeGroups),
        1 => Just(Op::FreeAll),
    ]
}

/// A tree, its model, and the runs that are held.
struct Pair {
    tree: Blist,
    model: Model,
    held: Vec<Run>,
}

impl Pair {
    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Prepare(more) => {
                let upto = self.tree.prepared() + more;
                let now = self.tree.prepare(upto, &mut Stock::for_blocks(more));
                prop_assert_eq!(now, upto.min(self.tree.capacity()));
                let cells = &mut self.model.free[..now as usize];
                cells.iter_mut().filter(|f| f.is_none()).for_each(|f| *f = Some(true));
            }
            Op::Allocate(min, max) => match self.tree.allocate(min, max) {
                None => {
                    prop_assert!(self.model.longest() < min, "refused {min}, has {}", self.model.longest())
                }
                Some(run) => {
                    prop_assert!(run.blocks >= min && run.blocks <= max);
                    prop_assert_eq!(run.start / u64::from(SEGMENT), (run.end() - 1) / u64::from(SEGMENT));
                    prop_assert!(self.model.take(run), "overlap at {run:?}");
                    self.held.push(run);
                }
            },
            Op::Free(i, front, back) if !self.held.is_empty() => {
                let i = i % self.held.len();
                let run = self.held.swap_remove(i);
                let front = front.min(run.blocks - 1);
                let back = back.min(run.blocks - 1 - front);
                let middle = Run { start: run.start + u64::from(front), blocks: run.blocks - front - back };
                self.give_back(middle)?;
                let parts = [(run.start, front), (middle.end(), back)];
                self.held
                    .extend(parts.iter().filter(|p| p.1 > 0).map(|&(start, blocks)| Run { start, blocks }));
            }
            Op::TakeGroups(below) => {
                let below = below.min(self.tree.prepared());
                let found = self.tree.last_free_groups(below.into());
                prop_assert_eq!(found.map(|r| r.end()), self.model.last_free_groups(below).map(u64::from));
                if let Some(run) = found {
                    prop_assert!(self.tree.take(run) && !self.tree.take(run));
                    prop_assert!(self.model.take(run));
                    self.held.push(run);
                }
            }
            Op::FreeAll => {
                while let Some(run) = self.held.pop() {
                    self.give_back(run)?;
                }
            }
            Op::Free(..) => {}
        }
        prop_assert_eq!(self.tree.free_blocks(), self.model.free_blocks());
        prop_assert_eq!(self.tree.whole_groups(), self.model.whole_groups());
        Ok(())
    }

    /// Frees a run twice: the second time must change nothing.
    fn give_back(&mut self, run: Run) -> Result<(), TestCaseError> {
        prop_assert!(self.tree.is_allocated(run));
        prop_assert_eq!(self.tree.free(run), run.blocks);
        prop_assert_eq!(self.tree.free(run), 0, "double free counted");
        self.model.free[run.start as usize..run.end() as usize].fill(Some(true));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    // R59, R60: runs never overlap, are in range, and are refused only when there are none.
    #[test]
    fn agrees_with_a_plain_model(
        capacity in prop_oneof![1u32..700, 4000u32..4200, 10_000u32..14_000],
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let model = Model { free: vec![None; capacity as usize] };
        let mut pair = Pair { tree: Blist::new(capacity), model, held: Vec::new() };
        for op in ops {
            pair.step(op)?;
        }
    }
}

fn ready(capacity: u32) -> Blist {
    let mut tree = Blist::new(capacity);
    assert_eq!(tree.prepare(capacity, &mut Stock::for_blocks(capacity)), capacity);
    tree
}

#[test]
fn writes_are_sequential_while_space_lasts() {
    let mut tree = ready(3 * SEGMENT);
    let mut next = 0;
    while let Some(run) = tree.allocate(1, 100) {
        assert_eq!(run.start, next);
        next = run.end();
    }
    assert_eq!(next, u64::from(3 * SEGMENT));
}

#[test]
fn wraps_to_the_long_holes_before_the_short_ones() {
    let mut tree = ready(SEGMENT);
    let all = tree.allocate(SEGMENT, SEGMENT).unwrap();
    tree.free(Run { start: 10, blocks: 3 });
    tree.free(Run { start: 500, blocks: 90 });
    assert_eq!(tree.allocate(2, 64), Some(Run { start: 500, blocks: 64 }));
    assert_eq!(
        tree.allocate(2, 64),
        Some(Run { start: 564, blocks: 26 }),
        "the last run of its length class"
    );
    assert_eq!(tree.allocate(2, 64), Some(Run { start: 10, blocks: 3 }));
    assert_eq!(tree.allocate(1, 64), None);
    assert!(tree.is_allocated(all));
}

#[test]
fn the_largest_capacity_costs_nothing_until_used_and_works_at_its_end() {
    // All segments would take 600 MiB: if they were made, this would fail by time and memory.
    let mut tree = Blist::new(u32::MAX);
    assert_eq!(tree.prepare(SEGMENT, &mut Stock::for_blocks(SEGMENT)), SEGMENT);
    // Prepare only the last segment of many.
    tree.prepared = u32::MAX - (SEGMENT - 1);
    assert_eq!(tree.prepare(u32::MAX, &mut Stock::for_blocks(SEGMENT)), u32::MAX);
    tree.cursor = u32::MAX - 5;
    assert_eq!(tree.allocate(2, 5), Some(Run { start: u64::from(u32::MAX - 5), blocks: 5 }));
    assert_eq!(tree.allocate(2, 5), Some(Run { start: 0, blocks: 5 }));
    assert_eq!(tree.last_free_groups(u64::MAX).map(|r| r.blocks), Some(15 * GROUP));
}

#[test]
fn a_small_stock_prepares_what_it_can() {
    let mut tree = Blist::new(10 * SEGMENT);
    assert_eq!(tree.prepare(10 * SEGMENT, &mut Stock::for_blocks(0)), 2 * SEGMENT);
}

#[test]
fn frees_of_what_was_never_there_do_nothing() {
    let mut tree = Blist::new(100);
    tree.prepare(50, &mut Stock::for_blocks(50));
    assert_eq!(tree.free(Run { start: 40, blocks: 60 }), 0);
    assert_eq!(tree.free(Run { start: u64::from(u32::MAX), blocks: u32::MAX }), 0);
    assert!(!tree.take(Run { start: 40, blocks: 11 }));
    assert_eq!(tree.free_blocks(), 50);
}
