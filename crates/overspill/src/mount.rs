//! A tmpfs with its own pager, mounted: store, VM, driver, file system and FUSE put together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use overspill_fuse::{FuseError, FuseOptions, Tuning};
use overspill_store::{
    FaultyStore, FileStore, FsKind, IoMode, PerObjectStore, Store, StoreError, check_location,
};
use overspill_tmpfs::{FsError, TmpFs, TmpFsConfig};
pub use overspill_vm::Method;
use overspill_vm::{PAGE, Pager, Vm, VmConfig, VmError};

use crate::clock::KernelClock;
use crate::place::Place;
use crate::stats::{self, Fixed};
use overspill_runtime::{Driver, DriverOptions, StoreIo};

/// A mount: its place, its store, its limits.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// An existing directory, absolute.
    pub mountpoint: PathBuf,
    /// Bytes of RAM the daemon may use, everything counted.
    pub memory: u64,
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
    /// The store for pages that memory cannot hold.
    pub store: StoreChoice,
    /// The store's layout on its disk.
    pub layout: Layout,
    /// The compressor of pages, in memory and on the way to the store.
    pub compress: Method,
    /// Take a store that would otherwise be refused: an existing file, one on a tmpfs.
    pub force: bool,
    /// For tests.
    pub debug: Debugging,
}

/// The store for pages that memory cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// An unnamed file in this directory.
    Directory(PathBuf),
    /// This file, which must not exist; it loses its name as soon as it is open.
    File(PathBuf),
    /// None: data that memory cannot hold is refused.
    None,
}

/// The layout of a store in a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// One file for all.
    #[default]
    Shared,
    /// A file for each object.
    PerObject,
}

impl Layout {
    /// The names of all.
    pub const WORDS: &str = "shared, per-object";

    /// The layout of this name.
    #[must_use]
    pub fn named(word: &str) -> Option<Layout> {
        match word {
            "shared" => Some(Layout::Shared),
            "per-object" => Some(Layout::PerObject),
            _ => None,
        }
    }
}

/// Switches that make a mount show more of itself to tests (`-o debug=WORD`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Debugging {
    /// `evict`: every page is evicted at once, and the kernel's copy dropped.
    pub evict: bool,
    /// `fail-reads`: all reads of the store fail.
    pub fail_reads: bool,
    /// `fail-writes`: all writes to the store fail.
    pub fail_writes: bool,
    /// `fail-writes-2s`: all writes to the store fail within two seconds of the first.
    pub fail_writes_briefly: bool,
    /// `damage-reads`: all reads of the store bring damaged data.
    pub damage_reads: bool,
    /// `hang-reads`: no read of the store ends.
    pub hang_reads: bool,
    /// `no-uring`: the store's I/O runs as if io_uring were refused.
    pub no_uring: bool,
}

impl Debugging {
    /// The words of `-o debug=`.
    pub const WORDS: &str =
        "evict, fail-reads, fail-writes, fail-writes-2s, damage-reads, hang-reads, no-uring";

    /// Turns on a word of [`Debugging::WORDS`]. False for any other word.
    pub fn turn_on(&mut self, word: &str) -> bool {
        let switch = match word {
            "evict" => &mut self.evict,
            "fail-reads" => &mut self.fail_reads,
            "fail-writes" => &mut self.fail_writes,
            "fail-writes-2s" => &mut self.fail_writes_briefly,
            "damage-reads" => &mut self.damage_reads,
            "hang-reads" => &mut self.hang_reads,
            "no-uring" => &mut self.no_uring,
            _ => return false,
        };
        *switch = true;
        true
    }

    fn has_faults(self) -> bool {
        self.fail_reads
            || self.fail_writes
            || self.fail_writes_briefly
            || self.damage_reads
            || self.hang_reads
    }
}

/// The kind of a failure: callers choose exit codes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountErrorKind {
    /// The mountpoint is not fit.
    Mountpoint,
    /// Something is not permitted.
    Permission,
    /// FUSE is missing.
    Fuse,
    /// The store is refused or cannot be had.
    Store,
    /// The memory does not suffice.
    Memory,
    /// Anything else.
    Other,
}

/// The reason why there is no mount. Each message says which step failed, on which object, and a remedy.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store would page to itself (R14).
    #[error("no store at {}: it lies on the mount it is to serve; choose a place outside {}", .0.display(), .1.display())]
    StoreOnItself(PathBuf, PathBuf),
    /// The store would page to another pager.
    #[error("no store at {}: it lies on another overspill mount; choose a disk, or --force to page twice", .0.display())]
    StoreOnOverspill(PathBuf),
    /// The store would take the memory that it should save.
    #[error("no store at {}: it lies on a tmpfs, which is memory; choose a disk, --store none, or --force", .0.display())]
    StoreOnTmpfs(PathBuf),
    /// Too little memory for buffers.
    #[error("{0} bytes of memory do not hold even the buffers; give at least 4M")]
    Memory(u64),
    /// No address space, or no threads.
    #[error("the pager cannot start: {0}; check ulimit -v and -u")]
    Start(std::io::Error),
    /// See [`FuseError`].
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// See [`FsError`].
    #[error("the file system cannot start: {0}; give it more memory")]
    Fs(#[from] FsError),
}

