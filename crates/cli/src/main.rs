//! The program `overspill`: mounts, shows and removes file systems that page themselves.
//!
//! This file maps commands to their modules, and results to exit codes ([`exit`]); nothing else.

#![forbid(unsafe_code)]

mod caller;
#[cfg(test)]
mod docs;
mod doctor;
mod error;
mod exit;
mod holders;
mod machine;
mod mount;
mod options;
mod plan;
mod probe;
mod say;
mod size;
mod slabinfo;
mod stats;
mod table;
mod umount;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::exit::{EXIT_CODES, Exit};

/// Memory that may grow past RAM, into a store that you chose: a tmpfs that pages itself, without root's swap.
///
/// What is in a mount is temporary: it is gone when the mount ends, and the store alone means nothing to anyone.
#[derive(Parser)]
#[command(name = "overspill", version, after_long_help = EXIT_CODES, arg_required_else_help = true)]
enum Command {
    /// Mount a tmpfs that pages itself; returns when it is mounted.
    #[command(after_long_help = MOUNT_NOTES)]
    Mount(Box<mount::MountArgs>),
    /// Unmount, and wait until memory and store are given back.
    Umount(umount::UmountArgs),
    /// Show where every byte of a mount is, or list all mounts.
    Stats(stats::StatsArgs),
    /// Show what kind of objects a daemon's metadata is.
    Slabinfo(slabinfo::SlabinfoArgs),
    /// Show what this machine allows: one line each, its effect, how to get it.
    Doctor(doctor::DoctorArgs),
}

const MOUNT_NOTES: &str = "\
Sizes are bytes, or take k, m, g, t (powers of 1024), or % of physical RAM. A size below the memory is refused; memory \
that was not given is lowered to the size. OVERSPILL_LOG (error, warn, info, debug, trace) sets what is logged. Exit \
codes: see `overspill --help`.";

fn main() -> ExitCode {
    // A daemon must not keep its caller's files open, nor show them to a helper of another user. Before 5.11, it does.
    let _ = overspill::process::keep_descriptors_from_children();
    let result = match Command::parse() {
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Slabinfo(args) => slabinfo::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    ExitCode::from(match result {
        Ok(()) => Exit::Ok.code(),
        Err(error) => {
            let lines: Vec<String> = error.to_string().lines().map(say::shown).collect();
            say::say(&lines.join("\n"));
            error.code()
        }
    })
}
