//! Mounts that clean up after themselves, and commands that cannot hang a test for ever.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Time after which a command is taken to hang, and the test fails.
const PATIENCE: Duration = Duration::from_secs(300);

/// The program under test. A run as another user uses a copy that this user can reach.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("OVERSPILL_BIN").map_or_else(|| env!("CARGO_BIN_EXE_overspill").into(), PathBuf::from)
}

/// An empty directory that is removed with its guard.
pub(crate) fn scratch() -> tempfile::TempDir {
    let base = std::env::var_os("OVERSPILL_E2E_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::Builder::new().prefix("e2e-").tempdir_in(base).unwrap()
}

/// Runs `overspill ARGS`.
pub(crate) fn overspill<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(program());
    command.args(args);
    run(&mut command)
}

/// Runs a command to its end. Both its pipes must close too, which detects a daemon that keeps one open.
pub(crate) fn run(command: &mut Command) -> Output {
    let what = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|e| panic!("{what}: {e}"));
    let pid = child.id();
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match finished.recv_timeout(PATIENCE) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            kill(pid, rustix::process::Signal::KILL);
            panic!("{what} did not end");
        }
    }
}

/// Runs a shell line; `$1`, `$2` … are `args`.
pub(crate) fn sh<S: AsRef<OsStr>>(line: &str, args: impl IntoIterator<Item = S>) -> Output {
    run(Command::new("sh").args(["-c", line, "sh"]).args(args))
}

/// Asserts success, and returns stdout.
#[track_caller]
pub(crate) fn ok(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        stderr(output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts a refusal: this exit code, and one sentence with all these parts.
#[track_caller]
pub(crate) fn refused(output: &Output, code: i32, parts: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("overspill: "), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

/// Returns true if this runs as root; otherwise prints which test is left out.
pub(crate) fn is_root(without: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped, needs root: {without}");
    }
    root
}

/// Waits for a condition that must come true soon.
#[track_caller]
pub(crate) fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Signals one process, by its number.
pub(crate) fn kill(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Returns true if any thread of the process runs. A zombie does not, and has closed its files.
pub(crate) fn is_running(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    });
    states.any(|state| !matches!(state, 'Z' | 'X'))
}

/// The mountinfo lines of `path` as a mountpoint.
pub(crate) fn mountinfo(path: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut name = path.to_str().unwrap().replace('\\', "\\134");
    for (plain, escaped) in [(' ', "\\040"), ('\t', "\\011"), ('\n', "\\012")] {
        name = name.replace(plain, escaped);
    }
    let at = |line: &&str| line.split(' ').nth(4) == Some(&name);
    table.lines().filter(at).map(str::to_owned).collect()
}

/// The daemon that serves `mountpoint`, found in /proc and not by a request to it.
pub(crate) fn daemon_of(mountpoint: &Path) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut args = line.split(|b| *b == 0).filter(|a| !a.is_empty());
        args.any(|a| a == b"--daemon-child")
            && args.next_back().is_some_and(|a| a == mountpoint.as_os_str().as_encoded_bytes())
            && is_running(*pid)
    })
}

/// One mount with its store; removed when dropped.
pub(crate) struct Mount {
    /// The mountpoint.
    pub(crate) dir: PathBuf,
    /// The directory of its store.
    pub(crate) store: PathBuf,
    /// Its daemon.
    pub(crate) pid: u32,
    /// Declared before `base`, hence dropped before it: a directory is removed after it is unmounted.
    _clean_up: CleanUp,
    base: tempfile::TempDir,
}

impl Mount {
    /// `overspill mount ARGS`, with a store and a log of its own.
    #[track_caller]
    pub(crate) fn new(args: &[&str]) -> Mount {
        let base = scratch();
        let dir = base.path().join("mnt");
        let store = base.path().join("store");
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir(&store).unwrap();
        let mut all: Vec<&OsStr> = vec!["mount".as_ref(), "--log".as_ref()];
        let log = base.path().join("log");
        all.push(log.as_os_str());
        if !args.iter().any(|a| a.contains("store")) {
            all.extend(["--store".as_ref(), store.as_os_str()]);
        }
        all.extend(args.iter().map(OsStr::new));
        all.push(dir.as_os_str());
        let clean_up = CleanUp(dir.clone());
        let output = overspill(&all);
        let pid = daemon_of(&dir).unwrap_or(0);
        let mount = Mount { dir, store, pid, _clean_up: clean_up, base };
        let log = || std::fs::read_to_string(mount.base.path().join("log")).unwrap_or_default();
        assert!(output.status.success(), "{}\nlog: {}", stderr(&output), log());
        assert_ne!(pid, 0, "no daemon");
        mount
    }

