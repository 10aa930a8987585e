//! Shortages of pages, inodes and memory, their errors, and the return of space.

mod common;

use common::{
    Fs, ME, MemStore, ROOT, config, fs, fs_on, list, noise, read, setattr, truncate, vm, vm_on, write,
    write_with,
};
use overspill_tmpfs::{FallocateMode, FsError, RenameMode, SetAttr, TmpFsConfig, WriteFlags};
use overspill_vm::{PAGE, VmError, testing};
use std::sync::atomic::Ordering;

const P: u64 = PAGE as u64;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const FROM_RESERVE: WriteFlags = WriteFlags { reserve: true, keep_times: true, kill_suidgid: false };

#[test]
fn a_file_costs_no_pages_before_its_first_write() {
    // R9: no object and no slot exist yet.
    let fs = fs_on(&vm(64), 10);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    assert_eq!(truncate(&fs, ino, 1 << 40).unwrap().blocks, 0);
    assert_eq!(read(&fs, ino, 1 << 30, 5).unwrap(), [0; 5]);
    assert_eq!(fs.account().used(), 0);
    write(&fs, ino, 1 << 39, b"x").unwrap();
    assert_eq!(fs.getattr(ino).unwrap().blocks, 8);
    assert_eq!(fs.account().used(), 1);
}

#[test]
fn a_full_file_system_refuses_writes_but_not_promised_ones() {
    let fs = fs_on(&vm(256), 10);
    fs.account().set_reserve(4);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    // Pages that fit are written and counted, as by write(2); then comes the error.
    let data = vec![7; 40 * PAGE];
    let written = write(&fs, ino, 0, &data).unwrap();
    assert!(written > 0 && written <= 10 * PAGE, "{written}");
    assert_eq!(fs.getattr(ino).unwrap().size, written as u64);
    truncate(&fs, ino, 0).unwrap();
    assert_eq!(write(&fs, ino, 0, &data[..10 * PAGE]), Ok(10 * PAGE));
    let full = write(&fs, ino, 10 * P, b"x").unwrap_err();
    assert_eq!((full, full.errno()), (FsError::Memory(VmError::NoSpace), ENOSPC));
    assert_eq!(fs.getattr(ino).unwrap().size, 10 * P);
    assert_eq!(write(&fs, ino, 5, b"over what is there"), Ok(18));

    assert_eq!(write_with(&fs, ino, 10 * P, &data[..4 * PAGE], FROM_RESERVE), Ok(4 * PAGE));
    assert_eq!(fs.statfs().pages_free, 0);
    let refused = write_with(&fs, ino, 14 * P, b"x", FROM_RESERVE).unwrap_err();
    assert_eq!(refused.errno(), ENOSPC, "the reserve has an end too");
    assert_eq!(fs.getattr(ino).unwrap().size, 14 * P);

    fs.unlink(ROOT, b"file").unwrap();
    assert_eq!(fs.statfs().pages_free, 10);
}

#[test]
fn a_preallocation_that_cannot_fit_takes_nothing() {
    let fs = fs_on(&vm(256), 10);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    write(&fs, ino, 0, &[1; 2 * PAGE]).unwrap();
    let falloc = |offset, len, mode| testing::block_on(&fs.pager, fs.fallocate(ino, offset, len, mode, ME));
    let allocate = FallocateMode::Allocate { keep_size: false };
    assert_eq!(falloc(0, 1 << 50, allocate).unwrap_err().errno(), ENOSPC);
    assert_eq!(falloc(0, 11 * P, allocate).unwrap_err().errno(), ENOSPC);
    assert_eq!((fs.account().used(), fs.getattr(ino).unwrap().size), (2, 2 * P));
    assert_eq!(falloc(0, 10 * P, allocate), Ok(()), "two of the ten are there");
    assert_eq!((fs.account().used(), fs.getattr(ino).unwrap().size), (10, 10 * P));
    // Allocated pages can be written.
    assert_eq!(write(&fs, ino, 2 * P, &[2; 8 * PAGE]), Ok(8 * PAGE));
    assert_eq!(falloc(0, 10 * P, FallocateMode::PunchHole), Ok(()));
    assert_eq!((fs.account().used(), fs.getattr(ino).unwrap().size), (0, 10 * P));
}

