//! Caches of chunks under several replacement policies, for simulation: plain and slow.

use std::collections::{HashMap, VecDeque};

/// Replacement policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fifo,
    /// The pager of overspill: two lists and one bit.
    Ours,
    Lru,
    /// 2Q (Johnson, Shasha 1994).
    TwoQ,
    /// Multi-queue (Zhou, Philbin, Li 2001), made for second-level caches.
    Mq,
    /// S3-FIFO (Yang and others 2023), with one bit.
    S3Fifo,
}

impl Kind {
    pub(super) const ALL: [Kind; 6] = [Kind::Fifo, Kind::Ours, Kind::Lru, Kind::TwoQ, Kind::Mq, Kind::S3Fifo];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Fifo => "FIFO",
            Kind::Ours => "ours",
            Kind::Lru => "LRU",
            Kind::TwoQ => "2Q",
            Kind::Mq => "MQ",
            Kind::S3Fifo => "S3-FIFO",
        }
    }
}

/// The state of a chunk in memory.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// The queue it is on.
    queue: usize,
    /// Its latest place in that queue; older places of the chunk are void.
    stamp: u64,
    /// Reads that the policy has counted.
    reads: u32,
    /// MQ: the time at which it falls a queue lower.
    expires: u64,
}

/// A queue of chunks and stamps. An entry is void if its stamp is not the chunk's.
type Queue = VecDeque<(u64, u64)>;

/// A cache with room for so many chunks.
pub(super) struct Cache {
    kind: Kind,
    capacity: usize,
    here: HashMap<u64, Entry>,
    queues: Vec<Queue>,
    lens: Vec<usize>,
    /// Chunks that left recently, with their reads.
    ghosts: HashMap<u64, u32>,
    ghost_order: VecDeque<u64>,
    now: u64,
}

/// Queues of MQ, one for each power of two of reads.
const LEVELS: usize = 8;

impl Cache {
    pub(super) fn new(kind: Kind, capacity: usize) -> Cache {
        Cache {
            kind,
            capacity,
            here: HashMap::new(),
            queues: vec![Queue::new(); LEVELS],
            lens: vec![0; LEVELS],
            ghosts: HashMap::new(),
            ghost_order: VecDeque::new(),
            now: 0,
        }
    }

    fn append(&mut self, chunk: u64, queue: usize) {
        self.now += 1;
        let entry = self.here.entry(chunk).or_default();
        (entry.queue, entry.stamp) = (queue, self.now);
        self.queues[queue].push_back((chunk, self.now));
        self.lens[queue] += 1;
    }

    fn take_off(&mut self, chunk: u64) {
        if let Some(entry) = self.here.get_mut(&chunk) {
            self.lens[entry.queue] -= 1;
            entry.stamp = 0;
        }
    }

    fn move_to(&mut self, chunk: u64, queue: usize) {
        self.take_off(chunk);
        self.append(chunk, queue);
    }

    /// The oldest chunk that is still on a queue.
    fn oldest(&mut self, queue: usize) -> Option<u64> {
        while let Some(&(chunk, stamp)) = self.queues[queue].front() {
            if self.here.get(&chunk).is_some_and(|entry| entry.stamp == stamp) {
                return Some(chunk);
            }
            self.queues[queue].pop_front();
        }
        None
    }

    fn leave(&mut self, chunk: u64, remembered: usize) {
        self.take_off(chunk);
        let reads = self.here.remove(&chunk).map_or(0, |entry| entry.reads);
        if remembered == 0 {
            return;
        }
        if self.ghosts.insert(chunk, reads).is_none() {
            self.ghost_order.push_back(chunk);
        }
        while self.ghosts.len() > remembered {
            let Some(oldest) = self.ghost_order.pop_front() else { break };
            self.ghosts.remove(&oldest);
        }
    }

    /// Reads a chunk; returns true if it is in memory.
    pub(super) fn read(&mut self, chunk: u64) -> bool {
        let Some(entry) = self.here.get_mut(&chunk) else { return false };
        entry.reads += 1;
        match self.kind {
            Kind::Fifo | Kind::Ours | Kind::S3Fifo => {}
            Kind::Lru => self.move_to(chunk, 0),
            // The first queue holds chunks that came once: a read soon after is not yet a sign of reuse.
            Kind::TwoQ if entry.queue == 0 => {}
            Kind::TwoQ => self.move_to(chunk, 1),
            Kind::Mq => self.climb(chunk),
        }
        true
    }

    fn climb(&mut self, chunk: u64) {
        let Some(entry) = self.here.get_mut(&chunk) else { return };
        let level = (entry.reads.max(1).ilog2() as usize).min(LEVELS - 1);
        entry.expires = self.now + 2 * self.capacity as u64;
        self.move_to(chunk, level);
    }

