//! Keeps the promise of write(2) near the end of space.
//!
//! Written through, a WRITE is write(2) itself: it fails when there is no room, and only what processes write through
//! mappings has been accepted before. That goes into the account's reserve, and what does not fit there fails at msync,
//! fsync or close, as on NFS. All else here is for `-o writeback`:
//!
//! With a writeback cache write(2) returns before we see the data; data of a WRITE refused later is lost. So:
//!
//! - The kernel holds at most `dirty_max` bytes dirty for this mount (`bdi.rs`). The account has a reserve of twice
//!   that, open to cached writes only.
//! - When less than `dirty_max` is left below the limit, or metadata runs short, or the store fails, root's mount is
//!   remounted `sync`: from then on each write(2) waits for its own WRITE and fails itself with ENOSPC, and the
//!   reserve is closed. The remount writes back data that is dirty already, into the reserve. When space is free again
//!   the mount is remounted without `sync`.
//! - A normal user may not remount. The kernel asks instead: near the limit the attributes of each file that is
//!   written are made stale, so that write(2) sends GETATTR first, and fails if that does. This is coarser: when full,
//!   overwriting fails too, and data that a file's first writes dirtied before the first WRITE came is let in, into the
//!   reserve. (A read does not ask: the size it needs is the kernel's own under a writeback cache. GETATTR carries a
//!   file handle only when a write or the like sends it.)
//! - A process that writes through a mapping gets ENOSPC at msync, fsync or close, as on NFS.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use overspill_tmpfs::TmpFs;
use overspill_vm::PAGE;
use rustix::fs::StatVfsMountFlags;
use rustix::mount::MountFlags;

/// Interval at which the watcher looks at space unasked.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) struct Space {
    writeback: bool,
    strict: AtomicBool,
    /// A request saw space run short and the watcher has not looked since.
    asked: AtomicBool,
    asks: Sender<()>,
    asked_rx: Mutex<Option<Receiver<()>>>,
    /// The mount cannot be remounted, so the kernel must ask before each write(2).
    asks_instead: AtomicBool,
    /// Pages that the kernel may hold dirty: their write(2) has returned already.
    promised: AtomicU64,
    /// Number of pages left below which the remount or the asking begins.
    near: AtomicU64,
}

/// The mount to remount, for a process that may.
#[derive(Debug, Clone)]
pub(crate) struct Remount {
    mountpoint: PathBuf,
    /// The file system's device: another one may be mounted over it.
    device: u64,
}

impl Remount {
    pub(crate) fn of(mountpoint: &Path) -> std::io::Result<Remount> {
        let device = rustix::fs::stat(mountpoint)?.st_dev;
        Ok(Remount { mountpoint: mountpoint.to_owned(), device })
    }

    fn apply(&self, synchronous: bool) -> std::io::Result<()> {
        let root = std::fs::File::open(&self.mountpoint)?;
        if rustix::fs::fstat(&root)?.st_dev != self.device {
            return Err(std::io::Error::other("another file system is mounted over this one"));
        }
        let mut flags = flags_of(rustix::fs::fstatvfs(&root)?.f_flag);
        flags.set(MountFlags::SYNCHRONOUS, synchronous);
        rustix::mount::mount_remount(&self.mountpoint, flags, "")?;
        if synchronous {
            // Write back data that was written between the remount's own write-back and its flag.
            rustix::fs::syncfs(root)?;
        }
        Ok(())
    }
}

/// The flags of a mount, all of which a remount must repeat.
fn flags_of(now: StatVfsMountFlags) -> MountFlags {
    let pairs = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    pairs.into_iter().filter(|(has, _)| now.contains(*has)).map(|(_, flag)| flag).collect()
}

impl Space {
    /// `writeback`: write(2) returns before its data comes here.
    pub(crate) fn new(fs: &TmpFs, dirty_max: u64, writeback: bool, may_remount: bool) -> Space {
        let (asks, asked_rx) = channel();
        let space = Space {
            strict: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            asks_instead: AtomicBool::new(writeback && !may_remount),
            writeback,
            asks,
            asked_rx: Mutex::new(Some(asked_rx)),
            promised: AtomicU64::new(0),
            near: AtomicU64::new(0),
        };
        space.promise(fs, dirty_max);
        space
    }

    /// Sets how many bytes the kernel may hold dirty.
    pub(crate) fn promise(&self, fs: &TmpFs, dirty: u64) {
        let pages = dirty.div_ceil(PAGE as u64);
        fs.account().set_reserve(2 * pages);
        self.promised.store(pages, Ordering::Relaxed);
        self.near.store(pages.min(fs.account().limit() / 4), Ordering::Relaxed);
    }

    fn near(&self) -> u64 {
        self.near.load(Ordering::Relaxed)
    }

    /// Returns true if write(2) gets its own failure now, so that the reserve is closed.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict.load(Ordering::Acquire)
    }

    /// Returns true if the kernel should ask before each write(2) to a file that was just written or looked at.
    pub(crate) fn wants_to_be_asked(&self, fs: &TmpFs) -> bool {
        self.asks_instead.load(Ordering::Relaxed) && self.is_near(fs)
    }

    /// Returns true if a write(2) that asks must be refused.
    pub(crate) fn refuses_writes(&self, fs: &TmpFs) -> bool {
        let account = fs.account();
        let is_full = account.used() >= account.limit() || fs.vm().metadata_left() == 0;
        self.asks_instead.load(Ordering::Relaxed) && is_full
    }

    /// Returns true if space of some kind is so short that the kernel's dirty data might not find room: pages,
    /// metadata, or a store that takes them.
    fn is_near(&self, fs: &TmpFs) -> bool {
        self.is_short(fs, self.near())
    }

    fn is_short(&self, fs: &TmpFs, pages: u64) -> bool {
        fs.account().used() + pages > fs.account().limit()
            || fs.vm().is_metadata_short(self.promised.load(Ordering::Relaxed))
            || fs.vm().is_store_failing()
    }

    /// Asks the watcher to look if space has run short. Cheap: called after each write.
    pub(crate) fn check(&self, fs: &TmpFs) {
        if self.writeback && !self.is_strict() && self.is_near(fs) && !self.asked.swap(true, Ordering::AcqRel)
        {
            let _ = self.asks.send(());
        }
    }

    /// Watches space until `stop`. `remount` is `None` if the process may not remount; `often` is called at every look.
    pub(crate) fn watch(&self, fs: &TmpFs, remount: Option<&Remount>, stop: &AtomicBool, often: &dyn Fn()) {
        let Some(asked) = self.asked_rx.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let mut remount = remount;
        while !stop.load(Ordering::Acquire) {
            match asked.recv_timeout(LOOK) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.asked.store(false, Ordering::Release);
            often();
            if !self.writeback {
                continue;
            }
            let switch_to = if !self.is_strict() && self.is_near(fs) {
                true
            } else if self.is_strict() && !self.is_short(fs, 2 * self.near()) {
                false
            } else {
                continue;
            };
            let Some(how) = remount else { continue };
            if !switch_to {
                // Open the reserve before the first write may need it.
                self.strict.store(false, Ordering::Release);
            }
            match how.apply(switch_to) {
                Ok(()) => self.strict.store(switch_to, Ordering::Release),
                Err(error) => {
                    tracing::warn!(%error, "cannot remount: the kernel will ask before writes instead");
                    self.strict.store(false, Ordering::Release);
                    self.asks_instead.store(true, Ordering::Relaxed);
                    remount = None;
                }
            }
        }
    }
}
