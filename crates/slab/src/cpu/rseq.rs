//! Slots of CPUs, by restartable sequences. The kernel restarts a sequence whose thread was preempted, migrated or
//! signalled, so one thread at a time uses a slot, without atomic operations. glibc registers them from 2.35 on.
//!
//! Each sequence ends with the one store that commits it; nobody reads its earlier stores before that.

use std::arch::asm;
use std::ffi::c_void;

use super::magazine::{Magazine, Slot};

/// Offset of every thread's `struct rseq` from the thread pointer; `None` if glibc registered none.
pub(super) fn offset() -> Option<isize> {
    // SAFETY: the names are C strings; the symbols, where they exist, are a ptrdiff_t and an unsigned int that never
    // change after start-up.
    unsafe {
        let offset: *const isize = symbol(c"__rseq_offset")?.cast();
        let size: *const u32 = symbol(c"__rseq_size")?.cast();
        if *size == 0 {
            return None;
        }
        let cpu: i32;
        asm!("mov {:e}, dword ptr fs:[{} + 4]", out(reg) cpu, in(reg) *offset, options(nostack, readonly));
        (cpu >= 0).then_some(*offset)
    }
}

fn symbol(name: &std::ffi::CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a C string, looked up among the loaded objects.
    let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!at.is_null()).then_some(at)
}

/// The CPU on which this thread ran a moment ago.
pub(super) fn cpu(offset: isize) -> usize {
    let cpu: u32;
    // SAFETY: reads a field of this thread's registered `struct rseq`.
    unsafe {
        asm!("mov {:e}, dword ptr fs:[{} + 4]", out(reg) cpu, in(reg) offset, options(nostack, readonly));
    }
    cpu as usize
}

/// Announces the sequence from label 3 to 4, which restarts at 2: descriptor, and abort handler with glibc's signature.
macro_rules! sequence {
    ($($line:literal),+ $(,)?) => {
        concat!(
            ".pushsection __rseq_cs, \"aw\", @progbits\n",
            ".balign 32\n",
            "9: .long 0, 0\n",
            ".quad 3f, 4f - 3f, 7f\n",
            ".popsection\n",
            ".pushsection __rseq_failure, \"ax\", @progbits\n",
            ".byte 0x0f, 0xb9, 0x3d\n",
            ".long 0x53053053\n",
            "7: jmp 2f\n",
            ".popsection\n",
            "2:\n",
            "lea {t}, [rip + 9b]\n",
            "mov qword ptr fs:[{rseq} + 8], {t}\n",
            "3:\n",
            $($line, "\n",)+
        )
    };
}

/// Pops an object from this CPU's loaded magazine; null if it is empty.
///
/// # Safety
/// `slots` points to `count` slots of CPUs; `rseq` came from [`offset`].
#[inline(always)]
pub(super) unsafe fn pop(rseq: isize, slots: *mut Slot, count: usize) -> *mut u8 {
    let object: *mut u8;
    // SAFETY: a loaded magazine is alive: it is replaced only on this CPU, or by a reaper that restarts this sequence
    // (membarrier) before it looks inside. The constants are the offsets of Slot's and Magazine's fields; 0xffff is
    // Magazine::POP: one allocation more, one object less.
    unsafe {
        asm!(
            sequence!(
                "xor {object:e}, {object:e}",
                "mov {t:e}, dword ptr fs:[{rseq} + 4]",
                "cmp {t}, {count}",
                "jae 5f",
                "shl {t}, 6",
                "mov {mag}, qword ptr [{slots} + {t}]",
                "mov {q}, qword ptr [{mag}]",
                "movzx {n:e}, {q:x}",
                "test {n:e}, {n:e}",
                "jz 5f",
                "mov {object}, qword ptr [{mag} + 8*{n} + 16]",
                "add {q}, 0xffff",
                "mov qword ptr [{mag}], {q}",
                "4:",
                "5:",
            ),
            object = out(reg) object,
            t = out(reg) _,
            mag = out(reg) _,
            n = out(reg) _,
            q = out(reg) _,
            rseq = in(reg) rseq,
            slots = in(reg) slots,
            count = in(reg) count,
            options(nostack),
        );
    }
    object
}

/// Pushes an object into this CPU's loaded magazine; false if it is full.
///
/// # Safety
/// As for [`pop`]; the caller owns the object.
#[inline(always)]
pub(super) unsafe fn push(rseq: isize, slots: *mut Slot, count: usize, object: *mut u8) -> bool {
    let done: u32;
    // SAFETY: as in `pop`; a count below the capacity leaves room for one more.
    unsafe {
        asm!(
            sequence!(
                "xor {done:e}, {done:e}",
                "mov {t:e}, dword ptr fs:[{rseq} + 4]",
                "cmp {t}, {count}",
                "jae 5f",
                "shl {t}, 6",
                "mov {mag}, qword ptr [{slots} + {t}]",
                "mov {q}, qword ptr [{mag}]",
                "movzx {n:e}, {q:x}",
                "cmp {n:e}, dword ptr [{mag} + 8]",
                "jae 5f",
                "mov qword ptr [{mag} + 8*{n} + 24], {object}",
                "mov {done:e}, 1",
                "inc {q}",
                "mov qword ptr [{mag}], {q}",
                "4:",
                "5:",
            ),
            done = out(reg) done,
            t = out(reg) _,
            mag = out(reg) _,
            n = out(reg) _,
            q = out(reg) _,
            rseq = in(reg) rseq,
            slots = in(reg) slots,
            count = in(reg) count,
            object = in(reg) object,
            options(nostack),
        );
    }
    done != 0
}

/// Loads `new` on CPU `cpu` in place of `old`; false if this thread runs elsewhere or `old` is not loaded.
///
/// # Safety
/// As for [`pop`]; the caller holds the depot's lock and `new`.
pub(super) unsafe fn load(
    rseq: isize,
    slots: *mut Slot,
    cpu: usize,
    old: *mut Magazine,
    new: *mut Magazine,
) -> bool {
    let done: u32;
    // SAFETY: as in `pop`.
    unsafe {
        asm!(
            sequence!(
                "xor {done:e}, {done:e}",
                "mov {t:e}, dword ptr fs:[{rseq} + 4]",
                "cmp {t}, {cpu}",
                "jne 5f",
                "shl {t}, 6",
                "cmp qword ptr [{slots} + {t}], {old}",
                "jne 5f",
                "mov {done:e}, 1",
                "mov qword ptr [{slots} + {t}], {new}",
                "4:",
                "5:",
            ),
            done = out(reg) done,
            t = out(reg) _,
            rseq = in(reg) rseq,
            slots = in(reg) slots,
            cpu = in(reg) cpu,
            old = in(reg) old,
            new = in(reg) new,
            options(nostack),
        );
    }
    done != 0
}
