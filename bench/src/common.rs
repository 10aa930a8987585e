//! The options that benches share.

use std::path::PathBuf;

use crate::worlds::Kind;
use crate::{cgroup, tools, worlds};

/// The options of every bench.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Small sizes: a smoke test, no measurement
    #[arg(long)]
    pub(crate) quick: bool,
    /// How often everything is run, in turn; medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) runs: u16,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) row: Option<String>,
    /// Only rivals whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) rival: Option<String>,
    /// Where stores, swap files and images go [default: target/bench, for build /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The overspill program [default: this workspace's release build, built first]
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
}

impl Common {
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| tools::workspace().join("target/bench"))
    }

    pub(crate) fn wants_rival(&self, kind: Kind) -> bool {
        self.rival.as_ref().is_none_or(|text| kind.name().contains(text.as_str()))
    }
}

/// The disk that stores, swap files and ext4 are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DiskArg {
    /// As it is
    Fast,
    /// A loop device throttled to 125 MiB/s and 3,000 operations/s each way; the kernel lets swap's writes past that,
    /// and counts operations before it joins neighbours
    Cloud,
    /// The same below a second loop device: swap's writes are throttled too, neighbours are joined before they are
    /// counted, as a real volume does
    CloudQueued,
}

impl DiskArg {
    /// A description for the report.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Fast => "not throttled",
            Self::Cloud => {
                "throttled to 125 MiB/s and 3000 operations/s each way, counted before neighbours are joined; \
                 the kernel lets swap's writes past this"
            }
            Self::CloudQueued => {
                "on a second loop device throttled to 125 MiB/s and 3000 operations/s each way, counted after \
                 neighbours are joined; for swap's writes too"
            }
        }
    }

    /// The loop device for this choice.
    pub(crate) fn on_loop(self) -> worlds::Disk {
        let throttle = (self != Self::Fast).then_some(cgroup::Throttle::CLOUD);
        worlds::Disk::Loop { throttle, queued: self == Self::CloudQueued }
    }
}
