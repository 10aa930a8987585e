//! A queue of FUSE over io_uring: the kernel puts requests of one processor into places, which are answered in place.
//!
//! A place has a header and a payload buffer, whose addresses the kernel learns once. While the kernel may write to a
//! payload the ring owns it; a request brings it out, and the answer gives it back. The kernel writes only while the
//! ring's own thread is in [`FuseRing::wait`].

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::cqueue::Entry as Completion;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, opcode, types};

use crate::AlignedBuf;
use crate::ring::RingWaker;

/// Bytes of a place's header: request or reply header, arguments, and the kernel's own part.
const IN_OUT: usize = 128;
const OP_IN: usize = 128;
const HEADER: usize = IN_OUT + OP_IN + 32;
/// Offsets in the kernel's own part of a header.
const COMMIT_ID: usize = IN_OUT + OP_IN + 8;
const PAYLOAD_BYTES: usize = IN_OUT + OP_IN + 16;

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// The name of the bell's read; those of places are their numbers.
const BELL: u64 = u64::MAX;

/// A request in its place.
#[derive(Debug)]
pub struct FuseSlot {
    /// The number of the place.
    pub place: usize,
    /// The place's payload buffer. It must be here again when the request is answered.
    pub payload: Option<AlignedBuf>,
    /// Bytes of the payload that belong to the request.
    pub payload_bytes: usize,
    /// The request's header.
    pub header: [u8; IN_OUT],
    /// The first of its arguments.
    pub args: [u8; OP_IN],
}

struct Place {
    header: AlignedBuf,
    payload: Option<AlignedBuf>,
    /// Addresses that the kernel reads when the place is registered.
    vectors: Box<[libc::iovec; 2]>,
    commit_id: u64,
}

/// A queue. It belongs to the thread that made it.
pub struct FuseRing {
    ring: IoUring<Entry128, Completion>,
    device: OwnedFd,
    queue: u16,
    places: Vec<Place>,
    bell: Arc<OwnedFd>,
    rung: Box<[u8; 8]>,
    listening: bool,
}

impl std::fmt::Debug for FuseRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseRing").field("queue", &self.queue).field("places", &self.places.len()).finish()
    }
}

