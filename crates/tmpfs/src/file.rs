//! Data of regular files.
//!
//! The object keeps the bytes; this module keeps the size. Bytes at and after the size are zeros: it grows only after
//! the bytes before it are written, and shrinks only after the bytes behind it are cleared.

use std::sync::atomic::Ordering;

use overspill_vm::{Allowance, Object, PAGE, VmError};

use crate::MAX_FILE_SIZE;
use crate::error::FsError;
use crate::fs::TmpFs;
use crate::inode::{CAPABILITY, File, Inode};
use crate::types::{Caller, FallocateMode, SeekTo, WriteFlags};

const PAGE_SIZE: u64 = PAGE as u64;

impl TmpFs {
    /// Reads from a file into `buf` and returns the number of bytes, which stop at the end of the file. The access
    /// time does not change; see [`accessed`](TmpFs::accessed).
    ///
    /// # Errors
    /// [`FsError::Memory`] when any byte of the range cannot be read: never zeros, never fewer bytes.
    pub async fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let inode = self.inode(ino)?;
        let file = inode.file()?;
        let _gate = file.gate.read().await;
        let len = clip(buf.len(), offset, file.size());
        let buf = &mut buf[..len];
        if file.is_lost(&(offset..offset + len as u64)) {
            return Err(VmError::Lost.into());
        }
        match file.object.get() {
            Some(object) => object.read(offset, buf).await?,
            None => buf.fill(0),
        }
        Ok(len)
    }

    /// Writes into a file and returns the number of bytes written: fewer than given only if it failed after those.
    ///
    /// A write that is dropped half way may leave some of its bytes within the file; those beyond its end are cleared
    /// before a read can see them.
    ///
    /// # Errors
    /// [`FsError::FileTooBig`]; [`FsError::Memory`] when not one byte could be written.
    pub async fn write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<usize, FsError> {
        let inode = self.inode(ino)?;
        let file = inode.file()?;
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= MAX_FILE_SIZE {
            return Err(FsError::FileTooBig);
        }
        let data = &data[..clip(data.len(), offset, MAX_FILE_SIZE)];
        let from = if flags.reserve { Allowance::Reserve } else { Allowance::Normal };

        let gate = gate_for_growth(file, offset).await?;
        let remains = Remains::of_write(file, offset + data.len() as u64);
        let (written, failure) = match self.object(file).write(offset, data, from).await {
            Ok(()) => (data.len(), None),
            Err((written, failure)) => (written, Some(failure)),
        };
        remains.end();
        if written > 0 {
            file.grow(offset + written as u64);
            self.wrote(&inode, flags);
        }
        drop(gate);
        let Some(failure) = failure else { return Ok(written) };
        if file.has_remains.load(Ordering::Acquire) {
            // An earlier try of this write got further. If this fails, its bytes are cleared before the file grows.
            let _ = clear_remains(file, &file.gate.write().await).await;
        }
        if written == 0 { Err(failure.into()) } else { Ok(written) }
    }

    /// Marks a range whose data was acknowledged and could not be stored: it reads as an error until it is written
    /// again, and the file grows to include it. If there is no room for the mark (a writer that never stops must not
    /// fill memory with marks), the range reads as an error until the file is truncated below it.
    ///
    /// This is for kernel writeback that had to be refused: no process waits for the error any more, and zeros or old
    /// bytes in its place would be silent damage.
    ///
    /// # Errors
    /// [`FsError::Stale`], [`FsError::IsDirectory`], [`FsError::Invalid`], [`FsError::FileTooBig`].
    pub async fn mark_lost(&self, ino: u64, offset: u64, len: u64) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let file = inode.file()?;
        let end = checked_end(offset, len)?;
        let _gate = gate_for_growth(file, offset).await?;
        if let Err(unmarked) = self.object(file).lose(offset, end) {
            file.lose(unmarked..end);
        }
        file.grow(end);
        Ok(())
    }

    /// Allocates, clears or punches a range of a file. Clears set-id bits, unless the caller is privileged.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for an empty range; [`FsError::FileTooBig`]; [`FsError::Memory`], after which part of the
    /// range may be done.
    pub async fn fallocate(
        &self,
        ino: u64,
        offset: u64,
        len: u64,
        mode: FallocateMode,
        caller: Caller,
    ) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let file = inode.file()?;
        let end = checked_end(offset, len)?;
        let gate = file.gate.write().await;
        clear_remains(file, &gate).await?;
        match mode {
            FallocateMode::PunchHole => {
                if let Some(object) = file.object.get() {
                    object.zero(offset, end).await?;
                }
            }
            FallocateMode::Allocate { keep_size } => {
                self.allocate(file, offset, end).await?;
                grow_unless(keep_size, file, end);
            }
            FallocateMode::ZeroRange { keep_size } => {
                if let Some(object) = file.object.get() {
                    object.zero(offset, end).await?;
                }
                self.allocate(file, offset, end).await?;
                grow_unless(keep_size, file, end);
            }
        }
        let flags = WriteFlags { kill_suidgid: !caller.privileged, ..WriteFlags::default() };
        self.wrote(&inode, flags);
        Ok(())
    }

    /// Finds data or a hole, for lseek(2). Both begin on page boundaries; allocated space that is not written is data.
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] at or past the end of the file, or when only a hole follows.
    pub async fn seek(&self, ino: u64, offset: u64, to: SeekTo) -> Result<u64, FsError> {
        let inode = self.inode(ino)?;
        let file = inode.file()?;
        let _gate = file.gate.read().await;
        let size = file.size();
        if offset >= size {
            return Err(FsError::NoSuchOffset);
        }
        let page = offset / PAGE_SIZE;
        let object = file.object.get();
        let found = match to {
            SeekTo::Data => object.and_then(|object| object.next_data(page)),
            SeekTo::Hole => Some(object.map_or(page, |object| object.next_hole(page))),
        };
        let found = found.map(|page| page.saturating_mul(PAGE_SIZE).max(offset));
        match to {
            SeekTo::Data => found.filter(|&at| at < size).ok_or(FsError::NoSuchOffset),
            SeekTo::Hole => Ok(found.unwrap_or(size).min(size)),
        }
    }

    /// Sets the size of a file.
    pub(crate) async fn resize(&self, file: &File, size: u64) -> Result<(), FsError> {
        if size > MAX_FILE_SIZE {
            return Err(FsError::FileTooBig);
        }
        let gate = file.gate.write().await;
        clear_remains(file, &gate).await?;
        if let Some(object) = file.object.get() {
            cut(file, object, size).await?;
        }
        file.set_size(size);
        Ok(())
    }

    async fn allocate(&self, file: &File, offset: u64, end: u64) -> Result<(), FsError> {
        let (start, end) = (offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        let object = self.object(file);
        // A request that cannot fit, even if all of the file's pages are in the range, must fail before it fills the
        // file system.
        let free = self.account.limit().saturating_sub(self.account.used());
        if end - start > free.saturating_add(object.pages()) {
            return Err(VmError::NoSpace.into());
        }
        Ok(object.allocate(start, end).await?)
    }

    /// Returns the object of a file. The first write creates it (R9).
    fn object<'a>(&self, file: &'a File) -> &'a Object {
        file.object.get_or_init(|| self.vm.object(&self.account))
    }

    /// Updates times and clears set-id bits and capabilities after a write.
    fn wrote(&self, inode: &Inode, flags: WriteFlags) {
        let now = self.now();
        // Declared before the lock guard, hence dropped after it, with its charge.
        let _capability;
        let mut meta = inode.meta();
        if !flags.keep_times {
            meta.modified(now);
        }
        let cleared = flags.kill_suidgid && meta.clear_set_ids();
        _capability = meta.take_xattr(CAPABILITY);
        if cleared || _capability.is_some() {
            meta.ctime = now;
        }
    }
}

