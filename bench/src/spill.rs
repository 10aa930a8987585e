//! `bench spill`: data several times the memory that workload and daemon share in one memory group.
//!
//! Each phase is a child process in the group. Between phases every world is synced and the kernel's caches are
//! dropped. A child or daemon killed by the kernel is a result ("died"); a killed writer starts again where it stopped,
//! so that the readers have data. zram's memory is charged to no group, which flatters its rows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::common::{Common, DiskArg};
use crate::data;
use crate::report::{Measure, Report, Unit, Value};
use crate::tools::{self, During as _, GIB, MIB, Outcome, Size};
use crate::turns::Turns;
use crate::workload::{Done, Ending, Job, Phase, ZIPF};
use crate::worlds::{self, Disk, Kind, Setup, World};

/// Arguments of `bench spill`.
#[derive(Debug, clap::Args)]
pub(crate) struct SpillArgs {
    #[command(flatten)]
    common: Common,
    /// The disk that stores, swap files and ext4 are on
    #[arg(long, value_enum, default_value = "fast")]
    disk: DiskArg,
    /// Limit of the memory group [default: 512m, quick: 256m]
    #[arg(long, value_name = "SIZE")]
    cgroup: Option<Size>,
    /// Memory of ours, within the group [default: three quarters of the group]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Bytes of the file [default: 2g, quick: 384m]
    #[arg(long, value_name = "SIZE")]
    data: Option<Size>,
    /// Mount and use ours as this user, who may not raise what the kernel holds dirty for it
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How long each random phase takes [default: 5, quick: 0.5]
    #[arg(long)]
    seconds: Option<f64>,
}

/// Rivals in the order of the table.
const RIVALS: [Kind; 4] = [Kind::TmpfsSwap, Kind::TmpfsZram, Kind::Ext4, Kind::PerObject];

/// Row, phase, threads, unit. The first phase fills the file and always runs.
const PHASES: [(&str, Phase, u64, Unit); 6] = [
    ("seq write", Phase::SeqWrite, 1, Unit::MibPerSecond),
    ("seq read", Phase::SeqRead, 1, Unit::MibPerSecond),
    ("rand 4K read, depth 1", Phase::RandRead, 1, Unit::PerSecond),
    ("rand 4K read, 16 threads", Phase::RandRead, 16, Unit::PerSecond),
    ("zipf 4K read", Phase::ZipfRead, 1, Unit::PerSecond),
    ("rand 4K write", Phase::RandWrite, 1, Unit::PerSecond),
];

/// The ratio that a row must reach. Overspill moves compressed bytes, so it must reach more where the disk is slow.
fn goal(throttled: bool, rival: Kind, row: &str) -> Option<f64> {
    let disk = matches!(rival, Kind::TmpfsSwap | Kind::Ext4);
    match row {
        "CPU per GiB written and read" if rival == Kind::TmpfsZram => Some(1.0),
        "OOM kills" | "disk written" => None,
        _ if !disk && rival != Kind::TmpfsZram => None,
        "zipf 4K read" if !throttled && rival == Kind::TmpfsZram => Some(0.5),
        "zipf 4K read" if !throttled => (rival == Kind::Ext4).then_some(1.0),
        "seq write" | "seq read" | "rand 4K read, depth 1" | "rand 4K read, 16 threads" | "rand 4K write"
            if !throttled =>
        {
            Some(1.0)
        }
        "seq write, p99.9" => Some(1.0),
        "seq write" | "seq read" => (rival == Kind::Ext4).then_some(2.2),
        "rand 4K read, depth 1" | "rand 4K read, 16 threads" => disk.then_some(1.5),
        "zipf 4K read" => disk.then_some(1.2),
        "rand 4K write" => disk.then_some(5.0),
        _ => None,
    }
}

/// CPU seconds of both sequential phases on all CPUs, the kernel's threads included, per GiB of data.
const CPU: &str = "CPU per GiB written and read";

/// Memory of the records that locate a GiB of pages.
const METADATA: &str = "metadata per GiB";

/// The latency rows of a phase.
const LATENCIES: [&str; 3] = ["p99", "p99.9", "max"];

/// How often a killed writer is restarted at most.
const RESTARTS: u32 = 50;

/// Sizes of the phases, with the defaults filled in.
#[derive(Clone, Copy, Debug)]
struct Amounts {
    group: u64,
    memory: u64,
    data: u64,
    seconds: f64,
    patience: Duration,
}

