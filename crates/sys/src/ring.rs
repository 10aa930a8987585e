//! Requests to any descriptors at once, from one thread (io_uring).
//!
//! A buffer belongs to its request: the ring has both while the kernel works, and gives both back when it is done. So no
//! caller can touch a buffer that the kernel has. A ring that is dropped waits for the requests under way.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

use crate::AlignedBuf;

/// How much a ring is made for.
#[derive(Debug, Clone, Copy)]
pub struct RingSize {
    /// Requests at once.
    pub requests: usize,
    /// Descriptors.
    pub files: usize,
    /// Buffers that the ring lends out ([`Ring::take_buf`]).
    pub buffers: usize,
    /// Bytes of each.
    pub buffer_bytes: usize,
}

/// A descriptor that a ring keeps open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFile(usize);

/// A buffer that a ring lends: where the kernel allows, one that it need not look up for each request.
#[derive(Debug)]
pub struct RingBuf {
    bytes: AlignedBuf,
    index: usize,
}

impl std::ops::Deref for RingBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A request, with the buffer it needs.
#[derive(Debug)]
pub enum RingOp {
    /// Read `len` bytes at `offset` into the start of `buf`.
    Read {
        /// Where from.
        file: RingFile,
        /// The first byte.
        offset: u64,
        /// Where to.
        buf: RingBuf,
        /// How many.
        len: usize,
    },
    /// Write the first `len` bytes of `buf` at `offset`.
    Write {
        /// Where to.
        file: RingFile,
        /// The first byte.
        offset: u64,
        /// Where from.
        buf: AlignedBuf,
        /// How many.
        len: usize,
    },
    /// Receive from a socket into `buf`, as much as there is.
    Receive {
        /// The socket.
        file: RingFile,
        /// Where to.
        buf: Vec<u8>,
    },
    /// Send `buf` to a socket.
    Send {
        /// The socket.
        file: RingFile,
        /// Where from.
        buf: Vec<u8>,
    },
    /// Accept a connection. Its descriptor is in `accepted` when that is done.
    Accept {
        /// The socket that listens.
        file: RingFile,
        /// The connection.
        accepted: Option<OwnedFd>,
    },
    /// Wait until a descriptor is ready for some of `events` (POLLIN and so on); the result says for which.
    Poll {
        /// The descriptor.
        file: RingFile,
        /// As of poll(2).
        events: u32,
    },
}

/// A request that is done.
#[derive(Debug)]
pub struct RingDone {
    /// The caller's name for it.
    pub token: u64,
    /// The request, and its buffer.
    pub op: RingOp,
    /// The bytes that were moved, perhaps fewer than asked for, or another result of the request.
    pub result: io::Result<usize>,
}

/// Wakes the thread that waits in [`Ring::wait`].
#[derive(Debug, Clone)]
pub struct RingWaker(Arc<OwnedFd>);

impl RingWaker {
    pub(crate) fn new(bell: Arc<OwnedFd>) -> RingWaker {
        RingWaker(bell)
    }

    /// Ends the wait under way, or the next one.
    pub fn wake(&self) {
        // Can only fail after 2^64 wake-ups that nobody looked at.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// A ring. It belongs to one thread: the kernel insists on the one that made it.
pub struct Ring {
    ring: IoUring,
    files: Vec<OwnedFd>,
    /// True if the kernel has a table of the files.
    knows_files: bool,
    /// Buffers that nobody has borrowed.
    bufs: Vec<RingBuf>,
    /// True if the kernel knows the buffers: then it need not look up their pages each time.
    knows_bufs: bool,
    under_way: Vec<Option<(u64, RingOp)>>,
    bell: Arc<OwnedFd>,
    /// The bell's count is read into it. A box of its own: the kernel has its address.
    rung: Box<[u8; 8]>,
    /// A read of the bell is under way.
    listening: bool,
    /// The kernel supports a timeout for waiting.
    bounded: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let busy = self.under_way.iter().flatten().count();
        f.debug_struct("Ring")
            .field("busy", &busy)
            .field("knows_bufs", &self.knows_bufs)
            .finish_non_exhaustive()
    }
}

/// The name of the bell's read; those of requests are their places.
const BELL: u64 = u64::MAX;

impl Ring {
    /// # Errors
    /// When the kernel has no io_uring or forbids it: containers mostly do.
    pub fn new(size: RingSize) -> io::Result<Ring> {
        let entries = u32::try_from((size.requests + 1).next_power_of_two()).unwrap_or(u32::MAX);
        let ring = build(entries)?;
        let files = u32::try_from(size.files).unwrap_or(u32::MAX);
        let knows_files = size.files > 0 && ring.submitter().register_files_sparse(files).is_ok();
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let buf = |index| RingBuf { bytes: AlignedBuf::new(size.buffer_bytes), index };
        let mut ring = Ring {
            bounded: ring.params().is_feature_ext_arg(),
            ring,
            files: Vec::with_capacity(size.files),
            knows_files,
            bufs: (0..size.buffers).map(buf).collect(),
            knows_bufs: false,
            under_way: (0..size.requests).map(|_| None).collect(),
            bell: Arc::new(bell),
            rung: Box::new([0; 8]),
            listening: false,
        };
        let iovec = |buf: &mut RingBuf| libc::iovec {
            iov_base: buf.bytes.as_mut_ptr().cast(),
            iov_len: buf.bytes.len(),
        };
        let iovecs: Vec<libc::iovec> = ring.bufs.iter_mut().map(iovec).collect();
        // SAFETY: the buffers never move. The kernel keeps their pages until the ring is closed, whoever frees them, and
        // reads or writes them only for requests, which own them.
        let known = !iovecs.is_empty() && unsafe { ring.ring.submitter().register_buffers(&iovecs) }.is_ok();
        // Refused where too little memory may be locked: then pages are looked up for each request.
        ring.knows_bufs = known;
        Ok(ring)
    }

