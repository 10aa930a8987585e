//! `cargo xtask check` and `cargo xtask test`: the conditions for landing a change.

use crate::run::{command, exists, run};
use crate::sim;

/// Formatting, lints and documentation.
///
/// # Errors
/// The first check that fails.
pub(crate) fn check() -> Result<(), String> {
    for (tool, args, install) in [
        ("fmt", &["fmt", "--all", "--check"][..], "rustfmt"),
        ("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"][..], "clippy"),
    ] {
        if exists("cargo", &[tool, "--version"]) {
            run(&mut command("cargo", args))?;
        } else {
            println!("skipped: cargo {tool} is not installed (rustup component add {install})");
        }
    }
    let mut doc = command("cargo", &["doc", "--workspace", "--no-deps", "--document-private-items"]);
    run(doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))
}

/// The tests that run under shuttle's scheduler: packages, and which of their tests.
pub(crate) const MODEL_CHECKED: [(&str, &[&str]); 5] = [
    ("overspill-vm", &["--test", "shuttle"]),
    ("overspill-slab", &["--test", "shuttle"]),
    ("overspill-runtime", &["--lib", "wake::model"]),
    ("overspill-runtime", &["--lib", "here::model"]),
    ("overspill-mount", &["--lib", "park::model"]),
];

/// Everything: checks, tests, and the simulation.
///
/// # Errors
/// The first step that fails.
pub(crate) fn test() -> Result<(), String> {
    install_tools()?;
    check()?;
    run(&mut command("cargo", &["test", "--workspace"]))?;
    for (package, tests) in MODEL_CHECKED {
        let args = ["test", "-p", package, "--features", "shuttle"];
        run(command("cargo", &args).args(tests))?;
    }
    by_ring()?;
    asan()?;
    println!("\n$ cargo xtask sim");
    sim::simulate(&sim::SimArgs::default())
}

/// The soak of the server of a mount.
///
/// # Errors
/// When it fails.
pub(crate) fn soak(seconds: u64) -> Result<(), String> {
    let args = ["test", "--release", "--package", "overspill-mount", "--lib", "soak", "--", "--nocapture"];
    run(command("cargo", &args).env("OVERSPILL_SOAK_SECONDS", seconds.to_string()))
}

/// The switch that lets file systems have their requests by io_uring.
const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";

/// The tests end to end once more, with requests by io_uring, where root can turn that on.
fn by_ring() -> Result<(), String> {
    /// Restores the switch, even if the tests fail.
    struct Restore(String);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = std::fs::write(ENABLE_URING, &self.0);
        }
    }
    let before = std::fs::read_to_string(ENABLE_URING).map(|text| text.trim().to_owned());
    let Some(before) = before.ok().filter(|_| std::fs::write(ENABLE_URING, "Y").is_ok()) else {
        println!("skipped: tests by io_uring (root on Linux 6.14 can turn it on)");
        return Ok(());
    };
    let _restore = Restore(before);
    run(&mut command("cargo", &["test", "--package", "overspill-cli", "--test", "e2e"]))
}

/// The crates with unsafe code under AddressSanitizer, which the stable compiler has but does not offer.
///
/// # Errors
/// When a fault was found, or the planted one was not.
pub(crate) fn asan() -> Result<(), String> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args =
        ["test", "-p", "overspill-slab", "-p", "overspill-sys", "--lib", "--tests", "--target", &target];
    let mut test = command("cargo", &args);
    test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // A target directory of its own: other flags would rebuild everything each time.
    run(test.args(["--target-dir", "target/asan"]).env("OVERSPILL_ASAN", "1"))
}

/// Programs that the tests run against, and the packages they come in.
const TOOLS: [(&str, &[&str], &str); 5] = [
    ("fusermount3", &["--version"], "fuse3"),
    ("sqlite3", &["--version"], "sqlite3"),
    ("git", &["--version"], "git"),
    ("python3", &["--version"], "python3"),
    ("setfattr", &["--version"], "attr"),
];

/// Installs missing tools, where it may; otherwise reports which to install.
fn install_tools() -> Result<(), String> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, args, _)| !exists(program, args))
        .map(|(_, _, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || !exists("apt-get", &["--version"]) {
        println!(
            "missing: {0}; tests that need them fail or are skipped (apt install {0})",
            missing.join(" ")
        );
        return Ok(());
    }
    run(&mut command("apt-get", &["update", "-q"]))?;
    let mut args = vec!["install", "-q", "-y", "--no-install-recommends"];
    args.extend(missing);
    run(command("apt-get", &args).env("DEBIAN_FRONTEND", "noninteractive"))
}