type Shared<'a> = async_lock::RwLockReadGuard<'a, ()>;
type Exclusive<'a> = async_lock::RwLockWriteGuard<'a, ()>;

/// Takes the gate, shared, for a change at `offset` that may grow the file: bytes between its end and there are zeros.
async fn gate_for_growth(file: &File, offset: u64) -> Result<Shared<'_>, FsError> {
    let gate = file.gate.read().await;
    if offset <= file.size() || !file.has_remains.load(Ordering::Acquire) {
        return Ok(gate);
    }
    drop(gate);
    clear_remains(file, &file.gate.write().await).await?;
    Ok(file.gate.read().await)
}

/// Clears bytes that dropped writes have left beyond the end of the file.
async fn clear_remains(file: &File, _gate: &Exclusive<'_>) -> Result<(), FsError> {
    if !file.has_remains.load(Ordering::Acquire) {
        return Ok(());
    }
    let (size, page_end) = (file.size(), file.size().next_multiple_of(PAGE_SIZE));
    if let Some(object) = file.object.get() {
        object.discard(page_end / PAGE_SIZE, u64::MAX)?;
        match object.zero(size, page_end).await {
            Ok(()) | Err(VmError::Lost) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    file.has_remains.store(false, Ordering::Release);
    Ok(())
}

/// Marks the file if a write is dropped before it completes.
struct Remains<'a>(Option<&'a File>);

impl<'a> Remains<'a> {
    /// For a write up to `end`. A write within the file leaves nothing where zeros are promised.
    fn of_write(file: &'a File, end: u64) -> Self {
        Remains((end > file.size()).then_some(file))
    }

    /// The write has completed: no mark.
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Remains<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0 {
            file.has_remains.store(true, Ordering::Release);
        }
    }
}

/// Drops the data at and after `size`, so that it reads as zeros if the file grows again.
async fn cut(file: &File, object: &Object, size: u64) -> Result<(), FsError> {
    let page_end = size.next_multiple_of(PAGE_SIZE);
    if size < file.size() && size < page_end {
        let mut cleared = object.zero(size, page_end).await;
        if cleared == Err(VmError::NoMemory) {
            // Clearing the tail takes a page, and the pages behind it may be the last there are.
            object.discard(page_end / PAGE_SIZE, u64::MAX)?;
            file.set_size(file.size().min(page_end));
            cleared = object.zero(size, page_end).await;
        }
        match cleared {
            // A lost page stays lost as a whole: its tail cannot be read.
            Ok(()) | Err(VmError::Lost) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    object.discard(page_end / PAGE_SIZE, u64::MAX)?;
    Ok(())
}

fn grow_unless(keep_size: bool, file: &File, end: u64) {
    if !keep_size {
        file.grow(end);
    }
}

/// Returns how many of `len` bytes from `offset` lie before `end`.
fn clip(len: usize, offset: u64, end: u64) -> usize {
    usize::try_from(end.saturating_sub(offset)).map_or(len, |room| room.min(len))
}

/// Returns the end of a range, which must not be empty or exceed [`MAX_FILE_SIZE`].
fn checked_end(offset: u64, len: u64) -> Result<u64, FsError> {
    if len == 0 {
        return Err(FsError::Invalid);
    }
    offset.checked_add(len).filter(|&end| end <= MAX_FILE_SIZE).ok_or(FsError::FileTooBig)
}
