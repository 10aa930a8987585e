//! `overspill stats`: the place of every byte of a mount; without a mount, one line on each.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use overspill::control::client::Control;
use overspill::control::sockets;
use overspill::stats::Stats;
use serde_json::{Value, json};

use crate::caller::Caller;
use crate::error::Error;
use crate::probe;
use crate::table;
use crate::watch::Watch;
use overspill::mountinfo::{Entry, Mounts};

/// The longest time that an engine of another mount namespace may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(2);

/// `overspill stats`
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// The mountpoint, or any path on the mount. Without it, all mounts are listed.
    path: Option<PathBuf>,

    #[command(flatten)]
    watch: Watch,
}

/// Runs the command.
pub(crate) fn run(args: &StatsArgs) -> Result<(), Error> {
    let Some(path) = &args.path else {
        return args.watch.print(|| list(args.watch.json), || Ok(true));
    };
    let mount = find(path)?;
    args.watch.print_mount(&mount, || {
        let value = json!(probe::stats(&mount).answer(&mount)?);
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

/// One line on each mount: those that this process sees, and those of other namespaces whose engines it may ask.
fn list(as_json: bool) -> Result<String, Error> {
    let mounts = Mounts::read().map_err(|e| Error::Io("/proc/self/mountinfo", e))?;
    let ours: Vec<&Entry> = mounts.iter().filter(|entry| entry.is_overspill()).collect();
    // A bind mount of a mount has the same device.
    let mut known = BTreeSet::new();
    let mut lines = Vec::new();
    for mount in ours {
        if known.insert(mount.dev.clone()) {
            let stats = probe::stats(mount).answer(mount).map_err(|error| error.to_string());
            lines.push((mount.mountpoint.display().to_string(), stats));
        }
    }
    lines.extend(elsewhere(&known));
    if lines.is_empty() {
        return Err(Error::NoMount);
    }
    Ok(if as_json {
        lines.into_iter().map(|(at, stats)| json_line(&at, stats) + "\n").collect()
    } else {
        table::of_mounts(&lines)
    })
}

/// The mounts that this process does not see, of engines that it may ask.
fn elsewhere(known: &BTreeSet<String>) -> Vec<(String, Result<Stats, String>)> {
    let caller = Caller::current();
    let directories =
        if caller.is_root() { sockets::all_directories() } else { vec![sockets::directory(caller.uid)] };
    let mut found = Vec::new();
    for socket in directories.iter().flat_map(|dir| sockets::sockets_in(dir)) {
        let Ok(owner) = rustix::fs::lstat(&socket).map(|stat| stat.st_uid) else { continue };
        // An engine that does not answer has no name: its mounts are listed where they are seen.
        let Ok(mut control) = Control::open(&socket, owner, PATIENCE) else { continue };
        for face in control.faces().unwrap_or_default() {
            if !known.contains(&face.device) {
                let stats = control.stats(&face.device).map_err(|error| error.to_string());
                found.push((format!("{} (in another namespace)", face.at), stats));
            }
        }
    }
    found
}

/// A mount's statistics with its place, or the reason why there are none.
fn json_line(at: &str, stats: Result<Stats, String>) -> String {
    let mut line = match stats {
        Ok(stats) => json!(stats),
        Err(error) => json!({ "error": error }),
    };
    if let Value::Object(fields) = &mut line {
        fields.insert("at".to_owned(), at.into());
    }
    line.to_string()
}
