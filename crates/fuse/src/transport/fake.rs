//! A transport for tests: requests come from a test, replies are kept for it.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes as _;

use crate::abi::InHeader;
use crate::reply::To;
use crate::request::Request;
use crate::session::Serve;

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

/// A kernel of the test's making.
#[derive(Debug, Default)]
pub struct FakeKernel {
    answers: Answers,
    next: u64,
}

impl FakeKernel {
    /// Sends a request to a server, on this thread; returns its number.
    pub fn send(&mut self, serve: &dyn Serve, opcode: u32, node: u64, args: &[u8]) -> u64 {
        self.next += 1;
        let len = u32::try_from(size_of::<InHeader>() + args.len()).unwrap_or(u32::MAX);
        let header = InHeader { len, opcode, unique: self.next, nodeid: node, ..InHeader::default() };
        let message = [header.as_bytes(), args].concat();
        super::serve(serve, Request::decode(&message), || To::Fake(self.answers.clone()));
        self.next
    }

    /// The replies.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }
}
