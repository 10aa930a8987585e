//! `overspill slabinfo`: the caches of objects that make up a daemon's metadata.

use std::path::PathBuf;

use overspill::stats::Slabinfo;
use serde_json::Value;

use crate::error::Error;
use crate::probe;
use crate::say::shown;
use crate::stats;
use crate::watch::Watch;
use overspill::mountinfo::{Entry, Mounts};

/// `overspill slabinfo`
#[derive(Debug, clap::Args)]
pub(crate) struct SlabinfoArgs {
    /// A mountpoint, or any path on a mount; may be left out where there is only one mount.
    path: Option<PathBuf>,

    #[command(flatten)]
    watch: Watch,

    /// The field to sort by.
    #[arg(long, value_enum, default_value = "memory", value_name = "FIELD")]
    sort: Sort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// Most bytes.
    Memory,
    /// Most objects in use.
    Active,
    /// Largest objects.
    Size,
    /// Most bytes that a reap would give back.
    Reclaimable,
    /// Most bytes lost to free objects.
    Fragmentation,
    /// By name.
    Name,
}

impl Sort {
    fn apply(self, caches: &mut [Value]) {
        let number = |cache: &Value, field: &str| cache[field].as_f64().unwrap_or(0.0);
        let field = match self {
            Sort::Memory => "memory",
            Sort::Active => "active",
            Sort::Size => "object_size",
            Sort::Reclaimable => "reclaimable",
            Sort::Fragmentation => "fragmentation",
            Sort::Name => return caches.sort_by_key(|cache| cache["name"].as_str().unwrap_or("").to_owned()),
        };
        caches.sort_by(|a, b| number(b, field).total_cmp(&number(a, field)));
    }
}

/// Runs the command.
pub(crate) fn run(args: &SlabinfoArgs) -> Result<(), Error> {
    let mount = find(args.path.as_deref())?;
    args.watch.print_mount(&mount, || {
        let mut info = probe::slabinfo(&mount).answer(&mount)?;
        args.sort.apply(&mut info.caches);
        Ok(if args.watch.json { serde_json::json!(info).to_string() } else { table(&info) })
    })
}

/// Finds the mount at `path`, or the only mount.
fn find(path: Option<&std::path::Path>) -> Result<Entry, Error> {
    if let Some(path) = path {
        return stats::find(path);
    }
    let mounts = Mounts::read().map_err(|e| Error::Io("/proc/self/mountinfo", e))?;
    let mut ours = mounts.iter().filter(|entry| entry.is_overspill());
    match (ours.next(), ours.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Err(Error::NoMount),
        (Some(_), Some(_)) => Err(Error::WhichMount),
    }
}

/// Heading and field of each column.
const COLUMNS: [(&str, &str); 12] = [
    ("FLAGS", "flags"),
    ("SIZE", "object_size"),
    ("SLAB", "slab_size"),
    ("OBJECTS", "objects"),
    ("ACTIVE", "active"),
    ("CACHED", "cached"),
    ("MEMORY", "memory"),
    ("RECLAIM", "reclaimable"),
    ("FRAG", "fragmentation"),
    ("HITS", "hits"),
    ("FILLS", "fills"),
    ("FAILED", "failures"),
];

fn table(info: &Slabinfo) -> String {
    let mut lines =
        vec![std::iter::once("NAME").chain(COLUMNS.map(|(head, _)| head)).map(str::to_owned).collect()];
    for cache in &info.caches {
        let mut line: Vec<String> = vec![shown(cache["name"].as_str().unwrap_or("?"))];
        line.extend(COLUMNS.map(|(_, field)| match &cache[field] {
            Value::String(text) => shown(text),
            Value::Number(n) if field == "fragmentation" => {
                format!("{:.0}%", n.as_f64().unwrap_or(0.0) * 100.0)
            }
            Value::Number(n) if field == "memory" || field == "reclaimable" => {
                crate::size::human(n.as_u64().unwrap_or(0))
            }
            other => other.to_string(),
        }));
        lines.push(line);
    }
    let wide: Vec<usize> = (0..=COLUMNS.len())
        .map(|i| lines.iter().map(|line: &Vec<String>| line[i].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        for (i, cell) in line.iter().enumerate() {
            if i == 0 {
                text += &format!("{cell:<0$}", wide[i]);
            } else {
                text += &format!("  {cell:>0$}", wide[i]);
            }
        }
        text.push('\n');
    }
    let human = crate::size::human;
    text + &format!(
        "all caches {}; the arena has {} of address space, {} in RAM at most, and {} of records",
        human(info.used_bytes),
        human(info.imported_bytes),
        human(info.resident_bytes),
        human(info.record_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn caches_are_sorted_and_shown() {
        let cache =
            |name: &str, memory: u64, size: u64| json!({"name": name, "memory": memory, "object_size": size});
        let mut caches = vec![cache("a", 4096, 8), cache("c", 8192, 4), cache("b", 4097, 16)];
        let names = |caches: &[Value]| {
            caches.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        Sort::Memory.apply(&mut caches);
        assert_eq!(names(&caches), ["c", "b", "a"]);
        Sort::Size.apply(&mut caches);
        assert_eq!(names(&caches), ["b", "a", "c"]);
        Sort::Name.apply(&mut caches);
        assert_eq!(names(&caches), ["a", "b", "c"]);
        let info =
            Slabinfo { caches, imported_bytes: 1 << 20, used_bytes: 1, resident_bytes: 2, record_bytes: 3 };
        let text = table(&info);
        assert_eq!(text.lines().count(), 5);
        assert!(text.lines().nth(3).unwrap().contains("8.00 KiB"), "{text}");
        assert!(
            text.ends_with("1.00 MiB of address space, 2 B in RAM at most, and 3 B of records"),
            "{text}"
        );
    }
}
