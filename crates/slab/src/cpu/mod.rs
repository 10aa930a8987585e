//! The CPU layer: a loaded magazine for each CPU or thread, reached without a lock.
//!
//! Per CPU by restartable sequences where the C library registered them, else per thread (see [`CpuMode`]). Both keep
//! their magazines in [`Slot`]s; what differs is whose slot is mine, and how a reaper makes sure that nobody is inside.

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

/// Whose magazines are whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuMode {
    /// A magazine a CPU, by restartable sequences.
    Cpu,
    /// A magazine a thread.
    Thread,
    /// No magazines: every operation takes the cache's lock.
    Off,
}

#[derive(Clone, Copy)]
struct Machine {
    mode: CpuMode,
    /// Of the thread's `struct rseq`.
    rseq: isize,
    slots: usize,
    /// The membarrier(2) command by which a reaper gets into slots of others; `None` when it cannot.
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
    /// The mode that was asked for, or the next that this machine has.
    fn with(mode: CpuMode) -> Machine {
        if mode == CpuMode::Off {
            return Machine { mode, rseq: 0, slots: 0, barrier: None };
        }
        if mode == CpuMode::Cpu
            && let Some(rseq) = rseq::offset()
            && membarrier(REGISTER_BARRIER_RSEQ)
        {
            // SAFETY: asks for a number.
            let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
            let slots = usize::try_from(cpus).unwrap_or(1).max(1);
            return Machine { mode: CpuMode::Cpu, rseq, slots, barrier: Some(BARRIER_RSEQ) };
        }
        let barrier = membarrier(REGISTER_BARRIER).then_some(BARRIER);
        Machine { mode: CpuMode::Thread, rseq: 0, slots: thread::THREADS, barrier }
    }
}

/// Chooses what caches of this process use, in the environment's place. False, and nothing changed, when a cache has been
/// made already.
pub fn choose_cpu_mode(mode: CpuMode) -> bool {
    MACHINE.set(Machine::with(mode)).is_ok()
}

/// What caches of this process use. `OVERSPILL_SLAB_CPU` (`thread`, `off`) in the environment chooses otherwise.
pub fn cpu_mode() -> CpuMode {
    machine().mode
}

/// The slots of one cache.
pub(crate) struct CpuLayer {
    /// `count` of them.
    slots: *mut Slot,
    /// 0: no magazines.
    count: usize,
    rseq: isize,
    mode: CpuMode,
    barrier: Option<libc::c_int>,
}

impl CpuLayer {
    pub(crate) fn off() -> Self {
        CpuLayer { slots: null_mut(), count: 0, rseq: 0, mode: CpuMode::Off, barrier: None }
    }

    /// How many slots a cache needs.
    pub(crate) fn slots_needed() -> usize {
        machine().slots
    }

    /// # Safety
    /// `slots` has room for [`CpuLayer::slots_needed`], aligned, as long as the layer is used.
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
        // SAFETY: by the contract of `new`.
        unsafe { std::slice::from_raw_parts(self.slots, self.count) }
    }

    /// An object from what is loaded here.
    #[inline(always)]
    pub(crate) fn pop(&self) -> Option<NonNull<u8>> {
        // SAFETY: by the contract of `new`, and the mode says which slots these are.
        NonNull::new(unsafe {
            if self.mode == CpuMode::Cpu {
                rseq::pop(self.rseq, self.slots, self.count)
            } else {
                thread::pop(self.slots, self.count)
            }
        })
    }

    /// Puts an object into what is loaded here; false when there is no room.
    ///
    /// # Safety
    /// The object is the caller's to give, and of this cache.
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

    /// The number of the slot that is ours now; a thread may be moved to another CPU at once.
    pub(crate) fn here(&self) -> Option<usize> {
        let number = match self.mode {
            CpuMode::Cpu => rseq::cpu(self.rseq),
            CpuMode::Thread => thread::number(),
            CpuMode::Off => return None,
        };
        (number < self.count).then_some(number)
    }

    /// Loads `new` in place of `old`, which then is the caller's. False when the slot is not ours any more.
    ///
    /// # Safety
    /// `number` came from [`CpuLayer::here`], the depot's lock is held, `new` is the caller's.
    pub(crate) unsafe fn load(&self, number: usize, old: *mut Magazine, new: *mut Magazine) -> bool {
        if self.mode == CpuMode::Cpu {
            // SAFETY: by contract.
            return unsafe { rseq::load(self.rseq, self.slots, number, old, new) };
        }
        // A thread's slot is ours as long as we live; the lock keeps reapers out.
        let slot = &self.slots()[number];
        if slot.loaded.load(Ordering::Relaxed) != old {
            return false;
        }
        slot.loaded.store(new, Ordering::Release);
        true
    }

    /// Runs `work` while every loaded magazine is in its slot's `held`, and nobody else can use it. False, and not run,
    /// when this machine has no way to do that.
    ///
    /// # Safety
    /// The depot's lock is held.
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
