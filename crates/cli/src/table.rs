//! Statistics as a table for people. Fields that only a newer daemon has are shown too, under their own names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::size::human;

/// Groups, each with its fields and labels, in the order shown.
const GROUPS: [(&str, &[(&str, &str)]); 4] = [
    (
        "memory",
        &[
            ("budget_bytes", "budget"),
            ("rss_bytes", "process, all counted"),
            ("resident_bytes", "pages as they are"),
            ("dirty_bytes", "  of these nowhere else"),
            ("compressed_bytes", "pages compressed"),
            ("compressed_page_bytes", "  before that"),
        ],
    ),
    (
        "store",
        &[
            ("stored_bytes", "pages stored"),
            ("stored_live_bytes", "  of that living"),
            ("store_file_bytes", "space taken"),
            ("store_writes", "writes"),
            ("store_reads", "reads"),
        ],
    ),
    (
        "paging",
        &[
            ("packed", "pages compressed"),
            ("repacked", "  again, smaller"),
            ("unpacked", "  not, to be fast"),
            ("page_ins", "pages in"),
            ("page_outs", "pages out"),
            ("served_bytes", "read and written"),
            ("copied_bytes", "  moved for that"),
            ("errors", "errors"),
        ],
    ),
    ("files", &[("inodes", "inodes")]),
];

/// The table of one mount's statistics (a JSON object).
pub(crate) fn of_stats(mountpoint: &Path, stats: &Value) -> String {
    let mut fields: BTreeMap<&str, &Value> =
        stats.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v)).collect();
    let mut out = format!("{}", mountpoint.display());
    if let Some(pid) = fields.remove("pid") {
        let _ = write!(out, "  (pid {pid})");
    }
    out.push('\n');
    for (group, rows) in GROUPS {
        let known = rows.iter().filter_map(|(key, label)| Some((*key, *label, fields.remove(key)?)));
        let lines: Vec<String> = known.map(|(key, label, value)| line(label, &show(key, value))).collect();
        push_group(&mut out, group, &lines);
    }
    let lines: Vec<String> =
        fields.iter().map(|(key, value)| line(&key.replace('_', " "), &show(key, value))).collect();
    push_group(&mut out, "more", &lines);
    out
}

fn push_group(out: &mut String, group: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = writeln!(out, "{group}\n{}", lines.join("\n"));
    }
}

fn line(label: &str, value: &str) -> String {
    format!("  {label:<24} {value:>12}")
}

fn show(key: &str, value: &Value) -> String {
    match (value.as_u64(), value.as_str()) {
        (Some(bytes), _) if key.ends_with("_bytes") => human(bytes),
        (_, Some(text)) => text.to_owned(),
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
