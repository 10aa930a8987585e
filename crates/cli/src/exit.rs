//! The exit codes: the one table, which `--help` shows.

/// The exit code of the process. `EXIT_CODES` describes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// A failure that has no code of its own.
    Failure = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The mountpoint is unusable.
    Mountpoint = 3,
    /// The caller lacks a permission.
    Permission = 4,
    /// FUSE cannot be used.
    Fuse = 5,
    /// The store was refused or cannot be written.
    Store = 6,
    /// A size or memory is invalid.
    Size = 7,
    /// The mount is in use.
    Busy = 8,
    /// There is no overspill mount.
    NotMounted = 9,
}

impl Exit {
    /// The number that the shell sees.
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
