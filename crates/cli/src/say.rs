//! Messages on stderr. A reader that has gone is no reason to fail: `eprintln!` would panic.

use std::io::Write as _;

/// Says one line.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "overspill: {text}");
}
