//! Reports that are printed once, or repeatedly until their mount goes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::error::Error;
use overspill::mountinfo::{Entry, Mounts};

/// The options for printing a report.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// One JSON object on one line; sizes in bytes.
    #[arg(long)]
    pub(crate) json: bool,

    /// Again every SECONDS, until the mount goes.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    watch: Option<u64>,
}

impl Watch {
    /// Prints a report on a mount, as often as the options say.
    pub(crate) fn print_mount(
        &self,
        mount: &Entry,
        report: impl FnMut() -> Result<String, Error>,
    ) -> Result<(), Error> {
        self.print(report, || {
            let mounts = Mounts::read().map_err(|e| Error::Io("/proc/self/mountinfo", e))?;
            Ok(mounts.iter().any(|entry| entry.id == mount.id))
        })
    }

    /// Prints a report as often as the options say, while its subject exists.
    pub(crate) fn print(
        &self,
        mut report: impl FnMut() -> Result<String, Error>,
        exists: impl Fn() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut out = std::io::stdout();
        let clear =
            if self.watch.is_some() && !self.json && out.is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        loop {
            let text = report()?;
            match writeln!(out, "{clear}{}", text.trim_end()).and_then(|()| out.flush()) {
                // `stats --watch | head`: the reader has closed the pipe.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|e| Error::Io("stdout", e))?,
            }
            match self.watch {
                None => return Ok(()),
                Some(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
            }
            if !exists()? {
                return Ok(());
            }
        }
    }
}
