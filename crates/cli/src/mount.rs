//! `overspill mount`: one command that runs in three ways.
//!
//! ```text
//! overspill mount DIR ──► starts itself with --daemon-child, waits for one line on a pipe, relays it, ends
//!                └─► overspill mount --daemon-child DIR: own session, "/" as directory, serves; stderr is the log
//! overspill mount -f DIR: serves here
//! ```
//! A fork would be unsafe; a second process image is not, and inherits only the log from the caller. On its stdout the
//! child writes `ready NOTES` or `error SENTENCE`; then its exit code gives the kind of error. If it dies before that,
//! the parent clears a mount that it may have left.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use overspill::engine::Engine;
use overspill::log::Log;
use rustix::fs::OFlags;
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::level_filters::LevelFilter;

use crate::caller::Caller;
use crate::error::Error;
use crate::exit::Exit;
use crate::machine::Memory;
use crate::options::MountSettings;
use crate::plan::Plan;
use crate::say::say;
use crate::umount;

/// The longest time to wait for the last lines of the log.
const FLUSH: Duration = Duration::from_secs(1);

/// `overspill mount`
#[derive(Debug, clap::Args)]
pub(crate) struct MountArgs {
    /// The directory to mount on.
    mountpoint: PathBuf,

    #[command(flatten)]
    settings: MountSettings,

    /// Stay in the foreground; log to stderr.
    #[arg(short, long)]
    foreground: bool,

    /// Where the daemon logs [default: /var/log/overspill.log for root, else overspill.log in $XDG_STATE_HOME or
    /// ~/.local/state]
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    log: Option<PathBuf>,

    /// This process is the daemon: say on stdout when the mount is ready, then be silent.
    #[arg(long, hide = true)]
    daemon_child: bool,
}

/// Runs the command in the way that its arguments select.
pub(crate) fn run(args: &MountArgs) -> Result<(), Error> {
    if args.daemon_child {
        return be_daemon(args);
    }
    let caller = Caller::current();
    let plan = args.plan(caller)?;
    if args.foreground {
        let mountpoint = plan.mount.mountpoint.display().to_string();
        let log = log_to_stderr();
        let result = serve(plan, move |notes| note(&format!("mounted on {mountpoint}"), notes));
        log.flush(FLUSH);
        return result;
    }
    start_daemon(args, &plan.mount.mountpoint, caller)
}

impl MountArgs {
    fn plan(&self, caller: Caller) -> Result<Plan, Error> {
        Plan::of(&self.settings.requested(caller)?, &self.mountpoint, Memory::of_machine(), caller)
    }
}

/// The parent: it has checked all arguments, and now starts the process that serves.
fn start_daemon(args: &MountArgs, mountpoint: &Path, caller: Caller) -> Result<(), Error> {
    let (log, log_name) = open_log(args.log.as_deref(), caller)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("overspill")
        .args(["mount", "--daemon-child"])
        .args(std::env::args_os().skip(2))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(Error::Spawn)?;
    let mut line = Vec::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_until(b'\n', &mut line).map_err(Error::Spawn)?;
    }
    let line = String::from_utf8_lossy(&line);
    let line = line.trim_end();
    if let Some(notes) = line.strip_prefix("ready") {
        if !notes.trim().is_empty() {
            note("note", notes.trim());
        }
        return Ok(());
    }
    let status = child.wait().map_err(Error::Spawn)?;
    umount::clear_if_dead(mountpoint);
    match line.strip_prefix("error ") {
        Some(sentence) => {
            let code = status.code().and_then(|c| u8::try_from(c).ok()).filter(|c| *c != 0);
            Err(Error::Daemon { sentence: sentence.to_owned(), code: code.unwrap_or(Exit::Failure.code()) })
        }
        None => Err(Error::DaemonDied { status, log: log_name }),
    }
}

