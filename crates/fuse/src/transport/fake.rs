//! A transport for tests: requests come from a test, replies are kept for it.

use zerocopy::IntoBytes as _;

use crate::abi::InHeader;
use crate::channel::To;
pub use crate::channel::answers::{Answer, Answers};
use crate::reply::Reply;
use crate::request::Request;
use crate::serve::Serve;

/// A kernel of the test's making.
#[derive(Debug, Default)]
pub struct FakeKernel {
    answers: Answers,
    next: u64,
}

impl FakeKernel {
    /// A kernel that numbers its requests from `first` on: several may send to one server.
    pub fn numbered_from(first: u64) -> FakeKernel {
        FakeKernel { answers: Answers::default(), next: first }
    }

    /// Sends a request to a server, on this thread; returns its number.
    pub fn send(&mut self, serve: &dyn Serve, opcode: u32, node: u64, args: &[u8]) -> u64 {
        self.next += 1;
        let len = u32::try_from(size_of::<InHeader>() + args.len()).unwrap_or(u32::MAX);
        let header = InHeader { len, opcode, unique: self.next, nodeid: node, ..InHeader::default() };
        let message = [header.as_bytes(), args].concat();
        super::serve(serve, Request::decode(&message), || To::Fake(self.answers.clone()));
        self.next
    }

    /// A reply that a request of this number would have.
    pub fn reply(&self, unique: u64) -> Reply {
        Reply::new(unique, To::Fake(self.answers.clone()))
    }

    /// The replies.
    pub fn answers(&self) -> &Answers {
        &self.answers
    }
}
