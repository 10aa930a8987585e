//! Development commands. `cargo xtask help` lists them.

mod sim;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development commands of overspill")]
enum Command {
    /// Run seeds of the deterministic simulation of VM and store.
    Sim(sim::SimArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Sim(args) => sim::run(&args),
    }
}