#[test]
fn inodes_are_limited_and_given_back() {
    let vm = vm(64);
    let fs = Fs::new(&vm, TmpFsConfig { nr_inodes: Some(3), ..config(&vm, 10) });
    assert_eq!((fs.statfs().inodes, fs.statfs().inodes_free), (3, 2));
    let a = fs.create(ROOT, b"a", 0o644, ME).unwrap().ino;
    fs.mkdir(ROOT, b"b", 0o755, ME).unwrap();
    let full = fs.create(ROOT, b"c", 0o644, ME).unwrap_err();
    assert_eq!((full, full.errno()), (FsError::NoInodes, ENOSPC));
    fs.link(a, ROOT, b"c").unwrap();
    fs.unlink(ROOT, b"c").unwrap();
    assert!(fs.create(ROOT, b"b", 0o644, ME).is_err());
    assert_eq!(fs.statfs().inodes_free, 0);
    fs.unlink(ROOT, b"a").unwrap();
    assert_eq!(fs.statfs().inodes_free, 1);
    assert_eq!(fs.create(ROOT, b"b", 0o644, ME), Err(FsError::Exists));
    assert_eq!(fs.statfs().inodes_free, 1, "a failed creation gives its inode back");
}

#[test]
fn metadata_ends_before_memory_does() {
    let vm = vm(32);
    let fs = fs_on(&vm, 10);
    let start = vm.stats().charged_bytes;
    let mut made = 0;
    let refused = loop {
        match fs.create(ROOT, format!("file {made}").as_bytes(), 0o644, ME) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((refused, refused.errno()), (FsError::Memory(VmError::NoMemory), ENOSPC));
    assert!(made > 50, "{made}");
    assert_eq!(list(&fs, ROOT).len(), made);
    for n in 0..made {
        fs.unlink(ROOT, format!("file {n}").as_bytes()).unwrap();
    }
    assert_eq!(vm.stats().charged_bytes, start);
    assert_eq!(fs.stats().inodes, 1);
}

#[test]
fn a_full_store_and_memory_refuse_and_recover() {
    let vm = vm_on(32, MemStore::new(64));
    let fs = fs_on(&vm, 1 << 20);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let noise = noise(2 * PAGE);
    let mut size = 0;
    let refused = loop {
        match write(&fs, ino, size, &noise[..2 * PAGE]) {
            Ok(n) => size += n as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.errno(), ENOSPC);
    assert_eq!(fs.getattr(ino).unwrap().size, size);
    // Write until not one more page is accepted.
    let other = fs.create(ROOT, b"other", 0o644, ME).unwrap().ino;
    let (mut more, mut refusals) = (0, 0);
    while refusals < 5 {
        match write(&fs, other, more, &noise[..PAGE]) {
            Ok(_) => (more, refusals) = (more + P, 0),
            Err(_) => refusals += 1,
        }
    }
    for page in 0..size / (2 * P) {
        assert!(read(&fs, ino, page * 2 * P, 2 * PAGE).unwrap() == noise[..2 * PAGE], "page {page}");
    }
    // Truncation must work when no write does.
    truncate(&fs, ino, 100).unwrap();
    assert_eq!(write(&fs, ino, 100, &noise[..2 * PAGE]), Ok(2 * PAGE));
    assert!(read(&fs, ino, 0, 100).unwrap() == noise[..100]);
}

#[test]
fn an_unlinked_file_lives_until_it_is_forgotten() {
    let fs = fs();
    let start = fs.vm().stats().charged_bytes;
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    assert!(fs.grab(ino) && fs.grab(ino));
    write(&fs, ino, 0, &[9; 3 * PAGE]).unwrap();
    assert!(!fs.has_orphans());
    fs.unlink(ROOT, b"file").unwrap();
    assert_eq!(fs.lookup(ROOT, b"file"), Err(FsError::NotFound));
    assert_eq!((fs.orphans().inodes, fs.orphans().pages), (1, 3));
    assert!(fs.has_orphans());
    assert_eq!(read(&fs, ino, P, 2).unwrap(), [9, 9]);
    assert_eq!(write(&fs, ino, 3 * P, &[9]), Ok(1));
    assert_eq!(fs.getattr(ino).unwrap().nlink, 0);
    assert_eq!(
        fs.link(ino, ROOT, b"again").map(|_| ()),
        Err(FsError::NotFound),
        "the last name is gone for good"
    );

    fs.forget(ino, 1);
    assert_eq!((fs.orphans().inodes, fs.account().used()), (1, 4));
    fs.forget(ino, 1);
    assert_eq!((fs.orphans().inodes, fs.account().used()), (0, 0));
    assert!(!fs.grab(ino));
    assert_eq!(fs.getattr(ino), Err(FsError::Stale));
    assert_eq!(fs.vm().stats().charged_bytes, start);
    fs.forget(ino, 7);
    fs.forget(ROOT, 7);
    assert!(fs.grab(ROOT));
}

#[test]
fn a_forgotten_file_with_a_name_stays() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    assert!(fs.grab(ino));
    fs.forget(ino, 1);
    assert_eq!(fs.lookup(ROOT, b"file").unwrap().ino, ino);
    fs.unlink(ROOT, b"file").unwrap();
    assert_eq!((fs.getattr(ino), fs.orphans().inodes), (Err(FsError::Stale), 0));
}

#[test]
fn what_a_rename_replaces_is_returned() {
    let fs = fs();
    let kept = fs.create(ROOT, b"new", 0o644, ME).unwrap().ino;
    let old = fs.create(ROOT, b"old", 0o644, ME).unwrap().ino;
    write(&fs, kept, 0, &[1; 2 * PAGE]).unwrap();
    write(&fs, old, 0, &[2; 5 * PAGE]).unwrap();
    fs.rename(ROOT, b"new", ROOT, b"old", RenameMode::Replace).unwrap();
    assert_eq!((fs.account().used(), fs.stats().inodes), (2, 2));
    assert_eq!(fs.lookup(ROOT, b"old").unwrap().ino, kept);
    // Two names of one inode: the rename does nothing, and both stay.
    fs.link(kept, ROOT, b"twin").unwrap();
    fs.rename(ROOT, b"twin", ROOT, b"old", RenameMode::Replace).unwrap();
    assert_eq!(list(&fs, ROOT).len(), 2);
}

#[test]
fn a_removed_directory_takes_nothing_in() {
    let fs = fs();
    let dir = fs.mkdir(ROOT, b"dir", 0o755, ME).unwrap().ino;
    let file = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    assert!(fs.grab(dir));
    fs.rmdir(ROOT, b"dir").unwrap();
    assert_eq!(fs.create(dir, b"x", 0o644, ME), Err(FsError::NotFound));
    assert_eq!(fs.link(file, dir, b"x").map(|_| ()), Err(FsError::NotFound));
    assert_eq!(fs.rename(ROOT, b"file", dir, b"x", RenameMode::Replace), Err(FsError::NotFound));
    assert_eq!(list(&fs, dir), []);
    assert_eq!((fs.getattr(dir).unwrap().nlink, fs.getattr(ROOT).unwrap().nlink), (0, 2));
    fs.forget(dir, 1);
    assert_eq!(fs.stats().inodes, 2);
}

#[test]
fn a_refused_promise_reads_as_an_error_until_it_is_mended() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    write(&fs, ino, 0, &[1; 3 * PAGE]).unwrap();
    let lose = |offset, len| testing::block_on(&fs.pager, fs.mark_lost(ino, offset, len));
    lose(2 * P, 3 * P).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().size, 5 * P);
    testing::evict_all(&fs.pager);
    assert_eq!(read(&fs, ino, 0, 2 * PAGE).unwrap(), [1; 2 * PAGE]);
    for page in 2..5 {
        assert_eq!(read(&fs, ino, page * P, 1).unwrap_err().errno(), EIO, "page {page}");
    }
    // Clearing the tail of a lost page cannot bring it back, but a truncation goes through.
    assert_eq!(truncate(&fs, ino, 2 * P + 100).unwrap().size, 2 * P + 100);
    assert_eq!(read(&fs, ino, 2 * P, 1).unwrap_err().errno(), EIO);
    assert_eq!(write(&fs, ino, 2 * P, &[3; PAGE]), Ok(PAGE));
    assert_eq!(read(&fs, ino, 2 * P, PAGE).unwrap(), [3; PAGE]);
    lose(0, 1).unwrap();
    truncate(&fs, ino, 0).unwrap();
    truncate(&fs, ino, P).unwrap();
    assert_eq!(read(&fs, ino, 0, PAGE).unwrap(), [0; PAGE], "what was cut off is zeros");
    assert_eq!(lose(0, 0), Err(FsError::Invalid));
}

