//! `bench database`: programs that call fsync all the time, on databases three times the memory of overspill: pgbench
//! (TPC-B) on PostgreSQL, and four writers of SQLite.
//!
//! Database, clients and daemon share the memory group; the unlimited tmpfs is in none.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::common::{Common, DiskArg};
use crate::report::{Measure, Report, Unit, Value};
use crate::tools::{self, During as _, MIB, Outcome, Size, run, run_for};
use crate::turns::Turns;
use crate::undo;
use crate::worlds::{self, Disk, Kind, Setup, World, as_user};

/// Arguments of `bench database`.
#[derive(Debug, clap::Args)]
pub(crate) struct DatabaseArgs {
    #[command(flatten)]
    common: Common,
    /// The disk that stores and ext4 are on
    #[arg(long, value_enum, default_value = "fast")]
    disk: DiskArg,
    /// Limit of the memory group
    #[arg(long, value_name = "SIZE", default_value = "512m")]
    cgroup: Size,
    /// Memory of ours, within the group; the databases are three times that
    #[arg(long, value_name = "SIZE", default_value = "128m")]
    memory: Size,
    /// Seconds for which each database is measured
    #[arg(long, default_value_t = 15)]
    seconds: u32,
}

const RIVALS: [Kind; 2] = [Kind::Ext4, Kind::Tmpfs];

/// MiB of a pgbench database of scale 1.
const MIB_OF_SCALE: u64 = 15;

/// Clients of each database.
const CLIENTS: u32 = 4;

const PGBENCH: &str = "pgbench, 4 clients";
const SQLITE: &str = "sqlite, 4 writers";

fn goal(rival: Kind, row: &str) -> Option<f64> {
    match rival {
        Kind::Ext4 if row != "OOM kills" => Some(3.0),
        Kind::Tmpfs if row != "OOM kills" => Some(0.7),
        _ => None,
    }
}

/// Runs the bench.
pub(crate) fn run_all(args: &DatabaseArgs) -> Outcome<()> {
    let common = &args.common;
    let postgres = Postgres::find();
    let postgres = postgres.as_ref();
    let program = tools::program(common.program.as_deref())?;
    let size = |bytes: u64| Size(bytes).to_string();
    let parameters = [
        ("overspill", tools::first_line(&program.to_string_lossy(), &["--version"]).unwrap_or_default()),
        ("PostgreSQL", postgres.map_or_else(|| "not found".into(), |p| p.version.clone())),
        ("SQLite", tools::first_line("sqlite3", &["--version"]).unwrap_or_else(|| "not found".into())),
        ("runs", format!("{}, in turn; medians", common.runs)),
        ("memory group", format!("{}, databases and daemon together; tmpfs: no limit", size(args.cgroup.0))),
        ("memory of ours", size(args.memory.0)),
        ("databases", format!("{} each", size(3 * args.memory.0))),
        ("PostgreSQL's settings", "shared_buffers 32 MB, max_wal_size 128 MB, the rest as it comes".into()),
        (
            "SQLite's settings",
            "WAL, synchronous=FULL; rows of 1 KiB, a random one updated a transaction".into(),
        ),
        ("seconds", args.seconds.to_string()),
    ];
    let mut report = Report::open("database", common.json, common.row.as_deref(), &parameters);
    if let Some(why) = Cgroup::unavailable() {
        report.skip("all", &why);
        return Ok(());
    }
    if postgres.is_none() {
        report.skip(PGBENCH, "no PostgreSQL here: apt-get install postgresql");
    }
    if tools::in_path("sqlite3").is_none() {
        report.skip(SQLITE, "no sqlite3 here: apt-get install sqlite3");
    }
    let (base, guards) = worlds::base(&common.dir())?;
    let turns = Turns::take("database", common, &RIVALS, |kind| {
        let group = Cgroup::make(Some(args.cgroup.0))?;
        let limited = (kind != Kind::Tmpfs).then_some(&group);
        let setup = Setup {
            base: &base,
            program: &program,
            size: 12 * args.memory.0,
            memory: args.memory.0,
            disk: if args.disk == DiskArg::Fast { Disk::Directory } else { args.disk.on_loop() },
            cgroup: limited,
            user: None,
        };
        let world = World::make(kind, &setup)?;
        let mut out = Vec::new();
        if let Some(postgres) = postgres.filter(|_| report.wants(PGBENCH)) {
            let rate = postgres.bench(&world.dir, limited, args)?;
            out.push(Measure::new(PGBENCH, Unit::PerSecond, Value::Number(rate)));
        }
        if tools::in_path("sqlite3").is_some() && report.wants(SQLITE) {
            let rate = sqlite(&world.dir, limited, args)?;
            out.push(Measure::new(SQLITE, Unit::PerSecond, Value::Number(rate)));
        }
        out.push(Measure::worst("OOM kills", Unit::Count, Value::Number(group.oom_kills() as f64)));
        world.end();
        Ok(out)
    })?;
    turns.report(&mut report, goal);
    report.close();
    drop(guards);
    Ok(())
}

/// An installed PostgreSQL.
struct Postgres {
    bin: PathBuf,
    version: String,
}

impl Postgres {
    /// Finds the newest that is installed.
    fn find() -> Option<Postgres> {
        let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut places: Vec<PathBuf> = installed.map(|entry| entry.path().join("bin")).collect();
        places.sort();
        places.extend(tools::in_path("pg_ctl").and_then(|path| Some(path.parent()?.to_path_buf())));
        let bin = places.into_iter().rfind(|bin| bin.join("initdb").exists())?;
        let version = tools::first_line(&bin.join("postgres").to_string_lossy(), &["--version"])?;
        Some(Postgres { bin, version })
    }

