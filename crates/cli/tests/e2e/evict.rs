//! Programs that verify their files, on mounts where every page goes to the store at once and the kernel drops its
//! copy of each file that is written or read (`-o debug=evict`).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::harness::{Mount, noise, ok, python, run};

fn evicting() -> Mount {
    Mount::new(&["--memory", "4M", "--size", "256M", "-o", "debug=evict"])
}

/// Checks that pages went out and came back, and that the store never failed.
fn check_and_umount(mount: Mount) {
    let stats = mount.stats();
    assert!(stats["page_outs"].as_u64() > Some(100) && stats["page_ins"].as_u64() > Some(100), "{stats}");
    assert_eq!(stats["errors"], 0, "{stats}");
    mount.umount();
}

/// Variable that names the fsx program, or is `skip`. Without it fsx is installed below cargo's tmpdir, once.
const FSX: &str = "OVERSPILL_FSX";

/// Returns the fsx program, unless it is to be skipped.
fn fsx() -> Option<&'static Path> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    match std::env::var_os(FSX) {
        Some(word) if word == "skip" => {
            eprintln!("skipped: {FSX}=skip");
            return None;
        }
        Some(path) => return Some(PROGRAM.get_or_init(|| path.into())),
        None => {}
    }
    Some(PROGRAM.get_or_init(|| {
        let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tools");
        let program = tools.join("bin/fsx");
        if !program.exists() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut install = Command::new(cargo);
            install.args(["install", "--locked", "--debug", "--version", "0.3.2", "fsx", "--root"]).arg(&tools);
            let output = run(&mut install);
            assert!(
                output.status.success(),
                "fsx cannot be installed: let cargo reach crates.io once, or set {FSX} to the program or to `skip`\n{}",
                crate::harness::stderr(&output)
            );
        }
        program
    }))
}

/// All operations of fsx that the kernel passes on, on files of up to a mebibyte.
const FSX_TOML: &str = "
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1.0
invalidate = 1.0
mapread = 10.0
mapwrite = 10.0
read = 10.0
write = 10.0
truncate = 3.0
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 2.0
punch_hole = 3.0
sendfile = 3.0
posix_fadvise = 1.0
copy_file_range = 3.0
";

/// Runs one fsx per seed, all at once on files of one mount.
fn run_fsx(program: &Path, mount: &Mount, seeds: std::ops::Range<u32>, operations: u32) {
    let config = mount.beside("fsx.toml");
    fs::write(&config, FSX_TOML).unwrap();
    let run_one = |seed: u32| {
        let mut command = Command::new(program);
        command.args(["-q", "-N", &operations.to_string(), "-S", &seed.to_string(), "-f"]).arg(&config);
        // Files that fsx leaves when it fails must not lie on the mount.
        command.arg("-P").arg(mount.beside("")).arg(mount.path(&format!("seed-{seed}")));
        run(&mut command)
    };
    let outputs: Vec<(u32, Output)> = std::thread::scope(|scope| {
        let runs: Vec<_> = seeds.map(|seed| (seed, scope.spawn(move || run_one(seed)))).collect();
        runs.into_iter().map(|(seed, run)| (seed, run.join().unwrap())).collect()
    });
    for (seed, output) in &outputs {
        eprintln!("fsx -S {seed}: {}", output.status);
        ok(output);
    }
}

#[test]
fn fsx_while_everything_is_evicted() {
    let Some(program) = fsx() else { return };
    let mount = evicting();
    run_fsx(program, &mount, 1..5, 2000);
    check_and_umount(mount);
}

#[test]
fn fsx_in_four_mebibytes() {
    let Some(program) = fsx() else { return };
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    run_fsx(program, &mount, 11..17, 4000);
    assert_eq!(mount.stat("errors"), 0);
    mount.umount();
}

/// Creates a database, changes much of it, and prints a digest of its contents. Arguments: its path, the journal's
/// mode, and its size in units of 20 KB.
const SQLITE: &str = "
import hashlib, random, sqlite3, sys
path, mode, scale = sys.argv[1], sys.argv[2], int(sys.argv[3])
rnd = random.Random(1957)
def connect():
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute('PRAGMA journal_mode=' + mode).fetchone() == (mode,)
    db.execute('PRAGMA cache_size=-512')
    db.execute('PRAGMA mmap_size=0' if mode == 'delete' else 'PRAGMA mmap_size=67108864')
    return db
def sound():
    answer = db.execute('PRAGMA integrity_check').fetchall()
    assert answer == [('ok',)], answer
