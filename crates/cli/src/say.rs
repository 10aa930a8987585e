//! Messages on stderr. They ignore a reader that is gone, where `eprintln!` would panic.

use std::io::Write as _;

/// Writes one line.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "overspill: {text}");
}
