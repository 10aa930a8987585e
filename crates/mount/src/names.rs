//! The kernel's requests. Names and attributes here; bytes in `data.rs`.

use std::cell::RefCell;
use std::sync::Arc;

use overspill_fuse::{Dirents, Op, Reply, Request, Serve, abi};
use overspill_tmpfs::{Attr, Caller, FileKind, FsError, NAME_MAX, RenameMode, XattrMode};
use rustix::io::Errno;

use crate::convert;
use crate::prime;
use crate::server::Server;

const PAGE: u32 = 4096;

thread_local! {
    /// The buffer for directory entries: one per thread, as large as its largest reply.
    static ENTRIES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The server of a mount, as its transport knows it.
pub(crate) struct Front(pub(crate) Arc<Server>);

fn caller(request: &Request<'_>) -> Caller {
    // The protocol does not carry capabilities; root stands for CAP_FSETID.
    Caller { uid: request.uid, gid: request.gid, privileged: request.uid == 0 }
}

fn refuse(reply: Reply, errno: Errno) {
    reply.error(errno.raw_os_error());
}

fn answer(result: Result<(), FsError>, reply: Reply) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.errno()),
    }
}

fn answer_xattr(value: &[u8], size: u32, reply: Reply) {
    if size == 0 {
        reply.size(value.len());
    } else if value.len() <= size as usize {
        reply.bytes(value);
    } else {
        refuse(reply, Errno::RANGE);
    }
}

impl Serve for Front {
    fn serve(&self, request: &Request<'_>, reply: Reply) {
        let server = &self.0;
        server.count(request);
        if request.node == prime::NODE {
            return prime::serve(request, reply);
        }
        match request.op {
            Op::Read(args) => server.read(request.node, args.offset, args.size, reply),
            Op::Write { args, data } => server.write(request.node, &args, data, reply),
            Op::Setattr(args) => {
                server.setattr(request.node, convert::changes(&args), caller(request), reply);
            }
            Op::Fallocate(args) => server.fallocate(request.node, &args, caller(request), reply),
            Op::Lseek(args) => server.lseek(request.node, args.offset, args.whence, reply),
            Op::Readdir(args) => server.readdir(request.node, &args, reply),
            Op::Readdirplus(args) => server.readdir_plus(request.node, &args, reply),
            _ => server.serve_name(request, reply),
        }
    }

    fn note(&self, request: &Request<'_>) {
        match request.op {
            Op::Forget { nlookup } => self.0.fs.forget(request.node, nlookup),
            Op::BatchForget(all) => all.for_each(|one| self.0.fs.forget(one.nodeid, one.nlookup)),
            // INTERRUPT comes for every signal, also for one with a handler: a write(2) that fails then would be an error to
            // programs that no other file system shows them. A request ends by itself, or when its time is up.
            _ => {}
        }
    }
}

impl Server {
    fn serve_name(&self, request: &Request<'_>, reply: Reply) {
        let (fs, node) = (&self.fs, request.node);
        match request.op {
            Op::Lookup { name } => self.lookup(node, name, reply),
            Op::Getattr(args) => self.getattr(node, args, reply),
            Op::Create { args, name } => self.create(request, args, name, reply),
            Op::Mkdir { args, name } => {
                let made = self.make(|| fs.mkdir(node, name, args.mode & 0o7777, caller(request)));
                self.answer_entry(made, reply);
            }
            Op::Mknod { args, name } => {
                let Some(kind) = FileKind::from_mode(args.mode) else { return refuse(reply, Errno::INVAL) };
                let mode = args.mode & 0o7777;
                let made = self.make(|| fs.mknod(node, name, kind, mode, args.rdev, caller(request)));
                self.answer_entry(made, reply);
            }
            Op::Symlink { name, target } => {
                let made = self.make(|| fs.symlink(node, name, target, caller(request)));
                self.answer_entry(made, reply);
            }
            Op::Link { oldnode, name } => {
                self.answer_entry(self.make(|| fs.link(oldnode, node, name)), reply);
            }
            Op::Unlink { name } => answer(fs.unlink(node, name), reply),
            Op::Rmdir { name } => answer(fs.rmdir(node, name), reply),
            Op::Rename { newdir, flags, name, newname } => {
                let mode = RenameMode::from_bits(flags);
                answer(mode.and_then(|mode| fs.rename(node, name, newdir, newname, mode)), reply);
            }
            Op::Readlink => match fs.readlink(node) {
                Ok(target) => reply.bytes(&target),
                Err(error) => reply.error(error.errno()),
            },
            Op::Statfs => self.statfs(reply),
            // The kernel remembers that.
            Op::Setxattr { .. } | Op::Getxattr { .. } | Op::Listxattr { .. } | Op::Removexattr { .. }
                if !self.xattrs =>
            {
                refuse(reply, Errno::NOSYS);
            }
            Op::Setxattr { flags, name, value } => {
                let mode = match flags {
                    0 => XattrMode::Any,
                    1 => XattrMode::Create,
                    2 => XattrMode::Replace,
                    _ => return refuse(reply, Errno::INVAL),
                };
                answer(fs.setxattr(node, name, value, mode), reply);
            }
            Op::Getxattr { size, name } => match fs.getxattr(node, name) {
                Ok(value) => answer_xattr(&value, size, reply),
                Err(error) => reply.error(error.errno()),
            },
            // Root stands for the capability, as for CAP_FSETID.
            Op::Listxattr { size } => match fs.listxattr(node, caller(request).privileged) {
                Ok(names) => answer_xattr(&names, size, reply),
                Err(error) => reply.error(error.errno()),
            },
            Op::Removexattr { name } => answer(fs.removexattr(node, name), reply),
            Op::Destroy => reply.ok(),
            // ENOSYS to OPEN, OPENDIR, FLUSH and FSYNC: the kernel opens and closes without asking from then on, and
            // keeps its cache over both. Data that arrived here is as safe as it will ever be (R4, R65). RELEASE of what
            // was opened before that has nothing to do.
            Op::Release | Op::Releasedir => reply.ok(),
            Op::Other(IOCTL) => refuse(reply, Errno::NOTTY),
            _ => refuse(reply, Errno::NOSYS),
        }
    }