    /// A path on the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A path beside the mount, on the disk.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// `overspill stats --json`
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        let text = ok(&overspill([OsStr::new("stats"), "--json".as_ref(), self.dir.as_ref()]));
        serde_json::from_str(&text).unwrap()
    }

    /// One number of [`Mount::stats`].
    #[track_caller]
    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.stats()[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {}", self.stats()))
    }

    /// Peak of the daemon's resident memory so far, in bytes.
    pub(crate) fn peak_rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// The kernel's limit on dirty data of this mount, in bytes; twice that is accepted beyond the size, as
    /// acknowledged data.
    pub(crate) fn dirty_limit(&self) -> u64 {
        let dev = std::fs::metadata(&self.dir).unwrap().dev();
        let bdi = format!("/sys/class/bdi/{}:{}/max_bytes", rustix::fs::major(dev), rustix::fs::minor(dev));
        std::fs::read_to_string(bdi).unwrap().trim().parse().unwrap()
    }

    /// Bytes that the daemon has written to any disk.
    pub(crate) fn written_to_disk(&self) -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.pid)).unwrap();
        io.lines().find_map(|l| l.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
    }

    /// Makes the kernel forget its cache of this mount, so that reads reach the daemon.
    pub(crate) fn drop_caches(&self) {
        if rustix::process::geteuid().is_root() {
            // This reports data refused before, which the test itself must have noticed.
            let _ = rustix::fs::syncfs(std::fs::File::open(&self.dir).unwrap());
            std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        }
        let mut left = vec![self.dir.clone()];
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    left.push(entry.path());
                } else if kind.is_file()
                    && let Ok(file) = std::fs::File::open(entry.path())
                {
                    let _ = rustix::fs::fdatasync(&file);
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                }
            }
        }
    }

    /// Unmounts with our own command, and checks that nothing is left.
    #[track_caller]
    pub(crate) fn umount(self) {
        ok(&overspill([OsStr::new("umount"), self.dir.as_ref()]));
        self.nothing_left();
    }

    /// Checks that there is no process, no mount, and nothing in the store's directory.
    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        assert_eq!(mountinfo(&self.dir), [""; 0]);
        eventually("the daemon ends", || !is_running(self.pid));
        assert_eq!(names(&self.store), [""; 0]);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.base.path().join("log")).unwrap_or_default();
            eprintln!("log of {}:\n{log}", self.dir.display());
        }
    }
}

/// When dropped, unmounts everything from this directory and kills the daemon that serves it.
pub(crate) struct CleanUp(pub(crate) PathBuf);

impl Drop for CleanUp {
    fn drop(&mut self) {
        // A failed test may have stacked several mounts.
        for _ in 0..16 {
            let mounted = !mountinfo(&self.0).is_empty();
            if mounted && rustix::process::geteuid().is_root() {
                let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
            } else if mounted {
                let _ = Command::new("fusermount3").arg("-uz").arg(&self.0).status();
            }
            // Found by its mountpoint: a remembered pid may belong to another process by now.
            match daemon_of(&self.0) {
                Some(pid) => kill(pid, rustix::process::Signal::KILL),
                None if !mounted => break,
                None => {}
            }
        }
    }
}

/// A child that is killed with its guard.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Incompressible bytes that differ from place to place; `seed` selects the sequence.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Runs a Python program with `args`, for operations that safe Rust lacks (shared writable mappings).
pub(crate) fn python(program: &str, args: &[&Path]) -> Output {
    let python = ["/usr/bin/python3", "/bin/python3"].into_iter().find(|p| Path::new(p).exists());
    run(Command::new(python.unwrap_or("python3")).args(["-c", program]).args(args))
}
