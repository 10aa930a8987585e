//! `bench mount`: all data within the memory, one process, plain system calls; overspill and the kernel's tmpfs in
//! turn.
//!
//! Round trips are counted as the daemon's read calls (`syscr` of /proc/PID/io): one call reads a request from
//! /dev/fuse, and within its memory the daemon reads nothing else. A phase's count is taken once the daemon is silent,
//! to include FORGETs, which come late and many to a read. The daemon's reads while idle are shown: they are noise.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::Common;
use crate::data::{PAGE, Rng};
use crate::report::{Measure, Report, Unit, Value};
use crate::tools::{self, During as _, GIB, MIB, Outcome, Size, is_root};
use crate::turns::Turns;
use crate::worlds::{self, Disk, Kind, Setup, World};

/// Arguments of `bench mount`.
#[derive(Debug, clap::Args)]
pub(crate) struct MountArgs {
    #[command(flatten)]
    common: Common,
    /// Memory of ours
    #[arg(long, default_value = "1g", value_name = "SIZE")]
    memory: Size,
    /// Names in the metadata phases [default: 20000, quick: 2000]
    #[arg(long)]
    files: Option<u32>,
    /// Bytes of the data phases [default: 512m, quick: 64m]
    #[arg(long, value_name = "SIZE")]
    data: Option<Size>,
}

/// Names per directory.
const FAN: usize = 1000;
/// Bytes per sequential operation.
const BLOCK: usize = 1 << 20;
/// A hot read repeats the file until it has read at least this much.
const HOT_BYTES: u64 = GIB;
/// The ratio to the kernel's tmpfs that sequential write and hot read must reach as root.
const GOAL: f64 = 0.9;

const METADATA: [&str; 8] =
    ["create", "stat", "stat again", "open+close", "4K write+close", "readdir entry", "rename", "unlink"];
/// Rows of memory per name.
const RAM: [&str; 3] = ["RAM per empty file", "RAM per directory", "RAM per 1 KiB file"];
const FSYNC: &str = "create+4K+fsync";
const DATA: [&str; 4] = ["seq write", "hot seq read", "rand 4K read", "rand 4K write"];

/// Sizes of the phases.
#[derive(Clone, Copy, Debug)]
struct Amounts {
    files: usize,
    data: u64,
    random: u64,
}

/// Runs the bench.
pub(crate) fn run(args: &MountArgs) -> Outcome<()> {
    let common = &args.common;
    let amounts = Amounts {
        files: args.files.map_or(if common.quick { 2000 } else { 20_000 }, |n| n as usize),
        data: args.data.map_or(if common.quick { 64 * MIB } else { 512 * MIB }, |s| s.0) / MIB * MIB,
        random: if common.quick { 20_000 } else { 200_000 },
    };
    if amounts.files == 0 || amounts.data == 0 {
        return Err("--files must be at least 1 and --data at least 1m".into());
    }
    let program = tools::program(common.program.as_deref())?;
    let (base, guards) = worlds::base(&common.dir())?;
    let size = (2 * amounts.data).max(GIB).max(args.memory.0);
    let setup = Setup {
        base: &base,
        program: &program,
        size,
        memory: args.memory.0,
        disk: Disk::Directory,
        cgroup: None,
        user: None,
    };
    let mut report =
        Report::open("mount", common.json, common.row.as_deref(), &parameters(args, amounts, &setup));
    let turns = Turns::take("mount", common, &[Kind::Tmpfs], |kind| {
        let world = World::make(kind, &setup)?;
        let measured = Run::new(&world, &report, amounts).all().during(world.dir.display());
        world.end();
        measured
    })?;
    let goal = |row: &str| (is_root() && matches!(row, "seq write" | "hot seq read")).then_some(GOAL);
    turns.report(&mut report, |_, row| goal(row));
    report.close();
    drop(guards);
    Ok(())
}

