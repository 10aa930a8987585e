//! Root's run repeated as an ordinary user: permitted actions and refusals.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::harness::{CleanUp, is_root, ok, overspill, program, refused, run, scratch, stderr};

const NOBODY: u32 = 65_534;

/// Opens `/dev/fuse` to all while it lives; one test at a time, or the last to restore its mode restores the wrong one.
struct OpenDevice {
    mode: u32,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl OpenDevice {
    fn new() -> std::io::Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = fs::metadata("/dev/fuse")?.mode() & 0o7777;
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(mode | 0o666))?;
        Ok(OpenDevice { mode, _turn: turn })
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(self.mode));
    }
}

/// Copies of the programs, and a home directory, in a place that user nobody can reach.
fn for_nobody() -> tempfile::TempDir {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(base.path().join("home")).unwrap();
    std::os::unix::fs::chown(base.path().join("home"), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::copy(program(), base.path().join("overspill")).unwrap();
    fs::copy(std::env::current_exe().unwrap(), base.path().join("e2e")).unwrap();
    base
}

/// Removes, on drop, mounts that nobody's run leaves below a directory when it has to be killed.
struct Below<'a>(&'a Path);

impl Drop for Below<'_> {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        points.filter(|point| point.starts_with(self.0)).for_each(|point| drop(CleanUp(point.to_owned())));
    }
}

fn as_nobody(base: &Path, program: &str) -> Command {
    let mut command = Command::new(base.join(program));
    let home = base.join("home");
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &home);
    command.env("OVERSPILL_E2E_DIR", &home).env("OVERSPILL_BIN", base.join("overspill"));
    command.current_dir(&home).uid(NOBODY).gid(NOBODY);
    command
}

/// Runs, as `nobody`, every test of this program that an ordinary user can run.
#[test]
fn root_repeats_it_as_nobody() {
    if !is_root("it is an ordinary user's run already") {
        return;
    }
    let Ok(_device) = OpenDevice::new() else {
        eprintln!("skipped: /dev/fuse cannot be opened to users");
        return;
    };
    let base = for_nobody();
    let _below = Below(base.path());
    let mut command = as_nobody(base.path(), "e2e");
    // Root's run of these covers the same at greater length.
    command.args(["--test-threads=2", "--skip=root_", "--skip=sixteen", "--skip=two_fillers"]);
    command.args([
        "--skip=fsx_",
        "--skip=git_",
        "--skip=write_ahead",
        "--skip=faults::",
        "--skip=a_failed_start",
    ]);
    let output = run(&mut command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "as nobody:\n{said}\n{}", stderr(&output));
    assert!(said.contains("test result: ok") && !said.contains("; 0 passed"), "{said}");
}

