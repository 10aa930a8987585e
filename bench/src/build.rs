//! `bench build`: a real build (R64) in a memory group that has room for the compilers and for half the tree.
//!
//! The sizes are measured. A first build, in a group without limit on a tmpfs that has all of RAM, shows the size of
//! the tree and the most memory that the compilers hold. It also warms the caches that all worlds share (toolchain,
//! registry), and is a row itself: the build with plenty of RAM. Bytes written are those of a loop device that carries
//! only the world's store, swap file or file system.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::common::{Common, DiskArg};
use crate::report::{Measure, Report, Unit, Value};
use crate::tools::{self, During as _, MIB, Outcome, Size};
use crate::turns::Turns;
use crate::undo;
use crate::worlds::{self, Kind, RELAXED, Setup, World};

/// Arguments of `bench build`.
#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    common: Common,
    /// The loop device that stores, swap files and ext4 are on
    #[arg(long, value_enum, default_value = "fast")]
    disk: DiskArg,
    /// A git checkout; what is committed there is built [default: this workspace]
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// The build, a shell line run in the tree's root
    #[arg(long, default_value = "cargo build --offline --workspace", value_name = "LINE")]
    line: String,
    /// Limit of the memory group [default: what the compilers hold at most, and half the tree]
    #[arg(long, value_name = "SIZE")]
    cgroup: Option<Size>,
    /// Memory of ours, within the group [default: a quarter of the tree]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
}

/// Rivals in the order of the table.
const RIVALS: [Kind; 3] = [Kind::TmpfsSwap, Kind::Ext4, Kind::Ext4Relaxed];

/// The ratio that a row must reach.
fn goal(rival: Kind, row: &str) -> Option<f64> {
    match (rival, row) {
        (Kind::Tmpfs, "wall") => Some(1.0 / 1.05),
        (Kind::Ext4, "disk written") => Some(5.0),
        _ => None,
    }
}

/// Name of the calibration in the table.
const UNLIMITED: &str = "tmpfs, no limit";

/// The longest time that a build may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Results of the first build.
#[derive(Clone, Copy, Debug)]
struct Calibration {
    /// Bytes of sources and target together.
    tree: u64,
    /// The most memory that the processes held of their own, in bytes.
    processes: u64,
}

/// Runs the bench.
pub(crate) fn run(args: &BuildArgs) -> Outcome<()> {
    let common = &args.common;
    let program = tools::program(common.program.as_deref())?;
    let eatmydata = tools::in_path("eatmydata").is_some();
    let mut report =
        Report::open("build", common.json, common.row.as_deref(), &parameters(args, &program, eatmydata));
    if let Some(why) = Cgroup::unavailable() {
        report.skip("all", &why);
        return Ok(());
    }
    if !eatmydata {
        report.skip("eatmydata", "not installed (apt install eatmydata): ext4 relaxed runs without it");
    }
    let (base, guards) = worlds::base(&dir(common))?;
    let (sources, sources_guard) = archive(&project(args), &base)?;
    let bench = Bench { args, base: &base, program: &program, sources: &sources, eatmydata };
    eprintln!("bench build: calibration: {UNLIMITED}");
    let (first, calibration) = bench.calibrate()?;
    let limit = args.cgroup.map_or(calibration.processes + calibration.tree / 2, |s| s.0);
    let memory = args.memory.map_or((calibration.tree / 4).max(8 * MIB), |s| s.0);
    report.parameter("tree", &format!("{} MiB, sources and target", calibration.tree.div_ceil(MIB)));
    report.parameter(
        "compilers",
        &format!("{} MiB at most, of their own", calibration.processes.div_ceil(MIB)),
    );
    report.parameter("memory group", &format!("{} MiB, build and daemon together", limit.div_ceil(MIB)));
    report.parameter("memory of ours", &format!("{} MiB", memory.div_ceil(MIB)));

    let world = |kind| bench.world(kind, calibration.tree, limit, memory);
    let turns = Turns::take("build", common, &RIVALS, world)?;
    report.compare(turns.ours(), UNLIMITED, &[first], |row| goal(Kind::Tmpfs, row));
    turns.report(&mut report, goal);
    report.close();
    drop((sources_guard, guards));
    Ok(())
}

/// Not below this workspace: cargo would take the tree that it builds for a member of the workspace.
fn dir(common: &Common) -> PathBuf {
    common.dir.clone().unwrap_or_else(|| "/var/tmp".into())
}

