//! Attributes that the kernel keeps, not only the daemon: true when a process looks.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use crate::harness::{Mount, eventually, noise, ok, python, run, scratch};

fn mtime(path: &Path) -> (i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mtime(), metadata.mtime_nsec())
}

/// All times are of one clock: the daemon stamps creations, the kernel stamps writes, another file system its own.
#[test]
fn times_never_go_backwards() {
    let mount = Mount::new(&["--memory", "8M"]);
    let beside = scratch();
    let mut last = (0, 0);
    let mut later = |path: &Path, what: &str| {
        let now = mtime(path);
        assert!(now >= last, "{what} is dated {last:?} then {now:?}");
        last = now;
    };
    for n in 0..400 {
        let path = |name: &str| mount.path(&format!("{name}{n}"));
        let mut file = fs::File::create(path("file")).unwrap();
        later(&path("file"), "a creation");
        file.write_all(b"x").unwrap();
        later(&path("file"), "a write after its creation");
        std::os::unix::fs::symlink("x", path("link")).unwrap();
        later(&path("link"), "a symlink after a write");
        file.write_all(b"y").unwrap();
        fs::create_dir(path("dir")).unwrap();
        later(&path("dir"), "a directory after a write");
        fs::write(path("dir").join("in"), "z").unwrap();
        later(&path("dir"), "a directory after something was made in it");
        file.set_len(1).unwrap();
        later(&path("file"), "a truncation");
        let source = beside.path().join(n.to_string());
        fs::write(&source, "source").unwrap();
        later(&source, "a file of another file system");
        fs::File::create(path("target")).unwrap();
        later(&path("target"), "what is made of it");
        ok(&run(Command::new("touch").arg(path("file"))));
        later(&path("file"), "a touch");
        drop(file);
        later(&path("file"), "a close");
    }
}

/// `make` finds a target newer that was written after its source.
#[test]
fn make_finds_targets_up_to_date() {
    let mount = Mount::new(&["--memory", "8M"]);
    for n in 0..60 {
        let (source, target) = (mount.path(&format!("s{n}")), mount.path(&format!("t{n}")));
        // The daemon stamps the source, the kernel the target.
        fs::File::create(&source).unwrap();
        fs::write(&target, "target").unwrap();
        assert!(mtime(&target) >= mtime(&source), "turn {n}: the target looks older than its source");
    }
}

/// A file with bytes has blocks, also while it is being written: `tar -S` takes a file without blocks for zeros alone.
#[test]
fn a_file_being_written_has_blocks() {
    let mount = Mount::new(&["--memory", "8M", "--size", "64M"]);
    let path = mount.path("f");
    let blocks = || fs::metadata(&path).unwrap().blocks();
    let file = fs::File::create(&path).unwrap();
    blocks();
    file.write_all_at(b"not nothing", 0).unwrap();
    assert!(blocks() > 0, "bytes and no blocks");
    let backup = |to: &Path| {
        let archive = mount.beside("backup.tar");
        ok(&run(Command::new("tar").arg("-C").arg(&mount.dir).args(["-S", "-cf"]).arg(&archive).arg("f")));
        ok(&run(Command::new("tar").arg("-C").arg(to).arg("-xf").arg(&archive)));
        fs::read(to.join("f")).unwrap()
    };
    let to = scratch();
    assert!(backup(to.path()) == b"not nothing", "the backup has other bytes than the file");
    for mebibytes in 1..=6u64 {
        file.write_all_at(&noise(mebibytes, 1 << 20), (mebibytes - 1) << 20).unwrap();
        let before = blocks();
        rustix::fs::fsync(&file).unwrap();
        assert!(blocks() >= before, "fewer blocks than it had");
        // The count of a file that is written all the time may be a moment late.
        eventually("all blocks", || blocks() == mebibytes << 11);
    }
    assert!(backup(to.path()) == fs::read(&path).unwrap(), "the backup has other bytes than the file");
    // The file was long and empty when its attributes were read, and now has data in its middle.
    file.set_len(0).unwrap();
    file.set_len(1 << 20).unwrap();
    blocks();
    file.write_all_at(b"in the middle", 500_000).unwrap();
    assert!(backup(to.path()) == fs::read(&path).unwrap(), "the backup has other bytes than the file");
}

/// The last bytes that a file may have by the kernel's own limit are kept like any other.
#[test]
fn the_last_possible_byte_is_kept() {
    let mount = Mount::new(&["--memory", "8M"]);
    let file = fs::File::create_new(mount.path("f")).unwrap();
    let last = i64::MAX as u64 - 1;
    file.write_all_at(b"x", last).unwrap();
    rustix::fs::fsync(&file).unwrap();
    mount.drop_caches();
    let mut byte = [0];
    fs::File::open(mount.path("f")).unwrap().read_exact_at(&mut byte, last).unwrap();
    assert_eq!(byte, *b"x");
}

/// Buffered readers see bytes written with O_DIRECT by AIO: the kernel's cache keeps no old ones.
#[test]
fn buffered_readers_see_what_aio_wrote() {
    let program = r#"
import ctypes, mmap, os, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
path, SIZE, PAGE = sys.argv[1], 64, 4096
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
os.write(fd, bytes(SIZE * PAGE))
os.fsync(fd)
direct = os.open(path, os.O_RDWR | os.O_DIRECT)
context = ctypes.c_ulong(0)
if libc.syscall(206, 64, ctypes.byref(context)): sys.exit(77)
buf = mmap.mmap(-1, SIZE * PAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(buf))
class Iocb(ctypes.Structure):
    _fields_ = [('data', ctypes.c_uint64), ('key', ctypes.c_uint32), ('flags', ctypes.c_uint32), ('op', ctypes.c_uint16),
        ('prio', ctypes.c_int16), ('fd', ctypes.c_uint32), ('buf', ctypes.c_uint64), ('n', ctypes.c_uint64),
        ('offset', ctypes.c_int64), ('r', ctypes.c_uint64), ('f2', ctypes.c_uint32), ('resfd', ctypes.c_uint32)]
events = (ctypes.c_byte * (32 * SIZE))()
stop = False
def read():
    while not stop:
        for page in range(SIZE): os.pread(fd, PAGE, page * PAGE)
readers = [threading.Thread(target=read) for _ in range(3)]
for reader in readers: reader.start()
end, wrong, turn = time.time() + 6, 0, 0
while time.time() < end and not wrong:
    turn = turn % 250 + 1
    ctypes.memset(address, turn, SIZE * PAGE)
    blocks = [Iocb(0, 0, 0, 1, 0, direct, address + p * PAGE, PAGE, p * PAGE, 0, 0, 0) for p in range(SIZE)]
    pointers = (ctypes.c_void_p * SIZE)(*[ctypes.addressof(b) for b in blocks])
    done = libc.syscall(209, context, SIZE, pointers)
    left = done
    while left: left -= libc.syscall(208, context, 1, left, events, None)
    if done != SIZE: sys.exit(78)
    for page in range(SIZE):
        if os.pread(fd, PAGE, page * PAGE) != bytes([turn]) * PAGE: wrong += 1
stop = True
for reader in readers: reader.join()
print('old bytes in', wrong, 'pages') if wrong else None
sys.exit(1 if wrong else 0)
"#;
    let mount = Mount::new(&["--memory", "8M"]);
    let output = python(program, &[&mount.path("f")]);
    if let Some(77 | 78) = output.status.code() {
        eprintln!("skipped: no AIO here");
        return;
    }
    ok(&output);
}
