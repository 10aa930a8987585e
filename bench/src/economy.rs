//! `bench economy`: how much data overspill holds in its memory before it writes to the disk, and the cost of that:
//! against limits that it must keep, and against the kernel's tmpfs for the system's memory.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::common::Common;
use crate::data::{self, Rng};
use crate::report::{Measure, Report, Unit, Value, interleave};
use crate::tools::{self, During as _, GIB, MIB, Outcome, Size};
use crate::worlds::{self, Disk, Kind, Setup, World};

/// Arguments of `bench economy`.
#[derive(Debug, clap::Args)]
pub(crate) struct EconomyArgs {
    #[command(flatten)]
    common: Common,
    /// Memory of ours
    #[arg(long, value_name = "SIZE", default_value = "128m")]
    memory: Size,
}

/// Directories of real data: source text, and binaries.
const SOURCE: [&str; 2] = ["/usr/include", "/usr/share"];
const BINARIES: [&str; 2] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib"];

/// Row, unit, and limit for overspill alone.
const LIMITS: [(&str, Unit, f64); 8] = [
    ("held a byte of budget, source text", Unit::Times, 3.0),
    ("held a byte of budget, source text, slowly", Unit::Times, 3.0),
    ("held a byte of budget, binaries", Unit::Times, 2.0),
    ("held a byte of budget, binaries, slowly", Unit::Times, 2.0),
    ("metadata per GiB, written once", Unit::Mib, 3.0),
    ("dead share of the store, at once", Unit::Ratio, 0.1),
    ("dead share of the store, after 30 s", Unit::Ratio, 0.1),
    ("peak RSS over budget", Unit::Mib, 8.0),
];

/// Bytes per write.
const BUF: usize = 1 << 20;

/// Bytes that a world can hold.
const WORLD: u64 = 4 * GIB;

/// Bytes per second of a slow writer, which leaves time to pack again.
const SLOWLY: u64 = 12 * MIB;

const SYSTEM_MEMORY: &str = "system memory per byte held";
const COPIED: &str = "bytes copied per byte served";

/// Runs the bench.
pub(crate) fn run(args: &EconomyArgs) -> Outcome<()> {
    let common = &args.common;
    let program = tools::program(common.program.as_deref())?;
    let parameters = [
        ("overspill", tools::first_line(&program.to_string_lossy(), &["--version"]).unwrap_or_default()),
        ("runs", format!("{}, in turn; medians", common.runs)),
        ("memory of ours", Size(args.memory.0).to_string()),
        ("held", "real files of this machine, one after the other, until the store is written to".into()),
        ("slowly", format!("{} a second: idle cores pack again", Size(SLOWLY))),
        ("metadata", format!("a GiB of {} written once through a quarter of the memory", data::DESCRIPTION)),
        ("dead", "of a quarter of a GiB, ten times as much written at random places".into()),
        (
            SYSTEM_MEMORY,
            "of the memory group of daemon and writer, its caches dropped; source text, as much as the budget".into(),
        ),
        ("limit", "what is wanted of ours alone".into()),
    ];
    let mut report = Report::open("economy", common.json, common.row.as_deref(), &parameters);
    let (base, guards) = worlds::base(&common.dir())?;
    let bench = Bench { memory: args.memory.0, base: &base, program: &program, report: &report };
    let results = interleave(common.runs, &[Kind::Ours, Kind::Tmpfs], |kind, number| {
        eprintln!("bench economy: run {} of {}: {}", number + 1, common.runs, kind.name());
        if *kind == Kind::Ours {
            bench.ours()
        } else {
            Ok(bench.system_memory(Kind::Tmpfs)?.into_iter().collect())
        }
    })?;
    let limits = LIMITS.map(|(row, unit, limit)| Measure::new(row, unit, Value::Number(limit)));
    let of = |limited: bool| -> Vec<Vec<Measure>> {
        let wanted = |m: &&Measure| LIMITS.iter().any(|(row, ..)| *row == m.row) == limited;
        results[0].iter().map(|run| run.iter().filter(wanted).cloned().collect()).collect()
    };
    report.compare(&of(true), "limit", &[limits.to_vec()], |_| Some(1.0));
    report.compare(&of(false), Kind::Tmpfs.name(), &results[1], |_| None);
    report.close();
    drop(guards);
    Ok(())
}

