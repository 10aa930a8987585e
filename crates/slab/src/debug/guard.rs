//! Guarded objects: a sample of allocations. Each lies at the end of a page of its own, before an unreadable page, and
//! is itself unreadable once freed. It is cheap enough for production, and finds some of the faults that verify finds.

use std::fmt::Write as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{MprotectFlags, mprotect};

use super::report::Fault;
use super::trace::Trace;
use crate::PAGE;
use crate::pages::source;

/// Most guarded objects at once. A freed page is used again after all other free pages.
const OBJECTS: usize = 256;
/// A page for the object, and one to guard it.
const STRIDE: usize = 2 * PAGE;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Never,
    Allocated,
    Freed,
}

#[derive(Clone, Copy)]
struct Entry {
    state: State,
    cache: &'static str,
    size: usize,
    object: usize,
    allocated: Trace,
    freed: Trace,
}

struct Entries {
    entries: [Entry; OBJECTS],
    /// A ring of the free places, the longest unused first.
    free: [u16; OBJECTS],
    head: usize,
    len: usize,
}

/// The first page of the region; null until the region is reserved.
static BASE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

static ENTRIES: Mutex<Entries> = Mutex::new(Entries {
    entries: [Entry {
        state: State::Never,
        cache: "",
        size: 0,
        object: 0,
        allocated: Trace::NONE,
        freed: Trace::NONE,
    }; OBJECTS],
    free: [0; OBJECTS],
    head: 0,
    len: 0,
});

fn number(address: usize) -> Option<usize> {
    let base = BASE.load(Ordering::Acquire);
    let offset = address.checked_sub(base.addr()).filter(|_| !base.is_null())?;
    (offset < OBJECTS * STRIDE).then_some(offset / STRIDE)
}

/// Makes a page accessible or inaccessible; returns true if that succeeded.
///
/// # Safety
/// `page` is an object page of the region, and nobody else has its object.
unsafe fn protect(page: NonNull<u8>, open: bool) -> bool {
    let flags = if open { MprotectFlags::READ | MprotectFlags::WRITE } else { MprotectFlags::empty() };
    // SAFETY: by contract.
    unsafe { mprotect(page.as_ptr().cast(), PAGE, flags) }.is_ok()
}

fn region(entries: &mut Entries) -> Option<NonNull<u8>> {
    if let Some(base) = NonNull::new(BASE.load(Ordering::Acquire)) {
        return Some(base);
    }
    let base = source::reserve(OBJECTS * STRIDE)?;
    // SAFETY: just reserved.
    unsafe { mprotect(base.as_ptr().cast(), OBJECTS * STRIDE, MprotectFlags::empty()) }.ok()?;
    for (i, place) in entries.free.iter_mut().enumerate() {
        *place = u16::try_from(i).expect("256");
    }
    entries.len = OBJECTS;
    BASE.store(base.as_ptr(), Ordering::Release);
    Some(base)
}

/// Allocates a guarded object; `None` if it is longer than a page, or no place is free.
pub(crate) fn allocate(cache: &'static str, size: usize, align: usize) -> Option<NonNull<u8>> {
    let room = size.max(1);
    if room > PAGE {
        return None;
    }
    let mut entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let base = region(&mut entries)?;
    let place = usize::from(entries.free[entries.head]);
    // SAFETY: the page of a free place lies in the region, and nobody uses it.
    let object = unsafe {
        let page = base.add(place * STRIDE);
        if entries.len == 0 || !protect(page, true) {
            return None;
        }
        page.add((PAGE - room) & !(align - 1))
    };
    entries.head = (entries.head + 1) % OBJECTS;
    entries.len -= 1;
    entries.entries[place] = Entry {
        state: State::Allocated,
        cache,
        size,
        object: object.addr().get(),
        allocated: Trace::capture(),
        freed: Trace::NONE,
    };
    Some(object)
}

/// A free of a guarded object that cannot be.
pub(crate) struct BadFree {
    pub(crate) fault: Fault,
    place: usize,
}

impl BadFree {
    /// The calls that allocated and freed the object last.
    pub(crate) fn traces(&self) -> (Trace, Trace) {
        let entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = &entries.entries[self.place];
        (entry.allocated, entry.freed)
    }
}

/// Frees a guarded object of a cache; returns false if the object is not guarded.
pub(crate) fn free(cache: &'static str, object: NonNull<u8>) -> Result<bool, BadFree> {
    let Some(place) = number(object.addr().get()) else { return Ok(false) };
    let mut entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = &mut entries.entries[place];
    let fault = match entry.state {
        State::Allocated if entry.object != object.addr().get() => Some(Fault::NotAnObject),
        State::Allocated if entry.cache != cache => Some(Fault::OtherCache),
        State::Allocated => None,
        State::Freed => Some(Fault::DoubleFree),
        State::Never => Some(Fault::NotAnObject),
    };
    if let Some(fault) = fault {
        return Err(BadFree { fault, place });
    }
    entry.state = State::Freed;
    entry.freed = Trace::capture();
    // SAFETY: the caller owned the page's object, and gave it up.
    unsafe { protect(object.sub(object.addr().get() % PAGE), false) };
    let at = (entries.head + entries.len) % OBJECTS;
    entries.free[at] = u16::try_from(place).expect("256");
    entries.len += 1;
    Ok(true)
}

/// A line of text on the stack, for a signal handler.
struct Line {
    bytes: [u8; 1024],
    len: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let n = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&text.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Explains a SIGSEGV on a guarded page on stderr. Allocates nothing and waits for no lock: it may interrupt any code.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t with an address for this signal.
    let address = unsafe { (*info).si_addr() }.addr();
    if let Some(place) = number(address)
        && let Ok(entries) = ENTRIES.try_lock()
    {
        let entry = &entries.entries[place];
        let after = if entry.state == State::Freed { "use after free" } else { "overrun" };
        let mut line = Line { bytes: [0; 1024], len: 0 };
        let _ = writeln!(
            line,
            "slab: {}, {after}, in cache '{}', {} bytes at {:#x}, touched at {address:#x}",
            Fault::Guard,
            entry.cache,
            entry.size,
            entry.object
        );
        let _ = line.write_str("  allocated by ").and_then(|()| entry.allocated.write_raw(&mut line));
        if entry.state == State::Freed {
            let _ = line.write_str("  freed by ").and_then(|()| entry.freed.write_raw(&mut line));
        }
        // SAFETY: writes initialised bytes of our stack to stderr; write(2) may be called in a signal handler.
        let _ = unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.len) };
    }
    // SAFETY: a handler may call signal(2). The access then repeats, and ends the process as it would without us.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// From now on, explains faults on guarded pages on stderr before they end the process.
pub fn install_fault_reports() {
    // SAFETY: an all-zero sigaction is valid, and `on_fault` does only what a signal handler may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
    }
}
