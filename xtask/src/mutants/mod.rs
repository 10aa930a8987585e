//! `cargo xtask mutants`: plants faults one at a time, and reports those that the tests do not find.
//!
//! Each fault of [`list`] replaces one piece of text in a copy of the workspace. Suites then run, first the one that
//! should find it, until one fails. A fault that no suite finds survives: the tests do not cover it.

mod list;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::root;
use list::{FAULTS, Fault, Suite};

/// A suite that takes longer hangs, which also finds the fault.
const PATIENCE: Duration = Duration::from_secs(300);

/// Plants faults and says which are found.
#[derive(Debug, clap::Args)]
pub(crate) struct MutantsArgs {
    /// Only faults whose name contains one of these [default: all]
    names: Vec<String>,
    /// Only say which there are, and that each can be planted.
    #[arg(long)]
    list: bool,
}

/// # Errors
/// The faults that no suite found, or that cannot be planted any more.
pub(crate) fn run(args: &MutantsArgs) -> Result<(), String> {
    let is_asked = |fault: &&Fault| {
        args.names.is_empty() || args.names.iter().any(|name| fault.name.contains(name.as_str()))
    };
    let faults: Vec<&Fault> = FAULTS.iter().filter(is_asked).collect();
    for fault in &faults {
        planted(&root(), fault)?;
        if args.list {
            println!("{:9} {}: {}", fault.kind, fault.file, fault.name);
        }
    }
    if args.list {
        return Ok(());
    }
    let copy = Copy::new()?;
    println!("mutants: the suites must pass before anything is planted");
    let is_wanted = |suite: &Suite| faults.iter().any(|fault| fault.suites().contains(suite));
    for suite in Suite::ALL.into_iter().filter(is_wanted) {
        if !copy.passes(suite)? {
            return Err(format!("{suite:?} fails with nothing planted"));
        }
    }
    let mut survived = Vec::new();
    for (n, fault) in faults.iter().enumerate() {
        let begun = Instant::now();
        let found = copy.with(fault, || {
            for suite in fault.suites() {
                if !copy.passes(suite)? {
                    return Ok(Some(suite));
                }
            }
            Ok(None)
        });
        let by = match &found {
            Ok(Some(suite)) => format!("found by {suite:?}"),
            Ok(None) => "SURVIVED".to_owned(),
            // A fault that the compiler finds is no test of the tests.
            Err(error) => format!("NOT PLANTED: {error}"),
        };
        let (count, seconds) = (faults.len(), begun.elapsed().as_secs());
        println!("{:3} of {count} {:9} {}: {by} ({seconds} s)", n + 1, fault.kind, fault.name);
        if !matches!(found, Ok(Some(_))) {
            survived.push(fault.name);
        }
    }
    println!("mutants: {} planted, {} found", faults.len(), faults.len() - survived.len());
    if survived.is_empty() { Ok(()) } else { Err(format!("not found: {}", survived.join("; "))) }
}

/// The text of a fault's file with the fault planted.
fn planted(root: &Path, fault: &Fault) -> Result<String, String> {
    let path = root.join(fault.file);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match text.matches(fault.from).count() {
        1 => Ok(text.replacen(fault.from, fault.to, 1)),
        n => Err(format!("{} ({}): its place is there {n} times, not once", fault.name, fault.file)),
    }
}

/// A copy of the workspace to plant faults in.
struct Copy {
    root: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new() -> Result<Copy, String> {
        let base = root().join("target/mutants");
        let copy = Copy { root: base.join("src"), target: base.join("target") };
        let files = Command::new("git").arg("ls-files").current_dir(root()).output();
        let files = files.map_err(|error| format!("git ls-files: {error}"))?.stdout;
        let _ = std::fs::remove_dir_all(&copy.root);
        for file in String::from_utf8_lossy(&files).lines() {
            let to = copy.root.join(file);
            std::fs::create_dir_all(to.parent().unwrap_or(&to)).map_err(|error| error.to_string())?;
            // A removed file whose removal is not committed yet is in the list, and missing.
            if root().join(file).exists() {
                std::fs::copy(root().join(file), to).map_err(|error| format!("{file}: {error}"))?;
            }
        }
        Ok(copy)
    }

    /// Runs `f` with a fault planted, then removes the fault.
    fn with<T>(&self, fault: &Fault, f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let path = self.root.join(fault.file);
        let sound = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        std::fs::write(&path, planted(&self.root, fault)?).map_err(|error| error.to_string())?;
        let result = f();
        std::fs::write(&path, sound).map_err(|error| error.to_string())?;
        result
    }

    /// True if a suite passes. One that cannot be compiled tells nothing.
    fn passes(&self, suite: Suite) -> Result<bool, String> {
        if !self.cargo(suite, true)? {
            return Err(format!("{suite:?} cannot be compiled"));
        }
        self.cargo(suite, false)
    }

    fn cargo(&self, suite: Suite, only_compile: bool) -> Result<bool, String> {
        let mut command = Command::new("cargo");
        command.args(suite.command(only_compile)).current_dir(&self.root);
        command.env("CARGO_TARGET_DIR", &self.target).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A process group of its own, so that a hung suite can be killed with all its children.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|error| format!("cargo: {error}"))?;
        let until = Instant::now() + if only_compile { 4 * PATIENCE } else { PATIENCE };
        loop {
            match child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => return Ok(status.success()),
                None if Instant::now() > until => {
                    if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                    }
                    let _ = child.wait();
                    return Ok(false);
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fault whose text has changed is planted nowhere, and is reported.
    #[test]
    fn every_fault_can_be_planted() {
        for fault in FAULTS {
            planted(&root(), fault).unwrap();
            assert_ne!(fault.from, fault.to);
        }
        assert!(FAULTS.len() >= 30);
    }
}
