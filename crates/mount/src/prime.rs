//! Priming: the kernel learns at mount, from a file that is never listed, that OPEN, FLUSH and FSYNC are needless. It
//! would otherwise send one of each for a user's first file, and a RELEASE for every file created before that.

use std::io;
use std::path::Path;

use overspill_fuse::{Reply, abi};
use rustix::io::Errno;

/// The number of the file. The file system's own count up from 1.
pub(crate) const NODE: u64 = u64::MAX;

/// The file's name: nobody else knows it, and it exists only while the mount is made.
#[derive(Debug)]
pub(crate) struct Prime {
    name: String,
}

impl Prime {
    pub(crate) fn new() -> Prime {
        use std::hash::BuildHasher as _;
        let random = || std::collections::hash_map::RandomState::new().hash_one(0);
        Prime { name: format!(".overspill-{:016x}{:016x}", random(), random()) }
    }

    pub(crate) fn is(&self, parent: u64, name: &[u8]) -> bool {
        parent == overspill_tmpfs::ROOT_INO && name == self.name.as_bytes()
    }

    pub(crate) fn attr() -> abi::Attr {
        let uid = rustix::process::geteuid().as_raw();
        abi::Attr { ino: NODE, mode: 0o100_400, nlink: 1, uid, blksize: 4096, ..abi::Attr::default() }
    }

    /// Opens, syncs and closes the file: all of them are answered with ENOSYS, which the kernel hides and remembers.
    pub(crate) fn run(&self, mountpoint: &Path) -> io::Result<()> {
        let file = std::fs::File::open(mountpoint.join(&self.name))?;
        file.sync_all()?;
        drop(file);
        // The same for directories.
        drop(std::fs::read_dir(mountpoint)?);
        std::fs::File::open(mountpoint)?.sync_all()
    }
}

/// Answers what the kernel may ask about the file.
pub(crate) fn serve(request: &overspill_fuse::Request<'_>, reply: Reply) {
    match request.op {
        overspill_fuse::Op::Getattr(_) => {
            reply.with(&abi::AttrOut { attr: Prime::attr(), ..abi::AttrOut::default() })
        }
        overspill_fuse::Op::Read(_) => reply.ok(),
        _ => reply.error(Errno::NOSYS.raw_os_error()),
    }
}
