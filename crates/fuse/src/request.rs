//! Requests, decoded. Nothing is copied but fixed-size arguments, nothing is allocated, and every length is checked: the
//! kernel is trusted to be the kernel, and a message that it garbles is refused.

use zerocopy::FromBytes;

use crate::abi::{
    BatchForgetIn, CreateIn, FallocateIn, ForgetIn, ForgetOne, GetattrIn, GetxattrIn, InHeader, InitExt,
    InitIn, InterruptIn, LinkIn, LseekIn, MkdirIn, MknodIn, OpenIn, ReadIn, Rename2In, RenameIn, SetattrIn,
    SetxattrIn, WriteIn, init_flag, opcode,
};

/// A request and its sender.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The number by which the kernel knows it.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// The caller's user.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// Its kind and arguments.
    pub op: Op<'a>,
}

/// Kinds of requests. Names have no zero byte and no end mark.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub enum Op<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        nlookup: u64,
    },
    BatchForget(Forgets<'a>),
    Getattr(GetattrIn),
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        args: MknodIn,
        name: &'a [u8],
    },
    Mkdir {
        args: MkdirIn,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        newdir: u64,
        flags: u32,
        name: &'a [u8],
        newname: &'a [u8],
    },
    Link {
        oldnode: u64,
        name: &'a [u8],
    },
    Open(OpenIn),
    Read(ReadIn),
    Write {
        args: WriteIn,
        data: &'a [u8],
    },
    Statfs,
    Release,
    Fsync,
    Setxattr {
        flags: u32,
        name: &'a [u8],
        value: &'a [u8],
    },
    Getxattr {
        size: u32,
        name: &'a [u8],
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Flush,
    Init {
        args: InitIn,
        flags: u64,
    },
    Opendir(OpenIn),
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Releasedir,
    Fsyncdir,
    Create {
        args: CreateIn,
        name: &'a [u8],
    },
    Interrupt {
        unique: u64,
    },
    Destroy,
    Fallocate(FallocateIn),
    Lseek(LseekIn),
    /// A request that this crate does not know: to be answered with ENOSYS.
    Other(u32),
}

impl Op<'_> {
    /// True for what the kernel only tells.
    #[must_use]
    pub fn has_no_reply(&self) -> bool {
        matches!(self, Op::Forget { .. } | Op::BatchForget(_) | Op::Interrupt { .. })
    }
}

/// The nodes of a BATCH_FORGET.
#[derive(Debug, Clone, Copy)]
pub struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = ForgetOne;

    fn next(&mut self) -> Option<ForgetOne> {
        let (one, rest) = ForgetOne::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(one)
    }
}

/// A message that is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header, or of another length than its header says.
    #[error("a message of {0} bytes")]
    Length(usize),
    /// The arguments of this kind of request are cut short or not as they should be.
    #[error("garbled arguments of request {opcode}")]
    Arguments {
        /// The kind.
        opcode: u32,
        /// The request to be refused.
        unique: u64,
    },
}

impl<'a> Request<'a> {
    /// Decodes a message: a header, and behind it what belongs to its kind.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(message: &'a [u8]) -> Result<Request<'a>, Malformed> {
        let length = || Malformed::Length(message.len());
        let (header, rest) = InHeader::read_from_prefix(message).map_err(|_| length())?;
        if header.len as usize != message.len() {
            return Err(length());
        }
        Request::with_header(&header, rest)
    }

    /// Decodes the arguments of a request whose header came by another way.
    ///
    /// # Errors
    /// [`Malformed::Arguments`].
    pub fn with_header(header: &InHeader, rest: &'a [u8]) -> Result<Request<'a>, Malformed> {
        // Extensions, which we never asked for, lie behind the arguments.
        let extensions = usize::from(header.total_extlen) * 8;
        let op = rest.len().checked_sub(extensions).and_then(|len| decode(header.opcode, &rest[..len]));
        let op = op.ok_or(Malformed::Arguments { opcode: header.opcode, unique: header.unique })?;
        Ok(Request::of(header, op))
    }

    pub(crate) fn of(header: &InHeader, op: Op<'a>) -> Request<'a> {
        Request { unique: header.unique, node: header.nodeid, uid: header.uid, gid: header.gid, op }
    }
}

/// Bytes of the fixed-size arguments of a kind of request, which io_uring brings apart from the rest.
pub(crate) fn fixed_bytes(kind: u32) -> usize {
    match kind {
        opcode::GETATTR => size_of::<GetattrIn>(),
        opcode::SETATTR => size_of::<SetattrIn>(),
        opcode::MKNOD => size_of::<MknodIn>(),
        opcode::MKDIR => size_of::<MkdirIn>(),
        opcode::RENAME => size_of::<RenameIn>(),
        opcode::RENAME2 => size_of::<Rename2In>(),
        opcode::LINK => size_of::<LinkIn>(),
        opcode::OPEN | opcode::OPENDIR => size_of::<OpenIn>(),
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => size_of::<ReadIn>(),
        opcode::WRITE => size_of::<WriteIn>(),
        opcode::SETXATTR => size_of::<SetxattrIn>(),
        opcode::GETXATTR | opcode::LISTXATTR => size_of::<GetxattrIn>(),
        opcode::CREATE => size_of::<CreateIn>(),
        opcode::FALLOCATE => size_of::<FallocateIn>(),
        opcode::LSEEK => size_of::<LseekIn>(),
        _ => 0,
    }
}

/// Splits off fixed-size arguments.
fn take<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

/// Arguments that end the message. A later kernel may have more behind them.
fn all<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    take(bytes).map(|(args, _)| args)
}

