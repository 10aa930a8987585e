//! `overspill mount`: three ways through one command.
//!
//! ```text
//! overspill mount DIR ──► starts itself with --daemon-child, waits for one line on a pipe, relays it, ends
//!                └─► overspill mount --daemon-child DIR: own session, "/" as directory, serves; stderr is the log
//! overspill mount -f DIR: serves here
//! ```
//! Forking would be unsafe; a second process image is not, and holds nothing of the caller's but the log. On its stdout
//! the child writes `ready NOTES` or `error SENTENCE`; its exit code says the rest.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use overspill::mount::MountOptions;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::level_filters::LevelFilter;

use crate::error::Error;
use crate::exit::Exit;
use crate::machine::Memory;
use crate::options::MountArgs;
use crate::plan::{self, Caller};
use crate::umount;

/// Runs the command in whichever of its three ways was asked for.
pub(crate) fn run(args: &MountArgs) -> Result<(), Error> {
    if args.daemon_child {
        return be_daemon(args);
    }
    let caller = Caller::current();
    let options = plan::options(&args.requested()?, &args.mountpoint, Memory::of_machine(), caller)?;
    if args.foreground {
        let mountpoint = options.mountpoint.display().to_string();
        log_to_stderr();
        return serve(options, move |notes| note(&format!("mounted on {mountpoint}"), notes));
    }
    start_daemon(args, caller)
}

/// The parent: everything was checked once already; now it happens in a process of its own.
fn start_daemon(args: &MountArgs, caller: Caller) -> Result<(), Error> {
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
    match line.strip_prefix("error ") {
        Some(sentence) => {
            let code = status.code().and_then(|c| u8::try_from(c).ok()).filter(|c| *c != 0);
            Err(Error::Daemon { sentence: sentence.to_owned(), code: code.unwrap_or(Exit::Failure.code()) })
        }
        None => Err(Error::DaemonDied { status, log: log_name }),
    }
}

/// The child. Whatever fails is told to the parent in one line; main ends the process with its code.
fn be_daemon(args: &MountArgs) -> Result<(), Error> {
    log_to_stderr();
    let result = rustix::process::setsid()
        .map_err(|e| Error::Io("setsid", e.into()))
        .and_then(|_| {
            plan::options(&args.requested()?, &args.mountpoint, Memory::of_machine(), Caller::current())
        })
        .and_then(|options| {
            std::env::set_current_dir("/").map_err(|e| Error::Io("cannot go to /", e))?;
            serve(options, |notes| tell_parent("ready", notes))
        });
    if let Err(error) = &result {
        tell_parent("error", &error.to_string());
    }
    result
}

/// Says one line, then closes the pipe: who waits for our stdout must not wait for the mount's whole life.
fn tell_parent(word: &str, text: &str) {
    let mut out = std::io::stdout();
    // The parent may be gone; the mount lives on regardless.
    let _ = writeln!(out, "{word} {}", text.replace('\n', " ")).and_then(|()| out.flush());
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

/// Serves until unmounted, by umount(8) or by a signal.
fn serve(options: MountOptions, ready: impl FnOnce(&str) + Send) -> Result<(), Error> {
    unmount_on_signals(options.mountpoint.clone())?;
    tracing::info!(mountpoint = %options.mountpoint.display(), memory = options.memory, size = options.size, "mounting");
    overspill::mount::serve(options, ready)?;
    tracing::info!("unmounted");
    Ok(())
}

/// A first signal detaches the mount, which ends the daemon when its last user is gone; where nothing is mounted yet, or
/// at a second signal, the process ends at once. Nothing of the store survives either.
fn unmount_on_signals(mountpoint: PathBuf) -> Result<(), Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|e| Error::Io("signals", e))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut first = true;
            for signal in signals.forever() {
                tracing::info!(signal, "unmounting");
                if !first || umount::detach(&mountpoint).is_err() {
                    std::process::exit(128 + signal);
                }
                first = false;
            }
        })
        .map_err(|e| Error::Io("a thread", e))?;
    Ok(())
}

/// The log file and its name. Only one that was asked for by name must be writable.
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

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn log_to_stderr() {
    let level = std::env::var("OVERSPILL_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::INFO);
    // A second subscriber cannot be set; there is none before main's one command.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(level)
        .try_init();
}

fn note(what: &str, text: &str) {
    let mut err = std::io::stderr();
    let _ = match text {
        "" => writeln!(err, "overspill: {what}"),
        text => writeln!(err, "overspill: {what}: {text}"),
    };
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
}
