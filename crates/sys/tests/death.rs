//! The death of a thread ends its process.

use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use overspill_sys::process::{die_on_panic, spawn_or_die};

/// Variable that tells the child of a test how to die.
const HOW: &str = "OVERSPILL_TEST_DIES";

/// Not a test of its own: the child processes run it.
#[test]
fn child() {
    let Ok(how) = std::env::var(HOW) else { return };
    if how == "hook" {
        die_on_panic();
    } else {
        // Print nothing: only the hook deals with messages.
        std::panic::set_hook(Box::new(|_| {}));
    }
    // Longer than any pipe holds.
    let words = "x".repeat(1 << 20);
    let thread = spawn_or_die("dies", move || panic!("{words}"));
    std::thread::sleep(Duration::from_secs(60));
    drop(thread);
}

/// Returns the signal that ends the child. Its stderr is a pipe that is read only then; a child that lives on is
/// killed.
fn dies(how: &str) -> i32 {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--nocapture"]).env(HOW, how).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut said = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut said).unwrap();
    child.wait().unwrap().signal().unwrap_or(0)
}

#[test]
fn a_thread_that_unwinds_ends_the_process() {
    assert_eq!(dies("guard"), 6, "SIGABRT");
}

/// Also if no process reads its message: a timer kills it.
#[test]
fn a_panic_ends_the_process_whatever_its_stderr_does() {
    assert_eq!(dies("hook"), 14, "SIGALRM");
}
