//! The CPU layer: a loaded magazine for each CPU or thread, used without a lock.
//!
//! Per CPU where the C library registered restartable sequences, else per thread (see [`CpuMode`]). Both keep magazines
//! in [`Slot`]s. They differ in how a thread finds its slot, and in how a reaper keeps the owner out of a slot.

pub(crate) mod depot;
mod magazine;
#[cfg(all(target_arch = "x86_64", not(feature = "shuttle")))]
mod rseq;
#[cfg(not(all(target_arch = "x86_64", not(feature = "shuttle"))))]
#[path = "no_rseq.rs"]
mod rseq;
mod thread;

use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

pub(crate) use magazine::{Magazine, Slot, nothing};

use crate::sync::atomic::Ordering;

/// Which magazines a thread uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuMode {
    /// One magazine per CPU, by restartable sequences.
    Cpu,
    /// One magazine per thread.
    Thread,
    /// No magazines: every operation takes the cache's lock.
    Off,
}

#[derive(Clone, Copy)]
struct Machine {
    mode: CpuMode,
    /// Offset of the thread's `struct rseq` from the thread pointer.
    rseq: isize,
    slots: usize,
    /// The membarrier(2) command that lets a reaper into other slots; `None` if the kernel has none.
    barrier: Option<libc::c_int>,
}

const BARRIER: libc::c_int = 1 << 3;
const REGISTER_BARRIER: libc::c_int = 1 << 4;
const BARRIER_RSEQ: libc::c_int = 1 << 7;
const REGISTER_BARRIER_RSEQ: libc::c_int = 1 << 8;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier(2) takes three integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

static MACHINE: OnceLock<Machine> = OnceLock::new();

fn machine() -> Machine {
    *MACHINE.get_or_init(|| {
        Machine::with(match std::env::var("OVERSPILL_SLAB_CPU").as_deref() {
            Ok("off") => CpuMode::Off,
            Ok("thread") => CpuMode::Thread,
            _ => CpuMode::Cpu,
        })
    })
}

impl Machine {
    /// The requested mode, or the next one that this machine supports.
    fn with(mode: CpuMode) -> Machine {
        if mode == CpuMode::Off {
            return Machine { mode, rseq: 0, slots: 0, barrier: None };
        }
        if mode == CpuMode::Cpu
            && let Some(rseq) = rseq::offset()
            && membarrier(REGISTER_BARRIER_RSEQ)
        {
            // SAFETY: sysconf(3) takes and returns integers.
            let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
            let slots = usize::try_from(cpus).unwrap_or(1).max(1);
            return Machine { mode: CpuMode::Cpu, rseq, slots, barrier: Some(BARRIER_RSEQ) };
        }
        let barrier = membarrier(REGISTER_BARRIER).then_some(BARRIER);
        Machine { mode: CpuMode::Thread, rseq: 0, slots: thread::THREADS, barrier }
    }
}

/// Chooses the mode of this process's caches, whatever the environment says. Returns false, and changes nothing, if a
/// mode was chosen or used before.
pub fn choose_cpu_mode(mode: CpuMode) -> bool {
    MACHINE.set(Machine::with(mode)).is_ok()
}

/// The mode of this process's caches. `OVERSPILL_SLAB_CPU` (`thread`, `off`) in the environment overrides the default.
pub fn cpu_mode() -> CpuMode {
    machine().mode
}

/// The slots of one cache.
pub(crate) struct CpuLayer {
    /// Points to `count` slots.
    slots: *mut Slot,
    /// 0 without magazines.
    count: usize,
    rseq: isize,
    mode: CpuMode,
    barrier: Option<libc::c_int>,
}

impl CpuLayer {
    pub(crate) fn off() -> Self {
        CpuLayer { slots: null_mut(), count: 0, rseq: 0, mode: CpuMode::Off, barrier: None }
    }

    /// The number of slots that a cache needs.
    pub(crate) fn slots_needed() -> usize {
        machine().slots
    }

