//! Page frames over one reserved range of address space.
//!
//! ```text
//!   summary word ─► 64 regions ─► each 64 frames of 4 KiB (256 KiB)
//!   bit: region may have a free frame    bit: frame is free
//! ```
//! Allocation takes the lowest free frame it sees, so that a shrinking population gathers in the low regions and
//! whole high regions become free; [`Arena::release`] gives those back to the kernel. Taking and freeing a frame are
//! a few atomic operations and no lock. The arena sets no limit on the frames taken at once: the VM's budget
//! reserves before it takes (iron rule 1).

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of a frame.
pub const FRAME: usize = 4096;
/// Frames of a region, the unit in which memory goes back to the kernel.
pub const REGION_FRAMES: usize = 64;
const REGION: usize = REGION_FRAMES * FRAME;

/// The reason why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// mmap failed.
    #[error("cannot reserve {0} bytes of address space: {1}")]
    Map(usize, std::io::Error),
    /// More frames than a slot number can name.
    #[error("an arena of {0} frames is too large")]
    TooLarge(usize),
}

struct Region {
    /// Bit set: the frame is free.
    free: AtomicU64,
    /// Bit set: the frame may hold memory of the kernel's. Cleared only by the owner of the frame.
    touched: AtomicU64,
    /// One of the states below. Back to EMPTY only by the owner of all its frames.
    memory: AtomicU8,
}

/// The region holds no memory of the kernel's.
const EMPTY: u8 = 0;
/// The region holds memory, and a frame of it was taken since [`Arena::release`] last looked.
const USED: u8 = 1;
/// The region holds memory, and was wholly free when [`Arena::release`] last looked.
const RESTING: u8 = 2;

/// A range of address space cut into frames.
pub struct Arena {
    base: NonNull<u8>,
    regions: Box<[Region]>,
    /// Bit set: the region may have a free frame. A hint; `regions[..].free` is the truth.
    summary: Box<[AtomicU64]>,
    /// Number of handles to each frame; 0 when free.
    refs: Box<[AtomicU32]>,
    /// Bytes charged to a budget; dropping a frame's last handle subtracts its bytes.
    charged: Arc<AtomicUsize>,
    touched_frames: AtomicUsize,
    /// Frames taken and not given back.
    live: AtomicUsize,
}

// SAFETY: the mapping is owned by the arena; access to frames' bytes is governed by Frame (see there), everything
// else is atomics.
unsafe impl Send for Arena {}
// SAFETY: as for Send.
unsafe impl Sync for Arena {}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena").field("regions", &self.regions.len()).finish_non_exhaustive()
    }
}

