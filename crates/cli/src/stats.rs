//! `overspill stats`: the place of every byte of a mount.

use std::path::PathBuf;

use crate::error::Error;
use crate::mountinfo::{Entry, Mounts};
use crate::probe::probe;
use crate::table;
use crate::watch::Watch;

/// `overspill stats`
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// The mountpoint, or any path on the mount.
    path: PathBuf,

    #[command(flatten)]
    watch: Watch,
}

/// Runs the command.
pub(crate) fn run(args: &StatsArgs) -> Result<(), Error> {
    let mount = find(&args.path)?;
    args.watch.print(&mount, || {
        let stats = probe(&mount).stats(&mount)?;
        let value =
            serde_json::to_value(&stats).map_err(|e| Error::Stats(args.path.clone(), e.to_string()))?;
        Ok(if args.watch.json { value.to_string() } else { table::of_stats(&mount.mountpoint, &value) })
    })
}

/// The mount on which `path` lies.
pub(crate) fn find(path: &std::path::Path) -> Result<Entry, Error> {
    let mounts = Mounts::read().map_err(|e| Error::Io("/proc/self/mountinfo", e))?;
    let absolute = mounts.resolve(path).map_err(|e| Error::Unreachable(path.to_owned(), e))?;
    match mounts.containing(&absolute) {
        Some(entry) if entry.is_overspill() => Ok(entry.clone()),
        _ => Err(Error::NotOverspill(path.to_owned())),
    }
}