/// A name up to its zero byte, and the rest.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn name(bytes: &[u8]) -> Option<&[u8]> {
    text(bytes).map(|(name, _)| name)
}

fn two_names(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = text(bytes)?;
    Some((first, name(rest)?))
}

fn decode(kind: u32, args: &[u8]) -> Option<Op<'_>> {
    Some(match kind {
        opcode::LOOKUP => Op::Lookup { name: name(args)? },
        opcode::FORGET => Op::Forget { nlookup: all::<ForgetIn>(args)?.nlookup },
        opcode::BATCH_FORGET => {
            let (batch, rest) = take::<BatchForgetIn>(args)?;
            let bytes = (batch.count as usize).checked_mul(size_of::<ForgetOne>())?;
            Op::BatchForget(Forgets(rest.get(..bytes)?))
        }
        opcode::GETATTR => Op::Getattr(all(args)?),
        opcode::SETATTR => Op::Setattr(all(args)?),
        opcode::READLINK => Op::Readlink,
        opcode::OPEN => Op::Open(all(args)?),
        opcode::READ => Op::Read(all(args)?),
        opcode::WRITE => {
            let (args, rest): (WriteIn, _) = take(args)?;
            Op::Write { args, data: rest.get(..args.size as usize)? }
        }
        opcode::STATFS => Op::Statfs,
        opcode::RELEASE => Op::Release,
        opcode::FSYNC => Op::Fsync,
        opcode::FLUSH => Op::Flush,
        opcode::INIT => {
            let (args, rest): (InitIn, _) = take(args)?;
            let more = take::<InitExt>(rest).filter(|_| u64::from(args.flags) & init_flag::INIT_EXT != 0);
            let high = more.map_or(0, |(more, _)| u64::from(more.flags2));
            Op::Init { args, flags: u64::from(args.flags) | high << 32 }
        }
        opcode::OPENDIR => Op::Opendir(all(args)?),
        opcode::READDIR => Op::Readdir(all(args)?),
        opcode::READDIRPLUS => Op::Readdirplus(all(args)?),
        opcode::RELEASEDIR => Op::Releasedir,
        opcode::FSYNCDIR => Op::Fsyncdir,
        opcode::INTERRUPT => Op::Interrupt { unique: all::<InterruptIn>(args)?.unique },
        opcode::DESTROY => Op::Destroy,
        opcode::FALLOCATE => Op::Fallocate(all(args)?),
        opcode::LSEEK => Op::Lseek(all(args)?),
        _ => return decode_change_of_name(kind, args),
    })
}