impl Arena {
    /// Reserves address space for at least `frames` frames. No memory is used until frames are taken. Dropping a
    /// frame's last handle subtracts [`FRAME`] from `charged`.
    ///
    /// # Errors
    /// If the kernel refuses the mapping, or there are more frames than slot numbers.
    pub fn new(frames: usize, charged: Arc<AtomicUsize>) -> Result<Arc<Arena>, ArenaError> {
        let count = frames.div_ceil(REGION_FRAMES).max(1);
        let frames = count * REGION_FRAMES;
        if u32::try_from(frames).is_err() {
            return Err(ArenaError::TooLarge(frames));
        }
        let len = count * REGION;
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
        let raw = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|e| ArenaError::Map(len, e.into()))?;
        for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // One touch of a huge page would commit 2 MiB; frames belong neither in core dumps nor in children.
            // SAFETY: the range is the mapping just made, and none of these changes its contents.
            let _ = unsafe { rustix::mm::madvise(raw, len, advice) };
        }
        let summary = (0..count.div_ceil(64)).map(|word| {
            let here = (count - word * 64).min(64);
            AtomicU64::new(if here == 64 { u64::MAX } else { (1 << here) - 1 })
        });
        Ok(Arc::new(Arena {
            base: NonNull::new(raw.cast()).expect("mmap never returns null"),
            regions: (0..count)
                .map(|_| Region {
                    free: AtomicU64::new(u64::MAX),
                    touched: AtomicU64::new(0),
                    memory: AtomicU8::new(EMPTY),
                })
                .collect(),
            summary: summary.collect(),
            refs: (0..frames).map(|_| AtomicU32::new(0)).collect(),
            charged,
            touched_frames: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
        }))
    }

    /// Takes a frame. Its bytes are those that its last owner left: the caller overwrites or zeroes all of them before
    /// others may see them (R53). `None` if all frames are taken.
    pub fn take(self: &Arc<Self>) -> Option<Frame> {
        let slot = self.take_from_summary().or_else(|| self.take_from_any())?;
        self.refs[slot].store(1, Ordering::Relaxed);
        Some(Frame { arena: self.clone(), slot: u32::try_from(slot).expect("checked in new") })
    }

    fn take_from_summary(&self) -> Option<usize> {
        for (w, word) in self.summary.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                let r = w * 64 + bits.trailing_zeros() as usize;
                if let Some(slot) = self.take_in_region(r) {
                    return Some(slot);
                }
                bits &= bits - 1;
            }
        }
        None
    }

    /// The summary lags while other threads take and free; the regions do not.
    fn take_from_any(&self) -> Option<usize> {
        (0..self.regions.len()).find_map(|r| self.take_in_region(r))
    }

    fn take_in_region(&self, r: usize) -> Option<usize> {
        let region = &self.regions[r];
        let mut free = region.free.load(Ordering::Relaxed);
        while free != 0 {
            let bit = free.trailing_zeros() as usize;
            let left = free & (free - 1);
            // Acquire: accesses by the frame's last owner and by a release() come before ours.
            match region.free.compare_exchange_weak(free, left, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    if left == 0 {
                        self.note_full(r);
                    }
                    if region.memory.load(Ordering::Relaxed) != USED
                        && region.memory.swap(USED, Ordering::Relaxed) == EMPTY
                    {
                        self.touch(r, u64::MAX);
                        self.populate(r);
                    } else {
                        self.touch(r, 1 << bit);
                    }
                    self.live.fetch_add(1, Ordering::Relaxed);
                    return Some(r * REGION_FRAMES + bit);
                }
                Err(now) => free = now,
            }
        }
        None
    }

    fn touch(&self, r: usize, frames: u64) {
        let touched = &self.regions[r].touched;
        if touched.load(Ordering::Relaxed) & frames != frames {
            let new = frames & !touched.fetch_or(frames, Ordering::Relaxed);
            self.touched_frames.fetch_add(new.count_ones() as usize, Ordering::Relaxed);
        }
    }

    /// Drops the memory of frames of region `r` that the caller has taken out of `free`.
    fn drop_memory(&self, r: usize, frames: u64) {
        let gone = frames & self.regions[r].touched.fetch_and(!frames, Ordering::Relaxed);
        self.touched_frames.fetch_sub(gone.count_ones() as usize, Ordering::Relaxed);
        let mut rest = gone;
        while rest != 0 {
            let first = rest.trailing_zeros() as usize;
            let run = (!(rest >> first)).trailing_zeros() as usize;
            rest &= !(if run == 64 { u64::MAX } else { ((1 << run) - 1) << first });
            // SAFETY: the frames are free and were taken by the caller, so there is no reference into the range.
            let _ = unsafe {
                let start = self.base.as_ptr().add(r * REGION + first * FRAME);
                rustix::mm::madvise(start.cast(), run * FRAME, Advice::LinuxDontNeed)
            };
        }
    }

    fn note_full(&self, r: usize) {
        self.summary[r / 64].fetch_and(!(1 << (r % 64)), Ordering::Relaxed);
        if self.regions[r].free.load(Ordering::Relaxed) != 0 {
            self.summary[r / 64].fetch_or(1 << (r % 64), Ordering::Relaxed);
        }
    }

    /// One call instead of 64 page faults; if the kernel has no such call the faults come one by one.
    fn populate(&self, r: usize) {
        // SAFETY: the range is one region of our own mapping; populating never changes bytes.
        let _ = unsafe {
            rustix::mm::madvise(self.base.as_ptr().add(r * REGION).cast(), REGION, Advice::LinuxPopulateWrite)
        };
    }

    /// Populates the region that frames will soon be taken from, if the one before it is running out: for a thread that
    /// has nothing better to do, while others fill frames. True if it did.
    pub fn populate_ahead(&self) -> bool {
        let bits = self.summary.iter().enumerate().flat_map(|(w, word)| {
            let mut bits = word.load(Ordering::Relaxed);
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(w * 64 + bit)
            })
        });
        for r in bits.take(2) {
            let region = &self.regions[r];
            if region.memory.load(Ordering::Relaxed) != EMPTY {
                if region.free.load(Ordering::Relaxed).count_ones() as usize > REGION_FRAMES / 2 {
                    return false;
                }
                continue;
            }
            // A thread that takes a frame of it meanwhile finds it populated, or has a few faults.
            let claimed = region.memory.compare_exchange(EMPTY, USED, Ordering::Relaxed, Ordering::Relaxed);
            if claimed.is_ok() {
                self.touch(r, u64::MAX);
                self.populate(r);
            }
            return claimed.is_ok();
        }
        false
    }

    fn give_back(&self, slot: usize) {
        let r = slot / REGION_FRAMES;
        // Release: our last reads and writes of the bytes come before the next owner's.
        let before = self.regions[r].free.fetch_or(1 << (slot % REGION_FRAMES), Ordering::Release);
        if before == 0 {
            self.summary[r / 64].fetch_or(1 << (r % 64), Ordering::Relaxed);
        }
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.charged.fetch_sub(FRAME, Ordering::Release);
    }

    /// Gives the memory of regions back to the kernel that are wholly free, and were so at the last call already:
    /// frames freed a moment ago are often wanted again, and taking memory anew costs as much as filling it. Returns
    /// the bytes given back.
    pub fn release(&self) -> usize {
        let mut released = 0;
        for (r, region) in self.regions.iter().enumerate() {
            if region.memory.load(Ordering::Relaxed) == EMPTY
                || region.free.compare_exchange(u64::MAX, 0, Ordering::Acquire, Ordering::Relaxed).is_err()
            {
                continue;
            }
            if region.memory.swap(RESTING, Ordering::Relaxed) == RESTING {
                self.drop_memory(r, u64::MAX);
                region.memory.store(EMPTY, Ordering::Relaxed);
                released += REGION;
            }
            region.free.store(u64::MAX, Ordering::Release);
            self.summary[r / 64].fetch_or(1 << (r % 64), Ordering::Relaxed);
        }
        released
    }

    /// Gives the memory of free frames back at once, wherever they lie, the highest first, until it is `bytes` or a
    /// little more: for when that memory is wanted elsewhere. Returns the bytes given back.
    pub fn trim(&self, bytes: usize) -> usize {
        let mut trimmed = 0;
        for (r, region) in self.regions.iter().enumerate().rev() {
            if trimmed >= bytes {
                break;
            }
            let idle = region.free.load(Ordering::Relaxed) & region.touched.load(Ordering::Relaxed);
            if idle == 0 {
                continue;
            }
            // Acquire: as in take_in_region. Frames that other threads took meanwhile are not ours.
            let ours = idle & region.free.fetch_and(!idle, Ordering::Acquire);
            self.drop_memory(r, ours);
            trimmed += ours.count_ones() as usize * FRAME;
            region.free.fetch_or(ours, Ordering::Release);
            self.summary[r / 64].fetch_or(1 << (r % 64), Ordering::Relaxed);
        }
        trimmed
    }

    /// Bytes of frames that may hold memory: the most that the arena costs.
    pub fn touched_bytes(&self) -> usize {
        self.touched_frames.load(Ordering::Relaxed) * FRAME
    }

    /// Bytes of frames that are taken.
    pub fn live_bytes(&self) -> usize {
        self.live.load(Ordering::Relaxed) * FRAME
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: every Frame holds an Arc of the arena, so none is left; the mapping is ours alone.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.regions.len() * REGION) };
    }
}

