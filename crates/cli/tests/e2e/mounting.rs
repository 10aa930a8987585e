//! Mounting and unmounting, and that nothing is left behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::harness::{
    CleanUp, Guard, Mount, daemon_of, eventually, is_running, kill, mountinfo, names, noise, ok, overspill,
    program, run, scratch, sh,
};

#[test]
fn round_trip_leaves_nothing_behind() {
    // R2, R5, R9: the store is where the caller chose, has no name, and dies with the mount.
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    let data = noise(1, 16 << 20);
    fs::write(mount.path("f"), &data).unwrap();
    mount.drop_caches();
    assert!(fs::read(mount.path("f")).unwrap() == data);
    assert!(mount.stat("store_writes") > 0, "16 MiB in 4 MiB of memory");
    assert_eq!(names(&mount.store), [""; 0], "the store has a name");
    assert_eq!(mountinfo(&mount.dir).len(), 1);
    mount.umount();
}

#[test]
fn the_daemon_is_on_its_own() {
    let mount = Mount::new(&["--memory", "4M"]);
    let proc = format!("/proc/{}", mount.pid);
    assert_eq!(fs::read_link(format!("{proc}/cwd")).unwrap(), Path::new("/"));
    let stat = fs::read_to_string(format!("{proc}/stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, mount.pid.to_string(), "no session of its own");
    // The pipe to the command that started the daemon closes after that command has all it needs.
    for fd in [0, 1] {
        let fd = format!("{proc}/fd/{fd}");
        eventually("its pipe closes", || fs::read_link(&fd).unwrap() == Path::new("/dev/null"));
    }
    assert_eq!(fs::read_link(format!("{proc}/fd/2")).unwrap(), mount.beside("log"));
}

#[test]
fn a_command_substitution_returns() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let line =
        r#"x=$("$1" mount --memory 4M --store "$2" --log /dev/null "$3" 2>&1) || exit 1; echo "said:$x""#;
    let output = sh(line, [program().as_path(), base.path(), &dir]);
    let unmounted = overspill(["umount".as_ref(), dir.as_os_str()]);
    assert!(ok(&output).starts_with("said:"), "{output:?}");
    ok(&unmounted);
}

#[test]
fn other_programs_may_unmount() {
    let tools: &[&[&str]] = if rustix::process::geteuid().is_root() {
        &[&["umount"], &["fusermount3", "-u"]]
    } else {
        &[&["fusermount3", "-u"]]
    };
    for tool in tools {
        let mount = Mount::new(&["--memory", "4M"]);
        fs::write(mount.path("f"), "x").unwrap();
        ok(&run(Command::new(tool[0]).args(&tool[1..]).arg(&mount.dir)));
        mount.nothing_left();
    }
}

#[test]
fn foreground_stays_until_a_signal() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    for signal in [Signal::INT, Signal::TERM] {
        let log = base.path().join("stderr");
        let child = Command::new(program())
            .args(["mount", "-f", "--memory", "4M", "--store"])
            .args([base.path(), &dir])
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn();
        let mut child = Guard(child.unwrap());
        eventually("mounted", || fs::read_to_string(&log).unwrap().contains("mounted on"));
        fs::write(dir.join("f"), "x").unwrap();
        assert!(child.0.try_wait().unwrap().is_none(), "did not stay");
        kill(child.0.id(), signal);
        let status = child.0.wait().unwrap();
        assert!(status.success(), "{status}: {}", fs::read_to_string(&log).unwrap());
        assert_eq!(mountinfo(&dir), [""; 0]);
    }
}

#[test]
fn a_terminated_daemon_takes_its_mount_along() {
    let mount = Mount::new(&["--memory", "4M"]);
    kill(mount.pid, Signal::TERM);
    eventually("the daemon ends", || !is_running(mount.pid));
    mount.nothing_left();
}

#[test]
fn paths_may_be_relative_and_linked() {
    let base = scratch();
    let root = base.path().canonicalize().unwrap();
    let _clean_up = CleanUp(root.join("mnt"));
    fs::create_dir(root.join("mnt")).unwrap();
    fs::create_dir(root.join("store")).unwrap();
    symlink("mnt", root.join("link")).unwrap();
    let here = |args: &[&str]| run(Command::new(program()).args(args).current_dir(&root));
    let mounted = here(&["mount", "--memory", "4M", "--store", "store", "--log", "log", "link"]);
    let stats = here(&["stats", "--json", "./link"]);
    let lines = mountinfo(&root.join("mnt")).len();
    let unmounted = here(&["umount", &format!("../{}/link", root.file_name().unwrap().display())]);
    ok(&mounted);
    assert_eq!(lines, 1);
    ok(&stats);
    ok(&unmounted);
    assert_eq!(mountinfo(&root.join("mnt")), [""; 0]);
    assert_eq!(daemon_of(Path::new("link")), None);
}

#[test]
fn a_mountpoint_with_odd_characters() {
    let base = scratch();
    let dir = base.path().join("a b\\c\td,e=ü");
    let _clean_up = CleanUp(dir.clone());
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let options = ["mount", "--memory", "4M", "--log", "/dev/null", "--store"].map(OsStr::new);
    let mounted = overspill(options.into_iter().chain([base.path().as_os_str(), dir.as_os_str()]));
    let written = fs::write(dir.join("f"), "x");
    let stats = overspill(["stats".as_ref(), "--json".as_ref(), dir.as_os_str()]);
    let unmounted = overspill(["umount".as_ref(), dir.as_os_str()]);
    ok(&mounted);
    written.unwrap();
    ok(&stats);
    ok(&unmounted);
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn lazy_takes_it_away_while_a_user_goes_on() {
    let mount = Mount::new(&["--memory", "4M"]);
    fs::write(mount.path("f"), "kept").unwrap();
    let mut file = fs::File::open(mount.path("f")).unwrap();
    ok(&overspill(["umount".as_ref(), "--lazy".as_ref(), mount.dir.as_os_str()]));
    assert_eq!(mountinfo(&mount.dir), [""; 0]);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).unwrap();
    assert_eq!(text, "kept");
    drop(file);
    mount.nothing_left();
}
