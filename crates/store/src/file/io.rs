//! Moves blocks to and from the file, around the page cache or with as little of it as possible.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::Advice;

use super::open;
use crate::check_buffer;

/// The kind of I/O on the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// O_DIRECT: the page cache holds nothing of the store.
    Direct,
    /// Through the page cache, from which the store's pages are dropped soon.
    Buffered,
}

/// Buffered bytes written between two starts of writeback.
const WINDOW: u64 = 8 << 20;

/// Number of windows after which one writer waits until all of them are on the disk. So at most about
/// `WINDOW * WINDOWS` bytes of the store are dirty in the page cache.
const WINDOWS: u64 = 4;

/// The file, and the state of its I/O.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) file: File,
    direct: AtomicBool,
    /// The file lives in the page cache: there is nothing to write back or to drop.
    in_memory: bool,
    /// Bytes written through the page cache so far.
    written: AtomicU64,
    /// Held while a writer waits for writeback, so that other writers cannot run ahead of it.
    flushing: Mutex<()>,
}

impl Io {
    pub(super) fn new(file: File, direct: bool) -> Io {
        let in_memory = rustix::fs::fstatfs(&file).is_ok_and(|s| open::kind_of(&s) == open::FsKind::Memory);
        let direct = direct && open::direct_is_offered(&file) && open::set_direct(&file, true);
        let io = Io {
            file,
            direct: AtomicBool::new(direct),
            in_memory,
            written: AtomicU64::new(0),
            flushing: Mutex::new(()),
        };
        if !direct {
            io.become_buffered();
        }
        io
    }

    pub(super) fn mode(&self) -> IoMode {
        if self.direct.load(Ordering::Relaxed) { IoMode::Direct } else { IoMode::Buffered }
    }

    pub(super) fn become_buffered(&self) {
        self.direct.store(false, Ordering::Relaxed);
        open::set_direct(&self.file, false);
        // The VM does its own readahead.
        self.advise(0, Advice::Random);
    }

    /// Writes all of `buf` at `offset`.
    pub(super) fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_buffer(buf)?;
        let mut done = 0;
        while done < buf.len() {
            let mode = self.mode();
            match self.file.write_at(&buf[done..], offset + done as u64) {
                Ok(n) => match whole(mode, done + n, buf.len()) {
                    next if next == done => return Err(io::ErrorKind::WriteZero.into()),
                    next => done = next,
                },
                Err(e) => self.survive(e, mode)?,
            }
        }
        if self.mode() == IoMode::Buffered { self.wrote(buf.len() as u64) } else { Ok(()) }
    }

    /// Fills `buf` from `offset`; bytes past the end of the file are zeros.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_buffer(buf)?;
        let (mut done, len) = (0, buf.len());
        while done < len {
            let mode = self.mode();
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => {
                    buf[done..].fill(0);
                    break;
                }
                Ok(n) => {
                    let next = whole(mode, done + n, len);
                    if next == done {
                        // Part of a block, so this is the end of the file.
                        buf[done + n..].fill(0);
                        break;
                    }
                    done = next;
                }
                Err(e) => self.survive(e, mode)?,
            }
        }
        if self.mode() == IoMode::Buffered && !self.in_memory {
            let range = std::num::NonZeroU64::new(len as u64);
            let _ = rustix::fs::fadvise(&self.file, offset, range, Advice::DontNeed);
        }
        Ok(())
    }

    /// Returns `Ok` if an error allows another try: an interruption, or direct I/O refused only now. The buffer was
    /// checked, so EINVAL in direct mode can mean nothing else.
    fn survive(&self, error: io::Error, mode: IoMode) -> io::Result<()> {
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(());
        }
        if error.kind() == io::ErrorKind::InvalidInput && mode == IoMode::Direct {
            // Another thread may have switched already.
            if self.mode() == IoMode::Direct {
                tracing::warn!("the store's file system refuses direct I/O; going through the page cache");
                self.become_buffered();
            }
            return Ok(());
        }
        Err(error)
    }

    /// Counts buffered writes. Each full window is sent on its way to the disk, and pages that have arrived there are
    /// dropped from memory (DONTNEED does both); after some windows the writer waits for all of them. A failure of an
    /// earlier write may show only here; the checksum of the lost data will tell which it was.
    fn wrote(&self, bytes: u64) -> io::Result<()> {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        let (from, to) = (before / WINDOW, (before + bytes) / WINDOW);
        if from == to || self.in_memory {
            return Ok(());
        }
        let _turn = self.flushing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.advise(0, Advice::DontNeed);
        if from / WINDOWS != to / WINDOWS {
            rustix::fs::fdatasync(&self.file)?;
            self.advise(0, Advice::DontNeed);
        }
        Ok(())
    }

    /// Drops the pages that the page cache still holds after the last window; starts their writeback.
    pub(super) fn settle(&self) {
        if self.mode() == IoMode::Buffered && !self.in_memory {
            self.advise(0, Advice::DontNeed);
        }
    }

    /// Advice only: a refusal changes nothing.
    fn advise(&self, offset: u64, advice: Advice) {
        let _ = rustix::fs::fadvise(&self.file, offset, None, advice);
    }
}

/// Returns how far a transfer came, as a start for the next one: direct I/O continues only from a whole block, and
/// does the rest of one again.
fn whole(mode: IoMode, done: usize, len: usize) -> usize {
    if done == len || mode == IoMode::Buffered { done } else { done / crate::BLOCK * crate::BLOCK }
}