    /// Writes a chunk: it enters memory, or replaces its older version.
    pub(super) fn write(&mut self, chunk: u64) {
        if self.here.contains_key(&chunk) {
            self.rewrite(chunk);
            return;
        }
        while self.here.len() >= self.capacity {
            self.evict();
        }
        let ghost = self.ghosts.remove(&chunk);
        if ghost.is_some() {
            self.ghost_order.retain(|known| *known != chunk);
        }
        match (self.kind, ghost) {
            (Kind::TwoQ | Kind::S3Fifo, Some(_)) => self.append(chunk, 1),
            (Kind::Mq, ghost) => {
                self.append(chunk, 0);
                let reads = ghost.unwrap_or(0) + 1;
                self.here.entry(chunk).or_default().reads = reads;
                self.climb(chunk);
            }
            _ => self.append(chunk, 0),
        }
    }

    fn rewrite(&mut self, chunk: u64) {
        match self.kind {
            Kind::Fifo | Kind::Ours | Kind::Lru => self.move_to(chunk, 0),
            Kind::TwoQ | Kind::S3Fifo => {
                let queue = self.here[&chunk].queue;
                self.move_to(chunk, queue);
            }
            Kind::Mq => self.climb(chunk),
        }
        if matches!(self.kind, Kind::Ours) {
            self.here.entry(chunk).or_default().reads = 0;
        }
    }

    fn evict(&mut self) {
        match self.kind {
            Kind::Fifo | Kind::Lru => self.evict_oldest(0, 0),
            Kind::Ours => self.evict_ours(),
            Kind::TwoQ => {
                let first = if self.lens[0] > self.capacity / 4 || self.lens[1] == 0 { 0 } else { 1 };
                // Only chunks of the first queue are remembered.
                self.evict_oldest(first, if first == 0 { self.capacity / 2 } else { 0 });
            }
            Kind::Mq => self.evict_mq(),
            Kind::S3Fifo => self.evict_s3(),
        }
    }

    fn evict_oldest(&mut self, queue: usize, remembered: usize) {
        if let Some(chunk) = self.oldest(queue) {
            self.leave(chunk, remembered);
        }
    }

    /// Evicts as `Queues::next_victim` does.
    fn evict_ours(&mut self) {
        loop {
            if self.lens[0] * 2 < self.lens[1]
                && let Some(chunk) = self.oldest(1)
            {
                self.move_to(chunk, 0);
            }
            let Some(chunk) = self.oldest(0).or_else(|| self.oldest(1)) else { return };
            let Some(entry) = self.here.get_mut(&chunk) else { return };
            if std::mem::take(&mut entry.reads) == 0 {
                return self.leave(chunk, 0);
            }
            self.move_to(chunk, 1);
        }
    }

    fn evict_mq(&mut self) {
        for level in 1..LEVELS {
            if let Some(chunk) = self.oldest(level)
                && self.here[&chunk].expires < self.now
            {
                self.move_to(chunk, level - 1);
                let expires = self.now + 2 * self.capacity as u64;
                self.here.entry(chunk).or_default().expires = expires;
            }
        }
        if let Some(level) = (0..LEVELS).find(|level| self.lens[*level] > 0) {
            self.evict_oldest(level, 4 * self.capacity);
        }
    }

    fn evict_s3(&mut self) {
        loop {
            let small = self.lens[0] > self.capacity / 10 || self.lens[1] == 0;
            let Some(chunk) = self.oldest(usize::from(!small)) else { return };
            let Some(entry) = self.here.get_mut(&chunk) else { return };
            if std::mem::take(&mut entry.reads) == 0 {
                return self.leave(chunk, if small { self.capacity } else { 0 });
            }
            self.move_to(chunk, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_cache_holds_more_than_it_may_or_what_never_came() {
        for kind in Kind::ALL {
            let mut cache = Cache::new(kind, 16);
            let mut came = HashSet::new();
            let mut random = 1u64;
            for _ in 0..20_000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let chunk = (random >> 33) % 50;
                if random >> 63 == 0 {
                    cache.write(chunk);
                    came.insert(chunk);
                    assert!(cache.here.contains_key(&chunk), "{kind:?}: what comes is there");
                } else {
                    assert!(!cache.read(chunk) || came.contains(&chunk), "{kind:?}");
                }
                assert!(cache.here.len() <= 16, "{kind:?}");
                assert_eq!(cache.lens.iter().sum::<usize>(), cache.here.len(), "{kind:?}");
            }
        }
    }

    #[test]
    fn lru_keeps_what_was_used_last() {
        let mut cache = Cache::new(Kind::Lru, 2);
        cache.write(1);
        cache.write(2);
        assert!(cache.read(1));
        cache.write(3);
        assert!(cache.read(1) && !cache.read(2) && cache.read(3));
    }
}
