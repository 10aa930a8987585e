//! Requests that move bytes and may have to wait.

use std::cell::RefCell;
use std::sync::Arc;

use overspill_fuse::{Reply, abi};
use overspill_tmpfs::{Attr, Caller, FallocateMode, FsError, SeekTo, SetAttr, StaleAttributes, WriteFlags};
use rustix::io::Errno;

use crate::park::Kind;
use crate::server::Server;

thread_local! {
    /// Buffer for replies to reads: one per thread, as large as its largest read.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a write behind which more of its kind will come.
const LONG: usize = 64 << 10;

impl Server {
    pub(crate) fn read(self: &Arc<Self>, ino: u64, offset: u64, size: u32, reply: Reply) {
        let size = (size as usize).min(self.tuning.max_write.max(1 << 20) as usize);
        if let Some(reply) = self.read_here(ino, offset, size, reply) {
            let (server, number) = (self.clone(), reply.unique());
            self.parking.hold(number, Kind::Read, reply);
            self.parking.park(async move {
                let mut buf = vec![0; size];
                let read = server.fs.read(ino, offset, &mut buf);
                // The task ends early when its time is up, which frees buffer, gate and place in the queue.
                if let Some(result) = server.parking.until_expired(number, read).await
                    && let Some(reply) = server.parking.take(number)
                {
                    answer_read(result, &buf, reply);
                }
            });
        }
        self.evict_copy(ino);
    }

    /// Reads on this thread: where the reply can be filled in place, with one copy. The reply, if that must wait.
    fn read_here(&self, ino: u64, offset: u64, size: usize, mut reply: Reply) -> Option<Reply> {
        if let Some(room) = reply.room(size) {
            match self.parking.try_here(self.fs.read(ino, offset, room)) {
                Some(Ok(n)) => reply.filled(n),
                Some(Err(error)) => reply.error(error.errno()),
                None => return Some(reply),
            }
            return None;
        }
        REPLY.with_borrow_mut(|buf| {
            if buf.len() < size {
                buf.resize(size, 0);
            }
            match self.parking.try_here(self.fs.read(ino, offset, &mut buf[..size])) {
                Some(result) => {
                    answer_read(result, buf, reply);
                    None
                }
                None => Some(reply),
            }
        })
    }

    pub(crate) fn write(self: &Arc<Self>, ino: u64, args: &abi::WriteIn, data: &[u8], reply: Reply) {
        let offset = args.offset;
        let cached = args.write_flags & abi::WRITE_CACHE != 0;
        let how = WriteFlags {
            // Cached data is acknowledged already, unless write(2) waits for this reply.
            reserve: cached && !self.space.is_strict(),
            keep_times: cached && self.writeback,
            kill_suidgid: args.write_flags & abi::WRITE_KILL_SUIDGID != 0,
        };
        match self.parking.try_here(self.fs.write(ino, offset, data, how)) {
            Some(Ok(n)) if n == data.len() => self.answer_write(ino, n, reply),
            // Cached data must be marked lost first, below.
            Some(Err(error)) if !cached && !self.is_full(error) => reply.error(error.errno()),
            _ if cached => {
                let (server, data) = (self.clone(), data.to_vec());
                self.parking.park(async move {
                    let result = server.write_again(ino, offset, &data, how).await;
                    server.end_write(ino, offset, data.len(), result, cached, reply).await;
                });
            }
            _ => {
                let (server, data, number) = (self.clone(), data.to_vec(), reply.unique());
                self.parking.hold(number, Kind::Write, reply);
                self.parking.park(async move {
                    let write = server.write_again(ino, offset, &data, how);
                    if let Some(result) = server.parking.until_expired(number, write).await
                        && let Some(reply) = server.parking.take(number)
                    {
                        server.end_write(ino, offset, data.len(), result, cached, reply).await;
                    }
                });
            }
        }
    }

    /// Writes; and once more if there was no room and FORGETs have made some.
    async fn write_again(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        how: WriteFlags,
    ) -> Result<usize, FsError> {
        let result = self.fs.write(ino, offset, data, how).await;
        if self.fell_short(result, data.len()) && self.await_forgets() {
            return self.fs.write(ino, offset, data, how).await;
        }
        result
    }

    /// Makes the kernel drop attributes that an operation on data made stale, before the operation is answered: the
    /// process that gets the answer may look at once, or run a file that is not set-id any more. Only the block count
    /// of a file that is written all the time may be a moment late.
    fn tell_changes(&self, ino: u64) {
        match self.fs.stale_attributes(ino) {
            StaleAttributes::None => {}
            // Written through, the kernel asks again by itself.
            StaleAttributes::Blocks if !self.writeback => {}
            StaleAttributes::Blocks => self.kernel.drop_attributes_in_turn(ino),
            StaleAttributes::Mode => self.kernel.drop_attributes_now(ino),
        }
    }

    fn answer_write(&self, ino: u64, n: usize, reply: Reply) {
        self.tell_changes(ino);
        reply.written(n);
        if n >= LONG {
            self.write_ahead();
        }
        self.space.check(&self.fs);
        self.ask_before_writes(ino);
        self.evict_copy(ino);
    }

    /// Has memory made ready for the next write, on another thread, while its writer is busy with it.
    fn write_ahead(&self) {
        let vm = self.fs.vm().clone();
        self.parking.park(async move { vm.write_ahead() });
    }

    fn fell_short(&self, result: Result<usize, FsError>, len: usize) -> bool {
        match result {
            Ok(n) => n < len,
            Err(error) => self.is_full(error),
        }
    }

    /// Answers a write. For cached data the kernel takes note of errors only, not of short counts, and then forgets the
    /// data: bytes that could not be kept are marked lost, so that reading them fails rather than shows zeros.
    async fn end_write(
        &self,
        ino: u64,
        offset: u64,
        len: usize,
        result: Result<usize, FsError>,
        cached: bool,
        reply: Reply,
    ) {
        match result {
            Ok(n) if n == len || (!cached && n > 0) => self.answer_write(ino, n, reply),
            _ => {
                let done = result.unwrap_or(0);
                let error = result.err().map_or(Errno::NOSPC.raw_os_error(), FsError::errno);
                if cached {
                    // Fails only if the inode is gone, and its data with it.
                    let _ = self.fs.mark_lost(ino, offset + done as u64, (len - done) as u64).await;
                    tracing::warn!(
                        ino,
                        offset,
                        lost = len - done,
                        "data the kernel had accepted finds no room"
                    );
                }
                self.tell_changes(ino);
                reply.error(error);
                self.ask_before_writes(ino);
            }
        }
    }

    pub(crate) fn setattr(self: &Arc<Self>, ino: u64, set: SetAttr, caller: Caller, reply: Reply) {
        if let Some(result) = self.parking.try_here(self.fs.setattr(ino, set, caller)) {
            return self.answer_attr(result, reply);
        }
        let server = self.clone();
        self.parking
            .park(async move { server.answer_attr(server.fs.setattr(ino, set, caller).await, reply) });
    }

    fn answer_attr(&self, result: Result<Attr, FsError>, reply: Reply) {
        match result {
            Ok(attr) => reply.attr(&self.attr(&attr)),
            Err(error) => reply.error(error.errno()),
        }
    }

    pub(crate) fn fallocate(
        self: &Arc<Self>,
        ino: u64,
        args: &abi::FallocateIn,
        caller: Caller,
        reply: Reply,
    ) {
        let (offset, len) = (args.offset, args.length);
        let mode = match FallocateMode::from_bits(args.mode) {
            Ok(mode) => mode,
            Err(error) => return reply.error(error.errno()),
        };
        let server = self.clone();
        // Always a task: it may take long.
        self.parking.park(async move {
            let mut result = server.fs.fallocate(ino, offset, len, mode, caller).await;
            if result.is_err_and(|error| server.is_full(error)) && server.await_forgets() {
                result = server.fs.fallocate(ino, offset, len, mode, caller).await;
            }
            server.tell_changes(ino);
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error.errno()),
            }
        });
    }

    /// The kernel sends LSEEK without writing back first, so we make it write back: dirty data, be it of a mapping only,
    /// would look like a hole.
    pub(crate) fn lseek(self: &Arc<Self>, ino: u64, offset: u64, whence: u32, reply: Reply) {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let to = match whence {
            SEEK_DATA => SeekTo::Data,
            SEEK_HOLE => SeekTo::Hole,
            _ => return reply.error(Errno::INVAL.raw_os_error()),
        };
        if i64::try_from(offset).is_err() {
            return reply.error(Errno::NXIO.raw_os_error());
        }
        let server = self.clone();
        self.kernel.after_write_back(
            ino,
            Box::new(move || {
                let parking = &server.clone().parking;
                parking.park(async move {
                    match server.fs.seek(ino, offset, to).await {
                        Ok(found) => reply.offset(found),
                        Err(error) => reply.error(error.errno()),
                    }
                });
            }),
        );
    }
}

fn answer_read(result: Result<usize, FsError>, buf: &[u8], reply: Reply) {
    match result {
        Ok(n) => reply.bytes(&buf[..n]),
        Err(error) => reply.error(error.errno()),
    }
}
