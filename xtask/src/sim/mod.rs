//! `cargo xtask sim`: the VM and its store under a seeded scheduler, with simulated time and faults.
//!
//! One thread plays all parts: clients with operations under way, the pageout daemon, the store's I/O, which takes
//! random simulated time and completes in any order, and a store that fails, lies and fills up as the seed has it.
//! After every step the budget holds; whenever all is at rest, every byte, slot, block and count is checked against a
//! plain model. A failure prints its seed; the same seed replays it.
//!
//! - [`model`]: the expected contents of an object, and the valid results of a read while changes are under way.
//! - [`driver`]: pageout, a helper, upkeep and the store's I/O, each of which does something only when it was
//!   signalled: a signal that is lost leaves operations waiting, which is found when all comes to rest.
//! - [`world`]: the clients with their operations, several on one object, some dropped half way and begun anew.

mod clients;
mod driver;
mod model;
mod origin;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Runs seeds of the simulation.
#[derive(Debug, clap::Args)]
pub(crate) struct SimArgs {
    /// How many seeds to run.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first seed; with --seeds 1, the one to replay.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps of each.
    #[arg(long, default_value_t = 2_000)]
    steps: u32,
    /// Print the operations.
    #[arg(long)]
    trace: bool,
}

impl Default for SimArgs {
    /// The run of CI.
    fn default() -> Self {
        SimArgs { seeds: 300, seed: 0, steps: 2_000, trace: false }
    }
}

/// # Errors
/// The seed that failed and how to replay it.
pub(crate) fn simulate(args: &SimArgs) -> Result<(), String> {
    let mut total = tally::Tally::default();
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(seed, args.trace);
            if args.seeds == 1 {
                println!("sim: seed {seed}, a store that {}", world.mode());
            }
            for _ in 0..args.steps {
                world.step();
            }
            world.finish()
        }));
        match outcome {
            Ok(tally) => total += tally,
            Err(_) => {
                return Err(format!(
                    "simulation of seed {seed} failed; replay it with\n    \
                     cargo xtask sim --seed {seed} --seeds 1 --steps {} --trace",
                    args.steps
                ));
            }
        }
    }
    println!("sim: {} seeds of {} steps passed: {total}", args.seeds, args.steps);
    if total.is_idle() && args.seeds >= 100 {
        return Err(
            "the simulation spilled nothing, read nothing back or met no fault: it tests nothing".into()
        );
    }
    Ok(())
}