impl MountError {
    /// Its kind.
    pub fn kind(&self) -> MountErrorKind {
        match self {
            MountError::Store(_)
            | MountError::StoreOnItself(..)
            | MountError::StoreOnOverspill(_)
            | MountError::StoreOnTmpfs(_) => MountErrorKind::Store,
            MountError::Memory(_) | MountError::Fs(_) => MountErrorKind::Memory,
            MountError::Fuse(FuseError::NoDevice | FuseError::NoFusermount) => MountErrorKind::Fuse,
            MountError::Fuse(
                FuseError::DeviceRefused | FuseError::Permission(..) | FuseError::AllowOther,
            ) => MountErrorKind::Permission,
            MountError::Fuse(_) | MountError::Start(_) => MountErrorKind::Other,
        }
    }
}

/// Bytes that the process takes beside its VM and transport: the program, its stacks, and what the C library's heap wastes.
/// Nothing in small budgets: it would be most of them.
fn process_memory(memory: usize) -> usize {
    if memory < 64 << 20 { 0 } else { 6 << 20 }
}

/// Bytes the kernel may hold dirty for a mount with this much memory.
fn dirty_max(options: &MountOptions) -> u64 {
    match options.store {
        // Promised data must fit into memory itself.
        StoreChoice::None => (options.memory / 16).clamp(1 << 20, 64 << 20),
        // Each dirty page may be far from all others, and then takes half as much again in metadata.
        _ => (options.memory / 4).clamp(1 << 20, 256 << 20),
    }
}

/// Mounts, calls `ready` with one-line notes on missing features, and serves until unmounted.
///
/// # Errors
/// When the mount cannot be made, or its connection to the kernel breaks. Nothing is left behind.
pub fn serve(options: MountOptions, ready: impl FnOnce(&str) + Send) -> Result<(), MountError> {
    overspill_sys::process::limit_malloc_arenas();
    protect_daemon();
    let memory = usize::try_from(options.memory).unwrap_or(usize::MAX);
    let tuning = Tuning::for_memory(memory);
    let dirty_max = dirty_max(&options);
    let mut notes = Vec::new();
    let (store, store_mode) = open_store(&options, 2 * dirty_max, &mut notes)?;
    let mut config =
        VmConfig::new(memory.saturating_sub(tuning.memory()).saturating_sub(process_memory(memory)));
    config.method = options.compress;
    let pager = Pager::new(&config, store.into_iter().collect()).map_err(|error| match error {
        VmError::NoMemory => MountError::Memory(options.memory),
        error => MountError::Start(std::io::Error::other(error)),
    })?;
    let driver_options =
        DriverOptions { memory: Some(memory), uring: !options.debug.no_uring, source_threads: 0 };
    let driver = Driver::start(&pager, driver_options).map_err(MountError::Start)?;
    let store_mode = with_store_io(store_mode, &driver, &mut notes);
    pager.set_eager(options.debug.evict);
    let vm = pager.vm().clone();
    let fs = Arc::new(TmpFs::new(TmpFsConfig {
        vm: vm.clone(),
        size_pages: options.size / PAGE as u64,
        nr_inodes: options.nr_inodes,
        mode: options.mode,
        uid: options.uid,
        gid: options.gid,
        clock: Arc::new(KernelClock::new()),
    })?);
    let fixed = Fixed { budget_bytes: options.memory, store_mode };
    let reports = {
        let (vm, fs, lost_signals) = (vm.clone(), fs.clone(), driver.lost_signals());
        move |report: &str| match report {
            stats::STATS => serde_json::to_string(&stats::collect(&fixed, &vm, &fs, lost_signals())).ok(),
            stats::SLABINFO => serde_json::to_string(&stats::slabinfo()).ok(),
            _ => None,
        }
    };
    let often = {
        let (vm, fs, size) = (vm.clone(), fs.clone(), options.size / PAGE as u64);
        move || limit_to_capacity(&vm, &fs, size)
    };
    often();
    let mounted = overspill_fuse::mount(
        &fs,
        &fuse_options(&options, tuning, dirty_max),
        driver.spawner(&pager),
        Box::new(reports),
        Box::new(often),
    )?;
    notes.extend(mounted.notes.iter().cloned());
    ready(&notes.join("; "));
    mounted.wait()?;
    Ok(())
}

fn fuse_options(options: &MountOptions, tuning: Tuning, dirty_max: u64) -> FuseOptions {
    FuseOptions {
        mountpoint: options.mountpoint.clone(),
        read_only: options.read_only,
        noexec: options.noexec,
        nosuid: options.nosuid,
        nodev: options.nodev,
        noatime: options.noatime,
        allow_other: options.allow_other,
        evict: options.debug.evict,
        tuning,
        dirty_max,
    }
}

