//! The process that works in a world: one phase on one file, then one line of JSON.
//!
//! It runs as a child of the bench (`overspill-bench workload`), in the memory group, so that its death by the OOM killer
//! is a result and not the end of the bench. Each operation is timed by itself.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use serde_json::json;

use crate::cgroup::Cgroup;
use crate::data::{self, Histogram, PAGE, Rng, Zipf};
use crate::tools::{During as _, Outcome, finish};

/// Bytes of one sequential operation.
pub(crate) const BLOCK: usize = 1 << 20;

/// The exponent of the skewed reads.
pub(crate) const ZIPF: f64 = 1.1;

/// Phases of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Phase {
    /// Writes the file from where it ends, 1 MiB at a time, and fsyncs.
    SeqWrite,
    /// Reads it all, 1 MiB at a time.
    SeqRead,
    /// Reads single pages, uniformly.
    RandRead,
    /// Reads single pages, few of them often.
    ZipfRead,
    /// Writes single pages, uniformly.
    RandWrite,
}

/// Arguments of the hidden subcommand.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WorkloadArgs {
    phase: Phase,
    file: PathBuf,
    /// Bytes of the file.
    #[arg(long)]
    size: u64,
    /// How long random phases take.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    threads: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The results of a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Done {
    /// Number of operations.
    pub(crate) operations: f64,
    /// Bytes moved.
    pub(crate) bytes: f64,
    /// Seconds for all of them.
    pub(crate) seconds: f64,
    /// Latencies in microseconds: 99%, 99.9%, the longest.
    pub(crate) latencies: [f64; 3],
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// It finished, with these results.
    Done(Done),
    /// The kernel killed it.
    Killed,
    /// It failed, or did not end in time.
    Failed(String),
}

/// Does the work of the hidden subcommand, and prints the line of JSON.
pub(crate) fn work(args: &WorkloadArgs) -> Outcome<()> {
    let start = Instant::now();
    let (histogram, bytes) = match args.phase {
        Phase::SeqWrite => seq_write(args),
        Phase::SeqRead => seq_read(args),
        Phase::RandRead | Phase::ZipfRead | Phase::RandWrite => in_threads(args),
    }
    .during(args.file.display())?;
    let micros =
        [histogram.quantile(0.99), histogram.quantile(0.999), histogram.max()].map(|n| n as f64 / 1e3);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({ "operations": histogram.count(), "bytes": bytes, "seconds": seconds, "latencies": micros })
    );
    Ok(())
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn seq_write(args: &WorkloadArgs) -> std::io::Result<(Histogram, u64)> {
    let file = File::options().write(true).create(true).truncate(false).open(&args.file)?;
    let page = PAGE as u64;
    let from = file.metadata()?.len() / page * page;
    let mut histogram = Histogram::new();
    let mut block = vec![0; BLOCK];
    let mut at = from;
    while at < args.size {
        let bytes = usize::try_from(args.size - at).unwrap_or(BLOCK).min(BLOCK);
        data::fill(&mut block[..bytes], at / page, args.seed);
        let start = Instant::now();
        file.write_all_at(&block[..bytes], at)?;
        histogram.add(nanos(start));
        at += bytes as u64;
    }
    let start = Instant::now();
    file.sync_all()?;
    histogram.add(nanos(start));
    Ok((histogram, at - from))
}

fn seq_read(args: &WorkloadArgs) -> std::io::Result<(Histogram, u64)> {
    let file = File::open(&args.file)?;
    rustix::fs::fadvise(&file, 0, None, Advice::Sequential)?;
    let mut histogram = Histogram::new();
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while at < args.size {
        let bytes = usize::try_from(args.size - at).unwrap_or(BLOCK).min(BLOCK);
        let start = Instant::now();
        file.read_exact_at(&mut block[..bytes], at)?;
        histogram.add(nanos(start));
        check(&block[..bytes], at / PAGE as u64)?;
        at += bytes as u64;
    }
    Ok((histogram, at))
}

fn check(pages: &[u8], first: u64) -> std::io::Result<()> {
    match data::wrong(pages, first) {
        None => Ok(()),
        Some(page) => Err(std::io::Error::other(format!("WRONG BYTES in page {page}"))),
    }
}

fn in_threads(args: &WorkloadArgs) -> std::io::Result<(Histogram, u64)> {
    let file = File::options().read(true).write(args.phase == Phase::RandWrite).open(&args.file)?;
    rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
    let zipf = Zipf::new((args.size / PAGE as u64).max(1), ZIPF);
    let until = Instant::now() + Duration::from_secs_f64(args.seconds.clamp(0.0, 3600.0));
    let results = std::thread::scope(|scope| {
        let (file, zipf) = (&file, &zipf);
        let threads: Vec<_> = (0..args.threads)
            .map(|t| scope.spawn(move || single_pages(args, file, zipf, t, until)))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().map_err(|_| std::io::Error::other("a thread panicked"))?)
            .collect::<Vec<_>>()
    });
    let mut histogram = Histogram::new();
    for result in results {
        histogram.merge(&result?);
    }
    let bytes = histogram.count() * PAGE as u64;
    Ok((histogram, bytes))
}

