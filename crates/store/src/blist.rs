//! The set of free blocks: a radix tree of bitmaps that finds runs and takes no memory while it allocates
//! (R57, R59, R60). Of the family of FreeBSD's blist.
//!
//! ```text
//!   Meta     64 children; for each: `big`, an upper bound of the longest free run below it,
//!    │                              `whole`, the number of wholly free GROUPs below it
//!   Meta     … as many levels as the capacity asks for …
//!    │
//!   Segment  64 words of 64 bits: 4096 blocks, 16 MiB; a set bit is a free block
//! ```
//!
//! - **No run crosses a segment.** So a run is at most [`SEGMENT`] blocks, and an edit touches one path.
//! - Freeing blocks raises `big` exactly, taking blocks leaves it alone, and a fruitless search that it caused makes
//!   it exact. Each edit can cause one such search, so the cost stays bounded.
//! - [`Blist::prepare`] adds segments, from a [`Stock`] that is made without any lock held: a large capacity costs
//!   nothing until it is used, and [`Blist::allocate`] and [`Blist::free`] never take memory.
//! - Allocation continues where the last one ended while it finds runs of the wanted length, so that writing is
//!   sequential; then it starts over, and wants half as much each time there is no such run anywhere.

use crate::Run;

/// Blocks in a segment (16 MiB): no run crosses from one into the next.
pub const SEGMENT: u32 = 4096;

/// Blocks in a group (1 MiB): the unit in which free space returns to the disk.
pub const GROUP: u32 = 256;

const RADIX: usize = 64;
const SEG: usize = SEGMENT as usize;
const GROUP_WORDS: usize = GROUP as usize / 64;

/// 4096 blocks; a set bit is a free one.
#[derive(Debug)]
struct Segment {
    bits: [u64; RADIX],
}

#[derive(Debug)]
struct Meta {
    child: [Option<Node>; RADIX],
    /// Upper bound of the longest free run below each child.
    big: [u16; RADIX],
    /// Exact number of wholly free groups below each child.
    whole: [u32; RADIX],
}

#[derive(Debug)]
enum Node {
    Segment(Box<Segment>),
    Meta(Box<Meta>),
}

/// Effect of a segment's edit on the nodes above it.
#[derive(Default, Clone, Copy)]
struct Edit {
    /// A free run of this length now exists.
    raise: u16,
    whole_before: u32,
    whole_after: u32,
}

/// Nodes allocated ahead, for [`Blist::prepare`] to use under a lock.
#[derive(Debug)]
#[expect(clippy::vec_box, reason = "boxed before a lock is taken, moved into the tree under it")]
pub struct Stock {
    segments: Vec<Box<Segment>>,
    metas: Vec<Box<Meta>>,
}

impl Stock {
    /// Enough to prepare `blocks` more blocks of any [`Blist`].
    #[must_use]
    pub fn for_blocks(blocks: u32) -> Stock {
        let segments = (blocks / SEGMENT + 2) as usize;
        let metas = (1..=MAX_LEVELS).map(|level| segments / RADIX.pow(level) + 2).sum();
        Stock {
            segments: std::iter::repeat_with(|| Box::new(Segment { bits: [0; RADIX] }))
                .take(segments)
                .collect(),
            metas: std::iter::repeat_with(|| Box::new(Meta::new())).take(metas).collect(),
        }
    }
}

/// Levels of [`Meta`] that 2^32 blocks need.
const MAX_LEVELS: u32 = 4;

/// Blocks below a child of a meta node at `level`; the children at level 1 are segments.
const fn span(level: u32) -> usize {
    SEG << (6 * (level - 1))
}

