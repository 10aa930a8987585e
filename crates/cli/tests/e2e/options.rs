//! Options take effect on the mount, not only on the command line.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::io::Errno;

use crate::harness::{Mount, is_root, mountinfo, ok, run, sh};

fn errno(result: std::io::Result<impl Sized>) -> Option<Errno> {
    result.err().and_then(|e| Errno::from_io_error(&e))
}

#[test]
fn size_and_inodes_are_what_df_shows() {
    let mount = Mount::new(&["--memory", "4M", "-o", "size=64m,nr_inodes=100"]);
    let fs = rustix::fs::statvfs(&mount.dir).unwrap();
    assert_eq!(fs.f_blocks * fs.f_frsize, 64 << 20);
    assert_eq!(fs.f_files, 100);
    let free = fs.f_ffree;
    let made = (0..200).take_while(|n| fs::write(mount.path(&n.to_string()), "").is_ok()).count();
    assert_eq!(u64::try_from(made).unwrap(), free, "files made, and those promised");
    assert_eq!(errno(fs::write(mount.path("one more"), "")), Some(Errno::NOSPC));
    fs::remove_file(mount.path("0")).unwrap();
    fs::write(mount.path("instead"), "").unwrap();
}

#[test]
fn percent_is_of_ram() {
    let mount = Mount::new(&["--memory", "4M", "--size", "10%"]);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024;
    let fs = rustix::fs::statvfs(&mount.dir).unwrap();
    let size = fs.f_blocks * fs.f_frsize;
    assert!(size.abs_diff(total / 10) < 1 << 16, "{size} of {total}");
}

#[test]
fn default_size_is_four_times_memory() {
    let mount = Mount::new(&["--memory", "8M"]);
    let fs = rustix::fs::statvfs(&mount.dir).unwrap();
    assert_eq!(fs.f_blocks * fs.f_frsize, 32 << 20);
    assert_eq!(mount.stat("budget_bytes"), 8 << 20);
}

#[test]
fn memory_bows_to_size_when_not_given() {
    let mount = Mount::new(&["--size", "5M"]);
    assert!(mount.stat("budget_bytes") <= 5 << 20);
}

#[test]
fn owner_and_mode_of_the_root() {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mount = Mount::new(&["--memory", "4M"]);
    let root = fs::metadata(&mount.dir).unwrap();
    assert_eq!((root.uid(), root.gid()), me);
    assert_eq!(root.mode() & 0o7777, if me.0 == 0 { 0o1777 } else { 0o700 });
    let mount = Mount::new(&["--memory", "4M", "-o", "mode=2750"]);
    assert_eq!(fs::metadata(&mount.dir).unwrap().mode() & 0o7777, 0o2750);
    if is_root("another owner") {
        let mount = Mount::new(&["--memory", "4M", "-o", "uid=12", "--gid", "34"]);
        let root = fs::metadata(&mount.dir).unwrap();
        assert_eq!((root.uid(), root.gid()), (12, 34));
    }
}

#[test]
fn read_only_refuses_changes() {
    for args in [["-o", "ro"], ["--ro", "--memory=4M"]] {
        let mount = Mount::new(&args);
        assert_eq!(errno(fs::write(mount.path("f"), "x")), Some(Errno::ROFS));
        assert_eq!(errno(fs::create_dir(mount.path("d"))), Some(Errno::ROFS));
    }
}

