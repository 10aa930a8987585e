//! The output of every bench: the machine, the versions and the parameters first (R74), then a table, or with `--json`
//! one object per line.
//!
//! A row compares overspill with one rival: `bench, row, unit, ours, rival, theirs, ratio`, and `goal`, `met` if it has
//! a goal, `note` if it has a note. `ours` and `theirs` are numbers, or "died", or "failed", or null if there was
//! nothing to measure. **A ratio above 1 always means that ours is better**: ours/theirs for rates, theirs/ours for
//! times, bytes and counts. JSON lines with `parameters` come before the rows; a line with `skipped` names a row that
//! was not run, and the reason. Numbers are medians of the runs; a worst case is the worst of all runs. The worlds run
//! in turn, so that a slow minute of the machine hits all of them.

use serde_json::{Map, Value as Json, json};

use crate::tools::{Outcome, first_line, is_root, workspace};

/// Units of measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Operations per second.
    PerSecond,
    /// MiB per second.
    MibPerSecond,
    /// Nanoseconds.
    Nanos,
    /// Microseconds.
    Micros,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// MiB.
    Mib,
    /// Requests to the daemon per operation.
    RoundTrips,
    /// A plain number.
    Count,
    /// A quotient; less is better.
    Ratio,
    /// A quotient; more is better.
    Times,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "op/s",
            Self::MibPerSecond => "MiB/s",
            Self::Nanos => "ns",
            Self::Micros => "us",
            Self::Seconds => "s",
            Self::Bytes => "B",
            Self::Mib => "MiB",
            Self::RoundTrips => "trips/op",
            Self::Count => "count",
            Self::Ratio => "ratio",
            Self::Times => "times",
        }
    }

    fn less_is_better(self) -> bool {
        !matches!(self, Self::PerSecond | Self::MibPerSecond | Self::Times)
    }
}

/// The result of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    /// A number in the row's unit.
    Number(f64),
    /// The workload or the daemon was killed.
    Died,
    /// The workload ended with an error.
    Failed,
    /// There is nothing to measure in this world.
    Nothing,
}

impl Value {
    fn number(self) -> Option<f64> {
        match self {
            Self::Number(n) => Some(n),
            _ => None,
        }
    }

    fn json(self) -> Json {
        match self {
            Self::Number(n) => json!(round(n)),
            Self::Died => json!("died"),
            Self::Failed => json!("failed"),
            Self::Nothing => Json::Null,
        }
    }

    fn show(self) -> String {
        match self {
            Self::Number(n) if n.abs() >= 100.0 => format!("{n:.0}"),
            Self::Number(n) if n.abs() >= 10.0 => format!("{n:.1}"),
            Self::Number(n) => format!("{n:.3}"),
            Self::Died => "died".into(),
            Self::Failed => "failed".into(),
            Self::Nothing => "-".into(),
        }
    }
}

/// Rounds to four digits: more would not be significant.
fn round(n: f64) -> f64 {
    if n == 0.0 || !n.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(3).max(1.0) / 10_f64.powf(n.abs().log10().floor());
    (n * scale).round() / scale
}

/// One named result of one run of one world.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measure {
    /// The row it belongs to.
    pub(crate) row: String,
    /// The unit of the value.
    pub(crate) unit: Unit,
    /// The result.
    pub(crate) value: Value,
    /// The worst of several runs counts, not their median.
    pub(crate) worst: bool,
    /// A remark for the table.
    pub(crate) note: Option<String>,
}

impl Measure {
    /// A plain measurement.
    pub(crate) fn new(row: impl Into<String>, unit: Unit, value: Value) -> Self {
        Self { row: row.into(), unit, value, worst: false, note: None }
    }

    /// A measurement of which the worst run counts.
    pub(crate) fn worst(row: impl Into<String>, unit: Unit, value: Value) -> Self {
        Self { worst: true, ..Self::new(row, unit, value) }
    }

    /// True if this is the better of two measures of one row.
    pub(crate) fn is_better_than(&self, other: &Self) -> bool {
        match (self.value.number(), other.value.number()) {
            (Some(ours), Some(theirs)) if self.unit.less_is_better() => ours < theirs,
            (Some(ours), Some(theirs)) => ours > theirs,
            (ours, _) => ours.is_some(),
        }
    }

