//! Prepares disk space ahead of the allocator, and returns it behind: all work that may make the host file system
//! allocate, journal or wait, and so must not happen in pageout.

use std::collections::BTreeMap;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::FileStore;
use crate::blist::{GROUP, SEGMENT, Stock};
use crate::{BLOCK, Run, lock};

/// Blocks requested from the disk at once: 16 MiB.
const STEP: u32 = SEGMENT;

/// Most blocks returned to the disk at once: 64 MiB. One such piece per call, because a punch keeps other threads
/// from the file and fills the file system's journal.
const PIECE: u32 = 16_384;

/// State of the upkeep, under its own lock.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Punched space below the frontier: first block and length of each stretch, neighbours joined.
    absent: BTreeMap<u64, u32>,
    /// The file system has no fallocate: space cannot be prepared, only promised.
    cannot_prepare: bool,
    /// The file system cannot punch holes either: the file keeps its space until it is closed.
    cannot_punch: bool,
}

impl Upkeep {
    fn add(&mut self, mut run: Run) {
        if let Some((&start, &blocks)) = self.absent.range(..run.start).next_back()
            && start + u64::from(blocks) == run.start
        {
            run = Run { start, blocks: blocks + run.blocks };
        }
        if let Some(blocks) = self.absent.remove(&run.end()) {
            run.blocks += blocks;
        }
        self.absent.insert(run.start, run.blocks);
    }

    /// Removes a run from the front of the stretch that begins with it.
    fn remove_front(&mut self, run: Run) {
        if let Some(blocks) = self.absent.remove(&run.start)
            && blocks > run.blocks
        {
            self.absent.insert(run.end(), blocks - run.blocks);
        }
    }
}

impl FileStore {
    /// Returns true if more space should be prepared, as far as can be told without asking the disk.
    pub(super) fn wants_more(&self) -> bool {
        let space = lock(&self.space);
        let room = space.absent > 0 || space.blist.prepared() < self.capacity;
        room && (space.starved || space.blist.free_blocks() < self.ahead)
    }

    /// Returns how many free blocks only take up the disk.
    pub(super) fn surplus(&self, pressure: bool) -> u32 {
        let space = lock(&self.space);
        let keep = match (pressure, space.allocated) {
            (true, _) => self.ahead.saturating_mul(2),
            (false, 0) => 0,
            (false, _) => self.ahead,
        };
        (space.blist.whole_groups() * GROUP).saturating_sub(keep) / GROUP * GROUP
    }

    /// Bytes that the disk would give to this process.
    pub(super) fn disk_free(&self) -> u64 {
        rustix::fs::fstatvfs(&self.io.file).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
    }

    /// Prepares the next step of space: the lowest punched space, or else the space behind the frontier. Returns false,
    /// and remembers it, if the disk refuses even a group.
    pub(super) fn grow(&self, upkeep: &mut Upkeep) -> bool {
        let (frontier, punched) = (lock(&self.space).blist.prepared(), upkeep.absent.first_key_value());
        let (start, room) = match punched {
            Some((&start, &blocks)) => (start, blocks),
            None => (u64::from(frontier), self.capacity - frontier),
        };
        let again = start < u64::from(frontier);
        // Small ones grow in small steps: there may be many of them.
        let step = frontier.clamp(self.first_step, STEP);
        let whole = Run { start, blocks: room.min(step).min(STEP - to_step(start)) };
        let group = Run { start, blocks: room.min(GROUP).min(step) };
        let Some(run) = [whole, group].into_iter().find(|run| self.back(upkeep, *run)) else {
            lock(&self.space).refused = true;
            return false;
        };
        if again {
            upkeep.remove_front(run);
        }
        let mut stock = Stock::for_blocks(if again { 0 } else { run.blocks });
        let mut space = lock(&self.space);
        if again {
            space.blist.free(run);
            space.absent -= run.blocks;
        } else {
            space.blist.prepare(frontier + run.blocks, &mut stock);
        }
        space.refused = false;
        space.starved = false;
        drop(space);
        true
    }