db = connect()
db.execute('CREATE TABLE t(id INTEGER PRIMARY KEY, k INT, name TEXT UNIQUE, body BLOB)')
db.execute('CREATE INDEX by_k ON t(k)')
for part in range(8):
    db.execute('BEGIN')
    for n in range(scale):
        row = (rnd.randrange(1 << 30), 'name-%d-%d' % (rnd.randrange(1 << 40), n), rnd.randbytes(rnd.randrange(5000)))
        db.execute('INSERT INTO t(k, name, body) VALUES (?, ?, ?)', row)
    db.execute('COMMIT')
sound()
size = db.execute('SELECT page_count * page_size FROM pragma_page_count, pragma_page_size').fetchone()[0]
assert size > scale * 16 << 10, size
reader = connect()
for part in range(6):
    db.execute('BEGIN')
    for n in range(scale // 3):
        row = (rnd.randrange(1 << 30), rnd.randbytes(rnd.randrange(9000)), rnd.randrange(8 * scale))
        db.execute('UPDATE t SET k = ?, body = ? WHERE id = ?', row)
    db.execute('ROLLBACK' if part == 3 else 'COMMIT')
    db.execute('DELETE FROM t WHERE k % 16 = ?', (part,))
    reader.execute('SELECT count(*), sum(length(body)) FROM t').fetchone()
reader.close()
db.close()
db = connect()
sound()
db.execute('VACUUM')
sound()
digest = hashlib.sha256()
for row in db.execute('SELECT id, k, name, body FROM t ORDER BY k, id'):
    digest.update(repr(row).encode())
print(digest.hexdigest(), db.execute('SELECT count(*) FROM t INDEXED BY by_k WHERE k >= 0').fetchone()[0])
db.close()
";

/// Compares runs on the disk with runs in the smallest memory and, smaller themselves, on an evicting mount.
fn sqlite(mode: &str, smaller: u32) {
    let tiny = Mount::new(&["--memory", "4M", "--size", "256M"]);
    let evicting = evicting();
    let make = |path: PathBuf, scale: u32| {
        ok(&python(SQLITE, &[&path, Path::new(mode), Path::new(&scale.to_string())]))
    };
    assert_eq!(make(tiny.path("db"), 1000), make(tiny.beside("db"), 1000));
    assert_eq!(make(evicting.path("db"), smaller), make(evicting.beside("db"), smaller));
    assert!(tiny.stat("page_outs") > 2000 && tiny.stat("errors") == 0, "{}", tiny.stats());
    tiny.umount();
    check_and_umount(evicting);
}

#[test]
fn sqlite_with_a_rollback_journal() {
    sqlite("delete", 100);
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    sqlite("wal", 50);
}

/// Runs git with no settings but ours.
fn git<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args([
        "-c",
        "user.name=e2e",
        "-c",
        "user.email=e2e@localhost",
        "-c",
        "gc.auto=0",
    ]);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").args(args);
    ok(&run(&mut command))
}

fn same_tree(one: &Path, other: &Path) {
    ok(&run(Command::new("diff").args(["-r", "--no-dereference", "-x", ".git"]).args([one, other])));
}

#[test]
fn git_keeps_a_history() {
    let mount = evicting();
    let (tree, work) = (mount.beside("tree"), mount.path("work"));
    // This repository's own sources, and some files that do not compress.
    ok(&run(Command::new("cp").args(["-rP", concat!(env!("CARGO_MANIFEST_DIR"), "/..")]).arg(&tree)));
    (0..3).for_each(|n| fs::write(tree.join(format!("noise-{n}")), noise(n, 1 << 20)).unwrap());
    // git knows no empty directories.
    ok(&run(Command::new("find").arg(&tree).args(["-type", "d", "-empty", "-delete"])));
    ok(&run(Command::new("cp").arg("-rP").args([&tree, &work])));
    git(&work, ["init", "-q"]);
    git(&work, ["add", "-A", "-f"]);
    git(&work, ["commit", "-q", "-m", "all of it"]);
    git(&work, ["fsck", "--full", "--strict"]);
    fs::write(work.join("noise-1"), "less").unwrap();
    git(&work, ["mv", "noise-0", "moved"]);
    git(&work, ["commit", "-q", "-a", "-m", "and then"]);
    git(&work, ["gc", "-q", "--aggressive", "--prune=now"]);
    mount.drop_caches();
    git(&work, ["fsck", "--full", "--strict"]);
    assert_eq!(git(&work, ["status", "--porcelain"]), "");

    git(&work, ["checkout", "-q", "HEAD~1"]);
    same_tree(&tree, &work);
    let again = mount.beside("clone");
    git(&mount.beside(""), [OsStr::new("clone"), "-q".as_ref(), work.as_ref(), again.as_ref()]);
    same_tree(&tree, &again);
    check_and_umount(mount);
}
