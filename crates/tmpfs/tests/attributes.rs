//! Modes, owners, times, extended attributes: the rules that are not about names or bytes.

mod common;

use std::sync::Arc;

use common::{Fs, ME, ROOT, Ticks, config, fs, read, setattr, truncate, vm, write, write_with};
use overspill_tmpfs::{
    Caller, FallocateMode, FileKind, FsError, MAX_FILE_SIZE, SetAttr, SetTime, Timestamp, WriteFlags,
    XattrMode,
};
use overspill_vm::testing;

const NONE: SetAttr =
    SetAttr { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None, ctime: None };

#[test]
fn what_is_made_has_what_was_asked_for() {
    let fs = fs();
    let file = fs.create(ROOT, b"file", 0o640, ME).unwrap();
    assert_eq!(
        (file.kind, file.mode, file.nlink, file.size, file.blocks),
        (FileKind::Regular, 0o640, 1, 0, 0)
    );
    assert_eq!((file.uid, file.gid), (1000, 1000));
    assert!(file.atime == file.btime && file.mtime == file.btime && file.ctime == file.btime);
    let dir = fs.mkdir(ROOT, b"dir", 0o1750, ME).unwrap();
    assert_eq!((dir.kind, dir.mode, dir.nlink), (FileKind::Directory, 0o1750, 2));
    let device = fs.mknod(ROOT, b"null", FileKind::CharDevice, 0o666, 259, ME).unwrap();
    assert_eq!((device.kind, device.rdev), (FileKind::CharDevice, 259));
    let fifo = fs.mknod(ROOT, b"fifo", FileKind::Fifo, 0o600, 259, ME).unwrap();
    assert_eq!((fifo.kind, fifo.rdev), (FileKind::Fifo, 0));
    let link = fs.symlink(ROOT, b"link", b"/some/where", ME).unwrap();
    assert_eq!((link.kind, link.mode, link.size), (FileKind::Symlink, 0o777, 11));
    assert_eq!(*fs.readlink(link.ino).unwrap(), *b"/some/where");
    assert_eq!(fs.readlink(file.ino), Err(FsError::Invalid));
    let root = fs.getattr(ROOT).unwrap();
    assert_eq!((root.mode, root.nlink), (0o1777, 3));
    assert!(root.size > 0);
}

#[test]
fn a_set_group_id_directory_passes_its_group_on() {
    let fs = fs();
    let dir = fs.mkdir(ROOT, b"dir", 0o2775, Caller { gid: 42, ..ME }).unwrap();
    let file = fs.create(dir.ino, b"file", 0o644, ME).unwrap();
    let sub = fs.mkdir(dir.ino, b"sub", 0o755, ME).unwrap();
    assert_eq!((file.gid, file.mode), (42, 0o644));
    assert_eq!((sub.gid, sub.mode), (42, 0o2755));
}

#[test]
fn a_new_owner_clears_set_ids() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o6755, ME).unwrap().ino;
    assert_eq!(setattr(&fs, ino, SetAttr { uid: Some(3), ..NONE }).unwrap().mode, 0o755);
    // Set-group-id without execution by the group grants no rights, so it stays.
    setattr(&fs, ino, SetAttr { mode: Some(0o6644), ..NONE }).unwrap();
    let attr = setattr(&fs, ino, SetAttr { gid: Some(4), ..NONE }).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o2644, 3, 4));
    let dir = fs.mkdir(ROOT, b"dir", 0o2755, ME).unwrap().ino;
    assert_eq!(setattr(&fs, dir, SetAttr { uid: Some(3), ..NONE }).unwrap().mode, 0o2755);
}

#[test]
fn a_new_size_clears_set_ids_unless_privileged() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o6755, ME).unwrap().ino;
    let set = SetAttr { size: Some(9), ..NONE };
    let root = Caller { privileged: true, ..ME };
    assert_eq!(testing::block_on(&fs.pager, fs.setattr(ino, set, root)).unwrap().mode, 0o6755);
    assert_eq!(testing::block_on(&fs.pager, fs.setattr(ino, set, ME)).unwrap().mode, 0o755);
}