/// A handle to the bytes of one frame. Handles share like `Arc`: [`Frame::share`] makes another, bytes can be
/// changed only through the last one.
pub struct Frame {
    arena: Arc<Arena>,
    slot: u32,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({})", self.slot)
    }
}

impl Frame {
    fn refs(&self) -> &AtomicU32 {
        &self.arena.refs[self.slot as usize]
    }

    fn ptr(&self) -> *mut u8 {
        // SAFETY: slot < frames of the arena, so the offset stays inside the mapping.
        unsafe { self.arena.base.as_ptr().add(self.slot as usize * FRAME) }
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8; FRAME] {
        // SAFETY: the frame is mapped and taken while a handle exists. Bytes change only through bytes_mut, which
        // needs the only handle by &mut, so no change can happen while this borrow lives.
        unsafe { &*self.ptr().cast() }
    }

    /// Returns the frame's bytes to change, if this is the only handle.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8; FRAME]> {
        // Acquire pairs with the Release of a dropped handle: its reads are over.
        if self.refs().load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: one handle exists, it is borrowed mutably, and a new one can only come from share(&self), which
        // that borrow excludes.
        Some(unsafe { &mut *self.ptr().cast() })
    }

    /// Makes another handle to the same bytes.
    pub fn share(&self) -> Frame {
        self.refs().fetch_add(1, Ordering::Relaxed);
        Frame { arena: self.arena.clone(), slot: self.slot }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if self.refs().fetch_sub(1, Ordering::Release) == 1 {
            // Pairs with the Release of the other handles' drops.
            std::sync::atomic::fence(Ordering::Acquire);
            self.arena.give_back(self.slot as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(frames: usize) -> (Arc<Arena>, Arc<AtomicUsize>) {
        let charged = Arc::new(AtomicUsize::new(frames * FRAME));
        (Arena::new(frames, charged.clone()).unwrap(), charged)
    }

    #[test]
    fn hands_out_every_frame_once() {
        let (arena, charged) = arena(200);
        let mut frames = Vec::new();
        while let Some(f) = arena.take() {
            frames.push(f);
        }
        assert_eq!(frames.len(), 256, "rounded up to whole regions");
        let mut slots: Vec<_> = frames.iter().map(|f| f.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 256);
        charged.store(256 * FRAME, Ordering::Relaxed);
        drop(frames);
        assert_eq!(charged.load(Ordering::Relaxed), 0);
        assert!(arena.take().is_some());
    }

    #[test]
    fn shared_frames_cannot_be_changed() {
        let (arena, charged) = arena(64);
        let mut a = arena.take().unwrap();
        a.bytes_mut().unwrap()[0] = 9;
        let b = a.share();
        assert!(a.bytes_mut().is_none());
        assert_eq!(b.bytes()[0], 9);
        let before = charged.load(Ordering::Relaxed);
        drop(b);
        assert_eq!(charged.load(Ordering::Relaxed), before, "only the last handle gives the frame back");
        assert!(a.bytes_mut().is_some());
    }

    #[test]
    fn populates_one_region_ahead_and_no_more() {
        let (arena, _) = arena(64 * 4);
        assert!(arena.populate_ahead(), "the first");
        assert!(!arena.populate_ahead(), "it is all free");
        let mut frames: Vec<_> = (0..40).map(|_| arena.take().unwrap()).collect();
        assert_eq!(arena.touched_bytes(), 64 * FRAME);
        assert!(
            arena.populate_ahead() && !arena.populate_ahead(),
            "the second, once the first is running out"
        );
        assert_eq!(arena.touched_bytes(), 128 * FRAME);
        frames.extend((0..88).map(|_| arena.take().unwrap()));
        assert_eq!(arena.touched_bytes(), 128 * FRAME, "taken as they are");
        drop(frames);
        arena.release();
        assert_eq!(arena.release(), 128 * FRAME, "what was populated goes back as all");
        assert_eq!(arena.touched_bytes(), 0);
    }

    #[test]
    fn releases_only_free_regions() {
        let (arena, _) = arena(128);
        let mut frames: Vec<_> = (0..128).map(|_| arena.take().unwrap()).collect();
        for f in &mut frames {
            f.bytes_mut().unwrap().fill(1);
        }
        assert_eq!(arena.touched_bytes(), 2 * REGION);
        frames.truncate(64);
        assert_eq!(arena.release(), 0, "just freed: it may be wanted again");
        assert_eq!(arena.release(), REGION);
        assert_eq!(arena.touched_bytes(), REGION);
        assert!(frames.iter().all(|f| f.bytes().iter().all(|&b| b == 1)));
        assert!(arena.take().unwrap().bytes().iter().all(|&b| b == 0), "released memory comes back zeroed");
    }

    #[test]
    fn trims_single_free_frames() {
        let (arena, _) = arena(128);
        let mut frames: Vec<_> = (0..128).map(|_| arena.take().unwrap()).collect();
        for f in &mut frames {
            f.bytes_mut().unwrap().fill(1);
        }
        let mut keep = 0..;
        frames.retain(|_| keep.next().unwrap() % 2 == 0);
        assert_eq!((arena.live_bytes(), arena.touched_bytes()), (64 * FRAME, 128 * FRAME));
        assert_eq!(arena.trim(usize::MAX), 64 * FRAME);
        assert_eq!(arena.touched_bytes(), 64 * FRAME);
        assert!(frames.iter().all(|f| f.bytes().iter().all(|&b| b == 1)), "frames in use keep their bytes");
        assert!(arena.take().unwrap().bytes().iter().all(|&b| b == 0));
    }

    #[test]
    fn threads_never_share_a_frame() {
        let (arena, charged) = arena(256);
        charged.store(usize::MAX / 2, Ordering::Relaxed);
        std::thread::scope(|s| {
            for t in 0..4u8 {
                let arena = &arena;
                s.spawn(move || {
                    for round in 0..2_000 {
                        let mut held: Vec<_> = (0..16).filter_map(|_| arena.take()).collect();
                        for f in &mut held {
                            f.bytes_mut().unwrap().fill(t);
                        }
                        if round % 64 == 0 {
                            arena.release();
                            arena.trim(usize::MAX);
                        }
                        assert!(held.iter().all(|f| f.bytes().iter().all(|&b| b == t)));
                    }
                });
            }
        });
    }
}
