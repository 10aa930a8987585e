//! Metadata is a kind of space, and ends before pages do: acknowledged data is kept all the same.

use crate::harness::{Mount, ok, python, sh};

/// Pages far from each other, each of which takes metadata of its own: write(2) itself fails when there is no more, and
/// every page that was fsynced is read back.
#[test]
fn a_sparse_writer_hears_of_full_metadata_and_loses_nothing() {
    let program = r#"
import errno, os, sys
path, FAR = sys.argv[1], 64 << 20
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
kept = 0
try:
    for n in range(1 << 20):
        if os.pwrite(fd, n.to_bytes(8, 'little') * 512, n * FAR) != 4096: break
        if n % 4 == 3:
            try: os.fsync(fd)
            except OSError as e:
                sys.exit(f'fsync failed after write(2) had said yes: {e} at page {n}')
            kept = n + 1
    else: sys.exit('there is no end to it')
except OSError as e:
    if e.errno != errno.ENOSPC: raise
print(kept)
"#;
    let check = r#"
import os, sys
path, FAR, kept = sys.argv[1], 64 << 20, int(os.readlink(sys.argv[2]))
fd = os.open(path, os.O_RDONLY)
for n in range(kept):
    if os.pread(fd, 4096, n * FAR) != n.to_bytes(8, 'little') * 512: sys.exit(f'page {n} of {kept} is not what was fsynced')
"#;
    let mount = Mount::new(&["--memory", "16M", "--size", "1G"]);
    let kept = ok(&python(program, &[&mount.path("f")]));
    assert!(kept.trim().parse::<u32>().unwrap() > 500, "{kept} pages");
    mount.drop_caches();
    std::os::unix::fs::symlink(kept.trim(), mount.beside("kept")).unwrap();
    ok(&python(check, &[&mount.path("f"), &mount.beside("kept")]));
    std::fs::remove_file(mount.path("f")).unwrap();
    crate::harness::eventually("room for metadata again", || {
        std::fs::write(mount.path("g"), "x").is_ok_and(|()| std::fs::read(mount.path("g")).is_ok())
    });
    mount.umount();
}

/// When metadata is full, `df -i` shows it.
#[test]
fn df_shows_the_inodes_that_can_still_be_made() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    let line = r#"df --output=iavail,ipcent "$1" | tail -n 1"#;
    let df = || {
        let said = ok(&sh(line, [&mount.dir]));
        let mut words = said.split_whitespace();
        let free: u64 = words.next().unwrap().parse().unwrap();
        let percent: u64 = words.next().unwrap().trim_end_matches('%').parse().unwrap();
        (free, percent)
    };
    let (free, percent) = df();
    assert!(free > 500 && percent < 10, "{free} free, {percent}% used");
    let mut made = 0;
    while std::fs::File::create_new(mount.path(&format!("file {made}"))).is_ok() {
        made += 1;
    }
    let (left, percent) = df();
    assert!(left < free / 20 && percent >= 95, "{left} free, {percent}% used after {made} files");
    // The promise is about right; slabs and the process's own growth take their part of the memory.
    assert!(made * 2 >= free && made <= free * 2, "{made} made of {free} promised");
}
