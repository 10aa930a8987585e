//! Development commands. `cargo xtask help` lists them.

mod bench;
mod sim;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development commands of overspill")]
enum Command {
    /// Measure overspill against what the kernel offers.
    Bench(bench::BenchArgs),
    /// Run seeds of the deterministic simulation of VM and store.
    Sim(sim::SimArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Bench(args) => bench::run(&args),
        Command::Sim(args) => sim::run(&args),
    }
}
