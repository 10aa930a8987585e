//! Worlds that are measured in turn, and how they compare.

use crate::common::Common;
use crate::report::{Measure, Report, interleave};
use crate::tools::{During as _, Outcome};
use crate::worlds::Kind;

/// The results of worlds that ran in turn: the runs of each world, and the measures of each run.
pub(crate) struct Turns {
    kinds: Vec<Kind>,
    results: Vec<Vec<Vec<Measure>>>,
    skipped: Vec<(Kind, String)>,
}

impl Turns {
    /// Runs overspill and the wanted rivals in turn. A rival that is not available is left out from then on, and the
    /// reason is kept; without overspill there is no bench.
    pub(crate) fn take(
        bench: &str,
        common: &Common,
        rivals: &[Kind],
        mut run: impl FnMut(Kind) -> Outcome<Vec<Measure>>,
    ) -> Outcome<Self> {
        let mut kinds = vec![Kind::Ours];
        kinds.extend(rivals.iter().filter(|kind| common.wants_rival(**kind)));
        let mut skipped: Vec<(Kind, String)> = Vec::new();
        let results = interleave(common.runs, &kinds, |kind, number| {
            if skipped.iter().any(|(k, _)| k == kind) {
                return Ok(Vec::new());
            }
            eprintln!("bench {bench}: run {} of {}: {}", number + 1, common.runs, kind.name());
            match run(*kind) {
                Err(why) if *kind != Kind::Ours => {
                    skipped.push((*kind, why));
                    Ok(Vec::new())
                }
                measured => measured.during(kind.name()),
            }
        })?;
        Ok(Self { kinds, results, skipped })
    }

    /// The measures of overspill, run by run.
    pub(crate) fn ours(&self) -> &[Vec<Measure>] {
        &self.results[0]
    }

    /// Adds the results to the report.
    pub(crate) fn report(&self, report: &mut Report, goal: impl Fn(Kind, &str) -> Option<f64>) {
        for (kind, theirs) in self.kinds.iter().zip(&self.results).skip(1) {
            match self.skipped.iter().find(|(k, _)| k == kind) {
                Some((_, why)) => report.skip(kind.name(), why),
                None => report.compare(self.ours(), kind.name(), theirs, |row| goal(*kind, row)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Unit, Value};
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        common: Common,
    }

    fn common(line: &[&str]) -> Common {
        Line::parse_from(std::iter::once(&"bench").chain(line)).common
    }

    #[test]
    fn a_rival_that_cannot_be_had_is_left_out_and_ours_is_needed() {
        let mut tried = Vec::new();
        let turns = Turns::take("test", &common(&["--runs", "2"]), &[Kind::TmpfsZram, Kind::Ext4], |kind| {
            tried.push(kind);
            let made = vec![Measure::new("row", Unit::Seconds, Value::Number(1.0))];
            if kind == Kind::TmpfsZram { Err("no zram".into()) } else { Ok(made) }
        });
        let turns = turns.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(tried, [Kind::Ours, Kind::TmpfsZram, Kind::Ext4, Kind::Ours, Kind::Ext4]);
        assert_eq!(turns.skipped, [(Kind::TmpfsZram, "no zram".to_owned())]);
        assert_eq!(turns.ours().len(), 2);
        let without = Turns::take("test", &common(&[]), &[], |_| Err("no fuse".into()));
        assert_eq!(without.err(), Some("ours: no fuse".into()));
    }

    #[test]
    fn rivals_are_chosen_by_name() {
        let mut tried = Vec::new();
        let line = common(&["--runs", "1", "--rival", "swap"]);
        let turns = Turns::take("test", &line, &[Kind::TmpfsSwap, Kind::Ext4], |kind| {
            tried.push(kind);
            Ok(Vec::new())
        });
        assert!(turns.is_ok());
        assert_eq!(tried, [Kind::Ours, Kind::TmpfsSwap]);
    }
}
