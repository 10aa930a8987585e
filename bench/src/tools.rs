//! Tools of all benches: commands that cannot hang a bench, sizes, and the program under test.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Benches are run by hand: an error is a sentence for their user.
pub(crate) type Outcome<T> = Result<T, String>;

/// 1 KiB.
pub(crate) const KIB: u64 = 1 << 10;
/// 1 MiB.
pub(crate) const MIB: u64 = 1 << 20;
/// 1 GiB.
pub(crate) const GIB: u64 = 1 << 30;

/// Names the step that failed.
pub(crate) trait During<T> {
    /// Turns the error into "`what`: error".
    fn during(self, what: impl std::fmt::Display) -> Outcome<T>;
}

impl<T, E: std::fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl std::fmt::Display) -> Outcome<T> {
        self.map_err(|e| format!("{what}: {e}"))
    }
}

/// A size on the command line: bytes, or with k, m, g, t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no size: give bytes, or a number with k, m, g or t");
        let (digits, shift) = match text.char_indices().last() {
            Some((at, 'k' | 'K')) => (&text[..at], 10),
            Some((at, 'm' | 'M')) => (&text[..at], 20),
            Some((at, 'g' | 'G')) => (&text[..at], 30),
            Some((at, 't' | 'T')) => (&text[..at], 40),
            _ => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => write!(f, "0"),
            n if n % GIB == 0 => write!(f, "{} GiB", n / GIB),
            n if n % MIB == 0 => write!(f, "{} MiB", n / MIB),
            n if n % KIB == 0 => write!(f, "{} KiB", n / KIB),
            n => write!(f, "{n} bytes"),
        }
    }
}

/// True if this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits for a child, and kills it after `patience`; calls `meanwhile` every few milliseconds. Returns `None` if it
/// killed the child. It gives up 10 s later on a child that does not die.
pub(crate) fn wait(
    child: &mut Child,
    patience: Duration,
    mut meanwhile: impl FnMut(),
) -> Outcome<Option<ExitStatus>> {
    let start = Instant::now();
    let mut killed = false;
    loop {
        if let Some(status) = child.try_wait().during("waiting for a child")? {
            return Ok((!killed).then_some(status));
        }
        if !killed && start.elapsed() > patience {
            killed = true;
            child.kill().during("killing a child that hangs")?;
        }
        if killed && start.elapsed() > patience + Duration::from_secs(10) {
            return Ok(None);
        }
        meanwhile();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command for at most a minute. Returns its output, or an error with its messages.
pub(crate) fn run(command: &mut Command) -> Outcome<String> {
    run_for(command, Duration::from_secs(60))
}

/// As [`run`], with another limit.
pub(crate) fn run_for(command: &mut Command, patience: Duration) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let what = std::iter::once(name)
        .chain(command.get_args().map(|a| a.to_string_lossy().into_owned()))
        .collect::<Vec<_>>()
        .join(" ");
    let (status, output) = finish(command, patience).during(&what)?;
    match status {
        Some(status) if status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(status) => Err(format!("{what}: {status}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        None => Err(format!("{what}: did not end in {patience:?}")),
    }
}

/// Runs a command and collects its output. The status is `None` if the command did not end in time. The output goes to
/// files in memory, so that neither a full pipe nor a daemon that inherits one blocks.
pub(crate) fn finish(command: &mut Command, patience: Duration) -> Outcome<(Option<ExitStatus>, Output)> {
    let mut said = memfd("stdout")?;
    let mut complained = memfd("stderr")?;
    command.stdin(Stdio::null());
    command.stdout(said.try_clone().during("stdout")?).stderr(complained.try_clone().during("stderr")?);
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let status = wait(&mut child, patience, || {})?;
    let output = Output {
        status: status.unwrap_or_default(),
        stdout: read_all(&mut said)?,
        stderr: read_all(&mut complained)?,
    };
    Ok((status, output))
}

fn memfd(name: &str) -> Outcome<std::fs::File> {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).during("memfd_create")?;
    Ok(fd.into())
}

fn read_all(file: &mut std::fs::File) -> Outcome<Vec<u8>> {
    use std::io::Seek as _;
    let mut bytes = Vec::new();
    file.rewind().during("reading what a command said")?;
    file.read_to_end(&mut bytes).during("reading what a command said")?;
    Ok(bytes)
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The program under test: `named`, else the release build of this workspace, which is built first.
pub(crate) fn program(named: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(path) = named {
        return path.canonicalize().during(path.display());
    }
    eprintln!("bench: building the program under test (--program FILE names one that exists)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--release", "-p", "overspill-cli"]).current_dir(workspace());
    run_for(&mut build, Duration::from_secs(3600))?;
    let exe = std::env::current_exe().during("finding this program")?;
    let built = exe.with_file_name("overspill");
    let usual = workspace().join("target/release/overspill");
    [built, usual]
        .into_iter()
        .find(|p| p.exists())
        .ok_or_else(|| "the build left no program: name one with --program".into())
}

/// Finds a program in PATH.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The first line of a command's output, for the list of versions.
pub(crate) fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let (status, output) = finish(Command::new(program).args(args), Duration::from_secs(20)).ok()?;
    status.filter(ExitStatus::success)?;
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let line = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}

/// Seconds for which all CPUs together were busy since the machine started.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user, nice, system, idle, iowait, irq, softirq: idle and iowait are not busy.
    let busy = ticks.enumerate().filter(|(i, _)| [0, 1, 2, 5, 6].contains(i));
    let sum: u64 = busy.filter_map(|(_, n)| n.parse::<u64>().ok()).sum();
    sum as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("3M".parse(), Ok(Size(3 * MIB)));
        assert_eq!("2g".parse(), Ok(Size(2 * GIB)));
        assert_eq!(Size(1536 * MIB).to_string(), "1536 MiB");
        assert_eq!(Size(5000).to_string(), "5000 bytes");
        for wrong in ["", "m", "-1k", "1.5g", "99999999999t", "5µ"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_command_that_hangs_is_ended_and_one_that_fails_says_why() {
        let error = run_for(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.contains("did not end"), "{error}");
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert!(error.contains("why") && error.contains('3'), "{error}");
        assert_eq!(run(Command::new("echo").arg("yes")), Ok("yes\n".into()));
    }
}