/// Block numbers and counts here are below 2^32 by construction.
fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Runs are at most [`SEGMENT`] long.
fn to_u16(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// The bits of word `word` that lie in `start..end` of its segment.
fn mask(word: usize, start: usize, end: usize) -> u64 {
    let low = start.saturating_sub(word * 64).min(64);
    let high = end.saturating_sub(word * 64).min(64);
    let below = |n: usize| if n == 64 { u64::MAX } else { (1u64 << n) - 1 };
    below(high) & !below(low)
}

impl Segment {
    /// First free block at or after `from`.
    fn next_free(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = self.bits.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.bits.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// First block at or after `from` that is not free; the segment's end if there is none.
    fn next_used(&self, from: usize) -> usize {
        for word in from / 64..RADIX {
            let used = !self.bits[word] & mask(word, from, SEG);
            if used != 0 {
                return word * 64 + used.trailing_zeros() as usize;
            }
        }
        SEG
    }

    /// The first block of the free run that ends before `end`; `end` if the block before it is not free.
    fn run_start(&self, end: usize) -> usize {
        for word in (0..end.div_ceil(64)).rev() {
            let used = !self.bits[word] & mask(word, 0, end);
            if used != 0 {
                return word * 64 + 64 - used.leading_zeros() as usize;
            }
        }
        0
    }

    /// First run at or after `from` of at least `want` blocks; as error, the longest run at or after `from`.
    fn find(&self, mut from: usize, want: usize) -> Result<usize, usize> {
        let mut longest = 0;
        while let Some(start) = self.next_free(from) {
            let end = self.next_used(start);
            if end - start >= want {
                return Ok(start);
            }
            longest = longest.max(end - start);
            from = end;
        }
        Err(longest)
    }

    /// Returns true if the group with this number is wholly free.
    fn group_is_free(&self, group: usize) -> bool {
        self.bits[group * GROUP_WORDS..(group + 1) * GROUP_WORDS].iter().all(|&w| w == u64::MAX)
    }

    /// Number of wholly free groups that `start..end` touches.
    fn whole(&self, start: usize, end: usize) -> u32 {
        let group = GROUP as usize;
        to_u32((start / group..end.div_ceil(group)).filter(|&g| self.group_is_free(g)).count())
    }

    /// Sets or clears the bits of `start..end`; returns how many changed.
    fn fill(&mut self, start: usize, end: usize, free: bool) -> u32 {
        let mut changed = 0;
        for word in start / 64..end.div_ceil(64) {
            let mask = mask(word, start, end);
            let old = self.bits[word];
            self.bits[word] = if free { old | mask } else { old & !mask };
            changed += (old ^ self.bits[word]).count_ones();
        }
        changed
    }

    /// [`Segment::fill`], and its effect on the nodes above.
    fn edit(&mut self, start: usize, end: usize, free: bool) -> (u32, Edit) {
        let whole_before = self.whole(start, end);
        let changed = self.fill(start, end, free);
        let raise = if free { to_u16(self.next_used(start) - self.run_start(start + 1)) } else { 0 };
        (changed, Edit { raise, whole_before, whole_after: self.whole(start, end) })
    }
}

impl Meta {
    fn new() -> Meta {
        Meta { child: [const { None }; RADIX], big: [0; RADIX], whole: [0; RADIX] }
    }

    fn max_big(&self) -> u16 {
        self.big.iter().copied().max().unwrap_or(0)
    }

    /// First block at or after `from` (within this node) where a run of at least `want` begins.
    fn search(&mut self, level: u32, from: usize, want: usize) -> Option<usize> {
        let span = span(level);
        let first = from / span;
        for i in first..RADIX {
            if usize::from(self.big[i]) < want {
                continue;
            }
            let from = if i == first { from % span } else { 0 };
            let found = match self.child[i].as_mut() {
                None => Err(0),
                Some(Node::Segment(segment)) => segment.find(from, want).map_err(to_u16),
                Some(Node::Meta(meta)) => meta.search(level - 1, from, want).ok_or_else(|| meta.max_big()),
            };
            match found {
                Ok(block) => return Some(i * span + block),
                // The whole child was searched, so `longest` is exact.
                Err(longest) if from == 0 => self.big[i] = self.big[i].min(longest),
                Err(_) => {}
            }
        }
        None
    }

    /// Runs `f` on the segment of this number, and applies the effect to the nodes on the path.
    fn edit(&mut self, level: u32, segment: usize, f: &mut dyn FnMut(&mut Segment) -> Edit) -> Edit {
        let i = (segment >> (6 * (level - 1))) % RADIX;
        let edit = match self.child[i].as_mut() {
            None => Edit::default(),
            Some(Node::Segment(segment)) => f(segment),
            Some(Node::Meta(meta)) => meta.edit(level - 1, segment, f),
        };
        self.big[i] = self.big[i].max(edit.raise);
        self.whole[i] = self.whole[i] + edit.whole_after - edit.whole_before;
        edit
    }

    /// Builds the path to a segment from the stock. Returns false if the stock runs out.
    fn grow(&mut self, level: u32, segment: usize, stock: &mut Stock) -> bool {
        let i = (segment >> (6 * (level - 1))) % RADIX;
        if self.child[i].is_none() {
            self.child[i] = match level {
                1 => stock.segments.pop().map(Node::Segment),
                _ => stock.metas.pop().map(Node::Meta),
            };
        }
        match self.child[i].as_mut() {
            None => false,
            Some(Node::Segment(_)) => true,
            Some(Node::Meta(meta)) => meta.grow(level - 1, segment, stock),
        }
    }

    fn segment(&self, level: u32, segment: usize) -> Option<&Segment> {
        match self.child[(segment >> (6 * (level - 1))) % RADIX].as_ref()? {
            Node::Segment(segment) => Some(segment),
            Node::Meta(meta) => meta.segment(level - 1, segment),
        }
    }

    /// The number of the highest segment at or below `upto` with a wholly free group.
    fn last_whole(&self, level: u32, upto: usize) -> Option<usize> {
        let shift = 6 * (level - 1);
        let last = (upto >> shift).min(RADIX - 1);
        (0..=last).rev().filter(|&i| self.whole[i] > 0).find_map(|i| {
            let upto = if i == upto >> shift { upto & ((1 << shift) - 1) } else { usize::MAX };
            match self.child[i].as_ref()? {
                Node::Segment(_) => Some(i),
                Node::Meta(meta) => Some((i << shift) + meta.last_whole(level - 1, upto)?),
            }
        })
    }
}

/// A set of free blocks. See the module.
#[derive(Debug)]
pub struct Blist {
    root: Box<Meta>,
    levels: u32,
    capacity: u32,
    /// Blocks from here on have no segments yet, and are not free.
    prepared: u32,
    free: u32,
    /// Block at which the last allocation ended.
    cursor: u32,
}

impl Blist {
    /// Creates a tree for `capacity` blocks, none of them prepared.
    #[must_use]
    pub fn new(capacity: u32) -> Blist {
        let mut levels = 1;
        while (capacity as usize) > span(levels + 1) {
            levels += 1;
        }
        Blist { root: Box::new(Meta::new()), levels, capacity, prepared: 0, free: 0, cursor: 0 }
    }

    /// Number of blocks that the tree can hold.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Blocks below this one are free or allocated; from it on they are neither.
    #[must_use]
    pub fn prepared(&self) -> u32 {
        self.prepared
    }

    /// Number of free blocks.
    #[must_use]
    pub fn free_blocks(&self) -> u32 {
        self.free
    }

    /// Number of groups whose blocks are all free.
    #[must_use]
    pub fn whole_groups(&self) -> u32 {
        self.root.whole.iter().sum()
    }

    /// Makes the unprepared blocks below `upto` (or the capacity) free. Stops early when `stock` runs out; returns
    /// [`Blist::prepared`].
    pub fn prepare(&mut self, upto: u32, stock: &mut Stock) -> u32 {
        let upto = upto.min(self.capacity);
        while self.prepared < upto {
            let segment = self.prepared as usize / SEG;
            if !self.root.grow(self.levels, segment, stock) {
                break;
            }
            let end = to_u32((segment + 1) * SEG).min(upto);
            let (first, blocks) = (self.prepared, end - self.prepared);
            self.prepared = end;
            self.free(Run { start: u64::from(first), blocks });
        }
        self.prepared
    }

    /// Takes a run of at least `min` and at most `max` blocks. `None` if there is no free run of `min` within a
    /// segment. Allocates no memory.
    pub fn allocate(&mut self, min: u32, max: u32) -> Option<Run> {
        let min = min.max(1) as usize;
        if min > SEG || (self.free as usize) < min {
            return None;
        }
        let max = (max as usize).clamp(min, SEG);
        let start = self.at_cursor(min, max).or_else(|| self.search(min, max))?;
        let (segment, offset) = (start / SEG, start % SEG);
        let mut end = offset;
        self.root.edit(self.levels, segment, &mut |s| {
            end = s.next_used(offset).min(offset + max);
            s.edit(offset, end, false).1
        });
        let run = Run { start: start as u64, blocks: to_u32(end - offset) };
        self.free -= run.blocks;
        self.cursor = to_u32(start).saturating_add(run.blocks);
        Some(run)
    }

    /// The cursor, if a run begins there that is `max` long, or at least `min` and the last of its segment.
    fn at_cursor(&self, min: usize, max: usize) -> Option<usize> {
        let start = self.cursor as usize;
        let segment = self.root.segment(self.levels, start / SEG).filter(|_| self.cursor < self.prepared)?;
        let end = segment.next_used(start % SEG);
        let len = end - start % SEG;
        (len >= max || (len >= min && end == SEG)).then_some(start)
    }

    /// The next run of `max`, else of half of that, and so on down to `min`.
    fn search(&mut self, min: usize, max: usize) -> Option<usize> {
        let mut want = max;
        let cursor = if self.cursor < self.prepared { self.cursor as usize } else { 0 };
        loop {
            let found = self.root.search(self.levels, cursor, want);
            let found = found.or_else(|| self.root.search(self.levels, 0, want));
            if found.is_some() || want == min {
                return found;
            }
            want = (want / 2).max(min);
        }
    }

    /// Frees a run, a part of one, or parts of several. Returns how many blocks became free: fewer than `run.blocks`
    /// means that some were free already or never prepared, which is a bug of the caller; those are left as they are.
    /// Allocates no memory.
    pub fn free(&mut self, run: Run) -> u32 {
        let mut freed = 0;
        self.edit_range(run, |s, start, end| {
            let (changed, edit) = s.edit(start, end, true);
            freed += changed;
            edit
        });
        self.free += freed;
        freed
    }

    /// Takes exactly this run if all of it is free. Returns false otherwise.
    pub fn take(&mut self, run: Run) -> bool {
        if !self.all(run, |s, start, end| s.next_used(start) >= end) {
            return false;
        }
        self.edit_range(run, |s, start, end| s.edit(start, end, false).1);
        self.free -= run.blocks;
        true
    }

    /// Returns true if every block of this run is allocated.
    #[must_use]
    pub fn is_allocated(&self, run: Run) -> bool {
        self.all(run, |s, start, end| s.next_free(start).is_none_or(|at| at >= end))
    }

    /// The wholly free groups with the highest numbers below block `below`, as one run of neighbours within a
    /// segment.
    #[must_use]
    pub fn last_free_groups(&self, below: u64) -> Option<Run> {
        let group = GROUP as usize;
        let mut limit = to_usize(below) / group * group;
        loop {
            let number = self.root.last_whole(self.levels, limit.checked_sub(1)? / SEG)?;
            let segment = self.root.segment(self.levels, number)?;
            let groups = limit.saturating_sub(number * SEG).min(SEG) / group;
            if let Some(last) = (0..groups).rev().find(|&g| segment.group_is_free(g)) {
                let first = (0..last).rev().take_while(|&g| segment.group_is_free(g)).last().unwrap_or(last);
                let start = number * SEG + first * group;
                return Some(Run { start: start as u64, blocks: to_u32((last - first + 1) * group) });
            }
            // All its free groups lie at or above `below`.
            limit = number * SEG;
        }
    }

    fn edit_range(&mut self, run: Run, mut f: impl FnMut(&mut Segment, usize, usize) -> Edit) {
        for (number, start, end) in pieces(run, self.prepared) {
            self.root.edit(self.levels, number, &mut |s| f(s, start, end));
        }
    }

    fn all(&self, run: Run, f: impl Fn(&Segment, usize, usize) -> bool) -> bool {
        let inside =
            run.start.checked_add(u64::from(run.blocks)).is_some_and(|end| end <= u64::from(self.prepared));
        let holds = |(number, start, end)| {
            self.root.segment(self.levels, number).is_some_and(|s: &Segment| f(s, start, end))
        };
        inside && pieces(run, self.prepared).all(holds)
    }
}

/// Blocks of a tree are fewer than 2^32.
fn to_usize(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

/// The parts of a run by segment: its number, and start and end within it.
fn pieces(run: Run, limit: u32) -> impl Iterator<Item = (usize, usize, usize)> {
    let end = to_usize(run.end().min(u64::from(limit)));
    let mut at = to_usize(run.start);
    std::iter::from_fn(move || {
        let piece = (at / SEG, at % SEG, (end - at.min(end)).min(SEG - at % SEG) + at % SEG);
        let more = at < end;
        at += piece.2 - piece.1;
        more.then_some(piece)
    })
}

#[cfg(test)]
#[path = "blist_tests.rs"]
mod tests;
