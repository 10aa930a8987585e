//! The kernel's write-back settings of a mount (its backing device info): the limit on its dirty data.
//!
//! By default Linux limits a FUSE mount's dirty data to about 1% of memory, strictly. `strict_limit=0` would lift that
//! to gigabytes, regardless of `max_bytes`, against a small memory cgroup; so the limit stays strict, and root raises
//! `max_bytes`.

use std::fs;
use std::path::PathBuf;

/// Assumed if the kernel names no limit: 1% of the dirty threshold of a large machine.
const UNKNOWN: u64 = 64 << 20;

pub(crate) struct Bdi(PathBuf);

impl Bdi {
    /// The settings of a file system's device, `major:minor`.
    pub(crate) fn of(device: &str) -> Bdi {
        Bdi(PathBuf::from(format!("/sys/class/bdi/{device}")))
    }

    fn set(&self, name: &str, value: u64) -> bool {
        fs::write(self.0.join(name), value.to_string()).is_ok()
    }

    /// Sets the limit on dirty data and the read-ahead, as far as permitted; returns the limit on dirty data in force.
    pub(crate) fn tune(&self, dirty_max: u64, read_ahead: u32) -> u64 {
        let raised = self.set("strict_limit", 1) && self.set("max_bytes", dirty_max);
        self.set("read_ahead_kb", u64::from(read_ahead) / 1024);
        if !raised {
            tracing::info!("not root: the kernel keeps its own limit on dirty data, writes go out earlier");
        }
        let now = fs::read_to_string(self.0.join("max_bytes")).ok().and_then(|text| text.trim().parse().ok());
        now.filter(|&bytes| bytes > 0).unwrap_or(UNKNOWN).max(if raised { dirty_max } else { 0 })
    }
}