#[test]
fn a_write_clears_set_ids_and_capabilities() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o6755, ME).unwrap().ino;
    fs.setxattr(ino, b"security.capability", b"cap", XattrMode::Any).unwrap();
    write(&fs, ino, 0, b"x").unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mode, 0o6755);
    assert_eq!(fs.getxattr(ino, b"security.capability"), Err(FsError::NoAttribute));
    write_with(&fs, ino, 0, b"x", WriteFlags { kill_suidgid: true, ..WriteFlags::default() }).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mode, 0o755);
    for set in [SetAttr { size: Some(0), ..NONE }, SetAttr { uid: Some(0), ..NONE }] {
        fs.setxattr(ino, b"security.capability", b"cap", XattrMode::Any).unwrap();
        setattr(&fs, ino, set).unwrap();
        assert_eq!(fs.getxattr(ino, b"security.capability"), Err(FsError::NoAttribute));
    }
}

#[test]
fn times_move_as_posix_says() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let old = fs.getattr(ino).unwrap();
    write(&fs, ino, 0, b"data").unwrap();
    let wrote = fs.getattr(ino).unwrap();
    assert!(wrote.mtime > old.mtime && wrote.ctime > old.ctime && wrote.atime == old.atime);

    // The kernel's writeback sends the times itself.
    write_with(&fs, ino, 4, b"more", WriteFlags { keep_times: true, ..WriteFlags::default() }).unwrap();
    let kept = fs.getattr(ino).unwrap();
    assert_eq!((kept.mtime, kept.ctime, kept.size), (wrote.mtime, wrote.ctime, 8));

    assert_eq!(read(&fs, ino, 0, 8).unwrap(), b"datamore");
    assert_eq!(fs.getattr(ino).unwrap().atime, old.atime);

    let moved = setattr(&fs, ino, SetAttr { mode: Some(0o600), ..NONE }).unwrap();
    assert!(moved.ctime > kept.ctime && moved.mtime == kept.mtime);
    let at = Timestamp { sec: 5, nsec: 6 };
    let set = SetAttr { atime: Some(SetTime::At(at)), mtime: Some(SetTime::At(at)), ctime: Some(at), ..NONE };
    let set = setattr(&fs, ino, set).unwrap();
    assert_eq!((set.atime, set.mtime, set.ctime), (at, at, at));
    assert_eq!(setattr(&fs, ino, NONE).unwrap(), set, "nothing set changes nothing");
    assert!(setattr(&fs, ino, SetAttr { mtime: Some(SetTime::Now), ..NONE }).unwrap().mtime > at);

    let before = fs.getattr(ROOT).unwrap();
    fs.link(ino, ROOT, b"other").unwrap();
    let after = fs.getattr(ROOT).unwrap();
    assert!(after.mtime > before.mtime && after.ctime > before.ctime);
    fs.unlink(ROOT, b"other").unwrap();
    assert!(fs.getattr(ROOT).unwrap().mtime > after.mtime);
    assert!(fs.getattr(ino).unwrap().ctime > after.mtime);
}