    /// A command for one of its programs; root must become another user to run them.
    fn command(&self, group: Option<&Cgroup>, name: &str) -> Outcome<Command> {
        let user = tools::is_root().then_some("postgres");
        let program = if self.bin.join(name).exists() { self.bin.join(name) } else { name.into() };
        as_user(user, group, &program)
    }

    /// Runs pgbench; returns transactions per second.
    fn bench(&self, dir: &Path, group: Option<&Cgroup>, args: &DatabaseArgs) -> Outcome<f64> {
        let data = dir.join("postgres");
        std::fs::create_dir(&data).during(data.display())?;
        if tools::is_root() {
            run(Command::new("chown").arg("postgres").arg(&data))?;
        }
        // The sockets do not lie with the data: their paths must be short.
        let sockets = tempfile::tempdir().during("a directory for sockets")?;
        if tools::is_root() {
            run(Command::new("chown").arg("postgres").arg(sockets.path()))?;
        }
        run_for(
            self.command(group, "initdb")?.args(["--no-sync", "-D"]).arg(&data),
            Duration::from_secs(300),
        )?;
        let settings = format!(
            "unix_socket_directories='{}'\nlisten_addresses=''\nshared_buffers=32MB\nmax_wal_size=128MB\n",
            sockets.path().display()
        );
        let conf = data.join("postgresql.conf");
        let mut all = std::fs::read_to_string(&conf).during(conf.display())?;
        all.push_str(&settings);
        std::fs::write(&conf, all).during(conf.display())?;
        let log = sockets.path().join("log");
        let mut start = self.command(group, "pg_ctl")?;
        start.args(["-w", "start", "-D"]).arg(&data).arg("-l").arg(&log);
        let mut stop = self.command(None, "pg_ctl")?;
        stop.args(["-m", "fast", "-w", "stop", "-D"]).arg(&data);
        let ((), server) = undo::make(|| {
            if let Err(why) = run(&mut start) {
                let _ = run(&mut stop);
                return Err(why);
            }
            Ok(((), Box::new(move || run(&mut stop).map(drop))))
        })?;
        let client = |name: &str| -> Outcome<Command> {
            let mut command = self.command(group, name)?;
            command.arg("-h").arg(sockets.path());
            Ok(command)
        };
        run(client("createdb")?.arg("bench"))?;
        let scale = (3 * args.memory.0 / MIB / MIB_OF_SCALE).max(1).to_string();
        run_for(client("pgbench")?.args(["-i", "-q", "-s", &scale, "bench"]), Duration::from_secs(1200))?;
        let clients = CLIENTS.to_string();
        let seconds = args.seconds.to_string();
        let said = run_for(
            client("pgbench")?.args(["-c", &clients, "-j", "2", "-T", &seconds, "bench"]),
            Duration::from_secs(u64::from(args.seconds) + 600),
        )?;
        drop(server);
        std::fs::remove_dir_all(&data).during(data.display())?;
        rate_of(&said).ok_or_else(|| format!("pgbench said no rate: {said}"))
    }
}

/// Transactions per second in the output of pgbench.
fn rate_of(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split(' ').next()?.parse().ok()
}

/// Commits per second of four writers, each a process of its own.
fn sqlite(dir: &Path, group: Option<&Cgroup>, args: &DatabaseArgs) -> Outcome<f64> {
    let file = dir.join("sqlite.db");
    let rows = 3 * args.memory.0 / 1100;
    let fill = format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO t SELECT i, randomblob(400) || zeroblob(624) FROM n; PRAGMA wal_checkpoint(TRUNCATE);"
    );
    let sqlite = Path::new("sqlite3");
    run_for(as_user(None, group, sqlite)?.arg(&file).arg(fill), Duration::from_secs(1200))?;
    // Each writer runs transactions until its time is over, and prints their number.
    let script = format!(
        "end=$(( $(date +%s) + {seconds} )); n=0; \
         while [ $(date +%s) -lt $end ]; do \
           {{ echo '.timeout 60000'; echo 'PRAGMA synchronous=FULL;'; i=0; \
             while [ $i -lt 200 ]; do \
               echo 'UPDATE t SET v = randomblob(400) || zeroblob(624) WHERE id = 1 + abs(random()) % {rows};'; \
               i=$((i+1)); done; }} | sqlite3 '{file}' || exit 1; \
           n=$((n+200)); done; echo $n",
        seconds = args.seconds,
        file = file.display(),
    );
    let begun = Instant::now();
    let writers: Vec<Outcome<String>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut shell = as_user(None, group, Path::new("sh"))?;
                    run_for(shell.args(["-c", &script]), Duration::from_secs(u64::from(args.seconds) + 600))
                })
            })
            .collect();
        writers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err("a writer panicked".into()))).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let mut commits = 0.0;
    for said in writers {
        let said = said?;
        commits += said.trim().parse::<f64>().during(format!("what a writer said ({said})"))?;
    }
    let whole = run_for(
        as_user(None, group, sqlite)?.arg(&file).arg("PRAGMA integrity_check; SELECT count(*) FROM t;"),
        Duration::from_secs(1200),
    )?;
    if whole.split_whitespace().collect::<Vec<_>>() != ["ok", &rows.to_string()] {
        return Err(format!("the database is damaged: {whole}"));
    }
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.join(format!("sqlite.db{end}")));
    }
    Ok(commits / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found_in_what_pgbench_says() {
        let said =
            "pgbench (15.1)\nlatency average = 2.5 ms\ntps = 1560.25 (without initial connection time)\n";
        assert_eq!(rate_of(said), Some(1560.25));
        assert_eq!(rate_of("tps"), None);
    }
}