#[test]
fn what_cannot_even_be_noted_as_lost_is_still_an_error() {
    let fs = fs_on(&vm_on(64, MemStore::new(1024)), 4);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    write(&fs, ino, 0, &[1; 4 * PAGE]).unwrap();
    // A writer that never stops must not fill memory with marks of lost data.
    for page in 4..400 {
        testing::block_on(&fs.pager, fs.mark_lost(ino, page * P, P)).unwrap();
    }
    assert_eq!(fs.account().used(), 4);
    assert_eq!(read(&fs, ino, 0, 4 * PAGE).unwrap(), [1; 4 * PAGE]);
    for page in [4, 5, 399] {
        assert_eq!(read(&fs, ino, page * P, 1).unwrap_err().errno(), EIO, "page {page}");
    }
    truncate(&fs, ino, 4 * P).unwrap();
    truncate(&fs, ino, 6 * P).unwrap();
    assert_eq!(read(&fs, ino, 4 * P, 2 * PAGE).unwrap(), [0; 2 * PAGE]);
}

#[test]
fn a_damaged_store_is_an_error_never_wrong_bytes() {
    let store = MemStore::new(1024);
    let fs = fs_on(&vm_on(64, store.clone()), 1024);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let noise = noise(2 * PAGE);
    write(&fs, ino, 0, &noise).unwrap();
    testing::evict_all(&fs.pager);
    store.damage.store(true, Ordering::Relaxed);
    // The rest of the page cannot be read to be cleared, and reads of it fail.
    assert_eq!(truncate(&fs, ino, P + 10).unwrap().size, P + 10);
    assert_eq!(read(&fs, ino, 0, 10).unwrap_err().errno(), EIO);
    assert_eq!(read(&fs, ino, P, 10).unwrap_err().errno(), EIO);
    assert_eq!(setattr(&fs, ino, SetAttr { size: Some(0), ..SetAttr::default() }).unwrap().size, 0);
    assert_eq!(fs.account().used(), 0);
}

