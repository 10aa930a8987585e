//! The kernel's requests, one method each. Names and attributes here; bytes in `data.rs`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use overspill_tmpfs::{Attr, Caller, FileKind, FsError, NAME_MAX, RenameMode, SetAttr, XattrMode};

use crate::convert::{self, FOREVER, errno};
use crate::server::Server;

const PAGE_U32: u32 = 4096;

/// The methods that `fuser` calls. All state is in the server, which parked requests share.
pub(crate) struct Shim(pub(crate) Arc<Server>);

fn caller(req: &Request) -> Caller {
    // The protocol does not carry capabilities; root stands for CAP_FSETID.
    Caller { uid: req.uid(), gid: req.gid(), privileged: req.uid() == 0 }
}

fn generation() -> Generation {
    // Inode numbers are never reused.
    Generation(0)
}

impl Shim {
    /// Takes the kernel's reference to an inode and answers with its attributes.
    fn answer_entry(&self, found: Result<Attr, FsError>, reply: ReplyEntry) {
        match found {
            Ok(attr) if self.0.fs.grab(attr.ino) => {
                reply.entry(&FOREVER, &convert::attr(&attr), generation());
            }
            Ok(_) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Creates an inode or a link. If there is no room, tries once more after FORGETs had a chance to make some.
    fn make(&self, make: impl Fn() -> Result<Attr, FsError>) -> Result<Attr, FsError> {
        match make() {
            Err(error) if self.0.is_full(error) && self.0.await_forgets() => make(),
            made => made,
        }
    }
}

fn answer(result: Result<(), FsError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    if size == 0 {
        reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX));
    } else if value.len() <= size as usize {
        reply.data(value);
    } else {
        reply.error(Errno::ERANGE);
    }
}

impl Filesystem for Shim {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_WRITEBACK_CACHE,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Not FUSE_ASYNC_DIO: with it the kernel's cache keeps old bytes beside O_DIRECT by AIO or io_uring.
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // Without it the kernel asks for security.capability before each write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            if config.add_capabilities(wanted).is_err() {
                tracing::info!(?wanted, "this kernel's FUSE lacks a feature; going on without");
            }
        }
        let tuning = self.0.tuning;
        let _ = config.set_max_write(tuning.max_write);
        if let Err(most) = config.set_max_readahead(tuning.max_write) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(tuning.max_background);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.fs.lookup(parent.0, name.as_bytes()) {
            Err(FsError::NotFound) => {
                // Inode 0 with a time to live: the kernel caches that there is no such name.
                reply.entry(&FOREVER, &self.0.nobody, generation());
            }
            found => self.answer_entry(found, reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.0.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        // A GETATTR with a file handle comes from write(2), see space.rs.
        if fh.is_some() && self.0.space.refuses_writes(&self.0.fs) {
            return reply.error(Errno::ENOSPC);
        }
        match self.0.fs.getattr(ino.0) {
            Ok(attr) => reply.attr(&FOREVER, &convert::attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
        self.0.ask_before_writes(ino.0);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(convert::requested),
        };
        self.0.setattr(ino.0, set, caller(req), reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.fs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = FileKind::from_mode(mode) else { return reply.error(Errno::EINVAL) };
        let made =
            self.make(|| self.0.fs.mknod(parent.0, name.as_bytes(), kind, mode & 0o7777, rdev, caller(req)));
        self.answer_entry(made, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = self.make(|| self.0.fs.mkdir(parent.0, name.as_bytes(), mode & 0o7777, caller(req)));
        self.answer_entry(made, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let made = self.make(|| self.0.fs.symlink(parent.0, name.as_bytes(), target, caller(req)));
        self.answer_entry(made, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.0.fs.unlink(parent.0, name.as_bytes()), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.0.fs.rmdir(parent.0, name.as_bytes()), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = RenameMode::from_bits(flags.bits()).and_then(|mode| {
            self.0.fs.rename(parent.0, name.as_bytes(), newparent.0, newname.as_bytes(), mode)
        });
        answer(result, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let made = self.make(|| self.0.fs.link(ino.0, newparent.0, newname.as_bytes()));
        self.answer_entry(made, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // From now on the kernel opens and closes without asking, and keeps its cache over both.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(|| self.0.fs.create(parent.0, name.as_bytes(), mode & 0o7777, caller(req))) {
            Ok(attr) if self.0.fs.grab(attr.ino) => {
                let attr = convert::attr(&attr);
                reply.created(&FOREVER, &attr, generation(), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(_) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // The kernel still writes back at close; it only sends no FLUSH any more.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Data that arrived here is as safe as it will ever be (R4, R65); the kernel writes back before it sends FSYNC.
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.0.fs.readdir(ino.0, offset, &mut |entry| {
            let kind = convert::file_type(entry.kind);
            !reply.add(INodeNo(entry.ino), entry.cookie, kind, OsStr::from_bytes(entry.name))
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fs = &self.0.fs;
        let result = fs.readdir_plus(ino.0, offset, &mut |entry, attr| {
            let name = OsStr::from_bytes(entry.name);
            if entry.name == b"." || entry.name == b".." {
                // No reference is taken: the kernel takes none for these.
                return !reply.add(
                    INodeNo(entry.ino),
                    entry.cookie,
                    name,
                    &FOREVER,
                    &convert::attr(attr),
                    generation(),
                );
            }
            if !fs.grab(entry.ino) {
                return true;
            }
            let full = reply.add(
                INodeNo(entry.ino),
                entry.cookie,
                name,
                &FOREVER,
                &convert::attr(attr),
                generation(),
            );
            if full {
                // Not the last reference: the entry is a name of the inode, and its directory is locked.
                fs.forget(entry.ino, 1);
            }
            !full
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let s = self.0.fs.statfs();
        let name_max = u32::try_from(NAME_MAX).unwrap_or(u32::MAX);
        reply.statfs(
            s.pages,
            s.pages_free,
            s.pages_free,
            s.inodes,
            s.inodes_free,
            PAGE_U32,
            name_max,
            PAGE_U32,
        );
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Any,
            1 => XattrMode::Create,
            2 => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        answer(self.0.fs.setxattr(ino.0, name.as_bytes(), value, mode), reply);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.0.fs.getxattr(ino.0, name.as_bytes()) {
            Ok(value) => answer_xattr(&value, size, reply),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        // Root stands for the capability, as for CAP_FSETID.
        match self.0.fs.listxattr(ino.0, caller(req).privileged) {
            Ok(names) => answer_xattr(&names, size, reply),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.0.fs.removexattr(ino.0, name.as_bytes()), reply);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.read(ino.0, offset, size, reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.write(ino.0, offset, data, write_flags, reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.0.fallocate(ino.0, offset, length, mode, caller(req), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.0.lseek(ino.0, offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel now copies through its own cache.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: fuser::IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
