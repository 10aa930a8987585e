//! Replies kept for a test.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An error number (0, or negative) and bytes.
pub type Answer = (i32, Vec<u8>);

/// Replies by their requests' numbers.
#[derive(Debug, Clone, Default)]
pub struct Answers(Arc<(Mutex<HashMap<u64, Answer>>, Condvar)>);

impl Answers {
    pub(crate) fn put(&self, unique: u64, error: i32, parts: &[IoSlice<'_>]) {
        let bytes = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.insert(unique, (error, bytes));
        assert!(before.is_none(), "request {unique} was answered twice");
        self.0.1.notify_all();
    }

    /// Takes the reply to a request; waits for it. `None` if it does not come in time.
    pub fn take(&self, unique: u64, patience: Duration) -> Option<Answer> {
        let until = Instant::now() + patience;
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = all.remove(&unique) {
                return Some(answer);
            }
            let left = until.checked_duration_since(Instant::now())?;
            all = self.0.1.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