/// The last byte that the kernel's own limit allows is kept like any other.
#[test]
fn the_last_possible_byte_is_kept() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let last = i64::MAX as u64 - 1;
    assert_eq!(write(&fs, ino, last, b"xy"), Ok(1));
    assert_eq!(fs.getattr(ino).unwrap().size, last + 1);
    assert_eq!(read(&fs, ino, last - 1, 10).unwrap(), b"\0x");
    assert_eq!(write(&fs, ino, last + 1, b"x").unwrap_err(), FsError::FileTooBig);
}

/// Acknowledged data that finds no room is lost alone: neither a full account nor full metadata takes more with it.
#[test]
fn what_cannot_be_taken_in_is_lost_alone() {
    let vm = vm(32);
    let fs = fs_on(&vm, 8);
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    write(&fs, ino, 0, &[1; 4 * PAGE]).unwrap();
    write(&fs, ino, 100 * P, &[2; 4 * PAGE]).unwrap();
    let held = vm.charge(vm.metadata_left()).unwrap();
    assert!(vm.charge(1).is_err());
    testing::block_on(&vm, fs.mark_lost(ino, 50 * P, P)).unwrap();
    testing::block_on(&vm, fs.mark_lost(ino, 500 * P, P)).unwrap();
    drop(held);
    assert_eq!(read(&fs, ino, 0, 4 * PAGE).unwrap(), [1; 4 * PAGE]);
    assert_eq!(read(&fs, ino, 100 * P, 4 * PAGE).unwrap(), [2; 4 * PAGE]);
    for page in [50, 500] {
        assert_eq!(read(&fs, ino, page * P, 1).unwrap_err(), FsError::Memory(VmError::Lost));
        assert_eq!(read(&fs, ino, (page - 1) * P, PAGE).unwrap(), [0; PAGE]);
    }
}

/// Without a limit, statfs reports as many free inodes as there is memory for.
#[test]
fn statfs_knows_how_many_inodes_there_is_memory_for() {
    let vm = vm(64);
    let fs = fs_on(&vm, 10);
    let promised = fs.statfs().inodes_free;
    let mut made = 0;
    while fs.create(ROOT, format!("{made}").as_bytes(), 0o644, ME).is_ok() {
        made += 1;
    }
    assert!((promised - promised / 50..=promised).contains(&made), "{made} of {promised}");
    let full = fs.statfs();
    assert_eq!((full.inodes, full.inodes_free), (made + 1, 0));
}
