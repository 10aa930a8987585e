//! `cargo xtask policy LOG…`: tries policies for the order in which clusters leave memory, on accesses of real mounts.
//!
//! A mount with `OVERSPILL_LOG=trace` logs each chunk that is read or written, as its VM sees them: misses and
//! writebacks of the kernel's cache. They are replayed to caches of several sizes and policies; the result is the share
//! of reads that find their chunk in memory. Each policy is tried twice: as in the pager, where only written chunks
//! enter (the kernel keeps those it read), and with read chunks entering too.

mod caches;

use std::collections::HashSet;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};

use caches::{Cache, Kind};

/// Arguments of `policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// Logs of mounts, written with OVERSPILL_LOG=trace
    #[arg(required = true)]
    logs: Vec<PathBuf>,
}

/// A read or write of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    chunk: u64,
    write: bool,
}

/// Sizes of the cache: one in so many of the trace's chunks.
const SHARES: [usize; 3] = [8, 4, 2];

/// Replays the logs and prints the shares of reads that hit.
pub(crate) fn run(args: &PolicyArgs) -> Result<(), String> {
    for log in &args.logs {
        let trace = read(log)?;
        let chunks = trace.iter().map(|access| access.chunk).collect::<HashSet<_>>().len();
        let reads = trace.iter().filter(|access| !access.write).count();
        println!("{}: {} chunks, {reads} read, {} written", log.display(), chunks, trace.len() - reads);
        if reads == 0 {
            return Err(format!(
                "{}: nothing was read: was it logged with OVERSPILL_LOG=trace?",
                log.display()
            ));
        }
        let heads = SHARES.map(|share| format!("1/{share} of them"));
        println!("  {:<10}  {:^28}  {:^28}", "", "only writes come in", "reads come in too");
        println!("  {:<10}  {}  {}", "memory:", columns(&heads), columns(&heads));
        for kind in Kind::ALL {
            let rates = |reads_enter: bool| {
                SHARES.map(|share| {
                    let mut cache = Cache::new(kind, (chunks / share).max(1));
                    format!("{:.1}%", 100.0 * hits(&trace, &mut cache, reads_enter) as f64 / reads as f64)
                })
            };
            println!("  {:<10}  {}  {}", kind.name(), columns(&rates(false)), columns(&rates(true)));
        }
    }
    Ok(())
}

fn columns(cells: &[String]) -> String {
    cells.iter().map(|cell| format!("{cell:>8}")).collect::<Vec<_>>().join("  ").replace(" of them", "")
}

/// The number of reads that found their chunk.
fn hits(trace: &[Access], cache: &mut Cache, reads_enter: bool) -> usize {
    let mut hits = 0;
    for access in trace {
        if access.write {
            cache.write(access.chunk);
        } else if cache.read(access.chunk) {
            hits += 1;
        } else if reads_enter {
            cache.write(access.chunk);
        }
    }
    hits
}

fn read(log: &Path) -> Result<Vec<Access>, String> {
    let file = std::fs::File::open(log).map_err(|e| format!("{}: {e}", log.display()))?;
    let lines = std::io::BufReader::new(file).lines();
    let lines = lines.map_while(Result::ok);
    Ok(lines.filter_map(|line| access_of(&line)).collect())
}

/// Parses a line `… TRACE access: read object=3 chunk=12`.
fn access_of(line: &str) -> Option<Access> {
    let said = line.split_once(" access: ")?.1;
    let mut words = said.split_whitespace();
    let write = match words.next()? {
        "write" => true,
        "read" => false,
        _ => return None,
    };
    let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok();
    let (object, chunk) = (field("object")?, field("chunk")?);
    // Object numbers have 32 bits, and no object of a trace has 2^32 chunks.
    Some(Access { chunk: object << 32 | chunk & 0xffff_ffff, write })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_understood_and_what_else_it_says_is_passed_over() {
        let line = "2026-01-01T00:00:00Z TRACE access: write object=3 chunk=12";
        assert_eq!(access_of(line), Some(Access { chunk: 3 << 32 | 12, write: true }));
        for line in
            ["", "INFO overspill: read object=1 chunk=2", "TRACE access: rest", "TRACE access: read object=x"]
        {
            assert_eq!(access_of(line), None, "{line}");
        }
    }

    /// Few chunks are read again and again, many are written once: policies that remember reads keep the few, unlike
    /// FIFO.
    #[test]
    fn policies_differ_where_they_should() {
        let mut trace = Vec::new();
        for round in 0..200u64 {
            for hot in 0..10 {
                trace.push(Access { chunk: hot, write: round == 0 });
            }
            for cold in 0..20 {
                trace.push(Access { chunk: 1000 + round * 20 + cold, write: true });
            }
        }
        let reads = trace.iter().filter(|access| !access.write).count();
        for kind in Kind::ALL {
            let hit = |reads_enter| hits(&trace, &mut Cache::new(kind, 100), reads_enter);
            // 2Q ignores the first reads, and a chunk that it evicted does not come back by a read.
            assert_eq!(hit(false) < reads / 10, matches!(kind, Kind::Fifo | Kind::TwoQ), "{kind:?}");
            assert!(hit(true) > reads / 2 && hit(true) <= reads, "{kind:?}: {} of {reads}", hit(true));
        }
    }
}
