//! A file for each object at the limit on open files: a process of its own, because the limit is a process's.

mod common;

use common::{allocate_for, disk_dir, holds, pattern, settle};
use overspill_store::{Backend, PerObjectStore, Run, Space};

/// When no more files may be open, objects share one, and get their own again when others are gone.
#[test]
fn without_files_objects_share_one() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let dir = disk_dir();
    let before = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 128 + 10), ..before }).unwrap();
    let store = PerObjectStore::in_directory(dir.path(), 1 << 20, usize::MAX).unwrap();
    let runs: Vec<Run> = (0..40).map(|n| allocate_for(&store, Some(n), 4, 4).unwrap()).collect();
    let files = store.files();
    setrlimit(Resource::Nofile, before).unwrap();
    assert!((2..30).contains(&files), "{files} files");
    for (run, owner) in runs.iter().zip(0..) {
        store.write(run.start, &pattern(*run, owner)).unwrap();
    }
    for (run, owner) in runs.iter().zip(0..) {
        assert!(holds(&store, *run, owner), "{run:?} of {owner}");
        store.free(*run);
    }
    settle(&store, false);
    assert_eq!((store.files(), store.usage().allocated_blocks), (1, 0));
    let run = allocate_for(&store, Some(7), 1, 1).unwrap();
    assert_eq!((store.files(), run.blocks), (2, 1));
}