    pub(crate) fn attr(&self, attr: &Attr) -> abi::Attr {
        convert::attr(attr, self.writeback)
    }

    /// Takes the kernel's reference to an inode and answers with its attributes.
    fn answer_entry(&self, found: Result<Attr, FsError>, reply: Reply) {
        match found {
            Ok(attr) if self.fs.grab(attr.ino) => reply.entry(&self.attr(&attr)),
            Ok(_) => refuse(reply, Errno::NOENT),
            Err(error) => reply.error(error.errno()),
        }
    }

    /// Creates an inode or a link. If there is no room, tries once more after FORGETs had a chance to make some.
    fn make(&self, make: impl Fn() -> Result<Attr, FsError>) -> Result<Attr, FsError> {
        match make() {
            Err(error) if self.is_full(error) && self.await_forgets() => make(),
            made => made,
        }
    }

    fn lookup(&self, parent: u64, name: &[u8], reply: Reply) {
        if name == b"." {
            // A file handle (name_to_handle_at(2), NFS) of a node that the kernel has forgotten.
            let found = self.fs.getattr(parent);
            // A removed file lives on only for those who have it open, and the kernel knows those by itself.
            return self.answer_entry(
                found.and_then(|a| if a.nlink > 0 { Ok(a) } else { Err(FsError::Stale) }),
                reply,
            );
        }
        match self.fs.lookup(parent, name) {
            Err(FsError::NotFound) if self.prime.is(parent, name) => {
                reply.passing_entry(&prime::Prime::attr());
            }
            // The kernel remembers that there is no such name.
            Err(FsError::NotFound) => reply.no_entry(),
            found => self.answer_entry(found, reply),
        }
    }

    fn getattr(&self, node: u64, args: abi::GetattrIn, reply: Reply) {
        // A GETATTR with a file handle comes from write(2), see space.rs.
        if args.flags & abi::GETATTR_FH != 0 && self.space.refuses_writes(&self.fs) {
            return refuse(reply, Errno::NOSPC);
        }
        match self.fs.getattr(node) {
            Ok(attr) => reply.attr(&self.attr(&attr)),
            Err(error) => reply.error(error.errno()),
        }
        self.ask_before_writes(node);
    }

    fn create(&self, request: &Request<'_>, args: abi::CreateIn, name: &[u8], reply: Reply) {
        let mode = args.mode & 0o7777;
        match self.make(|| self.fs.create(request.node, name, mode, caller(request))) {
            Ok(attr) if self.fs.grab(attr.ino) => {
                let open_flags = abi::FOPEN_KEEP_CACHE | abi::FOPEN_NOFLUSH;
                reply.created(&self.attr(&attr), &abi::OpenOut { open_flags, ..abi::OpenOut::default() });
            }
            Ok(_) => refuse(reply, Errno::NOENT),
            Err(error) => reply.error(error.errno()),
        }
    }

    fn statfs(&self, reply: Reply) {
        let s = self.fs.statfs();
        reply.with(&abi::StatfsOut {
            blocks: s.pages,
            bfree: s.pages_free,
            bavail: s.pages_free,
            files: s.inodes,
            ffree: s.inodes_free,
            bsize: PAGE,
            namelen: u32::try_from(NAME_MAX).unwrap_or(u32::MAX),
            frsize: PAGE,
            ..abi::StatfsOut::default()
        });
    }

    fn readdir(&self, node: u64, args: &abi::ReadIn, reply: Reply) {
        ENTRIES.with_borrow_mut(|buf| {
            let mut entries = Dirents::new(buf, args.size as usize);
            let result = self.fs.readdir(node, args.offset, &mut |entry| {
                entries.add(entry.ino, entry.cookie, convert::entry_kind(entry.kind), entry.name)
            });
            match result {
                Ok(()) => reply.bytes(entries.bytes()),
                Err(error) => reply.error(error.errno()),
            }
        });
    }

    fn readdir_plus(&self, node: u64, args: &abi::ReadIn, reply: Reply) {
        ENTRIES.with_borrow_mut(|buf| {
            let mut entries = Dirents::new(buf, args.size as usize);
            let result = self.fs.readdir_plus(node, args.offset, &mut |entry, attr| {
                // The kernel takes no reference for these two.
                let counts = entry.name != b"." && entry.name != b"..";
                if counts && !self.fs.grab(entry.ino) {
                    return true;
                }
                let kind = convert::entry_kind(entry.kind);
                let fits = entries.add_plus(&self.attr(attr), counts, entry.cookie, kind, entry.name);
                if counts && !fits {
                    // Not the last reference: the entry is a name of the inode, and its directory is locked.
                    self.fs.forget(entry.ino, 1);
                }
                fits
            });
            match result {
                Ok(()) => reply.bytes(entries.bytes()),
                Err(error) => reply.error(error.errno()),
            }
        });
    }
}

const IOCTL: u32 = 39;