struct Bench<'a> {
    memory: u64,
    base: &'a Path,
    program: &'a Path,
    report: &'a Report,
}

impl Bench<'_> {
    fn world(&self, kind: Kind, memory: u64, cgroup: Option<&Cgroup>) -> Outcome<World> {
        World::make(
            kind,
            &Setup {
                base: self.base,
                program: self.program,
                size: WORLD,
                memory,
                disk: Disk::Directory,
                cgroup,
                user: None,
            },
        )
    }

    fn ours(&self) -> Outcome<Vec<Measure>> {
        let mut out = Vec::new();
        for (name, places) in [("source text", &SOURCE[..]), ("binaries", &BINARIES[..])] {
            for slowly in [false, true] {
                let row = format!("held a byte of budget, {name}{}", if slowly { ", slowly" } else { "" });
                if self.report.wants(&row) {
                    out.push(self.held(row, places, slowly)?);
                }
            }
        }
        let rows: Vec<&str> = LIMITS.iter().skip(4).map(|(row, ..)| *row).chain([COPIED]).collect();
        if rows.into_iter().any(|row| self.report.wants(row)) {
            out.extend(self.store()?);
        }
        out.extend(self.system_memory(Kind::Ours)?);
        Ok(out)
    }

    fn stat(&self, world: &World, name: &str) -> Outcome<u64> {
        let stats = world.ask(self.program, "stats").ok_or("the mount does not answer")?;
        stats[name].as_u64().ok_or_else(|| format!("stats have no {name}"))
    }

    /// Measures how much is held before the store is written to.
    fn held(&self, row: String, places: &[&str], slowly: bool) -> Outcome<Measure> {
        let world = self.world(Kind::Ours, self.memory, None)?;
        let mut source = Real::new(places);
        let mut file = File::create(world.dir.join("f")).during("a file on ours")?;
        let mut buf = vec![0; BUF];
        let (mut held, begun) = (0, Instant::now());
        while held < (16 * self.memory).min(WORLD - WORLD / 16) {
            source.fill(&mut buf)?;
            file.write_all(&buf).during("writing to ours")?;
            held += MIB;
            if held.is_multiple_of(2 * MIB) {
                file.sync_data().during("fsync")?;
                if self.stat(&world, "store_writes")? > 0 {
                    break;
                }
            }
            if slowly {
                let due = Duration::from_secs_f64(held as f64 / SLOWLY as f64);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
        let peak = world.daemon_peak().unwrap_or(0) / MIB;
        world.end();
        let times = held as f64 / self.memory as f64;
        Ok(Measure::new(row, Unit::Times, Value::Number(times)).noted(format!("VmHWM {peak} MiB")))
    }

    /// Measures the records that locate pages, and the dead share of the store.
    fn store(&self) -> Outcome<Vec<Measure>> {
        let memory = (self.memory / 4).max(64 * MIB);
        let number = |row, unit, value| Measure::new(row, unit, Value::Number(value));
        let world = self.world(Kind::Ours, memory, None)?;
        let file = File::options().read(true).write(true).create_new(true).open(world.dir.join("f"));
        let file = file.during("a file on ours")?;
        write_all(&file, GIB)?;
        let metadata = world.metadata(self.program).ok_or("no slabinfo")?;
        let mut out = vec![number("metadata per GiB, written once", Unit::Mib, metadata as f64 / MIB as f64)];
        file.set_len(0).during("truncating")?;
        write_all(&file, GIB / 4)?;
        let (mut rng, pages) = (Rng::new(1), GIB / 4 / 4096);
        let mut page = vec![0; 4096];
        for _ in 0..10 * pages {
            let at = rng.below(pages);
            data::fill(&mut page, at, rng.next());
            file.write_all_at(&page, at * 4096).during("writing to ours")?;
        }
        file.sync_all().during("fsync")?;
        let dead = || -> Outcome<f64> {
            let all = self.stat(&world, "stored_bytes")?.max(1);
            Ok(1.0 - self.stat(&world, "stored_live_bytes")? as f64 / all as f64)
        };
        out.push(number("dead share of the store, at once", Unit::Ratio, dead()?));
        std::thread::sleep(Duration::from_secs(30));
        out.push(number("dead share of the store, after 30 s", Unit::Ratio, dead()?));
        let mut all = vec![0; BUF];
        for at in 0..GIB / 4 / MIB {
            file.read_exact_at(&mut all, at * MIB).during("reading back")?;
            if let Some(wrong) = data::wrong(&all, at * MIB / 4096) {
                return Err(format!("page {wrong} is not what was written"));
            }
        }
        let over = world.daemon_peak().unwrap_or(0).saturating_sub(memory);
        out.push(number("peak RSS over budget", Unit::Mib, over as f64 / MIB as f64));
        let (copied, served) = (self.stat(&world, "copied_bytes")?, self.stat(&world, "served_bytes")?);
        out.push(number(COPIED, Unit::Ratio, copied as f64 / served.max(1) as f64));
        drop(file);
        world.end();
        Ok(out)
    }

    /// Memory that the group of daemon and writer holds per byte of data, once its caches are dropped.
    fn system_memory(&self, kind: Kind) -> Outcome<Option<Measure>> {
        if !self.report.wants(SYSTEM_MEMORY) || !tools::is_root() || Cgroup::unavailable().is_some() {
            return Ok(None);
        }
        let data = self.base.join("data");
        let guard = worlds::file(&data, 0)?;
        let (mut source, mut file) = (Real::new(&SOURCE), File::create(&data).during(data.display())?);
        let mut buf = vec![0; BUF];
        for _ in 0..self.memory / MIB {
            source.fill(&mut buf)?;
            file.write_all(&buf).during(data.display())?;
        }
        drop(file);
        let group = Cgroup::make(None)?;
        let world = self.world(kind, self.memory, Some(&group))?;
        tools::run(group.command(Path::new("cp"))?.arg(&data).arg(&world.dir))?;
        let there = File::open(world.dir.join("data")).during("what was copied")?;
        there.sync_all().during("fsync")?;
        drop(guard);
        std::fs::write("/proc/sys/vm/drop_caches", "3").during("drop_caches")?;
        let held = group.usage().ok_or("the group does not say what it holds")?;
        drop(there);
        world.end();
        Ok(Some(Measure::new(SYSTEM_MEMORY, Unit::Ratio, Value::Number(held as f64 / self.memory as f64))))
    }
}

/// Writes the bench's pages from the start of the file, then calls fsync.
fn write_all(file: &File, bytes: u64) -> Outcome<()> {
    let mut buf = vec![0; BUF];
    for at in 0..bytes / MIB {
        data::fill(&mut buf, at * MIB / 4096, at);
        file.write_all_at(&buf, at * MIB).during("writing to ours")?;
    }
    file.sync_all().during("fsync")
}

/// Reads real files one after the other, and starts again after the last.
struct Real {
    files: Vec<PathBuf>,
    next: usize,
    open: Option<File>,
}

impl Real {
    fn new(places: &[&str]) -> Real {
        let mut files = Vec::new();
        for place in places {
            collect(Path::new(place), &mut files);
        }
        Real { files, next: 0, open: None }
    }

    fn fill(&mut self, buf: &mut [u8]) -> Outcome<()> {
        let (mut done, mut tried) = (0, 0);
        while done < buf.len() {
            let n = self.open.as_mut().map_or(Ok(0), |file| file.read(&mut buf[done..])).unwrap_or(0);
            if n > 0 {
                (done, tried) = (done + n, 0);
                continue;
            }
            tried += 1;
            if tried > self.files.len() + 1 {
                return Err("this machine has no files to take real data from".into());
            }
            self.open = self.files.get(self.next).and_then(|path| File::open(path).ok());
            self.next = (self.next + 1) % self.files.len().max(1);
        }
        Ok(())
    }
}

/// Collects the source texts or binaries below a directory, in the order of their names.
fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
    let binary = dir.starts_with("/usr/lib");
    let mut entries: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&path, out),
            Ok(kind) if kind.is_file() => {
                let name = entry.file_name().to_string_lossy().into_owned();
                let wanted = if binary {
                    name.contains(".so") || name.ends_with(".a")
                } else {
                    [".h", ".c", ".hpp", ".py", ".pm", ".pl", ".txt", ".rs"]
                        .iter()
                        .any(|end| name.ends_with(end))
                };
                if wanted {
                    out.push(path);
                }
            }
            _ => {}
        }
    }
}
