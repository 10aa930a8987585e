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
mod common;
mod data;
mod database;
mod economy;
mod mount;
mod report;
mod slab;
mod spill;
mod tools;
mod turns;
mod undo;
mod workload;
mod worlds;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tools::Outcome;

#[derive(Debug, Parser)]
#[command(
    name = "bench",
    bin_name = "cargo xtask bench",
    about = "Measure overspill against what the kernel offers"
)]
enum Bench {
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

/// Runs a bench. Rows that cannot run are reported as skipped; only unexpected failures are errors.
fn main() -> ExitCode {
    let outcome = match &Bench::parse() {
        Bench::Mount(args) => prepared(|| mount::run(args)),
        Bench::Spill(args) => prepared(|| spill::run(args)),
        Bench::Database(args) => prepared(|| database::run_all(args)),
        Bench::Economy(args) => prepared(|| economy::run(args)),
        Bench::Build(args) => prepared(|| build::run(args)),
        Bench::Slab(args) => slab::run(args),
        Bench::Workload(args) => workload::work(args),
        Bench::Within { group, command } => Err(cgroup::become_within(group, command)),
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
