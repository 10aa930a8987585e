//! The kernel's FUSE protocol in front of a [`TmpFs`]: a thin shim over the `fuser` crate.
//!
//! ```text
//!   /dev/fuse ─► shim.rs (names) ──────────► tmpfs                     answered where it arrived
//!             └► data.rs (bytes) ─► tmpfs ─► vm ─ must wait? ─► park.rs ─► a task of the driver's
//!   kernel.rs: requests to the kernel     space.rs: near the end of space     bdi.rs: limits on write-back
//! ```
//!
//! The kernel's page cache is write-back. Attributes and names stay valid for ever, since only the kernel changes them.
//! The kernel opens and closes files without asking, checks permissions itself, and kills set-id bits through us.
//! FUSE costs round trips: a new file is LOOKUP and CREATE, a close after writing one WRITE and one SETATTR.
#![forbid(unsafe_code)]

mod bdi;
mod convert;
mod data;
mod kernel;
mod park;
mod server;
mod shim;
mod space;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use fuser::{Config, FileAttr, FileType, INodeNo, MountOption, Session, SessionACL};
use overspill_tmpfs::TmpFs;
use rustix::io::Errno;

pub use server::Tuning;

use bdi::Bdi;
use kernel::Kernel;
use park::Parking;
use server::Server;
use shim::Shim;
use space::{Remount, Space};

/// Restrictions of a mount, which the kernel holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags")]
pub struct MountFlags {
    /// Mount read-only.
    pub read_only: bool,
    /// Run no programs from it.
    pub noexec: bool,
    /// Honour no set-id bits.
    pub nosuid: bool,
    /// Open no devices.
    pub nodev: bool,
    /// Keep no access times.
    pub noatime: bool,
    /// Let other users in.
    pub allow_other: bool,
}

/// Options of a mount.
#[derive(Debug, Clone)]
pub struct FuseOptions {
    /// An existing directory, absolute.
    pub mountpoint: PathBuf,
    /// Restrictions that the kernel holds.
    pub flags: MountFlags,
    /// Drop the kernel's copy of data at once after reads and writes: for tests.
    pub evict: bool,
    /// Sizes of the transport.
    pub tuning: Tuning,
    /// Most bytes the kernel may hold dirty, if we may set that.
    pub dirty_max: u64,
}

/// The reason why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// There is no /dev/fuse.
    #[error("/dev/fuse is missing: load the fuse module (modprobe fuse), or give the container the device")]
    NoDevice,
    /// This user may not open /dev/fuse.
    #[error(
        "/dev/fuse may not be opened by this user: ask root for `chmod 666 /dev/fuse`, as distributions have it"
    )]
    DeviceRefused,
    /// This user may not mount here.
    #[error("mounting on {0} is not permitted: {1}")]
    Permission(PathBuf, String),
    /// There is no fusermount3 to mount for a normal user.
    #[error("fusermount3 is missing: install the package fuse3, or mount as root")]
    NoFusermount,
    /// allow_other needs root or a line in /etc/fuse.conf.
    #[error("--allow-other needs the line `user_allow_other` in /etc/fuse.conf, or root")]
    AllowOther,
    /// This process, or the system, has too many files open.
    #[error("cannot mount on {0}: {1}; allow more with `ulimit -n`")]
    NoFiles(PathBuf, #[source] std::io::Error),
    /// Any other failure to mount.
    #[error("cannot mount on {0}: {1}")]
    Mount(PathBuf, std::io::Error),
    /// The session ended with an error.
    #[error("the connection to the kernel failed: {0}")]
    Session(std::io::Error),
}

/// A mount that is being served. Dropping it ends the service.
pub struct Mounted {
    session: Option<fuser::BackgroundSession>,
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
    let may_remount = rustix::process::geteuid().is_root();
    let server = Arc::new(Server {
        fs: fs.clone(),
        tuning,
        parking: Parking::new(spawn, tuning.threads, tuning.max_background.into()),
        kernel: Kernel::new().map_err(failed)?,
        space: Arc::new(Space::new(fs, options.dirty_max, may_remount)),
        nobody: nobody(),
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
    let mut config = Config::default();
    config.mount_options = mount_options(options);
    config.acl = if options.flags.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(tuning.threads);
    let session = Session::new(Shim(server.clone()), &options.mountpoint, &config)
        .map_err(|error| explain(error, options))?;
    server.kernel.connect(session.notifier());
    let session = session.spawn().map_err(failed)?;

    let device = rustix::fs::stat(&options.mountpoint).map_err(|errno| failed(errno.into()))?.st_dev;
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut notes = Vec::new();
    let dirty = Bdi::of(&device).tune(options.dirty_max, tuning.max_write.saturating_mul(4));
    if dirty != options.dirty_max {
        server.space.promise(fs, dirty);
        notes.push(format!(
            "the kernel's own limit on dirty data stays ({} MiB): only root may set it",
            dirty >> 20
        ));
    }
    let remount = may_remount.then(|| Remount::of(&options.mountpoint)).transpose().map_err(failed)?;
    let _ = mounted.send(remount);
    Ok(Mounted { session: Some(session), watcher: Some(watcher), stop, device, notes })
}

/// Watches space and parked reads from the mount until `stop`; ends at once if mounting fails.
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
    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// [`FuseError::Session`] when the connection to the kernel breaks.
    pub fn wait(mut self) -> Result<(), FuseError> {
        let result = self.session.take().map_or(Ok(()), fuser::BackgroundSession::join);
        self.end();
        result.map_err(FuseError::Session)
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

fn nobody() -> FileAttr {
    let never = std::time::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: never,
        mtime: never,
        ctime: never,
        crtime: never,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn mount_options(options: &FuseOptions) -> Vec<MountOption> {
    let choose = |no: bool, off: MountOption, on: MountOption| if no { off } else { on };
    let mut list = vec![
        MountOption::FSName("overspill".into()),
        MountOption::CUSTOM("subtype=overspill".into()),
        MountOption::DefaultPermissions,
    ];
    if options.flags.read_only {
        list.push(MountOption::RO);
    }
    if options.flags.noexec {
        list.push(MountOption::NoExec);
    }
    if options.flags.noatime {
        list.push(MountOption::NoAtime);
    }
    // Only root may have set-id programs and devices on a mount.
    let root = rustix::process::geteuid().is_root();
    list.push(choose(options.flags.nosuid || !root, MountOption::NoSuid, MountOption::Suid));
    list.push(choose(options.flags.nodev || !root, MountOption::NoDev, MountOption::Dev));
    list
}

fn is_one_of(error: &std::io::Error, errnos: &[Errno]) -> bool {
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Maps an error of mounting to the usual reasons.
fn explain(error: std::io::Error, options: &FuseOptions) -> FuseError {
    let text = error.to_string();
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        FuseError::NoDevice
    } else if is_one_of(&error, &[Errno::MFILE, Errno::NFILE]) {
        FuseError::NoFiles(options.mountpoint.clone(), error)
    } else if std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .is_err_and(|e| is_one_of(&e, &[Errno::ACCESS, Errno::PERM]))
    {
        FuseError::DeviceRefused
    } else if text.contains("user_allow_other") {
        FuseError::AllowOther
    } else if error.kind() == std::io::ErrorKind::NotFound && options.mountpoint.exists() {
        FuseError::NoFusermount
    } else if error.kind() == std::io::ErrorKind::PermissionDenied || text.contains("ermission denied") {
        FuseError::Permission(options.mountpoint.clone(), text.trim().to_owned())
    } else {
        FuseError::Mount(options.mountpoint.clone(), error)
    }
}
