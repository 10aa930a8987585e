//! `cargo xtask bench`: the costs and gains of overspill, against the means of the kernel.
//!
//! - `mount`: data within the memory, against the kernel's tmpfs, with the round trips that each operation costs.
//! - `spill`: data four times the memory, against tmpfs with swap and against ext4.
//! - `database`: PostgreSQL and SQLite beyond the memory, which call fsync all the time.
//! - `economy`: how much data overspill holds in its memory, and the cost of that.
//! - `build`: a real build with memory for half its tree.
//! - `slab`: the slab allocator, against glibc's, jemalloc, mimalloc and snmalloc.
//!
//! [`report`] is the output of every bench; [`worlds`] are the places they run in; [`undo`] leaves nothing behind.

mod build;
mod cgroup;
mod data;
mod database;
mod economy;
mod mount;
pub(crate) mod report;
mod slab;
mod spill;
pub(crate) mod tools;
pub(crate) mod undo;
mod workload;
pub(crate) mod worlds;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use report::{Measure, Report, interleave};
use tools::{During as _, Outcome};
use worlds::Kind;

/// `cargo xtask bench …`
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    which: Which,
}

#[derive(Debug, clap::Subcommand)]
enum Which {
    /// In budget, against the kernel's tmpfs
    Mount(mount::MountArgs),
    /// Over budget in a memory group, against tmpfs with swap and ext4
    Spill(spill::SpillArgs),
    /// Databases over budget, against ext4 and an unlimited tmpfs
    Database(database::DatabaseArgs),
    /// How much is held in memory, and at what cost
    Economy(economy::EconomyArgs),
    /// A build with memory for half its tree
    Build(build::BuildArgs),
    /// The slab allocator, against today's allocators
    Slab(slab::SlabArgs),
    /// Runs one phase, as a child of `spill`
    #[command(hide = true)]
    Workload(workload::WorkloadArgs),
    /// Runs a command in a memory group
    #[command(hide = true)]
    Within {
        group: PathBuf,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

/// The options of every bench.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Small sizes: a smoke test, no measurement
    #[arg(long)]
    quick: bool,
    /// How often everything is run, in turn; medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    row: Option<String>,
    /// Only rivals whose name contains this
    #[arg(long, value_name = "TEXT")]
    rival: Option<String>,
    /// Where stores, swap files and images go [default: target/bench, for build /var/tmp]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The overspill program [default: this workspace's release build, built first]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

impl Common {
    fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| tools::workspace().join("target/bench"))
    }

    fn wants_rival(&self, kind: Kind) -> bool {
        self.rival.as_ref().is_none_or(|text| kind.name().contains(text.as_str()))
    }
}

/// The disk that stores, swap files and ext4 are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DiskArg {
    /// As it is
    Fast,
    /// A loop device throttled to 125 MiB/s and 3,000 operations/s each way; the kernel lets swap's writes past that,
    /// and counts operations before it joins neighbours
    Cloud,
    /// The same below a second loop device: swap's writes are throttled too, neighbours are joined before they are
    /// counted, as a real volume does
    CloudQueued,
}

impl DiskArg {
    /// A description for the report.
    fn describe(self) -> &'static str {
        match self {
            Self::Fast => "not throttled",
            Self::Cloud => {
                "throttled to 125 MiB/s and 3000 operations/s each way, counted before neighbours are joined; \
                 the kernel lets swap's writes past this"
            }
            Self::CloudQueued => {
                "on a second loop device throttled to 125 MiB/s and 3000 operations/s each way, counted after \
                 neighbours are joined; for swap's writes too"
            }
        }
    }

    /// The loop device for this choice.
    fn on_loop(self) -> worlds::Disk {
        let throttle = (self != Self::Fast).then_some(cgroup::Throttle::CLOUD);
        worlds::Disk::Loop { throttle, queued: self == Self::CloudQueued }
    }
}

/// The results of worlds that ran in turn: the runs of each world, and the measures of each run.
struct Turns {
    kinds: Vec<Kind>,
    results: Vec<Vec<Vec<Measure>>>,
    skipped: Vec<(Kind, String)>,
}

