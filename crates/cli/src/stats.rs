//! `overspill stats`: where every byte is.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::mountinfo::{Entry, Mounts};
use crate::probe::probe;
use crate::table;

/// `overspill stats`
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// The mountpoint, or any path on the mount.
    path: PathBuf,

    /// One JSON object on one line; sizes in bytes.
    #[arg(long)]
    json: bool,

    /// Again every SECONDS, until the mount goes.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    watch: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &StatsArgs) -> Result<(), Error> {
    let mount = find(&args.path)?;
    let mut out = std::io::stdout();
    let clear = if args.watch.is_some() && !args.json && out.is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    loop {
        let stats = probe(&mount).stats(&mount)?;
        let value =
            serde_json::to_value(&stats).map_err(|e| Error::Stats(args.path.clone(), e.to_string()))?;
        let text = if args.json { value.to_string() } else { table::of_stats(&mount.mountpoint, &value) };
        match writeln!(out, "{clear}{}", text.trim_end()).and_then(|()| out.flush()) {
            // `stats --watch | head`: the reader has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|e| Error::Io("stdout", e))?,
        }
        match args.watch {
            None => return Ok(()),
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
        }
        // Ends with the mount.
        if !Mounts::read().map_err(|e| Error::Io("/proc/self/mountinfo", e))?.iter().any(|e| e.id == mount.id)
        {
            return Ok(());
        }
    }
}

/// The mount `path` is on.
pub(crate) fn find(path: &std::path::Path) -> Result<Entry, Error> {
    let mounts = Mounts::read().map_err(|e| Error::Io("/proc/self/mountinfo", e))?;
    let absolute = mounts.resolve(path).map_err(|e| Error::Unreachable(path.to_owned(), e))?;
    match mounts.containing(&absolute) {
        Some(entry) if entry.is_overspill() => Ok(entry.clone()),
        _ => Err(Error::NotOverspill(path.to_owned())),
    }
}
