//! A full mount loses no acknowledged data: every file whose fsync and close returned 0 is read back exactly.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Mount, eventually, noise, ok, overspill, python, run, stderr};

const SIZE: u64 = 32 << 20;
const FILE: usize = 3 << 20;

/// Written through, and with `-o writeback`.
const MODES: [&str; 2] = ["defaults", "writeback"];

fn full_soon(mode: &str) -> Mount {
    Mount::new(&["--memory", "8M", "--size", "32M", "-o", mode])
}

/// Runs `dd`, whose exit status covers write, fsync and close.
fn dd(from: &Path, to: &Path, more: &[&str]) -> std::process::Output {
    let paths = [format!("if={}", from.display()), format!("of={}", to.display())];
    run(Command::new("dd").args(paths).args(["bs=64k", "status=none"]).args(more).env("LC_ALL", "C"))
}

/// Writes files of noise until one fails; returns the acknowledged ones.
fn fill(mount: &Mount, prefix: &str, seed: u64, more: &[&str]) -> Vec<(PathBuf, u64)> {
    let mut done = Vec::new();
    for n in 0..64 {
        let source = mount.beside(&format!("source-{prefix}"));
        fs::write(&source, noise(seed + n, FILE)).unwrap();
        let target = mount.path(&format!("{prefix}{n}"));
        let output = dd(&source, &target, more);
        if !output.status.success() {
            assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
            return done;
        }
        done.push((target, seed + n));
    }
    panic!("64 files of 3 MiB in 32 MiB, and no error");
}

fn verify(mount: &Mount, acknowledged: &[(PathBuf, u64)]) {
    mount.drop_caches();
    for (path, seed) in acknowledged {
        assert!(fs::read(path).unwrap() == noise(*seed, FILE), "{} was acknowledged", path.display());
    }
}

