//! End to end: the program itself, on real mounts, as root or as an ordinary user.
//!
//! Each test mounts in a directory of its own below cargo's tmpdir and leaves nothing behind, even if it fails
//! ([`harness::Mount`]). Root's run repeats the tests for ordinary users as `nobody` ([`as_user`]).

#![forbid(unsafe_code)]

mod harness;

mod as_user;
mod attributes;
mod bad_input;
mod death;
mod enospc;
mod evict;
mod faults;
mod files;
mod isolation;
mod metadata;
mod mounting;
mod names;
mod options;
mod spill;
mod stats;
mod stores;
mod transport;
