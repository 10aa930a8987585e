//! `bench slab`: the slab allocator against glibc's, jemalloc, mimalloc and snmalloc, and against the historical zone
//! allocator (R50, R73).
//!
//! Each allocator runs all rows in a process of its own, of the package `bench/rivals`, which is built
//! separately; the processes run in turn. "Best" is the best of today's four in a row, with its name in the note.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::common::Common;
use crate::report::{Measure, Report, Unit, Value, interleave, summarise};
use crate::tools::{self, Outcome};

/// Arguments of `bench slab`.
#[derive(Debug, clap::Args)]
pub(crate) struct SlabArgs {
    #[command(flatten)]
    common: Common,
}

/// An allocator, by the name that the benches' program knows, with the settings of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ours,
    /// One magazine per thread instead of per CPU.
    PerThread,
    /// No magazines.
    Plain,
    /// The objects of each slab begin at another offset.
    Coloured,
    Glibc,
    Jemalloc,
    Mimalloc,
    Snmalloc,
    Zone,
}

impl Who {
    const ALL: [Who; 9] = [
        Self::Ours,
        Self::PerThread,
        Self::Plain,
        Self::Coloured,
        Self::Glibc,
        Self::Jemalloc,
        Self::Mimalloc,
        Self::Snmalloc,
        Self::Zone,
    ];
    /// The allocators that the goals compare with.
    const TODAY: [Who; 4] = [Self::Glibc, Self::Jemalloc, Self::Mimalloc, Self::Snmalloc];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::PerThread => "per thread",
            Self::Plain => "no magazines",
            Self::Coloured => "coloured",
            Self::Glibc => "glibc",
            Self::Jemalloc => "jemalloc",
            Self::Mimalloc => "mimalloc",
            Self::Snmalloc => "snmalloc",
            Self::Zone => "zone",
        }
    }

    fn run(self, program: &PathBuf, rows: &[String]) -> Outcome<Vec<Measure>> {
        let (name, mode) = match self {
            Self::Ours => ("ours", None),
            Self::PerThread => ("ours", Some("thread")),
            Self::Plain => ("ours-plain", None),
            Self::Coloured => ("ours-coloured", None),
            other => (other.name(), None),
        };
        let mut command = Command::new(program);
        command.arg(name).args(rows);
        if let Some(mode) = mode {
            command.env("OVERSPILL_SLAB_CPU", mode);
        }
        let said = tools::run_for(&mut command, Duration::from_secs(600))?;
        said.lines().map(|line| measure(line).ok_or_else(|| format!("not a result: {line}"))).collect()
    }
}

/// Parses a line `row<TAB>unit<TAB>value`.
fn measure(line: &str) -> Option<Measure> {
    let mut fields = line.split('\t');
    let (row, unit, value) = (fields.next()?, fields.next()?, fields.next()?);
    let unit = match unit {
        "ns" => Unit::Nanos,
        "op/s" => Unit::PerSecond,
        "ratio" => Unit::Ratio,
        "times" => Unit::Times,
        _ => return None,
    };
    Some(Measure::new(row, unit, Value::Number(value.parse().ok()?)))
}

/// The ratio to the best of today's allocators that a row must reach.
fn goal(row: &str) -> Option<f64> {
    match row {
        "constructed 256 B pair" => Some(2.0),
        "resident/live after 90% freed, 256 B" => Some(1.18),
        "resident/live after 90% freed, 1024 B" => Some(2.0),
        "freed by another thread" => Some(1.0),
        _ if row.starts_with("pair, ") || row.starts_with("1000 then all, ") => Some(1.0),
        _ => None,
    }
}

/// Limits for overspill alone. The unit says on which side of its limit a row must stay.
const LIMITS: [(&str, Unit, f64); 3] = [
    ("threads, two over one", Unit::Times, 1.8),
    ("free, 10 M live over 10 k", Unit::Ratio, 1.2),
    ("alloc p99, purging over quiet", Unit::Ratio, 2.0),
];

/// The best measure of each row, with the allocator's name.
fn best(of: &[(Who, Vec<Measure>)]) -> Vec<Measure> {
    let mut best: Vec<Measure> = Vec::new();
    for (who, measures) in of {
        for measure in measures {
            let noted = measure.clone().noted(who.name());
            match best.iter_mut().find(|b| b.row == measure.row) {
                None => best.push(noted),
                Some(b) if measure.is_better_than(b) => *b = noted,
                Some(_) => {}
            }
        }
    }
    best
}

