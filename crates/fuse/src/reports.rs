//! Reports on the mount, read as extended attributes of its root.
//!
//! Making a report costs time, and on a mount open to all any user may ask. The mount's owner and root get a fresh
//! one each time; others get the last one again while it is young.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Greatest age of a report that users other than the owner and root get.
const YOUNG: Duration = Duration::from_secs(1);

/// Makes a report by its name; `None` if there is no such report.
pub type Reports = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

pub(crate) struct Cached {
    make: Reports,
    owner: u32,
    made: Mutex<HashMap<String, (Instant, Arc<str>)>>,
}

impl Cached {
    pub(crate) fn new(make: Reports, owner: u32) -> Cached {
        Cached { make, owner, made: Mutex::default() }
    }

    /// Returns the report of this name for this user.
    pub(crate) fn make(&self, name: &str, uid: u32) -> Option<Arc<str>> {
        if uid == 0 || uid == self.owner {
            return (self.make)(name).map(Arc::from);
        }
        // Held while it is made: users that ask meanwhile get the same one.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, report)) = made.get(name).filter(|(at, _)| at.elapsed() < YOUNG) {
            return Some(report.clone());
        }
        let report: Arc<str> = (self.make)(name)?.into();
        made.insert(name.to_owned(), (Instant::now(), report.clone()));
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// On a mount open to all any user may ask, as often as it likes.
    #[test]
    fn strangers_cannot_have_reports_made_at_will() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let make =
            move |name: &str| (name == "stats").then(|| counted.fetch_add(1, Ordering::Relaxed).to_string());
        let reports = Cached::new(Box::new(make), 1000);
        for _ in 0..1000 {
            assert_eq!(reports.make("stats", 2000).as_deref(), Some("0"));
            assert_eq!(reports.make("other", 2000), None);
        }
        assert_eq!(reports.make("stats", 1000).as_deref(), Some("1"));
        assert_eq!(reports.make("stats", 0).as_deref(), Some("2"));
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }
}