/// The child. It reports a failure to the parent in one line; main ends the process with the exit code.
fn be_daemon(args: &MountArgs) -> Result<(), Error> {
    let log = log_to_stderr();
    let result = rustix::process::setsid()
        .map_err(|e| Error::Io("setsid", e.into()))
        .and_then(|_| args.plan(Caller::current()))
        .and_then(|plan| {
            std::env::set_current_dir("/").map_err(|e| Error::Io("cannot go to /", e))?;
            serve(plan, |notes| tell_parent("ready", notes))
        });
    if let Err(error) = &result {
        tell_parent("error", &error.to_string());
    }
    log.flush(FLUSH);
    result
}

/// Writes one line, then closes the pipe: a reader of our stdout must not wait until the mount ends.
fn tell_parent(word: &str, text: &str) {
    let mut out = std::io::stdout();
    // If the parent is gone, the mount lives on.
    let _ = writeln!(out, "{word} {}", text.replace('\n', " ")).and_then(|()| out.flush());
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

/// Serves until umount(8) or a signal ends the mount.
fn serve(plan: Plan, ready: impl FnOnce(&str)) -> Result<(), Error> {
    let Plan { engine, mount } = plan;
    overspill::process::die_on_panic();
    overspill::process::survive_file_size_limit();
    let device = Arc::new(OnceLock::new());
    unmount_on_signals(mount.mountpoint.clone(), device.clone())?;
    tracing::info!(mountpoint = %mount.mountpoint.display(), memory = engine.memory, size = mount.size, "mounting");
    let engine = Engine::start(engine)?;
    let mount = engine.mount(&mount)?;
    let _ = device.set(mount.device());
    let notes: Vec<&str> = engine.notes().iter().chain(mount.notes()).map(String::as_str).collect();
    ready(&notes.join("; "));
    mount.wait()?;
    tracing::info!("unmounted");
    Ok(())
}

/// The first signal detaches the mount: the daemon ends when the last user is gone. If that fails (nothing is mounted
/// yet), or at a second signal, the process ends at once. The store keeps nothing in either case.
///
/// `device` is set when there is a mount: another one may come to lie on the same directory.
fn unmount_on_signals(mountpoint: PathBuf, device: Arc<OnceLock<String>>) -> Result<(), Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|e| Error::Io("signals", e))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut first = true;
            for signal in signals.forever() {
                tracing::info!(signal, "unmounting");
                let detached = device.get().is_some_and(|device| umount::detach(&mountpoint, device).is_ok());
                if !first || !detached {
                    std::process::exit(128 + signal);
                }
                first = false;
            }
        })
        .map_err(|e| Error::Io("a thread", e))?;
    Ok(())
}

/// The log file and its name. A log that the user named must open; without the default one, no log is kept.
fn open_log(asked: Option<&Path>, caller: Caller) -> Result<(Stdio, String), Error> {
    if let Some(path) = asked {
        let file = append(path).map_err(|e| Error::Log(path.to_owned(), e))?;
        return Ok((file.into(), path.display().to_string()));
    }
    let path = default_log(caller, |name| std::env::var_os(name).map(PathBuf::from));
    let opened = path.as_ref().map(|path| {
        let made =
            if caller.is_root() { Ok(()) } else { path.parent().map_or(Ok(()), std::fs::create_dir_all) };
        made.and_then(|()| append(path))
    });
    match (path, opened) {
        (Some(path), Some(Ok(file))) => Ok((file.into(), path.display().to_string())),
        (Some(path), Some(Err(error))) => {
            note("note", &format!("no log is kept: {}: {error}; --log names another", path.display()));
            Ok((Stdio::null(), "none".into()))
        }
        _ => {
            note("note", "no log is kept: neither XDG_STATE_HOME nor HOME is set; --log names one");
            Ok((Stdio::null(), "none".into()))
        }
    }
}

fn default_log(caller: Caller, env: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if caller.is_root() {
        return Some("/var/log/overspill.log".into());
    }
    let absolute = |name| env(name).filter(|p| p.is_absolute());
    let state =
        absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("overspill.log"))
}

