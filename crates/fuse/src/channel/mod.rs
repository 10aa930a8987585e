//! The ways of replies back to the kernel.

pub(crate) mod answers;
pub(crate) mod mailbox;

use std::io::IoSlice;
use std::sync::Arc;

use crate::device::Device;
use answers::Answers;
use mailbox::RingReply;

/// The transport that the request came by.
#[derive(Debug)]
pub(crate) enum To {
    Device(Arc<Device>),
    Ring(Box<RingReply>),
    Fake(Answers),
}

impl To {
    pub(crate) fn send(self, unique: u64, error: i32, parts: &[IoSlice<'_>]) {
        match self {
            To::Device(device) => device.reply(unique, error, parts),
            To::Ring(ring) => ring.send(unique, error, parts),
            To::Fake(answers) => answers.put(unique, error, parts),
        }
    }
}
