//! Finding faults of callers: injected failures, marks around objects, guarded objects, traces, reports.

pub(crate) mod guard;
pub mod inject;
pub(crate) mod report;
pub(crate) mod trace;
pub(crate) mod verify;
