//! Opening an engine's store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use overspill_runtime::{Driver, StoreIo};
use overspill_store::{FaultyStore, FileStore, FsKind, IoMode, PerObjectStore, Store, check_location};
use overspill_vm::PAGE;

use super::error::EngineError;
use super::options::{EngineOptions, Layout, StoreChoice};
use super::place::Place;

/// Opens the store, and says how it does its I/O.
pub(super) fn open(
    options: &EngineOptions,
    notes: &mut Vec<String>,
) -> Result<(Option<Arc<dyn Store>>, String), EngineError> {
    let path = match &options.store {
        StoreChoice::None => return Ok((None, "none".to_owned())),
        StoreChoice::Directory(path) | StoreChoice::File(path) => path,
    };
    check_location_of(path, options)?;
    // Slots of dead pages stay taken until their cluster's last page dies, at worst one page in sixteen. The disk
    // itself limits the space they take (limit_to_capacity), so the numbering does not run out first.
    let capacity = (16 * (options.capacity.saturating_add(2 * options.dirty_max(true)) / PAGE as u64))
        .saturating_add(1 << 14);
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
pub(super) fn with_io(mode: String, driver: &Driver, notes: &mut Vec<String>) -> String {
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

/// The place of a store's path: of its directory, if the store is still to be made.
pub(super) fn place_of(path: &Path) -> std::io::Result<Place> {
    Place::of(if path.exists() { path } else { path.parent().unwrap_or(Path::new("/")) })
}

/// Refuses a store that would page to another pager, or to memory.
fn check_location_of(path: &Path, options: &EngineOptions) -> Result<(), EngineError> {
    let location = check_location(path)?;
    if options.force {
        return Ok(());
    }
    if place_of(path).is_ok_and(|place| place.fs_type == "fuse.overspill") {
        return Err(EngineError::StoreOnOverspill(path.to_owned()));
    }
    if location.kind == FsKind::Memory {
        return Err(EngineError::StoreOnTmpfs(path.to_owned()));
    }
    Ok(())
}
