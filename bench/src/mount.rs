//! `bench mount`: all data within the memory, one process, plain system calls; overspill and the kernel's tmpfs in
//! turn.
//!
//! Round trips are counted by the daemon (`requests` in its statistics): requests of the kernel that want an answer.

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
/// Ratios to the kernel's tmpfs that are wanted, as root.
const GOALS: [(&str, f64); 12] = [
    ("create", 0.15),
    ("4K write+close", 0.30),
    ("unlink", 0.24),
    ("rename", 0.18),
    ("create+4K+fsync", 0.20),
    ("stat again", 0.80),
    ("open+close", 0.63),
    ("4K read+close", 0.77),
    ("seq write", 0.75),
    ("hot seq read", 1.0),
    ("rand 4K read", 0.9),
    ("rand 4K write", 0.12),
];

const METADATA: [&str; 9] = [
    "create",
    "stat",
    "stat again",
    "open+close",
    "4K write+close",
    "4K read+close",
    "readdir entry",
    "rename",
    "unlink",
];
/// Rows of memory per name.
const RAM: [&str; 3] = ["RAM per empty file", "RAM per directory", "RAM per 1 KiB file"];
const FSYNC: &str = "create+4K+fsync";
const DATA: [&str; 4] = ["seq write", "hot seq read", "rand 4K read", "rand 4K write"];
/// Small changes of one file, through write(2).
const SMALL: [&str; 3] = ["append 100 B", "append 4K", "overwrite 4K"];
/// Several clients at once.
const CLIENTS: [&str; 3] = ["create, 1 client", "create, 2 clients", "8 threads, mixed"];

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
    let turns = Turns::take("mount", common, &[Kind::Tmpfs, Kind::Writeback, Kind::Ext4], |kind| {
        let world = World::make(kind, &setup)?;
        let measured = Run::new(&world, &setup, &report, amounts).all().during(world.dir.display());
        world.end();
        measured
    })?;
    let goal = |row: &str| GOALS.iter().find(|(name, _)| is_root() && *name == row).map(|(_, goal)| *goal);
    turns.report(&mut report, |kind, row| (kind == Kind::Tmpfs).then(|| goal(row)).flatten());
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
        ("trips/op", "requests of the kernel that want an answer, counted by the daemon, per operation".into()),
        ("RAM per", "growth of the daemon's RSS and of the kernel's slabs and tmpfs pages, over the names made; the kernel's cache of ours is not counted".into()),
        ("goals", if is_root() { "to the kernel's tmpfs" } else { "none: they are root's" }.into()),
    ]
}

/// Counts the round trips to the daemon.
#[derive(Clone, Debug)]
struct Trips(Option<(PathBuf, PathBuf)>);

impl Trips {
    fn of(world: &World, program: &Path) -> Self {
        Self(world.daemon.map(|_| (program.to_owned(), world.dir.clone())))
    }

    /// The count by now; none for a rival, or a program that does not count.
    fn now(&self) -> Option<u64> {
        let (program, dir) = self.0.as_ref()?;
        let output = std::process::Command::new(program).args(["stats", "--json"]).arg(dir).output().ok()?;
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?["requests"].as_u64()
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
    trips: Trips,
    memory: Memory,
    is_ours: bool,
    out: Vec<Measure>,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, setup: &Setup<'_>, report: &'a Report, amounts: Amounts) -> Self {
        let is_ours = world.daemon.is_some();
        let trips = Trips::of(world, setup.program);
        let memory = Memory(world.daemon);
        Self { dir: &world.dir, report, amounts, trips, memory, is_ours, out: Vec::new() }
    }