fn project(args: &BuildArgs) -> PathBuf {
    args.project.clone().unwrap_or_else(tools::workspace)
}

fn parameters(args: &BuildArgs, program: &Path, eatmydata: bool) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let project = project(args);
    let commit = tools::first_line("git", &["-C", &project.to_string_lossy(), "rev-parse", "HEAD"]);
    let relaxed = if eatmydata { "under eatmydata" } else { "without eatmydata" };
    vec![
        ("overspill", tools::first_line(&program.to_string_lossy(), &["--version"]).unwrap_or_else(unknown)),
        ("cargo", tools::first_line("cargo", &["--version"]).unwrap_or_else(unknown)),
        ("e2fsprogs", tools::first_line("mkfs.ext4", &["-V"]).unwrap_or_else(unknown)),
        ("runs", format!("{}, in turn, medians", args.common.runs)),
        ("build", format!("{} of commit {}", args.line, commit.unwrap_or_else(unknown))),
        ("disk", format!("ext4 on a loop device (direct I/O) for each world, {}", args.disk.describe())),
        (
            "disk written",
            "by that loop device (its stat in /sys), from before the sources are unpacked".into(),
        ),
        ("ext4 relaxed", format!("no journal, {RELAXED}, {relaxed}")),
    ]
}

/// Writes the committed sources into a tar file.
fn archive(project: &Path, base: &Path) -> Outcome<(PathBuf, undo::Guard)> {
    let tar = base.join("sources.tar");
    undo::make(|| {
        let mut git = Command::new("git");
        tools::run(git.arg("-C").arg(project).args(["archive", "--format=tar", "-o"]).arg(&tar).arg("HEAD"))?;
        let made = tar.clone();
        Ok((tar, Box::new(move || std::fs::remove_file(&made).during(made.display()))))
    })
}

struct Bench<'a> {
    args: &'a BuildArgs,
    base: &'a Path,
    program: &'a Path,
    sources: &'a Path,
    eatmydata: bool,
}