fn program() -> Outcome<PathBuf> {
    eprintln!("bench slab: building the rivals");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = tools::workspace().join("target/rivals");
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--release", "--manifest-path", "bench/rivals/Cargo.toml"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(tools::workspace());
    tools::run_for(&mut build, Duration::from_secs(3600))?;
    Ok(target.join("release/overspill-slab-rivals"))
}

fn parameters(common: &Common) -> Vec<(&'static str, String)> {
    let versions =
        "glibc of the system; tikv-jemalloc-sys, libmimalloc-sys, snmalloc-sys as in benches/Cargo.lock";
    vec![
        ("runs", format!("{} processes each, in turn, medians", common.runs)),
        ("rivals", versions.into()),
        ("pair", "allocate, write a byte, free; 200,000 times, least of 60 rounds; constructed: one field written and put back".into()),
        ("1000 then all", "1,000 allocated and written to, then freed in that order; per object".into()),
        ("resident/live", "128 MiB allocated, nine in ten freed at random, purge; growth of Rss over bytes live".into()),
        ("free, live", "64 B objects; 1,000 random ones freed, then allocated again; time of the frees, median of 200".into()),
        ("threads", "1,000 objects of 256 B a thread, random ones replaced, 0.7 s; handed over: a ring of 1,024".into()),
        ("alloc p99", "256 B, 500 allocated then freed, with the clock's own time in it; purging: every millisecond".into()),
        ("limit", "what is wanted of ours alone".into()),
    ]
}

/// Runs the bench.
pub(crate) fn run(args: &SlabArgs) -> Outcome<()> {
    let common = &args.common;
    let program = program()?;
    let mut report = Report::open("slab", common.json, common.row.as_deref(), &parameters(common));
    let rows: Vec<String> = common.row.iter().cloned().collect();
    let wanted = |who: &Who| {
        *who == Who::Ours || common.rival.as_ref().is_none_or(|r| who.name().contains(r.as_str()))
    };
    let all: Vec<Who> = Who::ALL.into_iter().filter(wanted).collect();
    let results = interleave(common.runs, &all, |who, number| {
        eprintln!("bench slab: run {} of {}: {}", number + 1, common.runs, who.name());
        who.run(&program, &rows)
    })?;
    let of = |who: Who| all.iter().position(|w| *w == who).map(|i| &results[i][..]);
    let ours = of(Who::Ours).unwrap_or_default();
    let today: Vec<(Who, Vec<Measure>)> =
        Who::TODAY.into_iter().filter_map(|who| Some((who, summarise(of(who)?)))).collect();
    if !today.is_empty() {
        report.compare(ours, "best", &[best(&today)], goal);
    }
    for who in all.iter().skip(1) {
        report.compare(ours, who.name(), of(*who).unwrap_or_default(), |_| None);
    }
    let limits = LIMITS.map(|(row, unit, limit)| Measure::new(row, unit, Value::Number(limit)));
    let limited = |row: &str| LIMITS.iter().any(|(name, ..)| *name == row);
    let ours_limited: Vec<Vec<Measure>> =
        ours.iter().map(|run| run.iter().filter(|m| limited(&m.row)).cloned().collect()).collect();
    report.compare(&ours_limited, "limit", &[limits.to_vec()], |_| Some(1.0));
    report.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_best_of_each_row() {
        let rate = |n| Measure::new("rate", Unit::PerSecond, Value::Number(n));
        let time = |n| Measure::new("time", Unit::Nanos, Value::Number(n));
        let best =
            best(&[(Who::Glibc, vec![rate(1.0), time(1.0)]), (Who::Snmalloc, vec![rate(2.0), time(2.0)])]);
        assert_eq!(best, [rate(2.0).noted("snmalloc"), time(1.0).noted("glibc")]);
    }

    #[test]
    fn results_are_understood_and_others_refused() {
        assert_eq!(measure("a, b\tns\t1.5"), Some(Measure::new("a, b", Unit::Nanos, Value::Number(1.5))));
        for line in ["", "a", "a\tns", "a\tns\tx", "a\tmiles\t1"] {
            assert_eq!(measure(line), None, "{line:?}");
        }
    }
}