#[test]
fn an_access_is_noted_by_the_rule_of_relatime() {
    let clock = Ticks::new();
    let vm = vm(64);
    let clock_of_fs = Arc::clone(&clock) as _;
    let fs = Fs::new(&vm, overspill_tmpfs::TmpFsConfig { clock: clock_of_fs, ..config(&vm, 64) });
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let accessed = || {
        fs.accessed(ino).unwrap();
        fs.getattr(ino).unwrap().atime
    };
    let first = accessed();
    assert!(first > fs.getattr(ino).unwrap().mtime);
    assert_eq!(accessed(), first, "read since it was written, and not long ago");
    write(&fs, ino, 0, b"x").unwrap();
    let second = accessed();
    assert!(second > first);
    clock.set(second.sec + 86_400);
    assert!(accessed() > second, "a day old");
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let dir = fs.mkdir(ROOT, b"dir", 0o755, ME).unwrap().ino;
    let fifo = fs.mknod(ROOT, b"fifo", FileKind::Fifo, 0o644, 0, ME).unwrap().ino;
    assert_eq!(truncate(&fs, ino, MAX_FILE_SIZE).unwrap().size, MAX_FILE_SIZE);
    assert_eq!(truncate(&fs, ino, MAX_FILE_SIZE + 1), Err(FsError::FileTooBig));
    assert_eq!(truncate(&fs, dir, 0), Err(FsError::IsDirectory));
    assert_eq!(truncate(&fs, fifo, 0), Err(FsError::Invalid));
    assert_eq!(write(&fs, ino, MAX_FILE_SIZE, b"x"), Err(FsError::FileTooBig));
    assert_eq!(write(&fs, ino, MAX_FILE_SIZE - 1, b"xyz"), Ok(1), "what fits is written");
    assert_eq!(read(&fs, ino, MAX_FILE_SIZE - 2, 9).unwrap(), b"\0x");
    assert_eq!(read(&fs, ino, u64::MAX, 9).unwrap(), b"");
    let falloc = |offset, len, mode| testing::block_on(&fs.pager, fs.fallocate(ino, offset, len, mode, ME));
    assert_eq!(falloc(MAX_FILE_SIZE, 1, FallocateMode::PunchHole), Err(FsError::FileTooBig));
    assert_eq!(falloc(u64::MAX, 2, FallocateMode::PunchHole), Err(FsError::FileTooBig));
    assert_eq!(falloc(0, 0, FallocateMode::PunchHole), Err(FsError::Invalid));
    assert_eq!(read(&fs, dir, 0, 1), Err(FsError::IsDirectory));
    assert_eq!(write(&fs, fifo, 0, b"x"), Err(FsError::Invalid));
}

#[test]
fn flags_are_decoded_as_the_system_calls_have_them() {
    let decoded = |bits| FallocateMode::from_bits(bits);
    assert_eq!(decoded(0), Ok(FallocateMode::Allocate { keep_size: false }));
    assert_eq!(decoded(1), Ok(FallocateMode::Allocate { keep_size: true }));
    assert_eq!(decoded(3), Ok(FallocateMode::PunchHole));
    assert_eq!(decoded(16), Ok(FallocateMode::ZeroRange { keep_size: false }));
    assert_eq!(decoded(17), Ok(FallocateMode::ZeroRange { keep_size: true }));
    for refused in [2, 8, 9, 18, 32, 64, 1 << 31] {
        assert_eq!(decoded(refused), Err(FsError::Unsupported), "{refused:#x}");
    }
    for kind in [FileKind::Regular, FileKind::Socket, FileKind::BlockDevice, FileKind::Directory] {
        assert_eq!(FileKind::from_mode(kind.mode_bits() | 0o644), Some(kind));
    }
    assert_eq!(FileKind::from_mode(0o644), Some(FileKind::Regular));
    assert_eq!(FileKind::from_mode(0o170_000), None);
}

#[test]
fn names_and_numbers_that_cannot_be_are_refused() {
    let fs = fs();
    let dir = fs.mkdir(ROOT, b"dir", 0o755, ME).unwrap().ino;
    let ino = fs.create(dir, b"file", 0o644, ME).unwrap().ino;
    let long = [b'n'; 256];
    assert!(fs.create(ROOT, &long[..255], 0o644, ME).is_ok());
    assert_eq!(fs.create(ROOT, &long, 0o644, ME), Err(FsError::NameTooLong));
    assert_eq!(fs.lookup(ROOT, &long), Err(FsError::NameTooLong));
    assert_eq!(fs.create(ROOT, b"", 0o644, ME), Err(FsError::NotFound));
    assert_eq!(fs.create(ROOT, b"a/b", 0o644, ME), Err(FsError::Invalid));
    assert_eq!(fs.create(ROOT, b"a\0b", 0o644, ME), Err(FsError::Invalid));
    assert_eq!(fs.mkdir(ROOT, b"..", 0o755, ME), Err(FsError::Exists));
    assert_eq!(fs.mknod(ROOT, b"d", FileKind::Directory, 0o755, 0, ME), Err(FsError::Invalid));
    assert_eq!(fs.unlink(dir, b".."), Err(FsError::IsDirectory));
    assert_eq!(fs.rmdir(dir, b"."), Err(FsError::Invalid));
    assert_eq!(fs.rmdir(dir, b".."), Err(FsError::NotEmpty));
    let rename = |from: &[u8], mode| fs.rename(dir, from, ROOT, b"to", mode);
    assert_eq!(rename(b".", overspill_tmpfs::RenameMode::Replace), Err(FsError::Busy));
    assert_eq!(fs.lookup(dir, b".").unwrap().ino, dir);
    assert_eq!(fs.lookup(dir, b"..").unwrap().ino, ROOT);
    assert_eq!(fs.lookup(ino, b"x"), Err(FsError::NotDirectory));
    assert_eq!(fs.lookup(999, b"x"), Err(FsError::Stale));
    assert_eq!(fs.getattr(0), Err(FsError::Stale));
    assert_eq!(fs.symlink(ROOT, b"l", b"", ME), Err(FsError::NotFound));
    assert_eq!(fs.symlink(ROOT, b"l", &[b't'; 4096], ME), Err(FsError::NameTooLong));
    assert!(fs.symlink(ROOT, b"l", &[b't'; 4095], ME).is_ok());
}