    /// # Safety
    /// `slots` is aligned, has room for [`CpuLayer::slots_needed`], and outlives the layer.
    pub(crate) unsafe fn new(slots: *mut Slot) -> Self {
        let Machine { mode, rseq, slots: count, barrier } = machine();
        for i in 0..count {
            // SAFETY: by contract.
            unsafe { slots.add(i).write(Slot::new()) };
        }
        CpuLayer { slots, count, rseq, mode, barrier }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.count > 0
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        if self.count == 0 {
            return &[];
        }
        // SAFETY: by the contract of `new`, which wrote `count` slots.
        unsafe { std::slice::from_raw_parts(self.slots, self.count) }
    }

    /// Pops an object from the loaded magazine of this CPU or thread; `None` if it is empty.
    #[inline(always)]
    pub(crate) fn pop(&self) -> Option<NonNull<u8>> {
        // SAFETY: by the contract of `new`; the mode says whether these are slots of CPUs or of threads.
        NonNull::new(unsafe {
            if self.mode == CpuMode::Cpu {
                rseq::pop(self.rseq, self.slots, self.count)
            } else {
                thread::pop(self.slots, self.count)
            }
        })
    }

    /// Pushes an object into the loaded magazine of this CPU or thread; returns false if it is full.
    ///
    /// # Safety
    /// The object is of this cache, and the caller owns it.
    #[inline(always)]
    pub(crate) unsafe fn push(&self, object: NonNull<u8>) -> bool {
        // SAFETY: as in `pop`.
        unsafe {
            if self.mode == CpuMode::Cpu {
                rseq::push(self.rseq, self.slots, self.count, object.as_ptr())
            } else {
                thread::push(self.slots, self.count, object.as_ptr())
            }
        }
    }

    /// The number of this CPU's or thread's slot. A thread may migrate at once, and then the number is another CPU's.
    pub(crate) fn here(&self) -> Option<usize> {
        let number = match self.mode {
            CpuMode::Cpu => rseq::cpu(self.rseq),
            CpuMode::Thread => thread::number(),
            CpuMode::Off => return None,
        };
        (number < self.count).then_some(number)
    }

    /// Loads `new` in place of `old`, which the caller then holds. Returns false if `old` is not loaded or we migrated.
    ///
    /// # Safety
    /// `number` came from [`CpuLayer::here`]; the caller holds the depot's lock and `new`.
    pub(crate) unsafe fn load(&self, number: usize, old: *mut Magazine, new: *mut Magazine) -> bool {
        if self.mode == CpuMode::Cpu {
            // SAFETY: by contract.
            return unsafe { rseq::load(self.rseq, self.slots, number, old, new) };
        }
        // A thread keeps its slot until it ends, and the depot's lock keeps reapers out.
        let slot = &self.slots()[number];
        if slot.loaded.load(Ordering::Relaxed) != old {
            return false;
        }
        slot.loaded.store(new, Ordering::Release);
        true
    }

    /// Runs `work` while every loaded magazine is in its slot's `held`, where no other thread uses it. Returns false,
    /// without running `work`, if membarrier(2) does not work on this machine.
    ///
    /// # Safety
    /// The caller holds the depot's lock.
    pub(crate) unsafe fn with_all_held(&self, work: impl FnOnce()) -> bool {
        let Some(barrier) = self.barrier else { return false };
        for slot in self.slots() {
            slot.held.store(slot.loaded.swap(nothing(), Ordering::AcqRel), Ordering::Relaxed);
        }
        let alone = membarrier(barrier);
        if alone {
            for slot in self.slots() {
                while slot.busy.load(Ordering::Acquire) != 0 {
                    crate::sync::pause();
                }
            }
            work();
        }
        for slot in self.slots() {
            slot.loaded.store(slot.held.swap(nothing(), Ordering::Relaxed), Ordering::Release);
        }
        alone
    }
}