/// FUSE keeps root out of a user's mount; our commands get in where they must.
#[test]
fn root_handles_a_users_mount() {
    if !is_root("two users") {
        return;
    }
    let Ok(_device) = OpenDevice::new() else {
        eprintln!("skipped: /dev/fuse cannot be opened to users");
        return;
    };
    let base = for_nobody();
    let dir = base.path().join("home/mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    let mounted = run(as_nobody(base.path(), "overspill").args(["mount", "--memory=4M"]).arg(&dir));
    let outside = fs::read_dir(&dir).map(|_| ());
    let stats = overspill(["stats".as_ref(), "--json".as_ref(), dir.as_os_str()]);
    let unmounted = overspill(["umount".as_ref(), dir.as_os_str()]);
    ok(&mounted);
    assert!(outside.is_err(), "root looked into a user's mount");
    assert!(ok(&stats).contains("\"budget_bytes\":4194304"), "{stats:?}");
    ok(&unmounted);
    assert_eq!(crate::harness::daemon_of(&dir), None, "umount came back before the daemon was gone");
    assert!(base.path().join("home/.local/state/overspill.log").exists());
}

/// A user's directory may hold links to sockets of others: root talks to that user's processes only.
#[test]
fn root_is_not_led_to_anothers_socket() {
    if !is_root("two users") {
        return;
    }
    let Ok(_device) = OpenDevice::new() else {
        eprintln!("skipped: /dev/fuse cannot be opened to users");
        return;
    };
    let base = for_nobody();
    let dir = base.path().join("home/mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    ok(&run(as_nobody(base.path(), "overspill").args(["mount", "--memory=4M"]).arg(&dir)));
    let device = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let device = device.lines().find(|line| line.contains(dir.to_str().unwrap())).unwrap();
    let device = device.split(' ').nth(2).unwrap().to_owned();
    let sockets = Path::new("/tmp/overspill-65534");
    assert_eq!(fs::metadata(sockets).unwrap().mode() & 0o7777, 0o700);
    let pid = crate::harness::daemon_of(&dir).unwrap();
    let link = sockets.join(format!("{pid}.face-{device}"));
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let trap = base.path().join("trap.sock");
    let listener = std::os::unix::net::UnixListener::bind(&trap).unwrap();
    listener.set_nonblocking(true).unwrap();
    let swap = format!("ln -sf {} {}", trap.display(), link.display());
    let mut shell = Command::new("sh");
    ok(&run(shell.args(["-c", &swap]).uid(NOBODY).gid(NOBODY)));
    fs::set_permissions(&trap, fs::Permissions::from_mode(0o666)).unwrap();
    let stats = overspill(["stats".as_ref(), dir.as_os_str()]);
    ok(&overspill(["umount".as_ref(), dir.as_os_str()]));
    refused(&stats, 1, &["does not belong"]);
    if let Ok((mut stream, _)) = listener.accept() {
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut said).unwrap();
        assert_eq!(said, b"", "root spoke to it");
    }
}

#[test]
fn root_keeps_users_off_its_mount() {
    if !is_root("two users") {
        return;
    }
    let base = for_nobody();
    let dir = base.path().join("mnt");
    let _clean_up = CleanUp(dir.clone());
    fs::create_dir(&dir).unwrap();
    ok(&overspill(["mount".as_ref(), "--memory=4M".as_ref(), "--log=/dev/null".as_ref(), dir.as_os_str()]));
    let theirs = |command| run(as_nobody(base.path(), "overspill").arg(command).arg(&dir));
    let (umount, stats) = (theirs("umount"), theirs("stats"));
    let list = run(as_nobody(base.path(), "overspill").arg("stats"));
    ok(&overspill(["umount".as_ref(), dir.as_os_str()]));
    refused(&umount, 4, &["belongs to"]);
    refused(&stats, 4, &["belongs to"]);
    assert!(String::from_utf8_lossy(&list.stdout).contains("belongs to the user 0"), "{list:?}");
}

#[test]
fn a_user_is_refused_what_only_root_may() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let base = scratch();
    let mount = |args: &[&str], dir: &Path| {
        let args = ["mount", "--memory=4M"].iter().chain(args).map(std::ffi::OsStr::new);
        overspill(args.chain([dir.as_os_str()]))
    };
    refused(&mount(&["-o", "suid"], base.path()), 4, &["suid", "root"]);
    refused(&mount(&["-o", "dev"], base.path()), 4, &["dev", "root"]);
    refused(&mount(&[], Path::new("/usr")), 4, &["/usr", "write"]);
    if !fs::read_to_string("/etc/fuse.conf")
        .unwrap_or_default()
        .lines()
        .any(|l| l.trim() == "user_allow_other")
    {
        refused(
            &mount(&["--allow-other", "--log=/dev/null"], base.path()),
            4,
            &["allow_other", "/etc/fuse.conf"],
        );
    }
}

#[test]
fn root_sees_users_told_of_a_missing_fusermount3() {
    if !is_root("a /usr/bin without fusermount3") {
        return;
    }
    let Ok(_device) = OpenDevice::new() else {
        eprintln!("skipped: /dev/fuse cannot be opened to users");
        return;
    };
    let base = for_nobody();
    let dir = base.path().join("home/mnt");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    let _clean_up = CleanUp(dir.clone());
    // fusermount3 is whited out in a mount namespace of its own, in every directory that has it.
    let hidden = |args: &str| {
        let line = format!(
            r#"for d in /usr/bin /usr/sbin /usr/local/bin /bin /sbin; do
                 w="$1/without$d"
                 for n in fusermount3 fusermount; do
                   if [ -e $d/$n ]; then mkdir -p "$w" && mknod "$w/$n" c 0 0 || exit 99; fi
                 done
                 if [ -d "$w" ]; then mount -t overlay -o "lowerdir=$w:$d" none $d || exit 99; fi
               done
               exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$1/overspill" {args}"#
        );
        let mut command = Command::new("unshare");
        // PATH without root's own directories: in one that cannot be searched, "permission denied" replaces "not
        // found".
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").args(["-m", "sh", "-c", &line, "sh"]);
        let output = run(command.args([base.path(), &dir]));
        fs::remove_dir_all(base.path().join("without")).unwrap();
        output
    };
    let output = hidden(r#"mount --memory=4M --log=/dev/null "$2""#);
    if output.status.code() == Some(99) {
        eprintln!("skipped: fusermount3 cannot be hidden here: {}", stderr(&output));
        return;
    }
    refused(&output, 5, &["fusermount3", "fuse3"]);
    let doctor = hidden("doctor");
    assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
    assert!(stderr(&doctor).contains("fusermount3 is missing"), "{doctor:?}");
}