/// Requests that make, move or remove names, or extended attributes.
fn decode_change_of_name(kind: u32, args: &[u8]) -> Option<Op<'_>> {
    Some(match kind {
        opcode::SYMLINK => {
            let (name, target) = two_names(args)?;
            Op::Symlink { name, target }
        }
        opcode::MKNOD => {
            let (args, rest) = take(args)?;
            Op::Mknod { args, name: name(rest)? }
        }
        opcode::MKDIR => {
            let (args, rest) = take(args)?;
            Op::Mkdir { args, name: name(rest)? }
        }
        opcode::CREATE => {
            let (args, rest) = take(args)?;
            Op::Create { args, name: name(rest)? }
        }
        opcode::UNLINK => Op::Unlink { name: name(args)? },
        opcode::RMDIR => Op::Rmdir { name: name(args)? },
        opcode::RENAME => {
            let (RenameIn { newdir }, rest) = take(args)?;
            let (name, newname) = two_names(rest)?;
            Op::Rename { newdir, flags: 0, name, newname }
        }
        opcode::RENAME2 => {
            let (Rename2In { newdir, flags, .. }, rest) = take(args)?;
            let (name, newname) = two_names(rest)?;
            Op::Rename { newdir, flags, name, newname }
        }
        opcode::LINK => {
            let (LinkIn { oldnodeid }, rest) = take(args)?;
            Op::Link { oldnode: oldnodeid, name: name(rest)? }
        }
        opcode::SETXATTR => {
            let (SetxattrIn { size, flags }, rest) = take(args)?;
            let (name, rest) = text(rest)?;
            Op::Setxattr { flags, name, value: rest.get(..size as usize)? }
        }
        opcode::GETXATTR => {
            let (GetxattrIn { size, .. }, rest) = take(args)?;
            Op::Getxattr { size, name: name(rest)? }
        }
        opcode::LISTXATTR => Op::Listxattr { size: all::<GetxattrIn>(args)?.size },
        opcode::REMOVEXATTR => Op::Removexattr { name: name(args)? },
        other => Op::Other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    fn message(kind: u32, args: &[u8]) -> Vec<u8> {
        let len = u32::try_from(size_of::<InHeader>() + args.len()).unwrap();
        let header = InHeader { len, opcode: kind, unique: 7, nodeid: 1, ..InHeader::default() };
        [header.as_bytes(), args].concat()
    }

    #[test]
    fn names_and_data_are_found() {
        let rename = [Rename2In { newdir: 9, flags: 2, padding: 0 }.as_bytes(), b"old\0new\0"].concat();
        let rename = message(opcode::RENAME2, &rename);
        let Op::Rename { newdir, flags, name, newname } = Request::decode(&rename).unwrap().op else {
            panic!()
        };
        assert_eq!((newdir, flags, name, newname), (9, 2, &b"old"[..], &b"new"[..]));
        let write = [WriteIn { offset: 5, size: 3, ..WriteIn::default() }.as_bytes(), b"abcdef"].concat();
        let write = message(opcode::WRITE, &write);
        let Op::Write { args, data } = Request::decode(&write).unwrap().op else { panic!() };
        assert_eq!((args.offset, data), (5, &b"abc"[..]));
        let one = ForgetOne { nodeid: 3, nlookup: 4 };
        let batch =
            [BatchForgetIn { count: 2, dummy: 0 }.as_bytes(), one.as_bytes(), one.as_bytes()].concat();
        let batch = message(opcode::BATCH_FORGET, &batch);
        let Op::BatchForget(all) = Request::decode(&batch).unwrap().op else { panic!() };
        assert_eq!(all.collect::<Vec<_>>(), [one, one]);
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let whole = [WriteIn { size: 3, ..WriteIn::default() }.as_bytes(), b"abc"].concat();
        for len in 0..whole.len() {
            assert!(Request::decode(&message(opcode::WRITE, &whole[..len])).is_err(), "{len}");
        }
        let no_end = message(opcode::LOOKUP, b"name");
        assert_eq!(
            Request::decode(&no_end).unwrap_err(),
            Malformed::Arguments { opcode: opcode::LOOKUP, unique: 7 }
        );
        let many = message(opcode::BATCH_FORGET, BatchForgetIn { count: u32::MAX, dummy: 0 }.as_bytes());
        assert!(Request::decode(&many).is_err());
        let mut long = message(opcode::STATFS, b"");
        long.push(0);
        assert_eq!(Request::decode(&long).unwrap_err(), Malformed::Length(41));
    }

    proptest! {
        /// Any bytes decode to a request or an error: never a panic, never bytes from elsewhere.
        #[test]
        fn any_bytes_are_a_request_or_refused(
            kind in 0u32..60,
            args in proptest::collection::vec(any::<u8>(), 0..300),
            extensions in 0u16..50,
        ) {
            let mut bytes = message(kind, &args);
            bytes[36..38].copy_from_slice(&extensions.to_ne_bytes());
            let inside = bytes.as_ptr_range();
            let check = |part: &[u8]| part.is_empty() || inside.contains(&part.as_ptr()) && part.len() <= args.len();
            if let Ok(request) = Request::decode(&bytes) {
                let (a, b): (&[u8], &[u8]) = match request.op {
                    Op::Lookup { name } | Op::Unlink { name } | Op::Rmdir { name } | Op::Removexattr { name }
                    | Op::Mknod { name, .. } | Op::Mkdir { name, .. } | Op::Create { name, .. }
                    | Op::Link { name, .. } | Op::Getxattr { name, .. } => (name, b""),
                    Op::Symlink { name, target } => (name, target),
                    Op::Rename { name, newname, .. } => (name, newname),
                    Op::Setxattr { name, value, .. } => (name, value),
                    Op::Write { data, .. } => (data, b""),
                    Op::BatchForget(all) => { prop_assert!(all.count() * 16 <= args.len()); (b"", b"") }
                    _ => (b"", b""),
                };
                prop_assert!(check(a) && check(b));
            }
            let _ = Request::decode(&args);
        }
    }
}