/// Runs the bench.
pub(crate) fn run(args: &SpillArgs) -> Outcome<()> {
    let common = &args.common;
    let (group, data, seconds) =
        if common.quick { (256 * MIB, 384 * MIB, 0.5) } else { (512 * MIB, 2 * GIB, 5.0) };
    let group = args.cgroup.map_or(group, |s| s.0);
    let amounts = Amounts {
        group,
        memory: args.memory.map_or(group / 4 * 3, |s| s.0),
        data: args.data.map_or(data, |s| s.0) / MIB * MIB,
        seconds: args.seconds.unwrap_or(seconds),
        patience: Duration::from_secs(if common.quick { 120 } else { 1200 }),
    };
    if amounts.data == 0 || amounts.seconds.is_nan() || amounts.seconds <= 0.0 {
        return Err("--data must be at least 1m and --seconds more than 0".into());
    }
    let program = tools::program(common.program.as_deref())?;
    let mut report =
        Report::open("spill", common.json, common.row.as_deref(), &parameters(args, amounts, &program));
    if let Some(why) = Cgroup::unavailable() {
        report.skip("all", &why);
        return Ok(());
    }
    let (base, guards) = worlds::base(&common.dir())?;
    let bench = Bench { args, amounts, base: &base, program: &program, report: &report };
    let turns = Turns::take("spill", common, &RIVALS, |kind| bench.world(kind))?;
    let throttled = args.disk != DiskArg::Fast;
    turns.report(&mut report, |kind, row| goal(throttled, kind, row));
    report.close();
    drop(guards);
    Ok(())
}

fn parameters(args: &SpillArgs, amounts: Amounts, program: &Path) -> Vec<(&'static str, String)> {
    let version = tools::first_line(&program.to_string_lossy(), &["--version"]);
    let fs = worlds::file_system(&existing(&args.common.dir()));
    let disk = match args.disk {
        DiskArg::Fast => format!("fast: as it is, a directory on {fs} (that is what is called ext4 below)"),
        cloud => format!("ext4 on a loop device (direct I/O) over a file on {fs}, {}", cloud.describe()),
    };
    vec![
        ("overspill", version.unwrap_or_else(|| "unknown".into())),
        ("e2fsprogs", tools::first_line("mkfs.ext4", &["-V"]).unwrap_or_else(|| "unknown".into())),
        ("runs", format!("{}, in turn; medians, of max the worst", args.common.runs)),
        ("memory group", format!("{}, workload and daemon together", Size(amounts.group))),
        ("user of ours", args.user.clone().unwrap_or_else(|| "who runs the bench".into())),
        ("memory of ours", Size(amounts.memory).to_string()),
        ("data", format!("{}: {}", Size(amounts.data), data::DESCRIPTION)),
        (
            "phases",
            format!(
                "seq by 1 MiB, the write ends with fsync (in its time and latencies); random {} s each, fadvise RANDOM, no fsync; zipf {ZIPF}, hot pages scattered",
                amounts.seconds
            ),
        ),
        ("between phases", "syncfs and drop_caches, all worlds alike".into()),
        ("disk", disk),
        (
            "disk written",
            "counted by the device under it, from the mount to the end; as it is: others' writes too".into(),
        ),
        ("zram", "lz4; its memory is charged to no group".into()),
    ]
}

/// The nearest directory that exists: `dir` or one above it.
fn existing(dir: &Path) -> PathBuf {
    dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/")).to_path_buf()
}

struct Bench<'a> {
    args: &'a SpillArgs,
    amounts: Amounts,
    base: &'a Path,
    program: &'a Path,
    report: &'a Report,
}