/// Fills a mount, deletes everything and fills it again: as much fits as before.
fn fills_and_drains(mode: &str, more: &[&str]) {
    let mount = full_soon(mode);
    let first = fill(&mount, "a", 100, more);
    assert!(first.len() >= 5, "only {} files of 3 MiB fitted into 32 MiB", first.len());
    verify(&mount, &first);
    for entry in fs::read_dir(&mount.dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let second = fill(&mount, "b", 200, more);
    assert!(second.len() + 1 >= first.len(), "{} files fitted, after deletion {}", first.len(), second.len());
    verify(&mount, &second);
    assert_eq!(mount.stat("errors"), 0);
    mount.umount();
}

#[test]
fn dd_without_fsync() {
    MODES.iter().for_each(|mode| fills_and_drains(mode, &[]));
}

#[test]
fn dd_with_fsync() {
    MODES.iter().for_each(|mode| fills_and_drains(mode, &["conv=fsync"]));
}

#[test]
fn one_file_larger_than_the_mount() {
    MODES.iter().for_each(|mode| one_file_larger_than_the_mount_with(mode));
}

fn one_file_larger_than_the_mount_with(mode: &str) {
    let mount = full_soon(mode);
    for more in [&[][..], &["conv=fsync"]] {
        // If it were never refused, dd would end after sixteen times the size.
        let more: Vec<&str> = more.iter().copied().chain(["count=8192"]).collect();
        let output = dd(Path::new("/dev/zero"), &mount.path("f"), &more);
        assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
        // The length is the kernel's. The data held may exceed the size by the kernel's dirty data, no more.
        mount.drop_caches();
        let held = fs::metadata(mount.path("f")).unwrap().blocks() * 512;
        assert!(held <= SIZE + 2 * mount.dirty_limit(), "{held} held");
        fs::remove_file(mount.path("f")).unwrap();
    }
    // The mount then works as before.
    fs::write(mount.path("g"), noise(1, FILE)).unwrap();
    verify(&mount, &[(mount.path("g"), 1)]);
}

#[test]
fn df_tells_the_truth_when_full_and_after() {
    MODES.iter().for_each(|mode| df_tells_the_truth_when_full_and_after_with(mode));
}

fn df_tells_the_truth_when_full_and_after_with(mode: &str) {
    let mount = full_soon(mode);
    let free = || rustix::fs::statvfs(&mount.dir).map(|s| s.f_bfree * s.f_frsize).unwrap();
    let before = free();
    assert!(before > SIZE / 2 && before <= SIZE, "{before}");
    let files = fill(&mount, "a", 300, &["conv=fsync"]);
    assert!(free() < before / 4, "{} free when full", free());
    for entry in fs::read_dir(&mount.dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    eventually("room again", || free() + (1 << 20) >= before);
    drop(files);
    ok(&overspill(["stats".as_ref(), mount.dir.as_os_str()]));
}

#[test]
fn a_mapping_writer() {
    MODES.iter().for_each(|mode| a_mapping_writer_with(mode));
}

fn a_mapping_writer_with(mode: &str) {
    let mount = full_soon(mode);
    let held = fill(&mount, "a", 400, &["conv=fsync"]);
    // The writer may die of SIGBUS, or get an error from msync or fsync; it must not succeed and lose data.
    let program = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 << 20)
m = mmap.mmap(fd, 8 << 20)
m[:] = open(sys.argv[2], 'rb').read()
m.flush(); os.fsync(fd); m.close(); os.close(fd)
";
    let source = mount.beside("mapped");
    fs::write(&source, noise(9, 8 << 20)).unwrap();
    let target = mount.path("mapped");
    let full = python(program, &[&target, &source]);
    mount.drop_caches();
    assert!(!full.status.success() || fs::read(&target).unwrap() == noise(9, 8 << 20), "mapped and lost");
    verify(&mount, &held);

    // With room, it must succeed.
    fs::remove_file(&target).unwrap();
    for (path, _) in &held[..4] {
        fs::remove_file(path).unwrap();
    }
    let mut roomy = python(program, &[&target, &source]);
    // Pages of unlinked files are freed asynchronously.
    for _ in 0..20 {
        if roomy.status.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        roomy = python(program, &[&target, &source]);
    }
    ok(&roomy);
    mount.drop_caches();
    assert!(fs::read(&target).unwrap() == noise(9, 8 << 20));
    verify(&mount, &held[4..]);
}

#[test]
fn two_fillers_at_once() {
    let all = MODES.iter().flat_map(|mode| [(mode, &[][..]), (mode, &["conv=fsync"])]);
    for (mode, more) in all {
        let mount = full_soon(mode);
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| fill(&mount, "one", 1000, more));
            let two = scope.spawn(|| fill(&mount, "two", 2000, more));
            (one.join().unwrap(), two.join().unwrap())
        });
        assert!(one.len() + two.len() >= 4, "{} and {}", one.len(), two.len());
        verify(&mount, &one);
        verify(&mount, &two);
        assert_eq!(mount.stat("errors"), 0);
        mount.umount();
    }
}

/// Written through, write(2) itself reports a full file system, at the byte where it is full.
#[test]
fn write_itself_reports_what_does_not_fit() {
    let mount = full_soon("defaults");
    let file = fs::File::create(mount.path("f")).unwrap();
    let chunk = noise(7, 1 << 20);
    let mut held = 0;
    let error = loop {
        match std::io::Write::write(&mut &file, &chunk) {
            Ok(n) => held += n,
            Err(error) => break error,
        }
        assert!(held <= usize::try_from(SIZE).unwrap(), "more than there is room for");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    assert_eq!(len, held, "the file is as long as what write(2) took");
    assert!(held >= 20 << 20, "only {held} bytes of 32 MiB");
    mount.drop_caches();
    let read = fs::read(mount.path("f")).unwrap();
    assert!(read.chunks(1 << 20).all(|part| part == &chunk[..part.len()]));
}
