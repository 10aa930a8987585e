//! Settings of a pager's process in the kernel and the C library.

use std::io;
use std::thread::JoinHandle;

/// Asks the kernel not to enter file systems or swap from this thread's own allocations
/// (`PR_SET_IO_FLUSHER`): a thread that serves reclaim must not wait for reclaim. Children inherit it.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE.
pub fn set_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this prctl takes numbers only and touches no memory of ours.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Limits the C library's allocator to two heaps, instead of several per core: freed memory of many arenas is
/// rarely given back. Call before threads start.
pub fn limit_malloc_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes numbers only; called before other threads allocate, as its manual asks.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        // Blocks above this size are mapped on their own and go back to the kernel when freed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1024 * 1024);
    }
}

/// Gives freed heap memory back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim locks the allocator itself and has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Spawns a thread whose panic ends the process: a mount that answers ENOTCONN is better than one that hangs because a
/// thread is gone.
///
/// # Errors
/// If the system gives no more threads.
pub fn spawn_or_die<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let _dies = DieOnUnwind;
        run()
    })
}

/// Aborts when dropped by a panic. Allocates nothing and prints nothing: either may be the cause of the panic.
struct DieOnUnwind;

impl Drop for DieOnUnwind {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Makes a panic of any thread end the process within a second. A timer whose signal kills is started before the
/// message is printed, so that neither a log that blocks nor an allocator that hangs keeps the process alive.
pub fn die_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        kill_after_a_second();
        say(panic);
        std::process::abort();
    }));
}

fn kill_after_a_second() {
    // SAFETY: sigemptyset and sigaddset write to a set of ours that outlives them; the other calls take numbers and
    // that set only. All are async-signal-safe. No thread of a process that calls `die_on_panic` has another use of
    // SIGALRM.
    unsafe {
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        let mut set = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::alarm(1);
    }
}

/// Keeps all descriptors but the three standard ones from child programs. Our own are close-on-exec already, inherited
/// ones need not be, and a child that lives on would hold a caller's lock or pipe for ever.
///
/// # Errors
/// ENOSYS before Linux 5.11.
pub fn keep_descriptors_from_children() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    let (first, last): (libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX);
    // SAFETY: with this flag no descriptor is closed, only marked; the call takes numbers.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a write beyond the process's limit on file sizes an error (EFBIG) and not the end of the process.
pub fn survive_file_size_limit() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
