//! Keeping write(2)'s promise near the end of space.
//!
//! With a writeback cache write(2) returns before we see the data; a WRITE refused later is data lost. So:
//!
//! - The kernel holds at most `dirty_max` bytes dirty for this mount (`bdi.rs`). The account has a reserve of twice
//!   that, open to cached writes only.
//! - When less than `dirty_max` is left below the limit, root's mount is remounted `sync`: from then on each
//!   write(2) waits for its own WRITE and fails itself with ENOSPC, and the reserve is closed. What was dirty before
//!   is written back by the remount, into the reserve. When space is free again the mount goes back.
//! - Who may not remount (a normal user) hears of ENOSPC at fsync or close, as on NFS. So does who writes through a
//!   mapping, always.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use overspill_tmpfs::TmpFs;
use overspill_vm::PAGE;
use rustix::mount::MountFlags;

/// How often space is looked at when nobody asks.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) struct Space {
    strict: AtomicBool,
    /// Somebody saw space run short and the watcher has not looked since.
    asked: AtomicBool,
    asks: Sender<()>,
    asked_rx: Mutex<Option<Receiver<()>>>,
    /// Pages left below which writes become synchronous.
    near: u64,
}

/// How to remount, for who may.
#[derive(Debug, Clone)]
pub(crate) struct Remount {
    pub(crate) mountpoint: PathBuf,
    /// The mount's flags, which a remount must repeat.
    pub(crate) flags: MountFlags,
}

impl Remount {
    fn apply(&self, synchronous: bool) -> std::io::Result<()> {
        let sync = if synchronous { MountFlags::SYNCHRONOUS } else { MountFlags::empty() };
        rustix::mount::mount_remount(&self.mountpoint, self.flags | sync, "")?;
        if synchronous {
            // What was written between the remount's own write-back and its flag.
            rustix::fs::syncfs(std::fs::File::open(&self.mountpoint)?)?;
        }
        Ok(())
    }
}

impl Space {
    pub(crate) fn new(fs: &TmpFs, dirty_max: u64) -> Space {
        let dirty_pages = dirty_max.div_ceil(PAGE as u64);
        fs.account().set_reserve(2 * dirty_pages);
        let (asks, asked_rx) = channel();
        Space {
            strict: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            asks,
            asked_rx: Mutex::new(Some(asked_rx)),
            near: dirty_pages.min(fs.account().limit() / 4),
        }
    }

    /// Whether write(2) hears of its own failure now, so that the reserve is closed.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict.load(Ordering::Acquire)
    }

    /// Asks the watcher to look if space has run short. Cheap: called after each write.
    pub(crate) fn check(&self, fs: &TmpFs) {
        let account = fs.account();
        if !self.is_strict()
            && account.used() + self.near > account.limit()
            && !self.asked.swap(true, Ordering::AcqRel)
        {
            let _ = self.asks.send(());
        }
    }

    /// Watches space until `stop`. `remount` is for who may; `often` is called at every look.
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
            let account = fs.account();
            let (used, limit) = (account.used(), account.limit());
            let switch_to = if !self.is_strict() && used + self.near > limit {
                true
            } else if self.is_strict() && used + 2 * self.near <= limit {
                false
            } else {
                continue;
            };
            let Some(how) = remount else { continue };
            if !switch_to {
                // The reserve opens before the first write may need it.
                self.strict.store(false, Ordering::Release);
            }
            match how.apply(switch_to) {
                Ok(()) => self.strict.store(switch_to, Ordering::Release),
                Err(error) => {
                    tracing::warn!(%error, "cannot remount: a full mount is reported by close and fsync only");
                    self.strict.store(false, Ordering::Release);
                    remount = None;
                }
            }
        }
    }
}
