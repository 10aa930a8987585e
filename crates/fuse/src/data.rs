//! Requests that move bytes and may have to wait.

use std::cell::RefCell;
use std::sync::Arc;

use fuser::{Errno, ReplyAttr, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite, WriteFlags as Fuse};
use overspill_tmpfs::{Caller, FallocateMode, FsError, SeekTo, SetAttr, StaleAttributes, WriteFlags};

use crate::convert::{self, FOREVER, errno};
use crate::server::Server;

thread_local! {
    /// Buffer for replies to reads: one per thread, as large as its largest read.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Server {
    pub(crate) fn read(self: &Arc<Self>, ino: u64, offset: u64, size: u32, reply: ReplyData) {
        let size = (size as usize).min(self.tuning.max_write.max(1 << 20) as usize);
        let reply = REPLY.with_borrow_mut(|buf| {
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
        });
        if let Some(reply) = reply {
            let (server, number) = (self.clone(), self.parking.hold(reply));
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

    pub(crate) fn write(
        self: &Arc<Self>,
        ino: u64,
        offset: u64,
        data: &[u8],
        flags: Fuse,
        reply: ReplyWrite,
    ) {
        let cached = flags.contains(Fuse::FUSE_WRITE_CACHE);
        let how = WriteFlags {
            // Cached data is acknowledged already, unless write(2) waits for this reply.
            reserve: cached && !self.space.is_strict(),
            keep_times: cached,
            kill_suidgid: flags.contains(Fuse::FUSE_WRITE_KILL_SUIDGID),
        };
        match self.parking.try_here(self.fs.write(ino, offset, data, how)) {
            Some(Ok(n)) if n == data.len() => self.answer_write(ino, n, reply),
            // Cached data must be marked lost first, below.
            Some(Err(error)) if !cached && !self.is_full(error) => reply.error(errno(error)),
            _ => {
                let (server, data) = (self.clone(), data.to_vec());
                self.parking.park(async move {
                    let mut result = server.fs.write(ino, offset, &data, how).await;
                    if server.fell_short(result, data.len()) && server.await_forgets() {
                        result = server.fs.write(ino, offset, &data, how).await;
                    }
                    server.end_write(ino, offset, data.len(), result, cached, reply).await;
                });
            }
        }
    }

    /// Makes the kernel drop attributes that an operation on data made stale, before the operation is answered: the
    /// process that gets the answer may look at once, or run a file that is not set-id any more. Only the block count
    /// of a file that is written all the time may be a moment late.
    fn tell_changes(&self, ino: u64) {
        match self.fs.stale_attributes(ino) {
            StaleAttributes::None => {}
            StaleAttributes::Blocks => self.kernel.drop_attributes_in_turn(ino),
            StaleAttributes::Mode => self.kernel.drop_attributes_now(ino),
        }
    }

    fn answer_write(&self, ino: u64, n: usize, reply: ReplyWrite) {
        self.tell_changes(ino);
        reply.written(u32::try_from(n).unwrap_or(u32::MAX));
        self.space.check(&self.fs);
        self.ask_before_writes(ino);
        self.evict_copy(ino);
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
        reply: ReplyWrite,
    ) {
        match result {
            Ok(n) if n == len || (!cached && n > 0) => self.answer_write(ino, n, reply),
            _ => {
                let done = result.unwrap_or(0);
                let error = result.err().map_or(Errno::ENOSPC, errno);
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

    pub(crate) fn setattr(self: &Arc<Self>, ino: u64, set: SetAttr, caller: Caller, reply: ReplyAttr) {
        let answer = |result: Result<overspill_tmpfs::Attr, FsError>, reply: ReplyAttr| match result {
            Ok(attr) => reply.attr(&FOREVER, &convert::attr(&attr)),
            Err(error) => reply.error(errno(error)),
        };
        if let Some(result) = self.parking.try_here(self.fs.setattr(ino, set, caller)) {
            return answer(result, reply);
        }
        let server = self.clone();
        self.parking.park(async move { answer(server.fs.setattr(ino, set, caller).await, reply) });
    }

    pub(crate) fn fallocate(
        self: &Arc<Self>,
        ino: u64,
        offset: u64,
        len: u64,
        mode: i32,
        caller: Caller,
        reply: ReplyEmpty,
    ) {
        let mode = match FallocateMode::from_bits(mode.cast_unsigned()) {
            Ok(mode) => mode,
            Err(error) => return reply.error(errno(error)),
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
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    /// The kernel sends LSEEK without writing back first, so we make it write back: dirty data would look like a hole.
    pub(crate) fn lseek(self: &Arc<Self>, ino: u64, offset: i64, whence: i32, reply: ReplyLseek) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let to = match whence {
            SEEK_DATA => SeekTo::Data,
            SEEK_HOLE => SeekTo::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let server = self.clone();
        self.kernel.after_write_back(
            ino,
            Box::new(move || {
                let parking = &server.clone().parking;
                parking.park(async move {
                    match server.fs.seek(ino, offset, to).await {
                        Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                        Err(error) => reply.error(errno(error)),
                    }
                });
            }),
        );
    }
}

fn answer_read(result: Result<usize, FsError>, buf: &[u8], reply: ReplyData) {
    match result {
        Ok(n) => reply.data(&buf[..n]),
        Err(error) => reply.error(errno(error)),
    }
}