/// Opens a log for appending: a file of our own, which nobody else may write, or a device such as /dev/null. It refuses
/// symbolic links, other users' files and pipes: they could divert our lines, forge them, or block us.
fn append(path: &Path) -> std::io::Result<File> {
    let refused = |why: &str| Err(std::io::Error::other(why.to_owned()));
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = match OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return refused("it is a symbolic link");
        }
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
            return refused("it is a pipe or socket");
        }
        opened => opened?,
    };
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_char_device() {
        return Ok(file);
    }
    if !kind.is_file() {
        return refused("it is no regular file");
    }
    if metadata.uid() != Caller::current().uid {
        return refused("it belongs to another user");
    }
    if metadata.nlink() > 1 {
        return refused("it has a second name");
    }
    if metadata.mode() & 0o022 != 0 {
        file.set_permissions(Permissions::from_mode(metadata.mode() & 0o7755))?;
    }
    Ok(file)
}

/// Logs to stderr, through a thread (see [`overspill::log`]).
fn log_to_stderr() -> Log {
    let level = std::env::var("OVERSPILL_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::INFO);
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let log = match stderr.or_else(|_| File::options().write(true).open("/dev/null")).and_then(Log::to) {
        Ok(log) => log,
        Err(error) => {
            note("note", &format!("no log is kept: {error}"));
            Log::nowhere()
        }
    };
    let lines = log.clone();
    // Setting a second subscriber fails, but main runs one command and so sets only one.
    let _ = tracing_subscriber::fmt()
        .with_writer(move || lines.clone())
        .log_internal_errors(false)
        .with_ansi(false)
        .with_max_level(level)
        .try_init();
    log
}

fn note(what: &str, text: &str) {
    say(&if text.is_empty() { what.to_owned() } else { format!("{what}: {text}") });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_where_the_documentation_says() {
        let root = Caller { uid: 0, gid: 0 };
        let user = Caller { uid: 1000, gid: 1000 };
        let env = |vars: &'static [(&str, &str)]| {
            move |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
        };
        assert_eq!(default_log(root, env(&[])), Some("/var/log/overspill.log".into()));
        assert_eq!(
            default_log(user, env(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "/s")])),
            Some("/s/overspill.log".into())
        );
        assert_eq!(
            default_log(user, env(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "relative")])),
            Some("/home/u/.local/state/overspill.log".into())
        );
        assert_eq!(default_log(user, env(&[])), None);
    }

    #[test]
    fn a_named_log_must_be_writable() {
        let dir = tempfile::tempdir().unwrap();
        let caller = Caller::current();
        assert!(open_log(Some(&dir.path().join("log")), caller).is_ok());
        assert!(matches!(open_log(Some(&dir.path().join("no/log")), caller), Err(Error::Log(..))));
    }

    /// Nobody else may choose where a log goes, or make us wait for it.
    #[test]
    fn a_log_is_a_file_of_our_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("target", at("link")).unwrap();
        assert!(append(&at("link")).unwrap_err().to_string().contains("symbolic link"));
        assert!(!at("target").exists());
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert!(append(&at("fifo")).unwrap_err().to_string().contains("pipe"));
        std::fs::write(at("one"), "").unwrap();
        std::fs::hard_link(at("one"), at("two")).unwrap();
        assert!(append(&at("one")).unwrap_err().to_string().contains("second name"));
        std::fs::write(at("open"), "before\n").unwrap();
        std::fs::set_permissions(at("open"), Permissions::from_mode(0o666)).unwrap();
        append(&at("open")).unwrap().write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read_to_string(at("open")).unwrap(), "before\nafter\n");
        assert_eq!(std::fs::metadata(at("open")).unwrap().mode() & 0o777, 0o644);
        assert!(append(Path::new("/dev/null")).is_ok());
        if Caller::current().is_root() {
            rustix::fs::chown(at("open"), Some(rustix::fs::Uid::from_raw(65_534)), None).unwrap();
            assert!(append(&at("open")).unwrap_err().to_string().contains("another user"));
        }
    }
}
