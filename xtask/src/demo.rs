//! `cargo xtask demo`: the main job of overspill on real input. A directory tree many times larger than the memory is
//! copied in, spilled, read back, compared byte by byte and removed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};

use crate::run::{command, root, run};

/// Mounts, copies a tree, compares it, shows where every byte is, and unmounts.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// The tree to copy; the Rust toolchain if none is given.
    tree: Option<PathBuf>,
    /// Memory the mount may use.
    #[arg(long, default_value = "128M")]
    memory: String,
    /// Bytes the mount may hold.
    #[arg(long, default_value = "8G")]
    size: String,
    /// Where it spills to.
    #[arg(long, default_value = "/var/tmp")]
    store: String,
}

struct Unmount(PathBuf, PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new(&self.0).args(["umount", "--force"]).arg(&self.1).output();
        let _ = std::fs::remove_dir(&self.1);
    }
}

pub(crate) fn demo(args: &DemoArgs) -> Result<(), String> {
    run(&mut command("cargo", &["build", "--release", "-p", "overspill-cli"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target.join("release/overspill");
    let mountpoint = target.join("demo-mount");
    std::fs::create_dir_all(&mountpoint).map_err(|e| format!("cannot make {}: {e}", mountpoint.display()))?;
    let tree = args.tree.clone().map_or_else(sysroot, Ok)?;
    let overspill = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words).arg(&mountpoint);
        run(&mut command)
    };
    overspill(&["mount", "--memory", &args.memory, "--size", &args.size, "--store", &args.store])?;
    let unmount = Unmount(program.clone(), mountpoint.clone());
    let copy = mountpoint.join("tree");
    run(Command::new("cp").arg("-a").arg(&tree).arg(&copy))?;
    overspill(&["stats"])?;
    println!("\ncomparing every byte, the kernel's copies dropped first …");
    let mut seen = Seen::default();
    compare(&tree, &copy, &mut seen)?;
    println!("identical: {} files, {} MiB", seen.files, seen.bytes >> 20);
    run(Command::new("rm").arg("-r").arg(&copy))?;
    overspill(&["umount"])?;
    std::mem::forget(unmount);
    std::fs::remove_dir(&mountpoint).map_err(|e| format!("cannot remove {}: {e}", mountpoint.display()))
}

fn sysroot() -> Result<PathBuf, String> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output();
    let output = output.map_err(|e| format!("rustc does not run: {e}; name a tree to copy"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

#[derive(Default)]
struct Seen {
    files: u64,
    bytes: u64,
}

fn compare(a: &Path, b: &Path, seen: &mut Seen) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{} and its copy differ: {what}", a.display()));
    let stat = |path: &Path| path.symlink_metadata().map_err(|e| format!("{}: {e}", path.display()));
    let (left, right) = (stat(a)?, stat(b)?);
    if left.file_type() != right.file_type() || left.permissions() != right.permissions() {
        return fail("type or permissions");
    }
    if left.is_dir() {
        let names = |dir: &Path| -> Result<Vec<_>, String> {
            let entries =
                dir.read_dir().and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect());
            let mut names: Vec<_> = entries.map_err(|e| format!("{}: {e}", dir.display()))?;
            names.sort();
            Ok(names)
        };
        let list = names(a)?;
        if list != names(b)? {
            return fail("their entries");
        }
        return list.iter().try_for_each(|name| compare(&a.join(name), &b.join(name), seen));
    }
    if left.is_symlink() {
        return if a.read_link().ok() == b.read_link().ok() { Ok(()) } else { fail("where they lead") };
    }
    seen.files += 1;
    seen.bytes += left.len();
    let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let (mut x, mut y) = (open(a)?, open(b)?);
    // The bytes then come from the mount, not from the page cache.
    let _ = fadvise(&y, 0, None, Advice::DontNeed);
    let (mut p, mut q) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = x.read(&mut p).map_err(|e| format!("{}: {e}", a.display()))?;
        if n == 0 {
            return if y.read(&mut q).is_ok_and(|n| n == 0) { Ok(()) } else { fail("their length") };
        }
        y.read_exact(&mut q[..n]).map_err(|e| format!("{}: {e}", b.display()))?;
        if p[..n] != q[..n] {
            return fail("their bytes");
        }
    }
}
