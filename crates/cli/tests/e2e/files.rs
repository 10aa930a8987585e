//! Contents through a real mount: holes, unflushed data, fallocate, truncation, appends, mappings.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom as Seek2, fallocate, seek};
use rustix::io::Errno;

use crate::harness::{Mount, noise, ok, python, run};

fn small() -> Mount {
    Mount::new(&["--memory", "8M", "--size", "64M"])
}

fn open(mount: &Mount, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(mount.path(name)).unwrap()
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    let data = noise(6, 12 << 20);
    let mut file = open(&mount, "f");
    file.write_all(&data).unwrap();
    fs::remove_file(mount.path("f")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == data);
    // The bytes read back were paged out: the kernel's copy is dropped first.
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut page = vec![0; 4096];
    file.read_exact_at(&mut page, 5 << 20).unwrap();
    assert!(page == data[5 << 20..][..4096]);
    drop(file);
    crate::harness::eventually("its pages are free", || {
        mount.stat("resident_bytes") + mount.stat("stored_bytes") < 1 << 20
    });
}

#[test]
fn holes_and_unflushed_data_are_told_apart() {
    // R57. The trap: the kernel asks us for data and holes without reporting its dirty data.
    let mount = small();
    let file = open(&mount, "sparse");
    file.set_len(8 << 20).unwrap();
    let at = |whence| seek(&file, whence);
    assert_eq!(at(Seek2::Data(0)), Err(Errno::NXIO), "all hole");
    file.write_all_at(b"data", 4 << 20).unwrap();
    let data = at(Seek2::Data(0)).unwrap();
    assert!(data <= 4 << 20, "unflushed data hidden: first data at {data}");
    let hole = at(Seek2::Hole(4 << 20)).unwrap();
    assert!(hole > 4 << 20 && hole <= 8 << 20, "{hole}");
    assert_eq!(at(Seek2::Data(8 << 20)), Err(Errno::NXIO));
    assert_eq!(at(Seek2::Hole(8 << 20)), Err(Errno::NXIO));
    mount.drop_caches();
    assert_eq!(at(Seek2::Data(0)), Ok(4 << 20));
    assert_eq!(at(Seek2::Hole(0)), Ok(0));
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "a hole takes room");
}

#[test]
fn cp_copies_what_is_not_flushed_yet() {
    let mount = small();
    for round in 0..8 {
        let file = open(&mount, "a");
        file.set_len(0).unwrap();
        file.set_len(3 << 20).unwrap();
        let data = noise(round, 700_000);
        file.write_all_at(&data, 1_000_003).unwrap();
        ok(&run(std::process::Command::new("cp")
            .args(["--sparse=auto"])
            .args([mount.path("a"), mount.path("b")])));
        assert!(fs::read(mount.path("a")).unwrap() == fs::read(mount.path("b")).unwrap(), "round {round}");
    }
}

#[test]
fn fallocate_in_all_its_modes() {
    let mount = small();
    let file = open(&mount, "f");
    fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000, "KEEP_SIZE");

    let mut model = noise(7, 300_000);
    file.write_all_at(&model, 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 5000, 70_000).unwrap();
    model[5000..75_000].fill(0);
    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 290_000, 50_000).unwrap();
    model[290_000..].fill(0);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 295_000, 25_000).unwrap();
    model.resize(320_000, 0);
    for _ in 0..2 {
        assert!(fs::read(mount.path("f")).unwrap() == model);
        mount.drop_caches();
    }
    assert_eq!(
        fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 4096),
        Err(Errno::OPNOTSUPP),
        "needs KEEP_SIZE"
    );
    assert_eq!(fallocate(&file, punch, 0, 0), Err(Errno::INVAL));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 1 << 40), Err(Errno::NOSPC), "promised too much");
}

#[test]
fn truncation_up_and_down_shows_zeros_only() {
    let mount = small();
    let file = open(&mount, "f");
    file.write_all_at(&[0xAA; 10_000], 0).unwrap();
    file.set_len(5001).unwrap();
    file.set_len(20_000).unwrap();
    for _ in 0..2 {
        let read = fs::read(mount.path("f")).unwrap();
        assert!(read[..5001].iter().all(|b| *b == 0xAA) && read[5001..].iter().all(|b| *b == 0));
        assert_eq!(read.len(), 20_000);
        mount.drop_caches();
    }
    // O_TRUNC, then fewer bytes than before.
    fs::write(mount.path("f"), "short").unwrap();
    mount.drop_caches();
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"short");
}

#[test]
fn appends_of_many_writers_do_not_overwrite() {
    let mount = small();
    let path = mount.path("log");
    File::create(&path).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            scope.spawn(move || (0..500).for_each(|_| file.write_all(&[b'a' + writer; 97]).unwrap()));
        }
    });
    mount.drop_caches();
    let text = fs::read(&path).unwrap();
    assert_eq!(text.len(), 4 * 500 * 97);
    assert!(text.chunks(97).all(|line| line.iter().all(|b| *b == line[0])), "a line was cut");
}

#[test]
fn shared_mappings_reach_the_file() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    let program = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 << 20)
m = mmap.mmap(fd, 8 << 20)
for page in range(0, 2048):
    m[page * 4096:page * 4096 + 8] = page.to_bytes(8, 'little')
assert os.pread(fd, 8, 77 * 4096) == (77).to_bytes(8, 'little')
os.pwrite(fd, b'written!', 100 * 4096)
assert m[100 * 4096:100 * 4096 + 8] == b'written!'
m.flush(); m.close(); os.fsync(fd); os.close(fd)
";
    ok(&python(program, &[&mount.path("f")]));
    mount.drop_caches();
    let read = fs::read(mount.path("f")).unwrap();
    for (page, bytes) in read.chunks(4096).enumerate() {
        let head = if page == 100 { *b"written!" } else { (page as u64).to_le_bytes() };
        assert!(bytes[..8] == head && bytes[8..].iter().all(|b| *b == 0), "page {page}");
    }
}

#[test]
fn fsync_and_deletion_before_pressure_cost_no_io() {
    // R4, R8, R9, R65: within the memory nothing is ever written.
    let mount = Mount::new(&["--memory", "64M", "--size", "128M"]);
    for n in 0..4 {
        let mut file = File::create(mount.path(&n.to_string())).unwrap();
        file.write_all(&noise(n, 6 << 20)).unwrap();
        file.sync_all().unwrap();
    }
    for n in 0..4 {
        fs::remove_file(mount.path(&n.to_string())).unwrap();
    }
    assert_eq!(mount.stat("store_writes"), 0);
    assert_eq!(mount.stat("stored_bytes"), 0);
}

#[test]
fn random_writes_past_the_memory_match_a_model() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M", "-o", "debug=evict"]);
    let file = open(&mount, "f");
    let mut model = vec![0; 10 << 20];
    let places = noise(8, 8 * 300);
    for (n, place) in places.chunks(8).enumerate() {
        let place = u64::from_le_bytes(place.try_into().unwrap());
        let offset = usize::try_from(place % (10 << 20)).unwrap();
        let len = usize::try_from((place >> 32) % 60_000).unwrap().min(model.len() - offset);
        let data = noise(n as u64, len);
        file.write_all_at(&data, offset as u64).unwrap();
        model[offset..offset + len].copy_from_slice(&data);
        if n % 50 == 49 {
            let mut part = vec![0; len];
            file.read_exact_at(&mut part, offset as u64).unwrap();
            assert!(part == data, "write {n}");
        }
    }
    file.set_len(10 << 20).unwrap();
    mount.drop_caches();
    assert!(fs::read(mount.path("f")).unwrap() == model);
}
