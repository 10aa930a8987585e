//! A [`TmpFs`] served to the kernel by FUSE.
//!
//! ```text
//!   names.rs    requests about names and attributes: answered where they arrive
//!   data.rs     requests that move bytes: must one wait? ─► park.rs ─► a task of the driver's
//!   kernel.rs, drops.rs   requests to the kernel
//!   space.rs    near the end of space                  bdi.rs   limits on write-back
//!   prime.rs    what the kernel learns at mount, so that it asks less
//! ```
//!
//! Written data goes through to us with its write(2), which therefore reports what happened to it; with `writeback` the
//! kernel keeps it for a while. Attributes and names stay valid for ever in the kernel, since only it changes them. It
//! opens and closes files without asking, checks permissions itself, and kills set-id bits through us. A new file is
//! LOOKUP and CREATE (and GETATTR of its directory), a write and its close one WRITE.
#![forbid(unsafe_code)]

mod bdi;
mod convert;
mod data;
mod drops;
mod kernel;
mod names;
mod park;
mod prime;
mod server;
#[cfg(test)]
mod soak;
mod space;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use overspill_fuse::{Device, Serve, Session, Threads, Wanted};
pub use overspill_fuse::{FuseError, MountFlags, fusermount};
use overspill_tmpfs::TmpFs;

pub use server::{Rings, Tuning};

use bdi::Bdi;
use kernel::Kernel;
use names::Front;
use park::Parking;
use prime::Prime;
use server::Server;
use space::{Remount, Space};

/// Options of a mount.
#[derive(Debug, Clone)]
pub struct FuseOptions {
    /// An existing directory, absolute.
    pub mountpoint: PathBuf,
    /// Restrictions that the kernel holds.
    pub flags: MountFlags,
    /// Let the kernel keep what is written, and write it back later.
    pub writeback: bool,
    /// Extended attributes exist. Without them the kernel asks for none before the first write to each file.
    pub xattrs: bool,
    /// Requests come by io_uring, where the kernel has that.
    pub uring: bool,
    /// Drop the kernel's copy of data at once after reads and writes: for tests.
    pub evict: bool,
    /// Sizes of the transport.
    pub tuning: Tuning,
    /// Most bytes the kernel may hold dirty, if we may set that.
    pub dirty_max: u64,
}

/// A mount that is being served. Dropping it ends the service.
pub struct Mounted {
    server: Arc<Server>,
    by_ring: bool,
    session: Option<Session>,
    watcher: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// The file system's device, `major:minor`.
    pub device: String,
    /// Shortcomings of this mount, one line each.
    pub notes: Vec<String>,
}

/// Mounts `fs` and serves it. `spawn` runs requests that wait; `often` is called a few times a second.
///
/// # Errors
/// If the mount cannot be made; nothing is left behind then.
pub fn mount(
    fs: &Arc<TmpFs>,
    options: &FuseOptions,
    spawn: Arc<dyn overspill_runtime::Spawn>,
    often: Box<dyn Fn() + Send>,
) -> Result<Mounted, FuseError> {
    let failed = |error| FuseError::Mount(options.mountpoint.clone(), error);
    let tuning = options.tuning;
    let may_remount = options.writeback && rustix::process::geteuid().is_root();
    let server = Arc::new(Server {
        fs: fs.clone(),
        tuning,
        parking: Parking::new(spawn, tuning.threads, tuning.max_background.into()),
        kernel: Kernel::new().map_err(failed)?,
        space: Arc::new(Space::new(fs, options.dirty_max, options.writeback, may_remount)),
        writeback: options.writeback,
        xattrs: options.xattrs,
        prime: Prime::new(),
        requests: AtomicU64::new(0),
        awaiting_forgets: AtomicBool::new(false),
        lasting_orphans: AtomicU64::new(0),
        evict: AtomicBool::new(options.evict),
    });
    // Spawning a thread can fail, so it comes before there is a mount to remove.
    let stop = Arc::new(AtomicBool::new(false));
    let (mounted, is_mounted) = channel();
    let watch = {
        let (server, stop) = (server.clone(), stop.clone());
        move || watch(&server, &is_mounted, &stop, &*often)
    };
    let watcher = overspill_sys::process::spawn_or_die("space", watch).map_err(failed)?;
    let session = serve(&server, options)?;
    if session.by_ring() {
        server.parking.never_wait_here();
    }
    server.kernel.connect(session.device().clone());
    server.prime.run(&options.mountpoint).map_err(failed)?;
    let device = rustix::fs::stat(&options.mountpoint).map_err(|errno| failed(errno.into()))?.st_dev;
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut notes = Vec::new();
    match session.no_ring() {
        Some(error) => notes.push(format!("requests come by /dev/fuse: io_uring is refused ({error})")),
        None if !session.by_ring() && options.uring => {
            notes.push("requests come by /dev/fuse; io_uring is faster: see `overspill doctor`".to_owned());
        }
        None => {}
    }
    let dirty = Bdi::of(&device).tune(options.dirty_max, tuning.max_write.saturating_mul(4));
    if dirty != options.dirty_max {
        server.space.promise(fs, dirty);
        if options.writeback {
            notes.push(format!(
                "the kernel's own limit on dirty data stays ({} MiB): only root may set it",
                dirty >> 20
            ));
        }
    }
    let remount = may_remount.then(|| Remount::of(&options.mountpoint)).transpose().map_err(failed)?;
    let _ = mounted.send(remount);
    let by_ring = session.by_ring();
    Ok(Mounted { server, by_ring, session: Some(session), watcher: Some(watcher), stop, device, notes })
}

/// Mounts, agrees with the kernel, and starts the threads.
fn serve(server: &Arc<Server>, options: &FuseOptions) -> Result<Session, FuseError> {
    let tuning = options.tuning;
    let (device, mounted): (Device, _) =
        overspill_fuse::mount(&options.mountpoint, "overspill", options.flags)?;
    let front: Arc<dyn Serve> = Arc::new(Front(server.clone()));
    let wanted = Wanted {
        max_write: tuning.max_write,
        max_readahead: tuning.max_write,
        max_background: tuning.max_background,
        writeback: options.writeback,
        uring: options.uring && tuning.rings.is_some(),
    };
    let places = tuning.rings.map_or(0, |rings| rings.places);
    let threads = Threads { classic: tuning.threads, places };
    Session::start(device, mounted, &front, wanted, threads)
}

/// Watches space and parked requests from the mount until `stop`; ends at once if mounting fails.
fn watch(
    server: &Server,
    is_mounted: &Receiver<Option<Remount>>,
    stop: &AtomicBool,
    often: &(dyn Fn() + Send),
) {
    let Ok(remount) = is_mounted.recv() else { return };
    let look = || {
        server.parking.expire(Instant::now());
        often();
    };
    server.space.watch(&server.fs, remount.as_ref(), stop, &look);
}

impl Mounted {
    /// How requests come.
    pub fn transport(&self) -> &'static str {
        if self.by_ring { "io_uring" } else { "/dev/fuse" }
    }

    /// Counts requests of the kernel that wanted an answer: round trips.
    pub fn requests(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let server = self.server.clone();
        move || server.requests.load(Ordering::Relaxed)
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// [`FuseError::Session`] when the connection to the kernel breaks.
    pub fn wait(mut self) -> Result<(), FuseError> {
        let result = self.session.take().map_or(Ok(()), Session::join);
        self.end();
        result
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.end();
    }
}
