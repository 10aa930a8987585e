//! A log that cannot fail its program.
//!
//! A thread that logs puts its line into a bounded queue and goes on: it never waits, and never sees a full file, a
//! hanging disk or a closed pipe. A thread of the log's own writes the lines. Lines that could not be queued or written
//! are counted ([`lost_lines`]), and `stats` shows the count.
//!
//! A line stays one line: newlines and escape sequences in names are written as `\n`, `\u{1b}` and so on.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that may wait to be written.
const QUEUE: usize = 1024;
/// Bytes of a line, at most: a hanging log holds at most [`QUEUE`] times as much.
const LONGEST: usize = 1024;

static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines that this process failed to log.
pub fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

enum Ask {
    Write(Vec<u8>),
    /// Reply when all lines queued before are written.
    Flush(SyncSender<()>),
}

/// The sending end of a log. A cheap handle.
#[derive(Debug, Clone)]
pub struct Log(SyncSender<Ask>);

impl Log {
    /// A log that its own thread writes to `file`.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn to(file: File) -> io::Result<Log> {
        let (sender, lines) = sync_channel(QUEUE);
        overspill_sys::process::spawn_or_die("log", move || write_lines(file, &lines))?;
        Ok(Log(sender))
    }

    /// A log that counts every line as lost.
    #[must_use]
    pub fn nowhere() -> Log {
        Log(sync_channel(1).0)
    }

    /// Queues a line, or counts it as lost. Never waits.
    pub fn line(&self, text: &[u8]) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.0.try_send(Ask::Write(one_line(text)))
        {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until the queued lines are written, or `at_most`.
    pub fn flush(&self, at_most: Duration) {
        let (done, is_done) = sync_channel(1);
        let until = Instant::now() + at_most;
        let mut ask = Ask::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.0.try_send(ask) {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            ask = unsent;
        }
        let _ = is_done.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// One write is one line.
impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.line(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(mut file: File, asked: &Receiver<Ask>) {
    while let Ok(ask) = asked.recv() {
        match ask {
            Ask::Write(line) => {
                if file.write_all(&line).is_err() {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ask::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// The text as one line of at most [`LONGEST`] bytes, newline included.
fn one_line(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(text));
    let mut line = String::with_capacity(text.len() + 1);
    for character in text.chars() {
        if line.len() >= LONGEST {
            line.push('…');
            break;
        }
        if is_plain(character) { line.push(character) } else { line.extend(character.escape_default()) }
    }
    line.push('\n');
    line.into_bytes()
}

/// True if a terminal shows the character as one, in place.
fn is_plain(character: char) -> bool {
    // Direction marks and line separators reorder or break a line without being control characters.
    !character.is_control()
        && !matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (reader, writer) = std::io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
    }

    /// A name with a newline or an escape sequence must not forge a line, nor move a reader's cursor.
    #[test]
    fn names_cannot_forge_lines() {
        let line = |text: &str| String::from_utf8(one_line(text.as_bytes())).unwrap();
        assert_eq!(line("plain, größer\n"), "plain, größer\n");
        assert_eq!(line("a\nINFO forged\x1b[2Jx\r\u{202e}y\n"), "a\\nINFO forged\\u{1b}[2Jx\\r\\u{202e}y\n");
        assert_eq!(one_line(&[b'a', 0xff, b'b']), "a\u{fffd}b\n".as_bytes());
        let long = one_line(&vec![b'x'; 1 << 20]);
        assert!(long.len() < LONGEST + 8 && long.ends_with("…\n".as_bytes()));
    }

    #[test]
    fn lines_arrive_in_order() {
        let (mut reader, writer) = pipe();
        let log = Log::to(writer).unwrap();
        (0..100).for_each(|n| log.line(format!("{n}").as_bytes()));
        log.flush(Duration::from_secs(10));
        drop(log);
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, (0..100).map(|n| format!("{n}\n")).collect::<String>());
    }

    /// With a reader that does not read, one that has gone, and a full disk, no logging thread waits, fails or panics,
    /// and missing lines are counted.
    #[test]
    fn a_log_never_fails_its_program() {
        let (reader, writer) = pipe();
        let log = Log::to(writer).unwrap();
        let before = lost_lines();
        let begun = Instant::now();
        (0..10_000).for_each(|_| log.line(&[b'x'; 500]));
        log.flush(Duration::from_millis(10));
        assert!(begun.elapsed() < Duration::from_secs(60), "a log that blocks has blocked its program");
        // A pipe holds 64 KiB, the queue a thousand lines.
        assert!(lost_lines() - before > 8_000, "{} of 10,000 counted", lost_lines() - before);
        drop(reader);
        let before = lost_lines();
        eventually_counted(&log, before);
        let log = Log::to(File::options().write(true).open("/dev/full").unwrap()).unwrap();
        let before = lost_lines();
        eventually_counted(&log, before);
    }

    fn eventually_counted(log: &Log, before: u64) {
        log.line(b"nobody will read this");
        log.flush(Duration::from_secs(10));
        assert!(lost_lines() > before);
    }
}
