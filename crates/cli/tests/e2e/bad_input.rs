//! Every bad input has its own sentence and exit code.

use std::ffi::OsStr;
use std::fs;

use crate::harness::{CleanUp, Mount, is_root, names, ok, overspill, program, refused, scratch, sh, stderr};

#[test]
fn mountpoints() {
    let base = scratch();
    let file = base.path().join("file");
    fs::write(&file, "").unwrap();
    let mount =
        |path: &std::path::Path| overspill(["mount".as_ref(), "--memory=4M".as_ref(), path.as_os_str()]);
    refused(&mount(&base.path().join("absent")), 3, &["absent", "does not exist", "create"]);
    refused(&mount(&file), 3, &["file", "not a directory"]);
    refused(&mount(&file.join("below")), 3, &["file/below", "not a directory"]);
}

#[test]
fn already_mounted() {
    let mount = Mount::new(&["--memory", "4M"]);
    let again = overspill(["mount".as_ref(), "--memory=4M".as_ref(), mount.dir.as_os_str()]);
    refused(&again, 3, &["already", "overspill umount"]);
    fs::write(mount.path("f"), "still well").unwrap();
}

#[test]
fn sizes() {
    let base = scratch();
    let _clean_up = CleanUp(base.path().to_owned());
    for (args, parts) in [
        (&["--size", "3x"][..], &["size '3x'", "k, m, g, t or %"][..]),
        (&["--size", ""], &["size ''"]),
        (&["--size", "-5"], &["size '-5'"]),
        (&["--memory", "1.5g"], &["memory '1.5g'"]),
        (&["--memory", "99999999999999999999"], &["too large"]),
        (&["-o", "size=17000000t"], &["size '17000000t'", "too large"]),
        (&["--size", "0"], &["size 0 B"]),
        (&["--memory", "4095k"], &["memory", "4.00 MiB"]),
        (&["--memory", "64M", "--size", "32M"], &["size 32.0 MiB", "below memory 64.0 MiB"]),
        (&["--memory", "1000%"], &["more than"]),
    ] {
        let args = ["mount"].iter().chain(args).map(OsStr::new).chain([base.path().as_os_str()]);
        let args: Vec<&OsStr> = args.collect();
        let output = overspill(&args);
        if args[2] == "-5" {
            // clap takes -5 for a flag.
            assert_eq!(output.status.code(), Some(2));
        } else {
            refused(&output, 7, parts);
        }
    }
}

#[test]
fn unknown_and_broken_options() {
    let base = scratch();
    let _clean_up = CleanUp(base.path().to_owned());
    for (option, parts) in [
        ("sync", &["'sync'", "-o", "--help"][..]),
        ("ro,sise=3g", &["'sise=3g'"]),
        ("mode=999", &["mode", "'999'", "octal"]),
        ("uid=somebody", &["uid", "'somebody'"]),
        ("nr_inodes=-1", &["nr_inodes", "'-1'"]),
        ("layout=per-object,store=none", &["layout", "directory"]),
        ("debug=nothing", &["debug", "'nothing'", "evict"]),
    ] {
        let output = overspill(["mount".as_ref(), "-o".as_ref(), option.as_ref(), base.path().as_os_str()]);
        refused(&output, 2, parts);
    }
    for args in [&["mount"][..], &["mount", "--frobnicate", "/x"], &["frobnicate"], &[]] {
        let output = overspill(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_log_that_cannot_be_written() {
    let base = scratch();
    let log = base.path().join("no/log");
    let args = [
        "mount".as_ref(),
        "--memory=4M".as_ref(),
        "--log".as_ref(),
        log.as_os_str(),
        base.path().as_os_str(),
    ];
    refused(&overspill(args), 1, &["no/log", "--log"]);
}

#[test]
fn what_is_no_mount_of_ours() {
    let base = scratch();
    for command in ["stats", "umount"] {
        refused(&overspill([command, "/proc"]), 9, &["/proc", "not on an overspill mount"]);
        let absent = base.path().join("absent");
        refused(&overspill([OsStr::new(command), absent.as_os_str()]), 9, &["absent"]);
    }
    let mount = Mount::new(&["--memory", "4M"]);
    fs::create_dir(mount.path("sub")).unwrap();
    let inside = mount.path("sub");
    refused(&overspill(["umount".as_ref(), inside.as_os_str()]), 9, &["sub", mount.dir.to_str().unwrap()]);
    ok(&overspill(["stats".as_ref(), inside.as_os_str()]));
}

#[test]
fn no_fuse_device() {
    if !is_root("a /dev without fuse") {
        return;
    }
    let base = scratch();
    let _clean_up = CleanUp(base.path().to_owned());
    let line = r#"mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$1" "$2" "$3" "$4" "$5""#;
    let inner = |args: [&OsStr; 4]| {
        let outer = [OsStr::new(line), "sh".as_ref(), program().as_os_str()].map(OsStr::to_owned);
        let all = outer.into_iter().chain(args.map(OsStr::to_owned));
        sh(r#"exec unshare -m sh -c "$@""#, all)
    };
    refused(
        &inner([
            "mount".as_ref(),
            "--memory=4M".as_ref(),
            "--log=/dev/null".as_ref(),
            base.path().as_os_str(),
        ]),
        5,
        &["/dev/fuse"],
    );
    let doctor = sh(
        r#"exec unshare -m sh -c 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$1" doctor' sh "$1""#,
        [program()],
    );
    assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
    assert!(stderr(&doctor).contains("/dev/fuse is missing"), "{doctor:?}");
}

#[test]
fn a_failed_mount_leaves_nothing() {
    let base = scratch();
    let mountpoint = base.path().join("mnt");
    let _clean_up = CleanUp(mountpoint.clone());
    fs::create_dir(&mountpoint).unwrap();
    let store = base.path().join("absent/store");
    let args = ["mount".as_ref(), "--memory=4M".as_ref(), "--log=/dev/null".as_ref(), "--store".as_ref()];
    let output = overspill(args.into_iter().chain([store.as_os_str(), mountpoint.as_os_str()]));
    refused(&output, 6, &["absent/store"]);
    assert_eq!(crate::harness::mountinfo(&mountpoint), [""; 0]);
    assert_eq!(crate::harness::daemon_of(&mountpoint), None);
    assert_eq!(names(base.path()), ["mnt"]);
}

#[test]
fn help_and_version_and_doctor() {
    let help = ok(&overspill(["--help"]));
    assert!(help.contains("Exit codes:") && help.contains("  9  "), "{help}");
    let mount = ok(&overspill(["mount", "--help"]));
    for default in ["4 x memory", "10% of RAM", "/var/tmp", "1777", "overspill.log"] {
        assert!(mount.contains(default), "no {default} in {mount}");
    }
    assert!(ok(&overspill(["--version"])).starts_with(concat!("overspill ", env!("CARGO_PKG_VERSION"))));
    let doctor = ok(&overspill(["doctor"]));
    for name in ["/dev/fuse", "mounting", "io_uring", "RLIMIT_MEMLOCK", "userfaultfd", "memory cgroup"] {
        assert_eq!(
            doctor.lines().filter(|l| l.contains(&format!("  {name} "))).count(),
            1,
            "{name}:\n{doctor}"
        );
    }
}
