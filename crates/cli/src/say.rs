//! Messages on stderr. They ignore a reader that is gone, where `eprintln!` would panic.

use std::io::Write as _;

/// Writes one line.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "overspill: {text}");
}

/// Text of another process or of a file's name, as it may be shown on a terminal: without control characters, and not
/// endless.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 4096;
    let safe = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(MOST).map(safe).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_text_moves_the_cursor() {
        assert_eq!(super::shown("/mnt/\x1b[2J\u{9b}x\n"), "/mnt/?[2J?x?");
        assert_eq!(super::shown(&"x".repeat(100_000)).len(), 4096);
    }
}
