//! What a pager tells the kernel and the C library about itself.

use std::io;

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

/// Keeps the C library's allocator from spreading over one heap per thread: freed memory of many arenas is
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