    /// Opens a descriptor once more, for requests.
    ///
    /// # Errors
    /// When no more may be open, or the ring was made for fewer.
    pub fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<RingFile> {
        if self.files.len() == self.files.capacity() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let file = file.try_clone_to_owned()?;
        let place = self.files.len();
        if self.knows_files {
            let offset = u32::try_from(place).unwrap_or(u32::MAX);
            self.ring.submitter().register_files_update(offset, &[file.as_raw_fd()])?;
        }
        self.files.push(file);
        Ok(RingFile(place))
    }

    /// Wakes this ring.
    pub fn waker(&self) -> RingWaker {
        RingWaker(self.bell.clone())
    }

    /// Requests that there is room for.
    pub fn room(&self) -> usize {
        self.under_way.iter().filter(|place| place.is_none()).count()
    }

    /// A buffer, if one is left.
    pub fn take_buf(&mut self) -> Option<RingBuf> {
        self.bufs.pop()
    }

    /// True if a buffer is left.
    pub fn has_buf(&self) -> bool {
        !self.bufs.is_empty()
    }

    /// Takes a buffer back.
    pub fn give_buf(&mut self, buf: RingBuf) {
        self.bufs.push(buf);
    }

    /// Asks for a request; it begins with the next [`Ring::wait`]. Returns it if there is no room.
    ///
    /// # Errors
    /// The request.
    ///
    /// # Panics
    /// When a buffer is shorter than `len`.
    pub fn begin(&mut self, token: u64, op: RingOp) -> Result<(), RingOp> {
        let Some(place) = self.under_way.iter().position(Option::is_none) else { return Err(op) };
        let (_, op) = self.under_way[place].insert((token, op));
        let table = self.knows_files;
        let files = &self.files;
        let entry = match op {
            RingOp::Read { file, offset, buf, len } => {
                assert!(*len <= buf.bytes.len(), "no more than the buffer holds");
                let (at, len) = (buf.bytes.as_mut_ptr(), to_u32(*len));
                let index = u16::try_from(buf.index).unwrap_or(u16::MAX);
                match target(table, files, *file) {
                    Target::Fixed(fd) if self.knows_bufs => {
                        opcode::ReadFixed::new(fd, at, len, index).offset(*offset).build()
                    }
                    Target::Plain(fd) if self.knows_bufs => {
                        opcode::ReadFixed::new(fd, at, len, index).offset(*offset).build()
                    }
                    Target::Fixed(fd) => opcode::Read::new(fd, at, len).offset(*offset).build(),
                    Target::Plain(fd) => opcode::Read::new(fd, at, len).offset(*offset).build(),
                }
            }
            RingOp::Write { file, offset, buf, len } => {
                assert!(*len <= buf.len(), "no more than there is");
                let (at, len) = (buf.as_ptr(), to_u32(*len));
                match target(table, files, *file) {
                    Target::Fixed(fd) => opcode::Write::new(fd, at, len).offset(*offset).build(),
                    Target::Plain(fd) => opcode::Write::new(fd, at, len).offset(*offset).build(),
                }
            }
            RingOp::Receive { file, buf } => {
                let (at, len) = (buf.as_mut_ptr(), to_u32(buf.len()));
                opcode::Recv::new(plain(files, *file), at, len).build()
            }
            RingOp::Send { file, buf } => {
                let entry = opcode::Send::new(plain(files, *file), buf.as_ptr(), to_u32(buf.len()));
                entry.flags(libc::MSG_NOSIGNAL).build()
            }
            RingOp::Accept { file, .. } => {
                let entry =
                    opcode::Accept::new(plain(files, *file), std::ptr::null_mut(), std::ptr::null_mut());
                entry.flags(libc::SOCK_CLOEXEC).build()
            }
            RingOp::Poll { file, events } => opcode::PollAdd::new(plain(files, *file), *events).build(),
        };
        // SAFETY: the request owns its buffer, whose bytes do not move, and stays in `under_way` until it is done.
        unsafe { self.push(&entry.user_data(place as u64)) };
        Ok(())
    }