impl Turns {
    /// Runs overspill and the wanted rivals in turn. A rival that is not available is left out from then on, and the
    /// reason is kept; without overspill there is no bench.
    fn take(
        bench: &str,
        common: &Common,
        rivals: &[Kind],
        mut run: impl FnMut(Kind) -> Outcome<Vec<Measure>>,
    ) -> Outcome<Self> {
        let mut kinds = vec![Kind::Ours];
        kinds.extend(rivals.iter().filter(|kind| common.wants_rival(**kind)));
        let mut skipped: Vec<(Kind, String)> = Vec::new();
        let results = interleave(common.runs, &kinds, |kind, number| {
            if skipped.iter().any(|(k, _)| k == kind) {
                return Ok(Vec::new());
            }
            eprintln!("bench {bench}: run {} of {}: {}", number + 1, common.runs, kind.name());
            match run(*kind) {
                Err(why) if *kind != Kind::Ours => {
                    skipped.push((*kind, why));
                    Ok(Vec::new())
                }
                measured => measured.during(kind.name()),
            }
        })?;
        Ok(Self { kinds, results, skipped })
    }

    /// The measures of overspill, run by run.
    fn ours(&self) -> &[Vec<Measure>] {
        &self.results[0]
    }

    /// Adds the results to the report.
    fn report(&self, report: &mut Report, goal: impl Fn(Kind, &str) -> Option<f64>) {
        for (kind, theirs) in self.kinds.iter().zip(&self.results).skip(1) {
            match self.skipped.iter().find(|(k, _)| k == kind) {
                Some((_, why)) => report.skip(kind.name(), why),
                None => report.compare(self.ours(), kind.name(), theirs, |row| goal(*kind, row)),
            }
        }
    }
}

/// Runs a bench. Rows that cannot run are reported as skipped; only unexpected failures are errors.
pub(crate) fn run(args: &BenchArgs) -> ExitCode {
    let outcome = match &args.which {
        Which::Mount(args) => prepared(|| mount::run(args)),
        Which::Spill(args) => prepared(|| spill::run(args)),
        Which::Database(args) => prepared(|| database::run_all(args)),
        Which::Economy(args) => prepared(|| economy::run(args)),
        Which::Build(args) => prepared(|| build::run(args)),
        Which::Slab(args) => slab::run(args),
        Which::Workload(args) => workload::work(args),
        Which::Within { group, command } => Err(cgroup::become_within(group, command)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepared(bench: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    undo::on_signals()?;
    bench()
}

#[cfg(test)]
mod tests {
    use super::*;
    use report::{Unit, Value};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        common: Common,
    }

    fn common(line: &[&str]) -> Common {
        use clap::Parser as _;
        Line::parse_from(std::iter::once(&"bench").chain(line)).common
    }

    #[test]
    fn a_rival_that_cannot_be_had_is_left_out_and_ours_is_needed() {
        let mut tried = Vec::new();
        let turns = Turns::take("test", &common(&["--runs", "2"]), &[Kind::TmpfsZram, Kind::Ext4], |kind| {
            tried.push(kind);
            let made = vec![Measure::new("row", Unit::Seconds, Value::Number(1.0))];
            if kind == Kind::TmpfsZram { Err("no zram".into()) } else { Ok(made) }
        });
        let turns = turns.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(tried, [Kind::Ours, Kind::TmpfsZram, Kind::Ext4, Kind::Ours, Kind::Ext4]);
        assert_eq!(turns.skipped, [(Kind::TmpfsZram, "no zram".to_owned())]);
        assert_eq!(turns.ours().len(), 2);
        let without = Turns::take("test", &common(&[]), &[], |_| Err("no fuse".into()));
        assert_eq!(without.err(), Some("ours: no fuse".into()));
    }

    #[test]
    fn rivals_are_chosen_by_name() {
        let mut tried = Vec::new();
        let line = common(&["--runs", "1", "--rival", "swap"]);
        let turns = Turns::take("test", &line, &[Kind::TmpfsSwap, Kind::Ext4], |kind| {
            tried.push(kind);
            Ok(Vec::new())
        });
        assert!(turns.is_ok());
        assert_eq!(tried, [Kind::Ours, Kind::TmpfsSwap]);
    }
}