impl Bench<'_> {
    fn setup<'s>(&'s self, size: u64, memory: u64, group: &'s Cgroup) -> Setup<'s> {
        Setup {
            base: self.base,
            program: self.program,
            size,
            memory,
            disk: self.args.disk.on_loop(),
            cgroup: Some(group),
            user: None,
        }
    }

    /// Runs the first build, with all the memory of the machine.
    fn calibrate(&self) -> Outcome<(Vec<Measure>, Calibration)> {
        let ram = rustix::system::sysinfo();
        let ram = ram.totalram.saturating_mul(u64::from(ram.mem_unit.max(1)));
        let group = Cgroup::make(None)?;
        let world = World::make(Kind::Tmpfs, &self.setup(ram, 0, &group))?;
        let (measured, processes) = self.build(Kind::Tmpfs, &world, &group)?;
        if let Some(failed) = measured.iter().find(|m| !matches!(m.value, Value::Number(_) | Value::Nothing))
        {
            return Err(format!(
                "the build does not even succeed with all memory: {}",
                failed.note.as_deref().unwrap_or_default()
            ));
        }
        let tree = tree_bytes(&world.dir).during("measuring the tree")?;
        world.end();
        Ok((measured, Calibration { tree, processes }))
    }

    fn world(&self, kind: Kind, tree: u64, limit: u64, memory: u64) -> Outcome<Vec<Measure>> {
        let group = Cgroup::make(Some(limit))?;
        let world = World::make(kind, &self.setup(tree * 2 + 64 * MIB, memory, &group))?;
        let (measured, _) = self.build(kind, &world, &group)?;
        world.end();
        Ok(measured)
    }

    /// Unpacks and builds. The second result is the most memory that processes held of their own, in bytes.
    fn build(&self, kind: Kind, world: &World, group: &Cgroup) -> Outcome<(Vec<Measure>, u64)> {
        let written = || world.device.as_deref().and_then(worlds::written);
        let mib = |bytes: Option<u64>| bytes.map_or(Value::Nothing, |b| Value::Number(b as f64 / MIB as f64));
        let before = written();
        let src = world.dir.join("src");
        std::fs::create_dir(&src).during(src.display())?;
        tools::run(group.command(Path::new("tar"))?.arg("-xf").arg(self.sources).arg("-C").arg(&src))?;

        let log = self.base.join("build.log");
        let log_guard = log_file(&log)?;
        let mut command = self.command(kind, world, group)?;
        let out = std::fs::File::create(&log).during(log.display())?;
        command.current_dir(&src).stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
        let mut processes = 0;
        let mut ticks = 0_u32;
        let start = Instant::now();
        let mut child = command.spawn().during(&self.args.line)?;
        let status = tools::wait(&mut child, PATIENCE, || {
            if ticks.is_multiple_of(10) {
                processes = group.anonymous().unwrap_or(0).max(processes);
            }
            ticks += 1;
        })?;
        let wall = start.elapsed().as_secs_f64();
        let at_end = written();
        let killed = group.oom_kills() > 0 || !world.alive();
        let wall = match status {
            Some(status) if status.success() => Measure::new("wall", Unit::Seconds, Value::Number(wall)),
            _ => {
                let value = if killed { Value::Died } else { Value::Failed };
                Measure::new("wall", Unit::Seconds, value).noted(why(world, group, &log))
            }
        };
        drop(log_guard);
        if let Ok(dir) = std::fs::File::open(&world.dir) {
            let _ = rustix::fs::syncfs(&dir);
        }
        let since = |now: Option<u64>| mib(before.zip(now).map(|(before, now)| now.saturating_sub(before)));
        let peak = Measure::worst("group peak", Unit::Mib, mib(group.peak()));
        let measured = vec![
            wall,
            Measure::new("disk written", Unit::Mib, since(at_end)),
            Measure::new("disk written, after sync", Unit::Mib, since(written())),
            match world.daemon_peak() {
                Some(daemon) => peak.noted(format!("of that the daemon's VmHWM {} MiB", daemon / MIB)),
                None => peak,
            },
            Measure::worst("OOM kills", Unit::Count, Value::Number(group.oom_kills() as f64)),
        ];
        Ok((measured, processes))
    }

    /// The command of the build, to run in the group.
    fn command(&self, kind: Kind, world: &World, group: &Cgroup) -> Outcome<Command> {
        let mut command = if kind == Kind::Ext4Relaxed && self.eatmydata {
            let mut command = group.command(Path::new("eatmydata"))?;
            command.arg("sh");
            command
        } else {
            group.command(Path::new("sh"))?
        };
        command.args(["-c", &self.args.line]);
        // The variables of `cargo xtask` must not reach the cargo that is measured.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_") && text != "CARGO_HOME" {
                command.env_remove(&name);
            }
        }
        command.env("CARGO_TARGET_DIR", world.dir.join("target"));
        Ok(command)
    }
}

/// Creates a file for the messages of the build; the guard removes it.
fn log_file(path: &Path) -> Outcome<undo::Guard> {
    let path = path.to_path_buf();
    let ((), guard) = undo::make(|| {
        std::fs::write(&path, "").during(path.display())?;
        Ok(((), Box::new(move || std::fs::remove_file(&path).during(path.display()))))
    })?;
    Ok(guard)
}

/// The reason why a build failed: the processes that were killed, and its last error message.
fn why(world: &World, group: &Cgroup, log: &Path) -> String {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let error =
        said.lines().rev().find(|l| l.contains("error")).or_else(|| said.lines().last()).unwrap_or_default();
    let dead = if world.alive() { "" } else { "the daemon is dead, " };
    let error: String = error.trim().chars().take(160).collect();
    format!("{dead}{} OOM kills: {error}", group.oom_kills())
}

/// Bytes that all files below `dir` occupy; a file with hard links counts once.
fn tree_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut seen = HashSet::new();
    let mut todo = vec![dir.to_path_buf()];
    let mut bytes = 0;
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                todo.push(entry.path());
            } else if seen.insert(meta.ino()) {
                bytes += meta.blocks() * 512;
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_counts_hard_links_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/a"), vec![1; 1 << 20]).unwrap();
        std::fs::File::open(dir.path().join("sub/a")).unwrap().sync_all().unwrap();
        let one = tree_bytes(dir.path()).unwrap();
        std::fs::hard_link(dir.path().join("sub/a"), dir.path().join("b")).unwrap();
        assert_eq!(tree_bytes(dir.path()).unwrap(), one);
        assert!(one >= 1 << 20, "{one}");
    }
}