    /// Makes the disk back these blocks. Returns false if it refuses.
    fn back(&self, upkeep: &mut Upkeep, run: Run) -> bool {
        let (offset, len) = (Self::offset(run.start), u64::from(run.blocks) * BLOCK as u64);
        if self.disk_free() < self.keep_free.saturating_add(len) {
            return false;
        }
        if !upkeep.cannot_prepare {
            match retry(|| rustix::fs::fallocate(&self.io.file, FallocateFlags::empty(), offset, len)) {
                Ok(()) => return true,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    tracing::warn!(
                        "the store's file system cannot preallocate: it may say that it is full late"
                    );
                    upkeep.cannot_prepare = true;
                }
                Err(errno) => {
                    if !matches!(errno, Errno::NOSPC | Errno::FBIG | Errno::DQUOT) {
                        tracing::warn!(error = %errno, "cannot preallocate space of the store");
                    }
                    // It may have succeeded for a part.
                    self.punch(offset, len).ok();
                    return false;
                }
            }
        }
        let size = rustix::fs::fstat(&self.io.file).map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0));
        size >= offset + len || retry(|| rustix::fs::ftruncate(&self.io.file, offset + len)).is_ok()
    }

    /// Gives one piece of surplus space back to the disk. Returns true if there is another.
    pub(super) fn give_back(&self, upkeep: &mut Upkeep, pressure: bool) -> bool {
        if upkeep.cannot_punch {
            return false;
        }
        let Some(run) = self.take_piece(self.surplus(pressure).min(PIECE)) else { return false };
        let punched = self.punch(Self::offset(run.start), u64::from(run.blocks) * BLOCK as u64);
        if punched.is_ok() {
            upkeep.add(run);
        }
        let mut space = lock(&self.space);
        match punched {
            Ok(()) => {
                space.absent += run.blocks;
                space.refused = false;
            }
            Err(_) => {
                space.blist.free(run);
            }
        }
        drop(space);
        if let Err(errno) = punched {
            tracing::warn!(error = %errno, "cannot give space of the store back to its disk");
            upkeep.cannot_punch = matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS);
            return false;
        }
        self.surplus(pressure) > 0
    }

    /// Takes up to `limit` neighbouring blocks of wholly free groups from the allocator, the last ones.
    fn take_piece(&self, limit: u32) -> Option<Run> {
        let mut space = lock(&self.space);
        let mut piece: Option<Run> = None;
        while piece.map_or(0, |p| p.blocks) < limit {
            let below = piece.map_or(u64::from(space.blist.prepared()), |p| p.start);
            let Some(found) = space.blist.last_free_groups(below) else { break };
            let end = found.end();
            if piece.is_some_and(|p| p.start != end) {
                break;
            }
            let blocks = found.blocks.min(limit - piece.map_or(0, |p| p.blocks));
            let part = Run { start: end - u64::from(blocks), blocks };
            if !space.blist.take(part) {
                break;
            }
            piece = Some(Run { start: part.start, blocks: blocks + piece.map_or(0, |p| p.blocks) });
        }
        if piece.is_some() {
            // The allocation that failed would not fail now: there are whole groups, even too many.
            space.starved = false;
        }
        piece
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        retry(|| rustix::fs::fallocate(&self.io.file, flags, offset, len))
    }
}

/// How far into its step of the file a block lies.
fn to_step(block: u64) -> u32 {
    u32::try_from(block % u64::from(STEP)).unwrap_or(0)
}

/// Until no signal comes in between.
fn retry(mut f: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match f() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_stretches_join_and_shrink() {
        let mut upkeep = Upkeep::default();
        for start in [512, 0, 256, 2048] {
            upkeep.add(Run { start, blocks: 256 });
        }
        assert_eq!(upkeep.absent.iter().collect::<Vec<_>>(), [(&0, &768), (&2048, &256)]);
        upkeep.remove_front(Run { start: 0, blocks: 256 });
        assert_eq!(upkeep.absent.iter().collect::<Vec<_>>(), [(&256, &512), (&2048, &256)]);
        upkeep.remove_front(Run { start: 256, blocks: 512 });
        assert_eq!(upkeep.absent.iter().collect::<Vec<_>>(), [(&2048, &256)]);
    }
}