impl Bench<'_> {
    fn wants(&self, row: &str) -> bool {
        self.report.wants(row) || LATENCIES.iter().any(|l| self.report.wants(&latency(row, l)))
    }

    /// Runs all phases in one world.
    fn world(&self, kind: Kind) -> Outcome<Vec<Measure>> {
        let group = Cgroup::make(Some(self.amounts.group))?;
        let setup = Setup {
            base: self.base,
            program: self.program,
            size: self.amounts.data + self.amounts.data / 4,
            memory: self.amounts.memory,
            disk: if self.args.disk == DiskArg::Fast { Disk::Directory } else { self.args.disk.on_loop() },
            cgroup: Some(&group),
            user: self.args.user.as_deref(),
        };
        let world = World::make(kind, &setup)?;
        let written = || world.device.as_deref().and_then(worlds::written);
        let before = written();
        let mut out = Vec::new();
        let mut cpu = 0.0;
        for (number, (row, phase, threads, unit)) in PHASES.into_iter().enumerate() {
            if number > 0 && !self.wants(row) {
                continue;
            }
            let job = Job {
                phase,
                file: &world.dir.join("data"),
                size: self.amounts.data,
                seconds: self.amounts.seconds,
                threads,
                seed: number as u64 + 1,
                user: if world.daemon.is_some() { self.args.user.as_deref() } else { None },
            };
            let busy = tools::cpu_seconds();
            out.extend(self.phase(row, unit, &job, &group, &world)?);
            if matches!(phase, Phase::SeqWrite | Phase::SeqRead) {
                cpu += tools::cpu_seconds() - busy;
            }
            if world.alive() {
                settle(&world.dir, job.user);
            }
        }
        let mib = |bytes: Option<u64>| bytes.map_or(Value::Nothing, |b| Value::Number(b as f64 / MIB as f64));
        let peak = Measure::worst("group peak", Unit::Mib, mib(group.peak()));
        out.push(match world.daemon_peak() {
            Some(daemon) => peak.noted(format!("of that the daemon's VmHWM {} MiB", daemon / MIB)),
            None => peak,
        });
        let gib = self.amounts.data as f64 / GIB as f64;
        if self.wants("seq read") {
            out.push(Measure::new(CPU, Unit::Seconds, Value::Number(cpu / gib)));
        }
        out.push(match world.metadata(self.program) {
            Some(bytes) => Measure::new(METADATA, Unit::Mib, Value::Number(bytes as f64 / MIB as f64 / gib)),
            None => Measure::new(METADATA, Unit::Mib, Value::Nothing),
        });
        let bytes = before.zip(written()).map(|(before, after)| after.saturating_sub(before));
        out.push(Measure::new("disk written", Unit::Mib, mib(bytes)));
        out.push(Measure::worst("OOM kills", Unit::Count, Value::Number(group.oom_kills() as f64)));
        world.end();
        drop(group);
        Ok(out)
    }

    /// Runs one phase; returns its rate and its latencies.
    fn phase(
        &self,
        row: &str,
        unit: Unit,
        job: &Job<'_>,
        group: &Cgroup,
        world: &World,
    ) -> Outcome<Vec<Measure>> {
        let mut ending = if world.alive() { job.run(group, self.amounts.patience)? } else { Ending::Killed };
        if !world.alive() {
            ending = Ending::Killed;
        }
        let mut value_note = match &ending {
            Ending::Done(done) => return Ok(numbers(row, unit, done)),
            Ending::Killed if !world.alive() => (Value::Died, "the daemon is dead".to_owned()),
            Ending::Killed => (Value::Died, "the workload was killed".to_owned()),
            Ending::Failed(why) => (Value::Failed, why.clone()),
        };
        if job.phase == Phase::SeqWrite && ending == Ending::Killed && world.alive() {
            let restarts = self.finish_writing(job, group)?;
            value_note.1 = format!("{}, {restarts}", value_note.1);
        }
        let measure = |name: String, unit| Measure::new(name, unit, value_note.0).noted(value_note.1.clone());
        let mut out = vec![measure(row.to_owned(), unit)];
        out.extend(
            LATENCIES.iter().map(|l| Measure { note: None, ..measure(latency(row, l), Unit::Micros) }),
        );
        Ok(out)
    }

    /// Restarts a killed writer for as long as its file grows.
    fn finish_writing(&self, job: &Job<'_>, group: &Cgroup) -> Outcome<String> {
        let length = || std::fs::metadata(job.file).map_or(0, |m| m.len());
        for restart in 1..=RESTARTS {
            let before = length();
            match job.run(group, self.amounts.patience)? {
                Ending::Done(_) => return Ok(format!("complete after {restart} restarts")),
                Ending::Killed if length() > before => {}
                Ending::Killed => break,
                Ending::Failed(why) => return Ok(why),
            }
        }
        Ok(format!("never complete: {} MiB", length() / MIB))
    }
}

fn latency(row: &str, which: &str) -> String {
    format!("{row}, {which}")
}

fn numbers(row: &str, unit: Unit, done: &Done) -> Vec<Measure> {
    let amount = if unit == Unit::MibPerSecond { done.bytes / MIB as f64 } else { done.operations };
    let mut out = vec![Measure::new(row, unit, Value::Number(amount / done.seconds.max(1e-9)))];
    for (name, micros) in LATENCIES.iter().zip(done.latencies) {
        let make = if *name == "max" { Measure::worst } else { Measure::new };
        out.push(make(latency(row, name), Unit::Micros, Value::Number(micros)));
    }
    out
}

/// Syncs the world's file system, and drops the kernel's caches.
fn settle(dir: &Path, user: Option<&str>) {
    // A user's mount is closed to root, so the user syncs it.
    let sync = |mut command: std::process::Command| {
        tools::run_for(command.arg("-f").arg(dir), Duration::from_secs(300)).map(drop)
    };
    let synced = worlds::as_user(user, None, Path::new("sync")).and_then(sync);
    let dropped = std::fs::write("/proc/sys/vm/drop_caches", "3").during("drop_caches");
    for error in [synced, dropped].into_iter().filter_map(Outcome::err) {
        eprintln!("bench spill: between phases: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_gives_its_rate_and_three_latencies() {
        let done =
            Done { operations: 100.0, bytes: 50.0 * MIB as f64, seconds: 2.0, latencies: [1.0, 2.0, 3.0] };
        let rows: Vec<_> = numbers("seq write", Unit::MibPerSecond, &done);
        assert_eq!(rows[0].value, Value::Number(25.0));
        assert_eq!(rows[3], Measure::worst("seq write, max", Unit::Micros, Value::Number(3.0)));
        assert_eq!(numbers("x", Unit::PerSecond, &done)[0].value, Value::Number(50.0));
    }
}
