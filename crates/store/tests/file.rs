//! The file store and its disk.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{allocate, disk_dir, holds, pattern, settle};
use overspill_store::{
    AllocError, BLOCK, Backend, FileStore, FsKind, IoMode, Run, Space, StoreError, check_location,
};

const MIB: u64 = 1 << 20;

fn blocks(bytes: u64) -> u32 {
    u32::try_from(bytes / BLOCK as u64).unwrap()
}

fn open(dir: &Path, bytes: u64) -> FileStore {
    FileStore::in_directory(dir, blocks(bytes)).unwrap()
}

/// Writes this many MiB in runs of at most 1 MiB.
fn fill(store: &FileStore, mib: u64) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut left = blocks(mib * MIB);
    while left > 0 {
        let run = allocate(store, 1, left.min(256)).unwrap();
        store.write(run.start, &pattern(run, 9)).unwrap();
        left -= run.blocks;
        runs.push(run);
    }
    runs
}

// R9: no store file growth before the first eviction.
#[test]
fn takes_nothing_of_the_disk_before_pressure() {
    let dir = disk_dir();
    let store = open(dir.path(), 1 << 40);
    settle(&store, false);
    assert_eq!(store.usage().file_bytes, 0);
    assert_eq!(store.allocate(0, 1, 16), Err(AllocError::NotReady));
    settle(&store, false);
    assert_eq!(store.usage().file_bytes, 0);
    settle(&store, true);
    assert!(store.usage().file_bytes > 0);
    assert!(store.allocate(0, 1, 16).is_ok());
}

// R35, R61: writing into allocated blocks makes the file system allocate nothing.
#[test]
fn writes_into_prepared_space_only() {
    let dir = disk_dir();
    let store = open(dir.path(), 256 * MIB);
    settle(&store, true);
    let before = store.usage().file_bytes;
    let mut written = 0;
    while let Ok(run) = store.allocate(0, 1, 256) {
        store.write(run.start, &pattern(run, 1)).unwrap();
        written += u64::from(run.blocks) * BLOCK as u64;
    }
    assert!(written >= 32 * MIB, "only {written} bytes were ready");
    // The file system may spend a few blocks on its own map of the file.
    assert!(store.usage().file_bytes <= before + 256 * 1024);
}

// R39: freed space is returned, in the middle as at the end, and allocated blocks are kept.
#[test]
fn shrinks_when_freed_and_serves_again() {
    let dir = disk_dir();
    let store = open(dir.path(), 512 * MIB);
    let mut runs = fill(&store, 160);
    let full = store.usage().file_bytes;
    assert!(full >= 160 * MIB);

    // One run in eight stays.
    let mut index = 0;
    runs.retain(|run| {
        index += 1;
        let stays = index % 8 == 0;
        if !stays {
            store.free(*run);
        }
        stays
    });
    settle(&store, false);
    let held: u64 = runs.iter().map(|r| u64::from(r.blocks) * BLOCK as u64).sum();
    let now = store.usage().file_bytes;
    assert!(now <= 2 * held + 34 * MIB, "{now} bytes for {held}");
    assert!(runs.iter().all(|run| holds(&store, *run, 9)));

    // Punched space is prepared and handed out again.
    let more = fill(&store, 120);
    assert!(runs.iter().chain(&more).all(|run| holds(&store, *run, 9)));
    assert!(store.usage().file_bytes <= full + 64 * MIB, "grew instead of using what was freed");

    runs.into_iter().chain(more).for_each(|run| store.free(run));
    settle(&store, false);
    assert!(store.usage().file_bytes <= MIB, "{} bytes left", store.usage().file_bytes);
}

// Space that was returned to the disk can be allocated again, to the last block.
#[test]
fn punched_space_is_not_lost() {
    let dir = disk_dir();
    let store = open(dir.path(), 96 * MIB);
    for _ in 0..2 {
        let runs = fill(&store, 96);
        assert_eq!(allocate(&store, 1, 1), Err(AllocError::Full));
        runs.into_iter().for_each(|run| store.free(run));
        settle(&store, false);
        assert!(store.usage().file_bytes <= MIB, "{} bytes left", store.usage().file_bytes);
    }
}

// Punching is rate-limited: one piece per call.
#[test]
fn gives_back_at_most_one_piece_a_call() {
    let dir = disk_dir();
    let store = open(dir.path(), 512 * MIB);
    let runs = fill(&store, 160);
    runs.into_iter().for_each(|run| store.free(run));
    let mut before = store.usage().file_bytes;
    loop {
        let more = store.maintain(false);
        let now = store.usage().file_bytes;
        assert!(before - now <= 65 * MIB, "gave back {} at once", before - now);
        assert!(!more || now < before, "says there is more, and does nothing");
        before = now;
        if !more {
            break;
        }
    }
}

// R39: a reserve on the disk is respected, and limits the store without ending the program.
#[test]
fn leaves_the_reserve_free() {
    let dir = disk_dir();
    let store = open(dir.path(), 64 * MIB).keep_free(u64::MAX / 2);
    assert_eq!(allocate(&store, 1, 16), Err(AllocError::Full));
    settle(&store, true);
    assert_eq!(store.usage().file_bytes, 0);
    assert_eq!(store.usage().disk_free_bytes, 0);
}

#[test]
fn leaves_no_name_behind() {
    let dir = disk_dir();
    let entries = || std::fs::read_dir(dir.path()).unwrap().count();
    let unnamed = open(dir.path(), MIB);
    let named = FileStore::at_path(&dir.path().join("store"), blocks(MIB), false).unwrap();
    assert_eq!(entries(), 0);
    drop((unnamed, named));
    assert_eq!(entries(), 0);
}

