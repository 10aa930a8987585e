//! Idle cores.

use std::time::{Duration, Instant};

/// Ticks over less time than this are no measurement.
const WINDOW: Duration = Duration::from_millis(200);

/// Ticks of all cores, as of the last look.
#[derive(Debug, Default)]
pub(crate) struct Cores {
    last: Option<Ticks>,
    looked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    idle: u64,
    all: u64,
    cores: u64,
}

impl Cores {
    /// True if about one core's worth of time went unused since the last call. Not at the first one, nor where the
    /// kernel does not say, nor where that was just now.
    pub(crate) fn have_one_idle(&mut self) -> bool {
        if self.looked.is_some_and(|looked| looked.elapsed() < WINDOW) {
            return false;
        }
        self.looked = Some(Instant::now());
        let now = std::fs::read_to_string("/proc/stat").ok().and_then(|text| Ticks::parse(&text));
        let before = std::mem::replace(&mut self.last, now);
        before.zip(now).is_some_and(|(before, now)| now.one_idle_since(before))
    }
}

impl Ticks {
    fn parse(stat: &str) -> Option<Ticks> {
        let mut lines = stat.lines();
        let numbers: Vec<u64> =
            lines.next()?.strip_prefix("cpu ")?.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let all = numbers.iter().take(8).sum();
        let cores = lines.take_while(|line| line.starts_with("cpu")).count() as u64;
        Some(Ticks { idle: numbers.get(3)? + numbers.get(4)?, all, cores })
    }

    fn one_idle_since(self, before: Ticks) -> bool {
        let (idle, all) = (self.idle.saturating_sub(before.idle), self.all.saturating_sub(before.all));
        // Three quarters of a core: our own recent work is included.
        all > 0 && idle * self.cores * 4 >= all * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(user: u64, idle: u64, iowait: u64) -> Ticks {
        let text = format!("cpu  {user} 0 0 {idle} {iowait} 0 0 0 7 7\ncpu0 1 1\ncpu1 1 1\nintr 5\n");
        Ticks::parse(&text).unwrap()
    }

    #[test]
    fn three_quarters_of_one_core_must_have_been_idle() {
        let before = after(100, 100, 0);
        assert_eq!(before, Ticks { idle: 100, all: 200, cores: 2 });
        assert!(after(150, 130, 10).one_idle_since(before));
        assert!(!after(180, 130, 0).one_idle_since(before));
        assert!(!before.one_idle_since(before));
    }

    #[test]
    fn what_the_kernel_does_not_say_is_no_idle_core() {
        assert_eq!(Ticks::parse(""), None);
        assert_eq!(Ticks::parse("cpu  1 2\n"), None);
        assert!(!Cores::default().have_one_idle());
    }
}
