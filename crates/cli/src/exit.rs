//! The exit codes: one table, shown in `--help`, used everywhere.

/// What the process ends with. `EXIT_CODES` says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// What fits no other line.
    Failure = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// Bad mountpoint.
    Mountpoint = 3,
    /// Not permitted.
    Permission = 4,
    /// FUSE cannot be used.
    Fuse = 5,
    /// The store was refused or cannot be written.
    Store = 6,
    /// A size makes no sense.
    Size = 7,
    /// Somebody uses the mount.
    Busy = 8,
    /// There is no overspill mount.
    NotMounted = 9,
}

impl Exit {
    /// The number the shell sees.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

/// The table, as `--help` prints it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  another failure; the sentence on stderr says which
  2  wrong usage: unknown command, flag or -o option
  3  bad mountpoint: missing, not a directory, already mounted
  4  no permission
  5  FUSE unavailable: no /dev/fuse, no fusermount3
  6  store refused or not writable
  7  bad size or memory
  8  the mount is busy; its users are listed
  9  not an overspill mount, nothing mounted there, or its daemon is dead";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_code_once() {
        let all = [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::Mountpoint,
            Exit::Permission,
            Exit::Fuse,
            Exit::Store,
            Exit::Size,
            Exit::Busy,
            Exit::NotMounted,
        ];
        let lines: Vec<&str> = EXIT_CODES.lines().skip(1).collect();
        assert_eq!(lines.len(), all.len());
        for (line, exit) in lines.iter().zip(all) {
            assert!(line.starts_with(&format!("  {}  ", exit.code())), "{line}");
        }
    }
}