#[test]
fn an_existing_file_is_safe_without_force() {
    let dir = disk_dir();
    let path = dir.path().join("precious");
    std::fs::write(&path, "thesis").unwrap();
    let refused = FileStore::at_path(&path, blocks(MIB), false).unwrap_err();
    assert!(matches!(refused, StoreError::Exists(_)), "{refused}");
    assert!(refused.to_string().contains("precious") && refused.to_string().contains("--force"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "thesis");

    let store = FileStore::at_path(&path, blocks(64 * MIB), true).unwrap();
    assert!(!path.exists());
    let run = allocate(&store, 4, 4).unwrap();
    store.write(run.start, &pattern(run, 3)).unwrap();
    assert!(holds(&store, run, 3));
}

/// A process that has the file open, or under another name, does not see spilled data; another user's file is left
/// alone.
#[test]
fn a_forced_store_is_a_file_of_its_own() {
    use std::io::{Read as _, Seek as _};
    let dir = disk_dir();
    let (path, link) = (dir.path().join("known"), dir.path().join("link"));
    std::fs::write(&path, "mine").unwrap();
    std::fs::hard_link(&path, &link).unwrap();
    let mut held = std::fs::File::open(&path).unwrap();
    let store = FileStore::at_path(&path, blocks(64 * MIB), true).unwrap();
    let run = allocate(&store, 4, 4).unwrap();
    store.write(run.start, &pattern(run, 3)).unwrap();
    let mut seen = String::new();
    held.rewind().unwrap();
    held.read_to_string(&mut seen).unwrap();
    assert_eq!((seen.as_str(), std::fs::read_to_string(&link).unwrap().as_str()), ("mine", "mine"));
    assert!(!path.exists());

    if rustix::process::geteuid().is_root() {
        std::fs::write(&path, "his").unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        let refused = FileStore::at_path(&path, 1, true).unwrap_err();
        assert!(matches!(refused, StoreError::NotYours(_, 65_534)), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "his");
    }
}

#[test]
fn refusals_say_why() {
    let dir = disk_dir();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let missing = dir.path().join("missing");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let within = |path: &Path| FileStore::in_directory(path, 1).unwrap_err();
    let at = |path: &Path| FileStore::at_path(path, 1, true).unwrap_err();
    assert!(matches!(within(&missing), StoreError::NoSuchPath(_)));
    assert!(matches!(within(&file), StoreError::NotADirectory(_)));
    assert!(matches!(at(&missing.join("store")), StoreError::NoSuchPath(_)));
    assert!(matches!(at(&file.join("store")), StoreError::NotADirectory(_)));
    assert!(matches!(at(dir.path()), StoreError::NotAFile(_)));
    assert!(matches!(at(&link), StoreError::NotAFile(_)));
    assert!(file.exists() && link.symlink_metadata().is_ok());
    let message = within(&missing).to_string();
    assert!(message.contains(missing.to_str().unwrap()), "{message}");
}

#[test]
fn a_directory_without_permission_is_refused() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may write anywhere");
        return;
    }
    let dir = disk_dir();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    let refused = FileStore::in_directory(dir.path(), 1).unwrap_err();
    assert!(matches!(refused, StoreError::Permission(_)), "{refused}");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
}

// R14: the mounting process can tell where the store would lie, through symlinks too.
#[test]
fn tells_what_a_path_lies_on() {
    let dir = disk_dir();
    let device = std::fs::metadata(dir.path()).unwrap().dev();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/dev/shm", &link).unwrap();
    assert_eq!(check_location(dir.path()).unwrap().device, device);
    assert_eq!(check_location(&dir.path().join("to-be")).unwrap().device, device);
    let refused = check_location(&dir.path().join("no/such")).unwrap_err();
    assert!(matches!(refused, StoreError::NoSuchPath(_)));
    if Path::new("/dev/shm").is_dir() {
        let shm = check_location(&link).unwrap();
        assert_eq!(shm.kind, FsKind::Memory);
        assert_ne!(shm.device, device);
    }
}

#[test]
fn a_disk_is_used_directly_and_memory_is_not() {
    let dir = disk_dir();
    if check_location(dir.path()).unwrap().kind == FsKind::Other {
        assert_eq!(open(dir.path(), MIB).mode(), IoMode::Direct);
    }
    assert_eq!(open(dir.path(), MIB).buffered().mode(), IoMode::Buffered);
    if let Ok(store) = FileStore::in_directory(Path::new("/dev/shm"), blocks(MIB)) {
        assert_eq!(store.mode(), IoMode::Buffered);
        let run = allocate(&store, 16, 16).unwrap();
        store.write(run.start, &pattern(run, 3)).unwrap();
        assert!(holds(&store, run, 3));
    }
}

/// A tmpfs of 8 MiB, if this user may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<SmallDisk> {
        let dir = disk_dir();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, Some(c"size=8m")).ok()?;
        Some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

// R47: a full disk is an error, and stops being one when there is room again.
#[test]
fn a_full_disk_is_full_until_it_is_not() {
    let Some(disk) = SmallDisk::new() else {
        eprintln!("skipped: may not mount a small file system");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 5 << 20]).unwrap();
    let store = open(disk.0.path(), 64 * MIB);
    let mut runs = Vec::new();
    while let Ok(run) = allocate(&store, 1, 64) {
        store.write(run.start, &pattern(run, 4)).unwrap();
        runs.push(run);
    }
    let got: u32 = runs.iter().map(|r| r.blocks).sum();
    assert!((256..=768).contains(&got), "{got} blocks of about 3 MiB");
    assert_eq!(allocate(&store, 1, 1), Err(AllocError::Full));

    std::fs::remove_file(&ballast).unwrap();
    store.maintain(true);
    assert!(allocate(&store, 1, 64).is_ok());
    assert!(runs.iter().all(|run| holds(&store, *run, 4)));
}
