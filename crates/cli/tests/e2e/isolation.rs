//! Isolation: a mount keeps nothing of its caller; other users can see, forge or use up nothing that is not theirs.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::harness::{
    CleanUp, Guard, Mount, daemon_of, eventually, is_root, is_running, kill, mountinfo, ok, overspill,
    program, run, scratch, sh, stderr,
};

const NOBODY: u32 = 65_534;

/// A lock or pipe that the caller held is not held by the daemon for the life of the mount.
#[test]
fn a_daemon_keeps_no_descriptor_of_its_callers() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let lock = base.path().join("lock");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let line = r#"exec 9>"$1"; flock 9 || exit 9; exec "$2" mount --memory 4M --log /dev/null "$3" 8>&9"#;
    ok(&sh(line, [lock.as_os_str(), program().as_os_str(), dir.as_os_str()]));
    ok(&sh(r#"exec 9>"$1"; flock -n 9"#, [&lock]));
    let pid = daemon_of(&dir).unwrap();
    let kept: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|to| to.starts_with(base.path()))
        .collect();
    assert!(kept.is_empty(), "{kept:?}");
    ok(&overspill(["umount".as_ref(), dir.as_os_str()]));
}

/// `trusted.` attributes are root's: others do not even see their names.
#[test]
fn root_alone_sees_the_names_of_trusted_attributes() {
    if !is_root("two users") {
        return;
    }
    let mount = Mount::new(&["--memory", "4M"]);
    let file = mount.path("f");
    fs::write(&file, "x").unwrap();
    for name in ["user.seen", "trusted.hidden"] {
        rustix::fs::setxattr(&file, name, b"v", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let list = |uid: u32| {
        let program = "import os, sys; print(sorted(os.listxattr(sys.argv[1])))";
        let mut python = Command::new("/usr/bin/python3");
        ok(&run(python.args(["-c", program]).arg(&file).current_dir("/").uid(uid).gid(uid)))
    };
    fs::set_permissions(mount.beside(""), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(list(0).trim(), "['trusted.hidden', 'user.seen']");
    assert_eq!(list(NOBODY).trim(), "['user.seen']");
}

/// A mountpoint's name with a newline and an escape sequence makes no line of its own in the log.
#[test]
fn names_forge_no_line_of_the_log() {
    let base = scratch();
    let dir = base.path().join("a\n2026-01-01T00:00:00Z  INFO forged\x1b[2J");
    let log = base.path().join("log");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let args = ["mount".as_ref(), "--memory=4M".as_ref(), "--log".as_ref(), log.as_os_str(), dir.as_os_str()];
    ok(&overspill(args));
    ok(&overspill(["umount".as_ref(), dir.as_os_str()]));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("INFO forged"), "{text}");
    assert!(text.lines().all(|line| line.contains(" overspill")), "a line that nobody logged:\n{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

/// A symbolic link or a pipe is refused as log: the link would redirect writes, and opening a pipe waits for a reader.
#[test]
fn a_log_elsewhere_is_refused() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::symlink(base.path().join("target"), base.path().join("link")).unwrap();
    ok(&run(Command::new("mkfifo").arg(base.path().join("fifo"))));
    for (name, why) in [("link", "symbolic link"), ("fifo", "pipe")] {
        let log = base.path().join(name);
        let args =
            ["mount".as_ref(), "--memory=4M".as_ref(), "--log".as_ref(), log.as_os_str(), dir.as_os_str()];
        let refusal = overspill(args);
        assert!(!refusal.status.success() && stderr(&refusal).contains(why), "{refusal:?}");
        assert_eq!(mountinfo(&dir), [""; 0]);
    }
    assert!(!base.path().join("target").exists());
}

/// A full log, a failing store and many messages: the mount serves, ends on SIGTERM, and counts the lines lost.
#[test]
fn root_sees_a_full_log_stop_nothing() {
    if !is_root("a small disk") {
        return;
    }
    let base = scratch();
    let (dir, disk) = (base.path().join("mnt"), base.path().join("disk"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&disk).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &disk, "tmpfs", flags, Some(c"size=16k")).unwrap();
    let _disk = CleanUp(disk.clone());
    let _clean_up = CleanUp(dir.clone());
    let log = disk.join("log");
    fs::write(disk.join("ballast"), [1; 16 << 10]).unwrap();
    let mut mount = Command::new(program());
    mount.env("OVERSPILL_LOG", "trace").args([
        "mount",
        "--memory=4M",
        "--size=32M",
        "-o",
        "debug=fail-writes",
    ]);
    ok(&run(mount.arg("--store").arg(base.path()).arg("--log").arg(&log).arg(&dir)));
    for n in 0..200 {
        fs::write(dir.join(n.to_string()), vec![7; 8192]).unwrap();
    }
    assert_eq!(fs::read(dir.join("199")).unwrap(), [7; 8192]);
    let stats = ok(&overspill(["stats".as_ref(), "--json".as_ref(), dir.as_os_str()]));
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert!(stats["log_lines_lost"].as_u64().unwrap() > 100, "{stats}");
    let pid = daemon_of(&dir).unwrap();
    kill(pid, Signal::TERM);
    eventually("it ends when told to", || !is_running(pid));
    assert_eq!(mountinfo(&dir), [""; 0]);
}

/// Neither a limit on the size of files nor a closed stderr ends a daemon.
#[test]
fn a_log_that_cannot_grow_and_a_reader_that_has_gone_kill_nothing() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let log = base.path().join("log");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let line = r#"ulimit -f 8; exec "$1" mount --memory 4M --size 4M --store none --log "$2" "$3""#;
    let mut limited = Command::new("sh");
    limited.env("OVERSPILL_LOG", "trace").args(["-c", line, "sh"]);
    ok(&run(limited.args([program().as_os_str(), log.as_os_str(), dir.as_os_str()])));
    for n in 0..200 {
        fs::write(dir.join(n.to_string()), "x").unwrap();
    }
    assert!(fs::metadata(&log).unwrap().size() <= 8192);
    assert_eq!(fs::read(dir.join("199")).unwrap(), b"x");
    ok(&overspill(["umount".as_ref(), dir.as_os_str()]));

    let mut foreground = Command::new(program());
    foreground.env("OVERSPILL_LOG", "trace").args(["mount", "-f", "--memory=4M"]).arg(&dir);
    let mut child = Guard(foreground.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    eventually("mounted", || !mountinfo(&dir).is_empty());
    drop(child.0.stderr.take());
    for n in 0..200 {
        fs::write(dir.join(n.to_string()), "x").unwrap();
    }
    kill(child.0.id(), Signal::TERM);
    eventually("it ends when told to", || child.0.try_wait().unwrap().is_some());
}

/// A start that fails for lack of memory, at any point, leaves no mount behind.
#[test]
fn a_failed_start_leaves_no_mount() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let mut failed = 0;
    for (flag, mebibytes) in [("v", (10..700).step_by(15)), ("d", (4..64).step_by(3))]
        .into_iter()
        .flat_map(|(flag, sizes)| sizes.map(move |size| (flag, size)))
    {
        let line = format!(
            r#"ulimit -{flag} {}; exec "$1" mount --memory 16M --log /dev/null "$2""#,
            mebibytes << 10
        );
        let output = sh(&line, [program().as_os_str(), dir.as_os_str()]);
        // The start may succeed and the transport's threads then find no memory: that ends the mount too.
        if output.status.success() && overspill(["umount".as_ref(), dir.as_os_str()]).status.success() {
            continue;
        }
        failed += 1;
        assert_eq!(mountinfo(&dir), [""; 0], "ulimit -{flag} {mebibytes} MiB: {}", stderr(&output));
    }
    assert!(failed >= 5, "only {failed} starts failed");
}

/// Too many open files are reported as such, not as a matter of permission.
#[test]
fn too_many_open_files_are_called_so() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let mut named = 0;
    for files in 4..40 {
        let line = format!(r#"ulimit -n {files}; exec "$1" mount --memory 4M --log /dev/null "$2""#);
        let output = sh(&line, [program().as_os_str(), dir.as_os_str()]);
        let said = stderr(&output);
        if output.status.success() {
            ok(&overspill(["umount".as_ref(), dir.as_os_str()]));
        }
        assert!(!said.contains("chmod 666"), "{files} files: {said}");
        named += u32::from(said.contains("ulimit -n"));
    }
    assert!(named > 0, "no number of files is too few for the device");
}

/// A write or fallocate by another user clears set-id bits, and the kernel notices: the file runs without them.
#[test]
fn root_sees_set_id_bits_end_with_a_strangers_write() {
    if !is_root("set-id programs") {
        return;
    }
    let mount = Mount::new(&["--memory", "16M"]);
    fs::set_permissions(mount.beside(""), fs::Permissions::from_mode(0o755)).unwrap();
    let program = mount.path("id");
    let as_nobody = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", line, "sh"]).arg(&program).current_dir("/").uid(NOBODY).gid(NOBODY);
        run(&mut command)
    };
    for change in [
        r#"printf x >> "$1""#,
        r#"printf x | dd of="$1" conv=notrunc oflag=direct,append bs=1 status=none || printf x >> "$1""#,
        r#"fallocate -l 10000000 "$1""#,
        r#"fallocate -n -l 10000000 "$1""#,
        r#"fallocate -p -o 0 -l 1 "$1""#,
        r#"truncate -s +1 "$1""#,
    ] {
        fs::copy("/usr/bin/id", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4777)).unwrap();
        assert!(ok(&as_nobody(r#""$1""#)).contains("euid=0"), "set-id programs do not work here");
        ok(&as_nobody(change));
        let said = as_nobody(r#""$1""#);
        let said = String::from_utf8_lossy(&said.stdout);
        assert!(!said.contains("euid=0"), "{change}: still {said}");
        fs::remove_file(&program).unwrap();
    }
}

/// The daemon does not hold its caller's pipe: a reader of that pipe gets to the end.
#[test]
fn a_pipe_of_the_callers_ends() {
    let base = scratch();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    let line = r#""$1" mount --memory 4M --log /dev/null "$2" 7>&1 >/dev/null 2>/dev/null"#;
    let mut shell = Command::new("sh");
    shell.args(["-c", line, "sh"]).args([program().as_os_str(), dir.as_os_str()]);
    let mut child = Guard(shell.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut pipe = child.0.stdout.take().unwrap();
    let (ended, has_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(pipe.read_to_end(&mut Vec::new())));
    let end = has_ended.recv_timeout(std::time::Duration::from_secs(30));
    ok(&overspill(["umount".as_ref(), dir.as_os_str()]));
    assert!(end.is_ok(), "the pipe is held for as long as the mount lives");
}