#[test]
fn noexec_is_kept() {
    for (options, runs) in [("exec", true), ("noexec", false)] {
        let mount = Mount::new(&["--memory", "4M", "-o", options]);
        fs::copy("/bin/true", mount.path("true")).unwrap();
        fs::set_permissions(mount.path("true"), fs::Permissions::from_mode(0o755)).unwrap();
        let output = sh(r#"exec "$1""#, [mount.path("true")]);
        assert_eq!(output.status.success(), runs, "{options}: {output:?}");
    }
}

#[test]
fn mount_flags_reach_the_kernel() {
    let flags = |mount: &Mount| {
        let line = mountinfo(&mount.dir).remove(0);
        line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let has = |mount: &Mount, flag: &str| flags(mount).iter().any(|f| f == flag);
    let mount = Mount::new(&["--memory", "4M", "-o", "nosuid,nodev,noexec,noatime"]);
    for flag in ["rw", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(has(&mount, flag), "{flag} is not in {:?}", flags(&mount));
    }
    let mount = Mount::new(&["--memory", "4M"]);
    assert!(!has(&mount, "noexec") && !has(&mount, "noatime"), "{:?}", flags(&mount));
    // A user never gets these two.
    let user = !rustix::process::geteuid().is_root();
    assert_eq!((has(&mount, "nosuid"), has(&mount, "nodev")), (user, user), "{:?}", flags(&mount));
}

#[test]
fn nodev_and_nosuid_are_kept() {
    if !is_root("device nodes and setuid programs") {
        return;
    }
    let null = |mount: &Mount| {
        ok(&sh(r#"mknod -m 666 "$1" c 1 3"#, [mount.path("null")]));
        fs::write(mount.path("null"), "x")
    };
    null(&Mount::new(&["--memory", "4M", "-o", "dev"])).unwrap();
    assert_eq!(errno(null(&Mount::new(&["--memory", "4M", "-o", "nodev"]))), Some(Errno::ACCESS));

    for (options, uid) in [("suid", "12"), ("nosuid", "0")] {
        let mount = Mount::new(&["--memory", "4M", "-o", options]);
        let line = r#"cp "$(command -v id)" "$1" && chown 12 "$1" && chmod 4755 "$1" && exec "$1" -u"#;
        assert_eq!(ok(&sh(line, [mount.path("id")])).trim(), uid, "{options}");
    }
}

#[test]
fn other_users_come_in_only_when_let() {
    if !is_root("a second user") {
        return;
    }
    let mount = Mount::new(&["--memory", "4M"]);
    fs::write(mount.path("f"), "shared").unwrap();
    let output = run(std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"])
        .arg(mount.path("f")));
    // The path to the mount may be closed to other users; then this test cannot tell.
    let way_open = mount.dir.ancestors().skip(1).all(|d| fs::metadata(d).is_ok_and(|m| m.mode() & 1 != 0));
    if way_open {
        assert_eq!(ok(&output), "shared");
    }
}

/// A memory cgroup of version 1; when it is dropped its processes move to the root group.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    fn new(mebibytes: u64) -> Option<Cgroup> {
        let path = format!("/sys/fs/cgroup/memory/overspill-e2e-{}", std::process::id());
        std::fs::create_dir(&path).ok()?;
        let group = Cgroup(path.into());
        std::fs::write(group.0.join("memory.limit_in_bytes"), (mebibytes << 20).to_string()).ok()?;
        Some(group)
    }

    /// Runs a shell line in the cgroup.
    fn sh(&self, line: &str, args: &[&std::ffi::OsStr]) -> std::process::Output {
        let line = format!(r#"echo $$ > "$1/cgroup.procs" || exit 99; shift; {line}"#);
        crate::harness::sh(&line, std::iter::once(self.0.as_os_str()).chain(args.iter().copied()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = std::fs::write("/sys/fs/cgroup/memory/cgroup.procs", pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A budget just under the cgroup's limit is refused, with the most that fits; a mount with that budget survives work
/// that fills it, in the same group.
#[test]
fn root_is_told_the_most_that_a_cgroup_has_room_for() {
    if !crate::harness::is_root("a cgroup of its own") {
        return;
    }
    let base = crate::harness::scratch();
    let dir = base.path().join("mnt");
    std::fs::create_dir(&dir).unwrap();
    let Some(group) = Cgroup::new(80) else {
        eprintln!("skipped: no memory cgroup of version 1");
        return;
    };
    let _clean_up = crate::harness::CleanUp(dir.clone());
    let program = crate::harness::program();
    let mount = |memory: &str| {
        let line = r#"exec "$1" mount --memory "$2" --size 1G --log /dev/null --store "$3" "$4""#;
        let args = [program.as_os_str(), memory.as_ref(), base.path().as_os_str(), dir.as_os_str()];
        group.sh(line, &args)
    };
    crate::harness::refused(&mount("64M"), 7, &["64.0 MiB", "80.0 MiB", "51.0 MiB"]);
    crate::harness::ok(&mount("51M"));
    let line = r#"cd "$1" && head -c 150M /dev/urandom > a && for n in 1 2 3; do cp a b && cat a b > /dev/null; done && cmp a b"#;
    crate::harness::ok(&group.sh(line, &[dir.as_os_str()]));
    let events = std::fs::read_to_string(group.0.join("memory.oom_control")).unwrap();
    assert!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
    crate::harness::ok(&crate::harness::overspill(["umount".as_ref(), dir.as_os_str()]));
}