impl FuseRing {
    /// A queue for requests of processor `queue`, with so many places of so many bytes of payload each.
    ///
    /// # Errors
    /// When the kernel has no such rings, or forbids them.
    pub fn new(device: BorrowedFd<'_>, queue: u16, places: usize, payload: usize) -> io::Result<FuseRing> {
        let entries = u32::try_from((places + 1).next_power_of_two()).unwrap_or(u32::MAX);
        let ring = IoUring::<Entry128, Completion>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)?;
        let device = device.try_clone_to_owned()?;
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        ring.submitter().register_files(&[device.as_raw_fd(), bell.as_raw_fd()])?;
        let place = |_| {
            let (mut header, mut payload) = (AlignedBuf::new(HEADER), AlignedBuf::new(payload));
            let vectors = Box::new([
                libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER },
                libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() },
            ]);
            Place { header, payload: Some(payload), vectors, commit_id: 0 }
        };
        Ok(FuseRing {
            ring,
            device,
            queue,
            places: (0..places).map(place).collect(),
            bell: Arc::new(bell),
            rung: Box::new([0; 8]),
            listening: false,
        })
    }

    /// Wakes this queue's thread.
    pub fn waker(&self) -> RingWaker {
        RingWaker::new(self.bell.clone())
    }

    /// Offers every place to the kernel. Once, after the protocol has agreed on rings.
    ///
    /// # Errors
    /// When the kernel takes no submission.
    pub fn register(&mut self) -> io::Result<()> {
        for place in 0..self.places.len() {
            let vectors = self.places[place].vectors.as_ptr() as u64;
            let mut entry = self.command(REGISTER, place).addr(Some(vectors)).build();
            // The number of vectors is in the entry's `len`, which the builder does not offer.
            const LEN: usize = 24;
            const { assert!(size_of::<Entry128>() == 128) };
            // SAFETY: an entry is the kernel's `struct io_uring_sqe` of 128 bytes, with the 32-bit `len` at offset 24.
            unsafe { (&raw mut entry).cast::<u8>().add(LEN).cast::<u32>().write_unaligned(2) };
            // SAFETY: vectors, header and payload live in boxes that this ring owns until it is dropped.
            unsafe { self.push(&entry.user_data(place as u64)) };
        }
        self.listen();
        self.ring.submit().map(drop)
    }

    fn command(&self, command: u32, place: usize) -> opcode::UringCmd80 {
        let mut bytes = [0; 80];
        bytes[8..16].copy_from_slice(&self.places[place].commit_id.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        opcode::UringCmd80::new(types::Fixed(0), command).cmd(bytes)
    }

    /// # Safety
    /// The memory that the entry points to lives until the ring is dropped.
    unsafe fn push(&mut self, entry: &Entry128) {
        // SAFETY: as the caller promised.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    fn listen(&mut self) {
        if !self.listening {
            self.listening = true;
            let entry: Entry128 =
                opcode::Read::new(types::Fixed(1), self.rung.as_mut_ptr(), 8).build().into();
            // SAFETY: the eight bytes are boxed, and no one looks at them.
            unsafe { self.push(&entry.user_data(BELL)) };
        }
    }

    /// Answers a request: its reply's header, and so many bytes of payload, which the caller has put there. The kernel
    /// sees it with the next [`FuseRing::wait`].
    ///
    /// # Panics
    /// When the payload is not the place's own.
    pub fn answer(&mut self, slot: FuseSlot, header: &[u8; 16], payload_bytes: usize) {
        let FuseSlot { place, payload, .. } = slot;
        let here = &mut self.places[place];
        let own =
            |payload: &AlignedBuf| here.vectors[1].iov_base.cast_const().cast::<u8>() == payload.as_ptr();
        assert!(here.payload.is_none() && payload.as_ref().is_some_and(own), "the place's own payload");
        here.payload = payload;
        here.header[..16].copy_from_slice(header);
        let bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        here.header[PAYLOAD_BYTES..PAYLOAD_BYTES + 4].copy_from_slice(&bytes.to_ne_bytes());
        let entry = self.command(COMMIT_AND_FETCH, place).build();
        // SAFETY: header and payload are the ring's again.
        unsafe { self.push(&entry.user_data(place as u64)) };
    }

    /// Shows answers to the kernel; waits for a request, or until a waker wakes; shows requests to `seen`.
    /// False when the connection has ended.
    ///
    /// # Errors
    /// When the kernel will not wait.
    pub fn wait(&mut self, mut seen: impl FnMut(&mut FuseRing, FuseSlot)) -> io::Result<bool> {
        self.listen();
        match self.ring.submit_and_wait(1) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {}
            other => drop(other?),
        }
        let mut connected = true;
        loop {
            let Some(completion) = self.ring.completion().next() else { return Ok(connected) };
            if completion.user_data() == BELL {
                self.listening = false;
                continue;
            }
            let place = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            if completion.result() < 0 {
                // The connection is gone, or the kernel refused the place: it takes no part any more.
                connected = false;
                continue;
            }
            if let Some(slot) = self.take(place) {
                seen(self, slot);
            }
        }
    }

    fn take(&mut self, place: usize) -> Option<FuseSlot> {
        let here = self.places.get_mut(place)?;
        let payload = here.payload.take()?;
        let mut slot =
            FuseSlot { place, payload_bytes: 0, payload: None, header: [0; IN_OUT], args: [0; OP_IN] };
        slot.header.copy_from_slice(&here.header[..IN_OUT]);
        slot.args.copy_from_slice(&here.header[IN_OUT..IN_OUT + OP_IN]);
        let bytes = here.header[PAYLOAD_BYTES..PAYLOAD_BYTES + 4].try_into().unwrap_or([0; 4]);
        // No more than there is room for, whatever the kernel says.
        slot.payload_bytes = (u32::from_ne_bytes(bytes) as usize).min(payload.len());
        slot.payload = Some(payload);
        let id = here.header[COMMIT_ID..COMMIT_ID + 8].try_into().unwrap_or([0; 8]);
        here.commit_id = u64::from_ne_bytes(id);
        Some(slot)
    }

    /// The descriptor of the connection.
    pub fn device(&self) -> &OwnedFd {
        &self.device
    }
}