    /// Adds a note.
    pub(crate) fn noted(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

/// The middle number, or the mean of the middle two.
pub(crate) fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Runs all worlds in turn, `runs` times; returns each world's results together. Stops at the first error.
pub(crate) fn interleave<W, T>(
    runs: u16,
    worlds: &[W],
    mut run: impl FnMut(&W, u16) -> Outcome<T>,
) -> Outcome<Vec<Vec<T>>> {
    let mut results: Vec<Vec<T>> = worlds.iter().map(|_| Vec::new()).collect();
    for number in 0..runs {
        for (world, of_world) in worlds.iter().zip(&mut results) {
            of_world.push(run(world, number)?);
        }
    }
    Ok(results)
}

/// Joins the runs of one world, row by row. A row that died or failed in one run counts as died or failed.
pub(crate) fn summarise(runs: &[Vec<Measure>]) -> Vec<Measure> {
    let mut joined: Vec<Measure> = Vec::new();
    for measure in runs.iter().flatten() {
        if joined.iter().all(|m| m.row != measure.row) {
            joined.push(measure.clone());
        }
    }
    for summary in &mut joined {
        let same: Vec<&Measure> = runs.iter().flatten().filter(|m| m.row == summary.row).collect();
        let numbers: Vec<f64> = same.iter().filter_map(|m| m.value.number()).collect();
        let bad = |value| same.iter().filter(|m| m.value == value).count();
        summary.note = same.iter().find_map(|m| m.note.clone());
        summary.value = match (bad(Value::Died), bad(Value::Failed)) {
            (0, 0) if numbers.is_empty() => Value::Nothing,
            (0, 0) if summary.worst && summary.unit.less_is_better() => {
                Value::Number(numbers.iter().copied().fold(f64::MIN, f64::max))
            }
            (0, 0) if summary.worst => Value::Number(numbers.iter().copied().fold(f64::MAX, f64::min)),
            (0, 0) => median(&numbers).map_or(Value::Nothing, Value::Number),
            (died, failed) => {
                let value = if died > 0 { Value::Died } else { Value::Failed };
                let often = format!("in {} of {} runs", died.max(failed), same.len());
                summary.note =
                    Some(summary.note.take().map_or(often.clone(), |note| format!("{note} ({often})")));
                value
            }
        };
    }
    joined
}

/// One line of the table.
#[derive(Clone, Debug)]
struct Row {
    row: String,
    unit: Unit,
    ours: Value,
    rival: String,
    theirs: Value,
    goal: Option<f64>,
    note: Option<String>,
}

impl Row {
    /// `None` if a side has no number, or a zero by which a ratio cannot be formed.
    fn ratio(&self) -> Option<f64> {
        let (ours, theirs) = (self.ours.number()?, self.theirs.number()?);
        if self.unit.less_is_better() {
            return (ours > 0.0 && theirs > 0.0).then(|| theirs / ours);
        }
        (theirs > 0.0).then(|| ours / theirs)
    }

    /// True if the ratio reaches the goal, false if there is no ratio. `None` without a goal.
    fn met(&self) -> Option<bool> {
        let goal = self.goal?;
        // Zero is better than any limit, and has no ratio.
        let none = self.unit.less_is_better() && self.ours.number() == Some(0.0);
        Some(none || self.ratio().is_some_and(|ratio| ratio >= goal))
    }

    /// The names and values of the row, in the order of the form.
    fn fields(&self, bench: &str) -> Vec<(&'static str, Json)> {
        let mut fields = vec![
            ("bench", json!(bench)),
            ("row", json!(self.row)),
            ("unit", json!(self.unit.name())),
            ("ours", self.ours.json()),
            ("rival", json!(self.rival)),
            ("theirs", self.theirs.json()),
            ("ratio", self.ratio().map_or(Json::Null, |r| json!(round(r)))),
        ];
        if let (Some(goal), Some(met)) = (self.goal, self.met()) {
            fields.extend([("goal", json!(goal)), ("met", json!(met))]);
        }
        fields.extend(self.note.iter().map(|note| ("note", json!(note))));
        fields
    }

    /// One line of JSON.
    fn line(&self, bench: &str) -> String {
        let fields = self.fields(bench).into_iter().map(|(name, value)| format!("{}:{value}", json!(name)));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }

    fn cells(&self) -> [String; 8] {
        let ratio = self.ratio().map_or_else(|| "-".into(), |r| format!("{r:.3}"));
        let goal = match (self.goal, self.met()) {
            (Some(goal), Some(true)) => format!(">= {goal} met"),
            (Some(goal), _) => format!(">= {goal} MISSED"),
            _ => String::new(),
        };
        let note = self.note.clone().unwrap_or_default();
        [
            self.row.clone(),
            self.unit.name().into(),
            self.ours.show(),
            self.rival.clone(),
            self.theirs.show(),
            ratio,
            goal,
            note,
        ]
    }
}

/// The output of a bench, from its parameters to its table.
#[derive(Debug)]
pub(crate) struct Report {
    bench: &'static str,
    as_json: bool,
    filter: Option<String>,
    rows: Vec<Row>,
}

impl Report {
    /// Prints the machine, the versions and the bench's own parameters.
    pub(crate) fn open(
        bench: &'static str,
        as_json: bool,
        filter: Option<&str>,
        parameters: &[(&str, String)],
    ) -> Self {
        let mut all = machine();
        all.extend(parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        if as_json {
            let all: Map<String, Json> = all.into_iter().map(|(name, value)| (name, json!(value))).collect();
            println!("{}", json!({ "bench": bench, "parameters": all }));
        } else {
            println!("bench {bench}");
            let wide = all.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            for (name, value) in all {
                println!("  {name:wide$}  {value}");
            }
        }
        Self { bench, as_json, filter: filter.map(str::to_owned), rows: Vec::new() }
    }

    /// Prints a parameter that is known only after the first measurement.
    pub(crate) fn parameter(&self, name: &str, value: &str) {
        if self.as_json {
            println!("{}", json!({ "bench": self.bench, "parameters": { name: value } }));
        } else {
            println!("  {name}  {value}");
        }
    }

    /// True if this row was asked for.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| row.contains(filter.as_str()))
    }

    /// Reports a row that is not run, and the reason.
    pub(crate) fn skip(&self, what: &str, why: &str) {
        if self.as_json {
            println!("{}", json!({ "bench": self.bench, "row": what, "skipped": why }));
        } else {
            println!("  skipped: {what}: {why}");
        }
    }

    /// Adds the rows that compare the runs of overspill and a rival. `goal` returns the ratio that a row must reach.
    pub(crate) fn compare(
        &mut self,
        ours: &[Vec<Measure>],
        rival: &str,
        theirs: &[Vec<Measure>],
        goal: impl Fn(&str) -> Option<f64>,
    ) {
        let theirs = summarise(theirs);
        for our in summarise(ours) {
            if !self.wants(&our.row) {
                continue;
            }
            let their = theirs.iter().find(|m| m.row == our.row);
            let notes = [("ours", our.note), (rival, their.and_then(|m| m.note.clone()))];
            let notes: Vec<String> =
                notes.into_iter().filter_map(|(who, note)| Some(format!("{who}: {}", note?))).collect();
            self.rows.push(Row {
                goal: goal(&our.row),
                row: our.row,
                unit: our.unit,
                ours: our.value,
                rival: rival.to_owned(),
                theirs: their.map_or(Value::Nothing, |m| m.value),
                note: (!notes.is_empty()).then(|| notes.join("; ")),
            });
        }
    }

    /// Prints the rows. Rows of the same name stand together.
    pub(crate) fn close(mut self) {
        let order: Vec<String> = self.rows.iter().map(|r| r.row.clone()).collect();
        self.rows.sort_by_key(|r| order.iter().position(|name| *name == r.row));
        if self.as_json {
            for row in &self.rows {
                println!("{}", row.line(self.bench));
            }
            return;
        }
        let head = ["row", "unit", "ours", "rival", "theirs", "ratio", "goal", "note"].map(str::to_owned);
        let lines: Vec<[String; 8]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let wide: [usize; 8] =
            std::array::from_fn(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0));
        for cells in lines {
            let line = cells.iter().enumerate().map(|(i, cell)| match i {
                2 | 4 | 5 => format!("{cell:>0$}", wide[i]),
                _ => format!("{cell:<0$}", wide[i]),
            });
            println!("{}", line.collect::<Vec<_>>().join("  ").trim_end());
        }
        println!("A ratio above 1 means that ours is better.");
    }
}

fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// The properties of the machine on which the numbers depend.
fn machine() -> Vec<(String, String)> {
    let unknown = || "unknown".to_owned();
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let (cpuinfo, meminfo) = (file("/proc/cpuinfo"), file("/proc/meminfo"));
    let ram = field(&meminfo, "MemTotal").and_then(|kb| kb.split(' ').next()?.parse::<u64>().ok());
    let root = workspace();
    let git = first_line("git", &["-C", &root.to_string_lossy(), "describe", "--always", "--dirty"]);
    let fuse = |name: &str| file(&format!("/sys/module/fuse/parameters/{name}"));
    let described = [
        ("kernel", format!("{} {}", uname.release().to_string_lossy(), uname.machine().to_string_lossy())),
        ("CPUs", format!("{cpus} x {}", field(&cpuinfo, "model name").unwrap_or("unknown"))),
        ("RAM", ram.map_or_else(unknown, |kb| format!("{} MiB", kb / 1024))),
        ("load before", file("/proc/loadavg")),
        ("user", if is_root() { "root".into() } else { "not root".into() }),
        ("source", git.unwrap_or_else(unknown)),
        ("rustc", first_line("rustc", &["--version"]).unwrap_or_else(unknown)),
        (
            "fuse",
            format!(
                "max_pages_limit {}, enable_uring {}",
                file("/proc/sys/fs/fuse/max_pages_limit"),
                fuse("enable_uring")
            ),
        ),
    ];
    described.map(|(name, value)| (name.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(row: &Row) -> Json {
        serde_json::from_str(&row.line("test")).unwrap()
    }

    fn one(row: &str, unit: Unit, value: f64) -> Vec<Measure> {
        vec![Measure::new(row, unit, Value::Number(value))]
    }

    fn report() -> Report {
        Report { bench: "test", as_json: true, filter: None, rows: Vec::new() }
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn worlds_take_turns() {
        let mut order = Vec::new();
        let results = interleave(2, &["ours", "rival"], |world, run| {
            order.push(format!("{world}{run}"));
            Ok(usize::from(run) * 10 + world.len())
        });
        assert_eq!(order, ["ours0", "rival0", "ours1", "rival1"]);
        assert_eq!(results.unwrap(), [vec![4, 14], vec![5, 15]]);
        let failed = interleave(9, &["ours"], |_, run| if run == 1 { Err("once".into()) } else { Ok(()) });
        assert_eq!(failed.unwrap_err(), "once");
    }

    /// R74: a row keeps the form, and a ratio above 1 means that ours is better, whatever the unit.
    #[test]
    fn rows_keep_their_form() {
        let mut report = report();
        let (ours, theirs) =
            ([one("write", Unit::MibPerSecond, 50.0)], [one("write", Unit::MibPerSecond, 100.0)]);
        report.compare(&ours, "tmpfs", &theirs, |_| Some(0.9));
        report.compare(
            &[one("wall", Unit::Seconds, 5.0)],
            "tmpfs",
            &[one("wall", Unit::Seconds, 10.0)],
            |_| None,
        );
        let expected = json!({"bench": "test", "row": "write", "unit": "MiB/s", "ours": 50.0, "rival": "tmpfs",
            "theirs": 100.0, "ratio": 0.5, "goal": 0.9, "met": false});
        assert_eq!(parsed(&report.rows[0]), expected);
        assert!(report.rows[0].line("test").starts_with(r#"{"bench":"test","row":"write","unit":"#));
        assert_eq!(report.rows[1].ratio(), Some(2.0));
        assert_eq!(report.rows[1].met(), None);
    }

    #[test]
    fn who_died_is_said_and_has_no_ratio() {
        let died = vec![Measure::new("write", Unit::MibPerSecond, Value::Died).noted("writer killed")];
        let mut report = report();
        report.compare(
            &[one("write", Unit::MibPerSecond, 5.0)],
            "zram",
            &[one("write", Unit::MibPerSecond, 7.0), died],
            |_| Some(1.0),
        );
        let line = parsed(&report.rows[0]);
        assert_eq!(
            (&line["theirs"], &line["ratio"], &line["met"]),
            (&json!("died"), &Json::Null, &json!(false))
        );
        assert_eq!(line["note"], "zram: writer killed (in 1 of 2 runs)");
    }

    #[test]
    fn of_worst_cases_the_worst_run_counts() {
        let runs = [3.0, 9.0, 1.0].map(|n| vec![Measure::worst("max", Unit::Micros, Value::Number(n))]);
        assert_eq!(summarise(&runs)[0].value, Value::Number(9.0));
    }

    #[test]
    fn a_filter_chooses_rows() {
        let mut report = Report { filter: Some("read".into()), ..report() };
        report.compare(&[one("seq write", Unit::Seconds, 1.0)], "x", &[], |_| None);
        report.compare(&[one("seq read", Unit::Seconds, 1.0)], "x", &[], |_| None);
        assert_eq!(report.rows.len(), 1);
        assert_eq!(parsed(&report.rows[0])["theirs"], Json::Null);
    }

    #[test]
    fn nothing_is_compared_with_zero() {
        let mut report = report();
        report.compare(
            &[one("trips", Unit::RoundTrips, 2.0)],
            "x",
            &[one("trips", Unit::RoundTrips, 0.0)],
            |_| None,
        );
        report.compare(
            &[one("rate", Unit::PerSecond, 0.0)],
            "x",
            &[one("rate", Unit::PerSecond, 5.0)],
            |_| None,
        );
        assert_eq!((report.rows[0].ratio(), report.rows[1].ratio()), (None, Some(0.0)));
    }

    #[test]
    fn four_digits() {
        assert_eq!(round(123_456.0), 123_500.0);
        assert_eq!(round(0.012_345_6), 0.01235);
        assert_eq!(round(0.0), 0.0);
    }
}