/// Asks the kernel to treat a process that reclaim may wait for with care. Needs CAP_SYS_RESOURCE, which even root may
/// lack in a container; `doctor` says so, here it is only logged.
fn protect_daemon() {
    if let Err(error) = overspill_sys::process::set_io_flusher() {
        tracing::info!(%error, "PR_SET_IO_FLUSHER refused: under memory pressure the kernel may make this daemon wait");
    }
}

/// Limits files to the capacity of memory and the store's disk, where that is less than `size`: a writer must hear of a
/// full disk from write(2), not from a pager that cannot evict.
fn limit_to_capacity(vm: &Vm, fs: &TmpFs, size_pages: u64) {
    let capacity = vm.capacity(fs.account());
    fs.account().set_limit(size_pages.min(capacity));
}

/// Opens the store, and says how it does its I/O.
fn open_store(
    options: &MountOptions,
    beyond: u64,
    notes: &mut Vec<String>,
) -> Result<(Option<Arc<dyn Store>>, String), MountError> {
    let path = match &options.store {
        StoreChoice::None => return Ok((None, "none".to_owned())),
        StoreChoice::Directory(path) | StoreChoice::File(path) => path,
    };
    check_place(path, options)?;
    // Slots of dead pages stay taken until their cluster's last page dies, at worst one page in sixteen. The disk
    // itself limits the space they take (limit_to_capacity), so the numbering does not run out first.
    let capacity = (16 * (options.size.saturating_add(beyond) / PAGE as u64)).saturating_add(1 << 14);
    let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
    let (file, io_mode): (Arc<dyn Store>, IoMode) = match (&options.store, options.layout) {
        (StoreChoice::File(path), _) => {
            let file = FileStore::at_path(path, capacity, options.force)?;
            let mode = file.mode();
            (Arc::new(file), mode)
        }
        (_, Layout::Shared) => {
            let file = FileStore::in_directory(path, capacity)?;
            let mode = file.mode();
            (Arc::new(file), mode)
        }
        (_, Layout::PerObject) => {
            allow_many_files();
            // A sixteenth of the memory holds the maps of their blocks.
            let most = usize::try_from(options.memory / 16).unwrap_or(usize::MAX) / PerObjectStore::FILE_COST;
            let files = PerObjectStore::in_directory(path, capacity, most)?;
            let mode = files.mode();
            (Arc::new(files), mode)
        }
    };
    let mut mode = match io_mode {
        IoMode::Direct => "direct",
        IoMode::Buffered => "buffered",
    }
    .to_owned();
    if options.layout == Layout::PerObject && file.separates() {
        mode.push_str(", a file per object");
    }
    if io_mode != IoMode::Direct {
        notes.push(format!("the store's file system takes no O_DIRECT: {mode} I/O through the page cache"));
    }
    let faults = options.debug;
    if !faults.has_faults() {
        return Ok((Some(file), mode));
    }
    let faulty = FaultyStore::new(file, 1);
    let switches = faulty.faults();
    let always = |on: bool| if on { 1_000_000 } else { 0 };
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    switches.read_error.store(always(faults.fail_reads), relaxed);
    switches.write_error.store(always(faults.fail_writes || faults.fail_writes_briefly), relaxed);
    switches.read_flip.store(always(faults.damage_reads), relaxed);
    switches.hang_reads.store(faults.hang_reads, relaxed);
    if faults.fail_writes_briefly {
        std::thread::spawn(move || {
            while switches.counts().errors == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_secs(2));
            switches.stop();
        });
    }
    Ok((Some(Arc::new(faulty)), format!("{mode}, with faults")))
}

/// The store's way of I/O, in words; where the kernel gave no ring, a note says so.
fn with_store_io(mode: String, driver: &Driver, notes: &mut Vec<String>) -> String {
    match driver.store_io() {
        StoreIo::Ring => format!("{mode}, io_uring"),
        StoreIo::Threads(None) => mode,
        StoreIo::Threads(Some(error)) => {
            notes.push(format!("no io_uring ({error}): the store is read and written by threads"));
            format!("{mode}, threads: no io_uring")
        }
    }
}

/// Raises the limit of open files to the maximum.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused the store shares files sooner.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Refuses a store that would page to itself, to another pager, or to memory.
fn check_place(path: &Path, options: &MountOptions) -> Result<(), MountError> {
    let location = check_location(path)?;
    let existing = if path.exists() { path } else { path.parent().unwrap_or(Path::new("/")) };
    if let (Ok(store), Ok(mountpoint)) = (Place::of(existing), Place::of(&options.mountpoint)) {
        if store.is_within(&mountpoint) {
            return Err(MountError::StoreOnItself(path.to_owned(), options.mountpoint.clone()));
        }
        if store.fs_type == "fuse.overspill" && !options.force {
            return Err(MountError::StoreOnOverspill(path.to_owned()));
        }
    }
    if location.kind == FsKind::Memory && !options.force {
        return Err(MountError::StoreOnTmpfs(path.to_owned()));
    }
    Ok(())
}
