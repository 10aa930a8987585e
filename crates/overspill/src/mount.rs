//! A tmpfs with its own pager, mounted: a file system on an engine, with FUSE in front.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use overspill_mount::{FuseOptions, Mounted, Tuning};
use overspill_tmpfs::{TmpFs, TmpFsConfig};
use overspill_vm::{PAGE, Vm};

use crate::clock::KernelClock;
use crate::control::protocol::{FaceInfo, FaceKind};
use crate::engine::{Engine, EngineError, Face, Loan, Registration};
use crate::stats::{self, Stats};

/// A mount: its place and its limits.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// An existing directory, absolute.
    pub mountpoint: PathBuf,
    /// Bytes that files may hold.
    pub size: u64,
    /// The most inodes, if that is limited.
    pub nr_inodes: Option<u64>,
    /// Permissions of the root directory.
    pub mode: u32,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Restrictions that the kernel holds.
    pub flags: MountFlags,
    /// Let the kernel keep what is written, and write it back later.
    pub writeback: bool,
    /// Have extended attributes.
    pub xattrs: bool,
}

pub use overspill_mount::MountFlags;

/// A mount that is being served. Dropping it ends the service.
pub struct Mount {
    // In the order in which they end: nothing is asked of a file system that has no transport.
    registration: Registration,
    mounted: Mounted,
    face: Arc<dyn Face>,
    loan: Loan,
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("face", &self.face.info()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Mounts a new, empty file system.
    ///
    /// # Errors
    /// When the mount cannot be made; nothing is left behind.
    pub fn mount(&self, options: &MountOptions) -> Result<Mount, EngineError> {
        self.check_mountpoint(&options.mountpoint)?;
        let memory = usize::try_from(self.options().memory).unwrap_or(usize::MAX);
        let tuning = Tuning::for_memory(memory);
        let loan = self.lend(tuning.memory())?;
        let vm = self.vm().clone();
        let size_pages = options.size / PAGE as u64;
        let fs = Arc::new(TmpFs::new(TmpFsConfig {
            vm: vm.clone(),
            size_pages,
            nr_inodes: options.nr_inodes,
            mode: options.mode,
            uid: options.uid,
            gid: options.gid,
            clock: Arc::new(KernelClock::new()),
        })?);
        let often = {
            let (fs, writeback) = (fs.clone(), options.writeback);
            move || limit_to_capacity(&vm, &fs, size_pages, writeback)
        };
        often();
        let fuse = FuseOptions {
            mountpoint: options.mountpoint.clone(),
            flags: options.flags,
            writeback: options.writeback,
            xattrs: options.xattrs,
            uring: !self.options().debug.no_uring,
            evict: self.options().debug.evict,
            tuning,
            dirty_max: self.options().dirty_max(options.writeback),
        };
        let mounted = overspill_mount::mount(&fs, &fuse, self.spawner(), Box::new(often))?;
        let info = FaceInfo {
            kind: FaceKind::Mount,
            at: options.mountpoint.display().to_string(),
            device: mounted.device.clone(),
        };
        let transport = mounted.transport();
        let requests = Box::new(mounted.requests());
        let face: Arc<dyn Face> = Arc::new(MountFace { info, fs, transport, requests });
        let registration = self.register(&face);
        Ok(Mount { registration, mounted, face, loan })
    }
}

impl Mount {
    /// Shortcomings of this mount, one line each.
    pub fn notes(&self) -> &[String] {
        &self.mounted.notes
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// When the connection to the kernel breaks.
    pub fn wait(self) -> Result<(), EngineError> {
        let Mount { registration, mounted, face, loan } = self;
        let result = mounted.wait();
        drop((registration, face, loan));
        Ok(result?)
    }

    /// The file system's device, `major:minor`.
    pub fn device(&self) -> String {
        self.face.info().device
    }

    /// The mountpoint.
    pub fn mountpoint(&self) -> PathBuf {
        Path::new(&self.face.info().at).to_owned()
    }
}

struct MountFace {
    info: FaceInfo,
    fs: Arc<TmpFs>,
    transport: &'static str,
    requests: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Face for MountFace {
    fn info(&self) -> FaceInfo {
        self.info.clone()
    }

    fn stats(&self, engine: &Engine) -> Stats {
        let facts = stats::Facts {
            budget_bytes: engine.options().memory,
            store_mode: engine.store_mode().to_owned(),
            signals_lost: engine.lost_signals(),
            transport: self.transport,
            requests: (self.requests)(),
        };
        stats::collect(facts, engine.vm(), &self.fs)
    }
}

/// Limits files to the capacity of memory and the store's disk, where that is less than `size`: a writer must hear of a
/// full disk from write(2), not from a pager that cannot evict.
///
/// Written through and without a store, memory itself says when it is full, to write(2): it holds as much as packs. Only
/// `df` has an estimate.
fn limit_to_capacity(vm: &Vm, fs: &TmpFs, size_pages: u64, writeback: bool) {
    if vm.has_store() || writeback {
        fs.account().set_limit(size_pages.min(vm.capacity(fs.account())));
    } else {
        fs.account().set_room(vm.room_in_memory());
    }
}