    /// # Safety
    /// The memory that the entry points to must live, and be left alone, until its completion was seen.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: as the caller promised.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // There is room for every request, so the entries in it were only not handed over yet.
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    /// Begins the requests that were asked for; waits until one is done, a waker wakes, or so much time is over; shows the
    /// requests that are done to `seen`.
    ///
    /// # Errors
    /// When the kernel will not wait. Requests that are done were shown all the same.
    pub fn wait(&mut self, at_most: Duration, mut seen: impl FnMut(&mut Ring, RingDone)) -> io::Result<()> {
        self.listen();
        let waited = self.enter(at_most);
        while let Some(done) = self.next_done() {
            seen(self, done);
        }
        waited
    }

    fn listen(&mut self) {
        if self.listening {
            return;
        }
        let entry = opcode::Read::new(types::Fd(self.bell.as_raw_fd()), self.rung.as_mut_ptr(), 8).build();
        self.listening = true;
        // SAFETY: the eight bytes are boxed and no one looks at them; the bell is open as long as the ring.
        unsafe { self.push(&entry.user_data(BELL)) }
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

    fn next_done(&mut self) -> Option<RingDone> {
        loop {
            let entry = self.ring.completion().next()?;
            let result =
                usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            if entry.user_data() == BELL {
                self.listening = false;
                continue;
            }
            let place = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some((token, mut op)) = self.under_way.get_mut(place).and_then(Option::take) else {
                continue;
            };
            if let (RingOp::Accept { accepted, .. }, true) = (&mut op, result.is_ok()) {
                // SAFETY: the kernel has just opened this descriptor for us.
                *accepted = Some(unsafe { OwnedFd::from_raw_fd(entry.result()) });
            }
            return Some(RingDone { token, op, result });
        }
    }

    fn is_busy(&self) -> bool {
        self.listening || self.under_way.iter().any(Option::is_some)
    }
}

/// A file as an entry names it.
enum Target {
    Fixed(types::Fixed),
    Plain(types::Fd),
}

fn target(table: bool, files: &[OwnedFd], file: RingFile) -> Target {
    if table { Target::Fixed(types::Fixed(to_u32(file.0))) } else { Target::Plain(plain(files, file)) }
}

fn plain(files: &[OwnedFd], file: RingFile) -> types::Fd {
    let fd: RawFd = files[file.0].as_raw_fd();
    types::Fd(fd)
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Sockets and polls may never be done by themselves.
        for file in &self.files {
            let _ = rustix::net::shutdown(file, rustix::net::Shutdown::Both);
        }
        self.waker().wake();
        while self.is_busy() {
            if self.enter(Duration::from_secs(1)).is_err() {
                // The kernel may still have their addresses: better lost than somebody else's.
                std::mem::take(&mut self.under_way).into_iter().for_each(std::mem::forget);
                std::mem::forget(std::mem::take(&mut self.rung));
                return;
            }
            while self.next_done().is_some() {}
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
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    const SIZE: RingSize = RingSize { requests: 6, files: 4, buffers: 4, buffer_bytes: 8192 };

    /// A ring, where this machine has any.
    fn ring() -> Option<Ring> {
        match Ring::new(SIZE) {
            Ok(ring) => Some(ring),
            Err(e) => {
                eprintln!("skipped: no io_uring here: {e}");
                None
            }
        }
    }

    fn ring_on_a_file() -> Option<(std::fs::File, Ring, RingFile)> {
        let (file, mut ring) = (tempfile::tempfile().unwrap(), ring()?);
        let id = ring.add_file(file.as_fd()).unwrap();
        Some((file, ring, id))
    }

    fn wait_for(ring: &mut Ring, count: usize) -> Vec<RingDone> {
        let mut all = Vec::new();
        while all.len() < count {
            ring.wait(Duration::from_secs(10), |_, done| all.push(done)).unwrap();
        }
        all
    }

    fn begin(ring: &mut Ring, token: u64, op: RingOp) {
        assert!(ring.begin(token, op).is_ok(), "there is room");
    }

    #[test]
    fn written_bytes_are_read_in_any_order() {
        let Some((_file, mut ring, file)) = ring_on_a_file() else { return };
        for n in 0..2u8 {
            let mut buf = AlignedBuf::new(8192);
            buf.fill(n + 1);
            let offset = u64::from(n) * 8192;
            begin(&mut ring, n.into(), RingOp::Write { file, offset, buf, len: 8192 });
        }
        for done in wait_for(&mut ring, 2) {
            let RingOp::Write { buf, .. } = done.op else { panic!("{:?}", done.op) };
            assert_eq!((done.result.unwrap(), u64::from(buf[0])), (8192, done.token + 1));
        }
        for n in 0..4 {
            let buf = ring.take_buf().unwrap();
            begin(&mut ring, n, RingOp::Read { file, offset: 4096 * n, buf, len: 4096 });
        }
        assert!(!ring.has_buf() && ring.take_buf().is_none());
        for done in wait_for(&mut ring, 4) {
            let RingOp::Read { buf, .. } = done.op else { panic!("{:?}", done.op) };
            let fill = u8::try_from(done.token / 2 + 1).unwrap();
            assert!(done.result.unwrap() == 4096 && buf[..4096].iter().all(|&b| b == fill));
            ring.give_buf(buf);
        }
        assert!(ring.has_buf() && ring.room() == 6);
    }

    #[test]
    fn a_full_ring_gives_the_request_back() {
        let Some((_file, mut ring, _)) = ring_on_a_file() else { return };
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let file = ring.add_file(theirs.as_fd()).unwrap();
        for n in 0..6 {
            begin(&mut ring, n, RingOp::Receive { file, buf: vec![0; 8] });
        }
        assert!(ring.room() == 0);
        assert!(
            matches!(ring.begin(6, RingOp::Receive { file, buf: vec![7] }), Err(RingOp::Receive { buf, .. }) if buf == [7])
        );
    }

    #[test]
    fn the_end_of_the_file_is_a_short_read() {
        let Some((mut plain, mut ring, file)) = ring_on_a_file() else { return };
        plain.write_all(&[7; 100]).unwrap();
        let buf = ring.take_buf().unwrap();
        begin(&mut ring, 9, RingOp::Read { file, offset: 0, buf, len: 4096 });
        let done = wait_for(&mut ring, 1);
        assert!(matches!(done[..], [RingDone { token: 9, result: Ok(100), .. }]), "{done:?}");
    }

    #[test]
    fn sockets_connect_receive_and_send() {
        let Some(mut ring) = ring() else { return };
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let file = ring.add_file(listener.as_fd()).unwrap();
        begin(&mut ring, 1, RingOp::Accept { file, accepted: None });
        let mut client = UnixStream::connect(dir.path().join("socket")).unwrap();
        let done = wait_for(&mut ring, 1).remove(0);
        let RingOp::Accept { accepted: Some(connection), .. } = done.op else { panic!("{done:?}") };
        let file = ring.add_file(connection.as_fd()).unwrap();
        begin(&mut ring, 2, RingOp::Poll { file, events: 1 });
        client.write_all(b"how much?").unwrap();
        assert_eq!(wait_for(&mut ring, 1).remove(0).result.unwrap() & 1, 1, "readable");
        begin(&mut ring, 3, RingOp::Receive { file, buf: vec![0; 100] });
        let done = wait_for(&mut ring, 1).remove(0);
        let RingOp::Receive { buf, .. } = done.op else { panic!("{:?}", done.op) };
        assert_eq!(&buf[..done.result.unwrap()], b"how much?");
        begin(&mut ring, 4, RingOp::Send { file, buf: b"enough".to_vec() });
        assert_eq!(wait_for(&mut ring, 1).remove(0).result.unwrap(), 6);
        drop((ring, connection));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "enough");
    }

    #[test]
    fn a_waiting_ring_can_be_woken_and_waits_no_longer_than_asked() {
        let Some(mut ring) = ring() else { return };
        let none = |_: &mut Ring, done| panic!("{done:?}");
        ring.wait(Duration::from_millis(1), none).unwrap();
        let waker = ring.waker();
        let begun = std::time::Instant::now();
        let thread = std::thread::spawn(move || waker.wake());
        ring.wait(Duration::from_secs(60), none).unwrap();
        thread.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(50));
    }

    #[test]
    fn a_ring_with_requests_under_way_can_be_dropped() {
        let Some((_plain, mut ring, file)) = ring_on_a_file() else { return };
        begin(&mut ring, 0, RingOp::Write { file, offset: 0, buf: AlignedBuf::new(4096), len: 4096 });
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let socket = ring.add_file(theirs.as_fd()).unwrap();
        begin(&mut ring, 1, RingOp::Receive { file: socket, buf: vec![0; 8] });
    }
}