fn parameters(args: &MountArgs, amounts: Amounts, setup: &Setup<'_>) -> Vec<(&'static str, String)> {
    let version = tools::first_line(&setup.program.to_string_lossy(), &["--version"]);
    let rival = if is_root() { "a tmpfs mounted afresh" } else { "a directory on /dev/shm (not root)" };
    vec![
        ("overspill", version.unwrap_or_else(|| "unknown".into())),
        ("runs", format!("{}, in turn, medians", args.common.runs)),
        ("memory of ours", args.memory.to_string()),
        ("size of both", Size(setup.size).to_string()),
        ("store", format!("a directory on {}", worlds::file_system(setup.base))),
        ("rival", rival.into()),
        ("files", format!("{}, {FAN} in a directory", amounts.files)),
        ("data", format!("{}, sequential by 1 MiB, ends with close; {} random operations of 4 KiB", Size(amounts.data), amounts.random)),
        ("before", "one file is taken through every operation, so that the kernel knows what not to ask".into()),
        ("trips/op", "the daemon's read calls (syscr in /proc/PID/io) per operation: one reads one request, or many FORGETs".into()),
        ("RAM per", "growth of the daemon's RSS and of the kernel's slabs and tmpfs pages, over the names made; the kernel's cache of ours is not counted".into()),
        ("goals", if is_root() { format!("seq write and hot seq read: ratio {GOAL}") } else { "none: they are root's".into() }),
    ]
}

/// Counts the read calls of the daemon.
#[derive(Clone, Debug)]
struct Reads(Option<PathBuf>);

impl Reads {
    fn of(world: &World) -> Self {
        let path = world.daemon.map(|pid| PathBuf::from(format!("/proc/{pid}/io")));
        Self(path.filter(|path| std::fs::read(path).is_ok()))
    }

    fn now(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.0.as_ref()?).ok()?;
        text.lines().find_map(|l| l.strip_prefix("syscr: ")?.parse().ok())
    }

    /// The count, once it is unchanged for 20 ms, or after 2 s.
    fn settled(&self) -> Option<u64> {
        let mut last = self.now()?;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.now()?;
            if now == last {
                break;
            }
            last = now;
        }
        Some(last)
    }
}

/// Memory of a world's metadata: the daemon's resident size, the kernel's slabs, and pages of the kernel's tmpfs. The
/// kernel's page cache of our files is not included: the kernel drops it on demand.
#[derive(Clone, Copy, Debug)]
struct Memory(Option<u32>);

impl Memory {
    fn now(self) -> io::Result<u64> {
        let kilobytes = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
        };
        let kernel = std::fs::read_to_string("/proc/meminfo")?;
        let daemon = match self.0 {
            Some(pid) => kilobytes(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:"),
            None => 0,
        };
        Ok((daemon + kilobytes(&kernel, "Slab:") + kilobytes(&kernel, "Shmem:")) * 1024)
    }
}

/// Makes one name.
type Maker<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