fn single_pages(
    args: &WorkloadArgs,
    file: &File,
    zipf: &Zipf,
    thread: u64,
    until: Instant,
) -> std::io::Result<Histogram> {
    let pages = (args.size / PAGE as u64).max(1);
    let mut rng = Rng::new(args.seed ^ (thread + 1) << 32);
    let mut histogram = Histogram::new();
    let mut page = vec![0; PAGE];
    loop {
        let number = if args.phase == Phase::ZipfRead { zipf.page(&mut rng) } else { rng.below(pages) };
        if args.phase == Phase::RandWrite {
            data::fill(&mut page, number, rng.next());
        }
        let start = Instant::now();
        if args.phase == Phase::RandWrite {
            file.write_all_at(&page, number * PAGE as u64)?;
        } else {
            file.read_exact_at(&mut page, number * PAGE as u64)?;
        }
        histogram.add(nanos(start));
        check(&page, number)?;
        if Instant::now() >= until {
            return Ok(histogram);
        }
    }
}

/// One phase to run in a child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    /// The phase.
    pub(crate) phase: Phase,
    /// The file to work on.
    pub(crate) file: &'a Path,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Seconds of a random phase.
    pub(crate) seconds: f64,
    /// Number of threads.
    pub(crate) threads: u64,
    /// Seed of the random numbers.
    pub(crate) seed: u64,
    /// The user to run as, if not the bench's.
    pub(crate) user: Option<&'a str>,
}

impl Job<'_> {
    /// Runs the phase in the group.
    pub(crate) fn run(&self, group: &Cgroup, patience: Duration) -> Outcome<Ending> {
        use clap::ValueEnum as _;
        use std::os::unix::process::ExitStatusExt as _;
        let program = std::env::current_exe().during("finding this program")?;
        let mut command = crate::worlds::as_user(self.user, Some(group), &program)?;
        let phase = self.phase.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        command.args(["workload", &phase]).arg(self.file);
        command.args(["--size", &self.size.to_string(), "--seconds", &self.seconds.to_string()]);
        command.args(["--threads", &self.threads.to_string(), "--seed", &self.seed.to_string()]);
        let (status, output) = finish(command.stdin(Stdio::null()), patience)?;
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(match status {
            None => Ending::Failed(format!("did not end in {} s", patience.as_secs())),
            Some(status) if status.signal() == Some(9) => Ending::Killed,
            Some(status) if status.success() => {
                parse(&output.stdout).map_or_else(Ending::Failed, Ending::Done)
            }
            Some(status) => Ending::Failed(format!("{status}: {complaint}")),
        })
    }
}

fn parse(line: &[u8]) -> Outcome<Done> {
    let object: serde_json::Value = serde_json::from_slice(line).during("what the workload said")?;
    let number =
        |value: &serde_json::Value| value.as_f64().ok_or_else(|| format!("the workload said {object}"));
    Ok(Done {
        operations: number(&object["operations"])?,
        bytes: number(&object["bytes"])?,
        seconds: number(&object["seconds"])?,
        latencies: [
            number(&object["latencies"][0])?,
            number(&object["latencies"][1])?,
            number(&object["latencies"][2])?,
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(phase: Phase, file: &Path) -> WorkloadArgs {
        WorkloadArgs { phase, file: file.to_path_buf(), size: 3 << 20, seconds: 0.02, threads: 3, seed: 1 }
    }

    #[test]
    fn every_phase_reads_what_the_first_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let (histogram, bytes) = seq_write(&args(Phase::SeqWrite, &file)).unwrap();
        assert_eq!((histogram.count(), bytes), (4, 3 << 20), "three blocks and an fsync");
        for phase in [Phase::RandWrite, Phase::ZipfRead, Phase::RandRead] {
            assert!(in_threads(&args(phase, &file)).unwrap().0.count() >= 3, "{phase:?}");
        }
        assert_eq!(seq_read(&args(Phase::SeqRead, &file)).unwrap().0.count(), 3);
    }

    #[test]
    fn a_writer_goes_on_where_a_dead_one_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        seq_write(&WorkloadArgs { size: 1 << 20, ..args(Phase::SeqWrite, &file) }).unwrap();
        assert_eq!(seq_write(&args(Phase::SeqWrite, &file)).unwrap().1, 2 << 20);
        seq_read(&args(Phase::SeqRead, &file)).unwrap();
    }

    #[test]
    fn wrong_bytes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        seq_write(&args(Phase::SeqWrite, &file)).unwrap();
        File::options().write(true).open(&file).unwrap().write_all_at(&[0; 8], 7 * PAGE as u64).unwrap();
        let error = seq_read(&args(Phase::SeqRead, &file)).unwrap_err();
        assert!(error.to_string().contains("page 7"), "{error}");
    }
}
