//! Several concurrent requests to one file, from one thread (io_uring).
//!
//! A read buffer belongs to the ring and cannot be accessed while its read is under way. A write buffer is shared with
//! the ring, so that it cannot be changed until the write has ended. A ring that is dropped waits for requests under
//! way.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use crate::AlignedBuf;

/// The file's index among registered files: there is one.
const FILE: types::Fixed = types::Fixed(0);

/// Limits on the requests of each kind.
#[derive(Debug, Clone, Copy)]
pub struct RingSize {
    /// Concurrent reads.
    pub reads: usize,
    /// Most bytes of a read.
    pub read_bytes: usize,
    /// Concurrent writes.
    pub writes: usize,
}

/// A request that has ended, and its result: the number of bytes moved, perhaps fewer than asked for.
#[derive(Debug)]
pub enum RingEvent {
    /// The read in this slot; its bytes are in [`Ring::read_buffer`].
    Read(usize, io::Result<usize>),
    /// The write in this slot.
    Write(usize, io::Result<usize>),
}

/// Wakes the thread that waits in [`Ring::wait`].
#[derive(Debug, Clone)]
pub struct RingWaker(Arc<OwnedFd>);

impl RingWaker {
    /// Ends the wait under way, or the next one.
    pub fn wake(&self) {
        // Fails only after 2^64 wake-ups that the ring has not read.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Requests to one file, from one thread: the kernel insists on the thread that made the ring.
pub struct Ring {
    ring: IoUring,
    /// The registered file; kept open for the ring.
    _file: OwnedFd,
    bufs: Vec<AlignedBuf>,
    /// The buffers are registered: the kernel need not look up their pages for each request.
    registered: bool,
    reading: Vec<bool>,
    writing: Vec<Option<Arc<AlignedBuf>>>,
    bell: Arc<OwnedFd>,
    /// Buffer for the bell's count. In a box of its own, because the kernel has its address.
    rung: Box<[u8; 8]>,
    /// A read of the bell is under way.
    listening: bool,
    /// The kernel supports a timeout for waiting.
    bounded: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("reading", &self.reading)
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

const KIND_READ: u64 = 0;
const KIND_WRITE: u64 = 1;
const KIND_BELL: u64 = 2;

fn name(kind: u64, slot: usize) -> u64 {
    kind << 32 | slot as u64
}

impl Ring {
    /// Makes a ring on a duplicate of `file`.
    ///
    /// # Errors
    /// If the kernel has no io_uring or forbids it: containers mostly do.
    pub fn new(file: BorrowedFd<'_>, size: RingSize) -> io::Result<Ring> {
        let file = file.try_clone_to_owned()?;
        let entries = u32::try_from((size.reads + size.writes + 1).next_power_of_two()).unwrap_or(u32::MAX);
        let ring = build(entries)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let mut ring = Ring {
            bounded: ring.params().is_feature_ext_arg(),
            ring,
            _file: file,
            bufs: (0..size.reads).map(|_| AlignedBuf::new(size.read_bytes)).collect(),
            registered: false,
            reading: vec![false; size.reads],
            writing: vec![None; size.writes],
            bell: Arc::new(bell),
            rung: Box::new([0; 8]),
            listening: false,
        };
        let iovecs: Vec<libc::iovec> = ring
            .bufs
            .iter_mut()
            .map(|buf| libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() })
            .collect();
        // SAFETY: the buffers are the ring's own, never move, and are freed after the ring (`Drop` makes sure that
        // nothing is under way then).
        let known = unsafe { ring.ring.submitter().register_buffers(&iovecs) };
        // Refused if too little memory may be locked: then the kernel looks pages up for each request.
        ring.registered = known.is_ok();
        Ok(ring)
    }

    /// Returns a handle that wakes this ring.
    pub fn waker(&self) -> RingWaker {
        RingWaker(self.bell.clone())
    }

    /// Returns a slot that no read uses.
    pub fn free_read(&self) -> Option<usize> {
        self.reading.iter().position(|busy| !busy)
    }

    /// Returns a slot that no write uses.
    pub fn free_write(&self) -> Option<usize> {
        self.writing.iter().position(Option::is_none)
    }

    /// Queues a read of `len` bytes at `offset` of the file. It begins with the next [`Ring::wait`] or
    /// [`Ring::submit`].
    ///
    /// # Panics
    /// If the slot is in use or its buffer too short.
    pub fn read(&mut self, slot: usize, offset: u64, len: usize) {
        assert!(
            !self.reading[slot] && len <= self.bufs[slot].len(),
            "a free slot, and no more than it holds"
        );
        let (at, index) = (self.bufs[slot].as_mut_ptr(), u16::try_from(slot).expect("few slots"));
        let len = u32::try_from(len).expect("buffers are small");
        let entry = if self.registered {
            opcode::ReadFixed::new(FILE, at, len, index).offset(offset).build()
        } else {
            opcode::Read::new(FILE, at, len).offset(offset).build()
        };
        self.reading[slot] = true;
        // SAFETY: the buffer is the ring's, `len` bytes of it at least, and is not touched before the read has ended:
        // `read_buffer` refuses while `reading` is set.
        unsafe { self.push(&entry.user_data(name(KIND_READ, slot))) }
    }

    /// Returns the buffer of a slot without a read under way: it begins with the bytes of the last read.
    ///
    /// # Panics
    /// If a read is under way.
    pub fn read_buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(!self.reading[slot], "the kernel has it");
        &mut self.bufs[slot]
    }

    /// Queues a write of the first `len` bytes of `buf` at `offset`. As [`Ring::read`].
    ///
    /// # Panics
    /// If the slot is in use or the buffer too short.
    pub fn write(&mut self, slot: usize, offset: u64, buf: Arc<AlignedBuf>, len: usize) {
        assert!(self.writing[slot].is_none() && len <= buf.len(), "a free slot, and no more than there is");
        let entry = opcode::Write::new(FILE, buf.as_ptr(), u32::try_from(len).expect("buffers are small"));
        self.writing[slot] = Some(buf);
        let entry = entry.offset(offset).build().user_data(name(KIND_WRITE, slot));
        // SAFETY: the buffer is kept in `writing` until the write has ended. It is shared, so it cannot be changed.
        unsafe { self.push(&entry) }
    }

    /// # Safety
    /// The memory that the entry points to must live, and be left alone, until its completion was seen.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: as the caller promised.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // There is room for every slot, so the queue is full only of entries that were not submitted yet.
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    /// Submits the queued requests.
    ///
    /// # Errors
    /// As the kernel reports. The requests stay queued.
    pub fn submit(&mut self) -> io::Result<()> {
        again(|| self.ring.submit()).map(drop)
    }

    /// Submits the queued requests, waits until a request ends, a [`RingWaker`] rings, or `at_most` has passed, and
    /// passes each request that has ended to `seen`.
    ///
    /// # Errors
    /// If the kernel refuses to wait. Requests that have ended were passed on all the same.
    pub fn wait(&mut self, at_most: Duration, mut seen: impl FnMut(&mut Ring, RingEvent)) -> io::Result<()> {
        self.listen();
        let waited = self.enter(at_most);
        while let Some(event) = self.next_event() {
            seen(self, event);
        }
        waited
    }

    fn listen(&mut self) {
        if self.listening {
            return;
        }
        let entry = opcode::Read::new(types::Fd(self.bell.as_raw_fd()), self.rung.as_mut_ptr(), 8).build();
        self.listening = true;
        // SAFETY: the eight bytes are boxed and not accessed; the bell is open as long as the ring.
        unsafe { self.push(&entry.user_data(name(KIND_BELL, 0))) }
    }

    fn enter(&mut self, at_most: Duration) -> io::Result<()> {
        let waited = again(|| {
            if self.bounded {
                let time = types::Timespec::from(at_most);
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            } else {
                self.ring.submit_and_wait(1)
            }
        });
        match waited {
            // The time has passed; or completions must be taken before more requests are accepted.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            other => other.map(drop),
        }
    }

    fn next_event(&mut self) -> Option<RingEvent> {
        loop {
            let entry = self.ring.completion().next()?;
            let slot = usize::try_from(entry.user_data() & 0xffff_ffff).unwrap_or(0);
            let result =
                usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            match entry.user_data() >> 32 {
                KIND_READ => {
                    self.reading[slot] = false;
                    return Some(RingEvent::Read(slot, result));
                }
                KIND_WRITE => {
                    self.writing[slot] = None;
                    return Some(RingEvent::Write(slot, result));
                }
                _ => self.listening = false,
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.listening || self.reading.contains(&true) || self.writing.iter().any(Option::is_some)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.waker().wake();
        while self.is_busy() {
            if self.enter(Duration::from_secs(1)).is_err() {
                // The kernel may still use these buffers: better leaked than freed and reused.
                std::mem::take(&mut self.bufs).into_iter().for_each(std::mem::forget);
                std::mem::take(&mut self.writing).into_iter().for_each(std::mem::forget);
                std::mem::forget(std::mem::take(&mut self.rung));
                return;
            }
            while self.next_event().is_some() {}
        }
    }
}

fn build(entries: u32) -> io::Result<IoUring> {
    // One thread submits, and looks for completions itself: no interrupts. Needs Linux 6.1; older kernels go without.
    let modern = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    match modern {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::builder().build(entries),
        result => result,
    }
}

/// Repeats a call that a signal interrupts.
fn again<T>(mut f: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match f() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    const SIZE: RingSize = RingSize { reads: 4, read_bytes: 8192, writes: 2 };

    /// A ring on an empty file, if this machine has io_uring.
    fn ring() -> Option<(std::fs::File, Ring)> {
        let file = tempfile::tempfile().unwrap();
        match Ring::new(file.as_fd(), SIZE) {
            Ok(ring) => Some((file, ring)),
            Err(e) => {
                eprintln!("skipped: no io_uring here: {e}");
                None
            }
        }
    }

    fn wait_for(ring: &mut Ring, count: usize) -> Vec<RingEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            ring.wait(Duration::from_secs(10), |_, event| events.push(event)).unwrap();
        }
        events
    }

    #[test]
    fn what_was_written_is_read_in_any_order() {
        let Some((_file, mut ring)) = ring() else { return };
        for slot in 0..2u8 {
            let mut buf = AlignedBuf::new(8192);
            buf.fill(slot + 1);
            ring.write(slot.into(), u64::from(slot) * 8192, Arc::new(buf), 8192);
        }
        assert_eq!(ring.free_write(), None);
        let written = wait_for(&mut ring, 2);
        assert!(written.iter().all(|e| matches!(e, RingEvent::Write(_, Ok(8192)))), "{written:?}");
        for slot in 0..4 {
            ring.read(slot, 4096 * slot as u64, 4096);
        }
        assert_eq!(ring.free_read(), None);
        let read = wait_for(&mut ring, 4);
        assert!(read.iter().all(|e| matches!(e, RingEvent::Read(_, Ok(4096)))), "{read:?}");
        for slot in 0..4 {
            let fill = u8::try_from(slot / 2 + 1).unwrap();
            assert!(ring.read_buffer(slot)[..4096].iter().all(|&b| b == fill), "slot {slot}");
        }
    }

    #[test]
    fn the_end_of_the_file_is_a_short_read() {
        let Some((mut file, mut ring)) = ring() else { return };
        file.write_all(&[7; 100]).unwrap();
        ring.read(0, 0, 4096);
        let events = wait_for(&mut ring, 1);
        assert!(matches!(events[..], [RingEvent::Read(0, Ok(100))]), "{events:?}");
    }

    #[test]
    fn who_waits_can_be_woken_and_waits_no_longer_than_it_wants() {
        let Some((_file, mut ring)) = ring() else { return };
        let none = |_: &mut Ring, event| panic!("{event:?}");
        ring.wait(Duration::from_millis(1), none).unwrap();
        let waker = ring.waker();
        let begun = std::time::Instant::now();
        let thread = std::thread::spawn(move || waker.wake());
        ring.wait(Duration::from_secs(60), none).unwrap();
        thread.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn a_ring_that_goes_away_lets_go_of_buffers() {
        let Some((_file, mut ring)) = ring() else { return };
        let buf = Arc::new(AlignedBuf::new(4096));
        ring.write(0, 0, buf.clone(), 4096);
        ring.read(1, 0, 8192);
        drop(ring);
        assert_eq!(Arc::strong_count(&buf), 1);
    }

    #[test]
    #[should_panic(expected = "the kernel has it")]
    fn a_buffer_cannot_be_had_while_it_is_read_into() {
        let Some((_file, mut ring)) = ring() else { panic!("the kernel has it, for all we know") };
        ring.read(1, 0, 4096);
        let _ = ring.read_buffer(1);
    }
}