/// One run in one world.
struct Run<'a> {
    dir: &'a Path,
    report: &'a Report,
    amounts: Amounts,
    reads: Reads,
    memory: Memory,
    is_ours: bool,
    out: Vec<Measure>,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, report: &'a Report, amounts: Amounts) -> Self {
        let is_ours = world.daemon.is_some();
        let reads = Reads::of(world);
        if is_ours && reads.0.is_none() {
            report.skip("round trips", "the daemon's /proc/PID/io cannot be read by this user");
        }
        let memory = Memory(world.daemon);
        Self { dir: &world.dir, report, amounts, reads, memory, is_ours, out: Vec::new() }
    }

    fn wants(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.report.wants(row) || self.report.wants(&trips(row)))
    }

    fn all(mut self) -> io::Result<Vec<Measure>> {
        self.warm_up()?;
        self.idle();
        // This comes first: memory that other phases freed would be used again, and hide the growth.
        if self.wants(&RAM) {
            self.ram()?;
        }
        if self.wants(&METADATA) {
            self.metadata()?;
        }
        if self.wants(&[FSYNC]) {
            self.fsyncs()?;
        }
        if self.wants(&DATA) {
            self.data()?;
        }
        Ok(self.out)
    }

    /// Takes one file through every operation: a first refusal teaches the kernel which requests to leave out.
    fn warm_up(&self) -> io::Result<()> {
        let (name, renamed) = (self.dir.join("warm"), self.dir.join("warm-up"));
        let mut file = File::options().write(true).create_new(true).open(&name)?;
        file.write_all(&[0x5a; PAGE])?;
        file.sync_all()?;
        drop(file);
        std::fs::read(&name)?;
        std::fs::read_dir(self.dir)?.try_for_each(|entry| entry.map(drop))?;
        std::fs::rename(&name, &renamed)?;
        std::fs::remove_file(&renamed)
    }

    /// Measures the daemon's reads while it has no requests.
    fn idle(&mut self) {
        if let Some(before) = self.reads.settled() {
            std::thread::sleep(Duration::from_millis(300));
            let now = self.reads.now().unwrap_or(before);
            let rate = (now - before) as f64 / 0.3;
            self.out.push(
                Measure::new("idle reads", Unit::PerSecond, Value::Number(rate))
                    .noted("the noise in trips/op"),
            );
        }
    }

    /// Times `work`, which returns the number of its operations.
    fn timed(&mut self, row: &str, unit: Unit, work: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        let before = self.reads.settled();
        let start = Instant::now();
        let operations = work()? as f64;
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        self.out.push(Measure::new(row, unit, Value::Number(operations / seconds)));
        let round_trips = match (before, self.reads.settled()) {
            (Some(before), Some(after)) => Value::Number((after - before) as f64 / operations.max(1.0)),
            _ if self.is_ours => Value::Nothing,
            _ => Value::Number(0.0),
        };
        self.out.push(Measure::new(trips(row), Unit::RoundTrips, round_trips));
        Ok(())
    }

    fn metadata(&mut self) -> io::Result<()> {
        let count = self.amounts.files;
        let dirs: Vec<PathBuf> = (0..count.div_ceil(FAN)).map(|d| self.dir.join(format!("d{d}"))).collect();
        for dir in &dirs {
            std::fs::create_dir(dir)?;
        }
        let named = |prefix: &str| -> Vec<PathBuf> {
            (0..count).map(|n| dirs[n / FAN].join(format!("{prefix}{n}"))).collect()
        };
        let (names, renamed) = (named("f"), named("r"));
        let each = |work: &dyn Fn(&Path) -> io::Result<()>| {
            names.iter().try_for_each(|name| work(name))?;
            Ok(names.len() as u64)
        };
        let page = [0x5a; PAGE];
        self.timed("create", Unit::PerSecond, || {
            each(&|name| File::options().write(true).create_new(true).open(name).map(drop))
        })?;
        for row in ["stat", "stat again"] {
            self.timed(row, Unit::PerSecond, || each(&|name| Ok(rustix::fs::stat(name).map(drop)?)))?;
        }
        self.timed("open+close", Unit::PerSecond, || each(&|name| File::open(name).map(drop)))?;
        self.timed("4K write+close", Unit::PerSecond, || {
            each(&|name| File::options().write(true).open(name)?.write_all(&page))
        })?;
        self.timed("readdir entry", Unit::PerSecond, || {
            let mut entries = 0;
            for dir in &dirs {
                entries += std::fs::read_dir(dir)?.try_fold(0, |n, entry| entry.map(|_| n + 1))?;
            }
            Ok(entries)
        })?;
        self.timed("rename", Unit::PerSecond, || {
            names.iter().zip(&renamed).try_for_each(|(from, to)| std::fs::rename(from, to))?;
            Ok(names.len() as u64)
        })?;
        self.timed("unlink", Unit::PerSecond, || {
            renamed.iter().try_for_each(std::fs::remove_file)?;
            Ok(renamed.len() as u64)
        })?;
        dirs.iter().try_for_each(std::fs::remove_dir)
    }

    /// Makes many names of each kind, and measures the memory of each.
    fn ram(&mut self) -> io::Result<()> {
        let empty = |name: &Path| File::create_new(name).map(drop);
        let small = |name: &Path| {
            let mut file = File::create_new(name)?;
            file.write_all(&[0x5a; 1024])?;
            file.sync_all()
        };
        let directory = |name: &Path| std::fs::create_dir(name);
        let makers: [Maker<'_>; 3] = [&empty, &directory, &small];
        for (row, make) in RAM.into_iter().zip(makers) {
            let top = self.dir.join("ram");
            std::fs::create_dir(&top)?;
            let before = self.memory.now()?;
            for n in 0..self.amounts.files {
                let dir = top.join((n / FAN).to_string());
                if n % FAN == 0 {
                    std::fs::create_dir(&dir)?;
                }
                make(&dir.join(n.to_string()))?;
            }
            let grown = self.memory.now()? as f64 - before as f64;
            let each = grown / self.amounts.files as f64;
            self.out.push(Measure::new(row, Unit::Bytes, Value::Number(each.max(0.0))));
            std::fs::remove_dir_all(&top)?;
            // Freed memory goes back after a while; before that, the next row would use it.
            std::thread::sleep(if self.is_ours { Duration::from_secs(4) } else { Duration::ZERO });
        }
        Ok(())
    }

    fn fsyncs(&mut self) -> io::Result<()> {
        let dir = self.dir.join("fsync");
        std::fs::create_dir(&dir)?;
        let names: Vec<PathBuf> =
            (0..(self.amounts.files / 4).max(1)).map(|n| dir.join(n.to_string())).collect();
        let page = [0x5a; PAGE];
        self.timed(FSYNC, Unit::PerSecond, || {
            for name in &names {
                let mut file = File::options().write(true).create_new(true).open(name)?;
                file.write_all(&page)?;
                file.sync_all()?;
            }
            Ok(names.len() as u64)
        })?;
        std::fs::remove_dir_all(&dir)
    }

    fn data(&mut self) -> io::Result<()> {
        let path = self.dir.join("data");
        let blocks = self.amounts.data / BLOCK as u64;
        let mut block = vec![0x5a; BLOCK];
        self.timed("seq write", Unit::MibPerSecond, || {
            let mut file = File::options().write(true).create_new(true).open(&path)?;
            (0..blocks).try_for_each(|_| file.write_all(&block))?;
            drop(file);
            Ok(blocks)
        })?;
        let file = File::options().read(true).write(true).open(&path)?;
        let mut read_all = || {
            (0..blocks).try_for_each(|n| file.read_exact_at(&mut block, n * BLOCK as u64)).map(|()| blocks)
        };
        read_all()?;
        let passes = HOT_BYTES.div_ceil(self.amounts.data);
        self.timed("hot seq read", Unit::MibPerSecond, || {
            (0..passes).try_fold(0, |n, _| Ok(n + read_all()?))
        })?;
        let pages = self.amounts.data / PAGE as u64;
        let operations = self.amounts.random;
        let mut page = [0x5a; PAGE];
        let mut rng = Rng::new(1);
        self.timed("rand 4K read", Unit::PerSecond, || {
            (0..operations)
                .try_for_each(|_| file.read_exact_at(&mut page, rng.below(pages) * PAGE as u64))?;
            Ok(operations)
        })?;
        self.timed("rand 4K write", Unit::PerSecond, || {
            (0..operations).try_for_each(|_| file.write_all_at(&page, rng.below(pages) * PAGE as u64))?;
            Ok(operations)
        })?;
        drop(file);
        std::fs::remove_file(&path)
    }
}

/// The name of the row with a row's round trips.
fn trips(row: &str) -> String {
    format!("{row}, trips")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_rate_and_its_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let report = Report::open("mount", true, None, &[]);
        let amounts = Amounts { files: 2 * FAN + 1, data: 2 * MIB, random: 10 };
        let run = Run {
            dir: dir.path(),
            report: &report,
            amounts,
            reads: Reads(None),
            memory: Memory(None),
            is_ours: false,
            out: Vec::new(),
        };
        let measured = run.all().unwrap();
        for row in METADATA.iter().chain(&DATA).chain([&FSYNC]) {
            let rate = measured.iter().find(|m| m.row == *row).unwrap();
            assert!(matches!(rate.value, Value::Number(n) if n > 0.0), "{rate:?}");
            let round_trips = measured.iter().find(|m| m.row == trips(row)).unwrap();
            assert_eq!(round_trips.value, Value::Number(0.0), "the kernel's tmpfs asks nobody");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it cleans up");
    }
}
