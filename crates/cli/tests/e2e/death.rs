//! Daemons that die, and mounts that are busy.

use std::fs;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::harness::{
    Guard, Mount, eventually, is_root, is_running, kill, mountinfo, names, noise, ok, overspill, refused,
    stderr,
};

fn umount(mount: &Mount) -> std::process::Output {
    overspill(["umount".as_ref(), mount.dir.as_os_str()])
}

/// Kills the daemon, and waits until the kernel has closed its files.
fn kill_daemon(mount: &Mount) {
    kill(mount.pid, Signal::KILL);
    eventually("killed", || !is_running(mount.pid));
}

#[test]
fn a_killed_daemon_leaves_enotconn_at_once_and_umount_clears_it() {
    let mount = Mount::new(&["--memory", "4M", "--size", "64M"]);
    fs::write(mount.path("f"), noise(4, 16 << 20)).unwrap();
    kill_daemon(&mount);
    // By io_uring the first call may find the connection just being cut.
    let first = rustix::fs::statvfs(&mount.dir).err();
    assert!(matches!(first, Some(Errno::NOTCONN | Errno::CONNABORTED)), "{first:?}");
    assert_eq!(rustix::fs::statvfs(&mount.dir).err(), Some(Errno::NOTCONN));
    let error = fs::File::create(mount.path("new")).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
    assert_eq!(names(&mount.store), [""; 0], "the store outlived its daemon");

    refused(&overspill(["stats".as_ref(), mount.dir.as_os_str()]), 9, &["dead", "overspill umount"]);
    let again = overspill(["mount".as_ref(), mount.dir.as_os_str()]);
    refused(&again, 3, &["overspill umount"]);
    ok(&umount(&mount));
    mount.nothing_left();
    assert_eq!(names(&mount.dir), [""; 0]);
    refused(&umount(&mount), 9, &["not on an overspill mount"]);
}

#[test]
fn a_dead_mount_is_cleared_even_if_somebody_stands_in_it() {
    let mount = Mount::new(&["--memory", "4M"]);
    let held = Command::new("sleep").arg("600").current_dir(&mount.dir).stdin(Stdio::null()).spawn();
    let _held = Guard(held.unwrap());
    kill_daemon(&mount);
    ok(&umount(&mount));
    mount.nothing_left();
}

#[test]
fn a_busy_mount_names_who_holds_it() {
    let mount = Mount::new(&["--memory", "4M"]);
    fs::write(mount.path("f"), "x").unwrap();
    fs::create_dir(mount.path("sub")).unwrap();
    let sleep = || {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    };
    let by_cwd = Guard(sleep().current_dir(mount.path("sub")).stdin(Stdio::null()).spawn().unwrap());
    let by_fd = Guard(sleep().stdin(fs::File::open(mount.path("f")).unwrap()).spawn().unwrap());
    let output = umount(&mount);
    let wanted = [by_cwd.0.id(), by_fd.0.id()].map(|pid| format!("pid {pid} (sleep: "));
    refused(&output, 8, &[&wanted[0], &wanted[1], "working directory", "/sub", "open", "--lazy"]);
    assert_eq!(mountinfo(&mount.dir).len(), 1, "still mounted");
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"x", "still well");
    drop((by_cwd, by_fd));
    mount.umount();
}

#[test]
fn a_mount_under_a_mount_is_a_holder() {
    if !is_root("a mount on the mount") {
        return;
    }
    let mount = Mount::new(&["--memory", "4M"]);
    fs::create_dir(mount.path("sub")).unwrap();
    rustix::mount::mount("none", mount.path("sub"), "tmpfs", rustix::mount::MountFlags::empty(), None)
        .unwrap();
    let output = umount(&mount);
    rustix::mount::unmount(mount.path("sub"), rustix::mount::UnmountFlags::DETACH).unwrap();
    refused(&output, 8, &["the mount on", "/sub"]);
    mount.umount();
}

#[test]
fn our_own_directory_does_not_keep_it_busy() {
    let mount = Mount::new(&["--memory", "4M"]);
    let mut command = Command::new(crate::harness::program());
    let output = crate::harness::run(command.arg("umount").arg(&mount.dir).current_dir(&mount.dir));
    ok(&output);
    mount.nothing_left();
}

#[test]
fn force_cuts_off_a_stopped_daemon() {
    let mount = Mount::new(&["--memory", "4M"]);
    fs::write(mount.path("f"), "x").unwrap();
    kill(mount.pid, Signal::STOP);
    let forced = overspill(["umount".as_ref(), "--force".as_ref(), mount.dir.as_os_str()]);
    kill(mount.pid, Signal::CONT);
    assert!(forced.status.success(), "{}", stderr(&forced));
    mount.nothing_left();
}

/// When the daemon drops the kernel's copies, it waits inside the kernel for pages that only it can serve: killed
/// there, its thread cannot end, and the mount does not die by itself.
#[test]
fn force_clears_a_daemon_killed_while_it_drops_the_kernels_pages() {
    if !is_root("a FUSE connection is aborted through fusectl") {
        return;
    }
    for _ in 0..4 {
        let mount = Mount::new(&["--memory", "4M", "--size", "64M", "-o", "debug=evict"]);
        // Another process writes: one with files open on the mount could not start a program, which closes them.
        let write =
            "while dd if=/dev/urandom of=f bs=256k count=4 2>/dev/null && cat f >/dev/null; do :; done";
        let mut shell = Command::new("sh");
        let busy = shell.args(["-c", write]).current_dir(&mount.dir).stdin(Stdio::null()).spawn();
        let mut busy = Guard(busy.unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        kill(mount.pid, Signal::KILL);
        let forced = overspill(["umount".as_ref(), "--force".as_ref(), mount.dir.as_os_str()]);
        assert!(forced.status.success(), "{}", stderr(&forced));
        busy.0.wait().unwrap();
        eventually("killed", || !is_running(mount.pid));
        mount.nothing_left();
    }
}