#[test]
fn extended_attributes_are_kept_listed_and_removed() {
    let fs = fs();
    let start = fs.vm().stats().charged_bytes;
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let set = |name: &[u8], value: &[u8], mode| fs.setxattr(ino, name, value, mode);
    assert_eq!(set(b"user.a", b"1", XattrMode::Replace), Err(FsError::NoAttribute));
    assert_eq!(set(b"user.a", b"1", XattrMode::Create), Ok(()));
    assert_eq!(set(b"user.a", b"2", XattrMode::Create), Err(FsError::Exists));
    assert_eq!(set(b"user.a", b"22", XattrMode::Replace), Ok(()));
    assert_eq!(set(b"trusted.t", b"", XattrMode::Any), Ok(()));
    assert_eq!(*fs.getxattr(ino, b"user.a").unwrap(), *b"22");
    assert_eq!(*fs.getxattr(ino, b"trusted.t").unwrap(), *b"");
    assert_eq!(fs.listxattr(ino, true).unwrap(), b"trusted.t\0user.a\0");
    assert_eq!(set(b"user.big", &vec![7; 65536], XattrMode::Any), Ok(()));
    assert_eq!(set(b"user.big", &vec![7; 65537], XattrMode::Any), Err(FsError::AttributeTooBig));
    assert_eq!(set(b"system.posix_acl_access", b"", XattrMode::Any), Err(FsError::Unsupported));
    assert_eq!(fs.getxattr(ino, b"system.posix_acl_access"), Err(FsError::Unsupported));
    assert_eq!(set(b"user.", b"", XattrMode::Any), Err(FsError::Invalid));
    assert_eq!(set(b"", b"", XattrMode::Any), Err(FsError::Range));
    assert_eq!(set(&[b"user.", &[b'n'; 251][..]].concat(), b"", XattrMode::Any), Err(FsError::Range));
    fs.removexattr(ino, b"user.a").unwrap();
    assert_eq!(fs.removexattr(ino, b"user.a"), Err(FsError::NoAttribute));
    assert_eq!(fs.getxattr(ino, b"user.a"), Err(FsError::NoAttribute));

    let fifo = fs.mknod(ROOT, b"fifo", FileKind::Fifo, 0o644, 0, ME).unwrap().ino;
    assert_eq!(fs.setxattr(fifo, b"user.a", b"", XattrMode::Any), Err(FsError::NotPermitted));
    fs.unlink(ROOT, b"fifo").unwrap();
    fs.unlink(ROOT, b"file").unwrap();
    assert_eq!(fs.vm().stats().charged_bytes, start, "attributes are charged, and given back");
}

#[test]
fn the_list_of_attributes_has_an_end() {
    let fs = fs();
    let ino = fs.create(ROOT, b"file", 0o644, ME).unwrap().ino;
    let mut made = 0;
    let refused = loop {
        let name = format!("user.{made:0>200}");
        match fs.setxattr(ino, name.as_bytes(), b"", XattrMode::Any) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, FsError::AttributeTooBig);
    assert!(fs.listxattr(ino, true).unwrap().len() <= 65536 && made > 300);
}