    fn wants(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.report.wants(row) || self.report.wants(&trips(row)))
    }

    fn all(mut self) -> io::Result<Vec<Measure>> {
        self.warm_up()?;
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
        if self.wants(&SMALL) {
            self.small()?;
        }
        if self.wants(&CLIENTS) {
            self.clients()?;
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

    /// Times `work`, which returns the number of its operations.
    fn timed(&mut self, row: &str, unit: Unit, work: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        let before = self.trips.now();
        let start = Instant::now();
        let operations = work()? as f64;
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        self.out.push(Measure::new(row, unit, Value::Number(operations / seconds)));
        let round_trips = match (before, self.trips.now()) {
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
        self.timed("4K read+close", Unit::PerSecond, || {
            each(&|name| File::open(name)?.read_exact_at(&mut [0; PAGE], 0))
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

impl Run<'_> {
    /// Small changes of one file.
    fn small(&mut self) -> io::Result<()> {
        let path = self.dir.join("small");
        let count = self.amounts.files as u64;
        for (row, bytes) in [("append 100 B", 100), ("append 4K", PAGE)] {
            let mut file = File::options().append(true).create(true).open(&path)?;
            let part = vec![0x5a; bytes];
            self.timed(row, Unit::PerSecond, || {
                (0..count).try_for_each(|_| file.write_all(&part)).map(|()| count)
            })?;
        }
        let file = File::options().write(true).open(&path)?;
        self.timed("overwrite 4K", Unit::PerSecond, || {
            (0..count).try_for_each(|n| file.write_all_at(&[1; PAGE], n % 64 * PAGE as u64)).map(|()| count)
        })?;
        std::fs::remove_file(&path)
    }

    /// Several clients at once: the rate of all of them together.
    fn clients(&mut self) -> io::Result<()> {
        let count = self.amounts.files / 4;
        let create =
            |dir: &Path| (0..count).try_for_each(|n| File::create_new(dir.join(n.to_string())).map(drop));
        for (row, clients) in [("create, 1 client", 1), ("create, 2 clients", 2)] {
            let all = count as u64 * clients;
            self.timed_at_once(row, clients, all, &create)?;
        }
        let mixed = |dir: &Path| {
            (0..count / 4).try_for_each(|n| {
                let (name, moved) = (dir.join(n.to_string()), dir.join(format!("m{n}")));
                let mut file = File::create_new(&name)?;
                file.write_all(&[0x5a; PAGE])?;
                drop(file);
                std::fs::metadata(&name)?;
                File::open(&name)?.read_exact_at(&mut [0; PAGE], 0)?;
                std::fs::rename(&name, &moved)?;
                std::fs::remove_file(&moved)
            })
        };
        self.timed_at_once("8 threads, mixed", 8, count as u64 / 4 * 6 * 8, &mixed)
    }

    /// Times `work` in as many threads, each with a directory of its own.
    fn timed_at_once(
        &mut self,
        row: &str,
        threads: u64,
        operations: u64,
        work: &(dyn Fn(&Path) -> io::Result<()> + Sync),
    ) -> io::Result<()> {
        let dirs: Vec<PathBuf> = (0..threads).map(|n| self.dir.join(format!("client{n}"))).collect();
        dirs.iter().try_for_each(std::fs::create_dir)?;
        self.timed(row, Unit::PerSecond, || {
            std::thread::scope(|scope| {
                let all: Vec<_> = dirs.iter().map(|dir| scope.spawn(move || work(dir))).collect();
                let failed = || io::Error::other("a client panicked");
                all.into_iter().try_for_each(|one| one.join().map_err(|_| failed())?)
            })?;
            Ok(operations)
        })?;
        dirs.iter().try_for_each(std::fs::remove_dir_all)
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
            trips: Trips(None),
            memory: Memory(None),
            is_ours: false,
            out: Vec::new(),
        };
        let measured = run.all().unwrap();
        for row in METADATA.iter().chain(&DATA).chain(&SMALL).chain(&CLIENTS).chain([&FSYNC]) {
            let rate = measured.iter().find(|m| m.row == *row).unwrap();
            assert!(matches!(rate.value, Value::Number(n) if n > 0.0), "{rate:?}");
            let round_trips = measured.iter().find(|m| m.row == trips(row)).unwrap();
            assert_eq!(round_trips.value, Value::Number(0.0), "the kernel's tmpfs asks nobody");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it cleans up");
    }
}
