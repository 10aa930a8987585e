//! Statistics as a table for people. Fields that only a newer daemon has are shown too, under their own names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use overspill::metrics::{Group, METRICS};
use overspill::stats::Stats;
use serde_json::Value;

use crate::say::shown;
use crate::size::human;

/// The table of one mount's statistics (a JSON object).
pub(crate) fn of_stats(mountpoint: &Path, stats: &Value) -> String {
    let mut fields: BTreeMap<&str, &Value> =
        stats.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v)).collect();
    let mut out = shown(&mountpoint.display().to_string());
    if let Some(pid) = fields.remove("pid") {
        let _ = write!(out, "  (pid {pid})");
    }
    out.push('\n');
    for group in Group::ALL {
        let lines: Vec<String> = METRICS
            .iter()
            .filter(|metric| metric.group == group)
            .filter_map(|metric| {
                let value = fields.remove(metric.name).filter(|value| !value.is_null())?;
                Some(line(metric.label, &show(metric.name, value)))
            })
            .collect();
        push_group(&mut out, group.title(), &lines);
    }
    let lines: Vec<String> =
        fields.iter().map(|(key, value)| line(&key.replace('_', " "), &show(key, value))).collect();
    push_group(&mut out, "more", &lines);
    out
}

/// A table of mounts, one line each.
pub(crate) fn of_mounts(mounts: &[(String, Result<Stats, String>)]) -> String {
    let mut rows =
        vec![["mount", "pid", "memory", "of", "files", "of", "compressed", "stored"].map(str::to_owned)];
    let mut notes = Vec::new();
    for (at, stats) in mounts {
        match stats {
            Ok(s) => rows.push([
                shown(at),
                s.pid.to_string(),
                human(s.rss_bytes),
                human(s.budget_bytes),
                human(s.used_bytes),
                human(s.size_bytes),
                human(s.compressed_page_bytes),
                human(s.stored_page_bytes),
            ]),
            Err(reason) => notes.push(shown(reason)),
        }
    }
    let wide: Vec<usize> = (0..rows[0].len())
        .map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows.iter().filter(|_| rows.len() > 1) {
        let _ = write!(out, "{:<1$}", row[0], wide[0]);
        for (cell, wide) in row.iter().zip(&wide).skip(1) {
            let _ = write!(out, "  {cell:>wide$}");
        }
        out.push('\n');
    }
    for note in notes {
        let _ = writeln!(out, "{note}");
    }
    out
}

fn push_group(out: &mut String, group: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = writeln!(out, "{group}\n{}", lines.join("\n"));
    }
}

fn line(label: &str, value: &str) -> String {
    format!("  {label:<28} {value:>12}")
}

fn show(key: &str, value: &Value) -> String {
    match (value.as_u64(), value.as_str()) {
        (Some(bytes), _) if key.ends_with("_bytes") => human(bytes),
        (_, Some(text)) => shown(text),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_is_shown_once_known_or_not() {
        let stats = json!({
            "pid": 77, "budget_bytes": 134_217_728, "errors": 3, "inodes": 12,
            "parked_writers": 5, "free_frames_bytes": 4096, "store": "/var/tmp",
        });
        let table = of_stats(Path::new("/mnt/x"), &stats);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["/mnt/x", "(pid", "77)"]);
        for wanted in [
            ["budget", "128", "MiB"].as_slice(),
            &["errors", "3"],
            &["inodes", "12"],
            &["parked", "writers", "5"],
            &["free", "frames", "bytes", "4.00", "KiB"],
            &["store", "/var/tmp"],
        ] {
            assert_eq!(lines.iter().filter(|l| *l == wanted).count(), 1, "{wanted:?} in\n{table}");
        }
        assert!(!table.contains("stored"), "a field that is not there:\n{table}");
    }

    #[test]
    fn what_is_no_object_is_an_empty_table() {
        assert_eq!(of_stats(Path::new("/m"), &json!([1])), "/m\n");
    }
}
