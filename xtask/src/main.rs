//! Development commands. `cargo xtask help` lists them.

mod check;
mod demo;
mod mutants;
mod policy;
mod run;
mod sim;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod tidy_graph;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development commands of overspill")]
enum Command {
    /// Run the crates with unsafe code under AddressSanitizer.
    Asan,
    /// Measure overspill against what the kernel offers.
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Check formatting, lints and documentation.
    Check,
    /// Check, test and simulate everything; installs what the tests need. What CI runs.
    Test,
    /// Copy a tree larger than the memory through a mount, compare it, show where every byte is.
    Demo(demo::DemoArgs),
    /// Plant faults in VM, stores and driver, and see that the tests find each.
    Mutants(mutants::MutantsArgs),
    /// Try policies of replacement on what mounts have logged.
    Policy(policy::PolicyArgs),
    /// Let clients of a fake kernel do everything at once to the server of a mount, for long.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        seconds: u64,
    },
    /// Run seeds of the deterministic simulation of VM and store.
    Sim(sim::SimArgs),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Bench { args } => bench(&args),
        Command::Asan => run::finish(check::asan()),
        Command::Check => run::finish(check::check()),
        Command::Test => run::finish(check::test()),
        Command::Demo(args) => run::finish(demo::demo(&args)),
        Command::Mutants(args) => run::finish(mutants::run(&args)),
        Command::Policy(args) => run::finish(policy::run(&args)),
        Command::Soak { seconds } => run::finish(check::soak(seconds)),
        Command::Sim(args) => run::finish(sim::simulate(&args)),
    }
}

/// Runs the package of benches, without a word of our own: its output may be read by programs.
fn bench(args: &[String]) -> ExitCode {
    let package = ["run", "--quiet", "--release", "--package", "overspill-bench", "--"];
    match run::command("cargo", &package).args(args).status() {
        Ok(status) => u8::try_from(status.code().unwrap_or(1)).unwrap_or(1).into(),
        Err(error) => run::finish(Err(format!("cargo cannot be started: {error}"))),
    }
}
