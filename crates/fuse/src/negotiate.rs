//! The first request: kernel and file system agree on a version and on features.

use zerocopy::IntoBytes as _;

use crate::abi::{InitIn, InitOut, MAJOR, MINOR, OLDEST_MINOR, init_flag};

/// The file system's wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Most bytes of a READ or WRITE: a multiple of the page.
    pub max_write: u32,
    /// Most bytes that the kernel reads ahead.
    pub max_readahead: u32,
    /// Most requests at once without a process known to wait for them.
    pub max_background: u16,
    /// The kernel keeps written data and writes it back later.
    pub writeback: bool,
    /// Requests come by io_uring.
    pub uring: bool,
}

/// The agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The minor version.
    pub minor: u32,
    /// Flags of [`init_flag`].
    pub flags: u64,
}

impl Granted {
    /// True for a feature that both have.
    #[must_use]
    pub fn has(self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// The outcome of one INIT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Negotiation {
    /// Agreed: to be sent.
    Agreed(Box<InitOut>, Granted),
    /// The kernel has another major version: it is told ours, and asks again.
    Again(Box<InitOut>),
    /// The kernel is too old.
    TooOld(u32),
}

/// Features that are taken wherever the kernel has them.
const ALWAYS: u64 = init_flag::ASYNC_READ
    | init_flag::EXPORT_SUPPORT
    | init_flag::BIG_WRITES
    | init_flag::DO_READDIRPLUS
    | init_flag::READDIRPLUS_AUTO
    | init_flag::NO_OPEN_SUPPORT
    | init_flag::NO_OPENDIR_SUPPORT
    | init_flag::PARALLEL_DIROPS
    | init_flag::MAX_PAGES
    | init_flag::CACHE_SYMLINKS
    | init_flag::EXPLICIT_INVAL_DATA
    // Without it the kernel asks for security.capability before each write.
    | init_flag::HANDLE_KILLPRIV_V2
    | init_flag::INIT_EXT;

pub(crate) fn negotiate(theirs: &InitIn, have: u64, wanted: Wanted) -> Negotiation {
    if theirs.major > MAJOR {
        return Negotiation::Again(Box::new(InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() }));
    }
    if theirs.major < MAJOR || theirs.minor < OLDEST_MINOR {
        return Negotiation::TooOld(theirs.minor);
    }
    let mut want = ALWAYS;
    if wanted.writeback {
        want |= init_flag::WRITEBACK_CACHE;
    }
    if wanted.uring {
        want |= init_flag::OVER_IO_URING;
    }
    let flags = want & have;
    let granted = Granted { minor: theirs.minor.min(MINOR), flags };
    let pages = wanted.max_write.div_ceil(4096).clamp(1, u32::from(u16::MAX));
    let reply = InitOut {
        major: MAJOR,
        minor: granted.minor,
        max_readahead: wanted.max_readahead.min(theirs.max_readahead),
        flags: low(flags),
        flags2: low(flags >> 32),
        max_background: wanted.max_background,
        congestion_threshold: wanted.max_background / 4 * 3,
        max_write: wanted.max_write,
        time_gran: 1,
        max_pages: u16::try_from(pages).unwrap_or(u16::MAX),
        ..InitOut::default()
    };
    Negotiation::Agreed(Box::new(reply), granted)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low(flags: u64) -> u32 {
    flags as u32
}

impl Negotiation {
    /// The reply's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Negotiation::Agreed(reply, _) | Negotiation::Again(reply) => reply.as_bytes(),
            Negotiation::TooOld(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        max_write: 1 << 20,
        max_readahead: 1 << 20,
        max_background: 16,
        writeback: false,
        uring: true,
    };

    fn init(major: u32, minor: u32) -> InitIn {
        InitIn { major, minor, max_readahead: 128 << 10, flags: 0 }
    }

    #[test]
    fn what_both_have_is_taken() {
        let have = init_flag::WRITEBACK_CACHE
            | init_flag::MAX_PAGES
            | init_flag::OVER_IO_URING
            | init_flag::INIT_EXT;
        let Negotiation::Agreed(reply, granted) = negotiate(&init(7, 99), have, WANTED) else { panic!() };
        assert_eq!((reply.minor, reply.max_readahead, reply.max_pages), (MINOR, 128 << 10, 256));
        assert!(granted.has(init_flag::OVER_IO_URING) && !granted.has(init_flag::WRITEBACK_CACHE));
        assert_eq!(reply.flags2, 1 << 9);
    }

    #[test]
    fn other_versions_are_told_or_refused() {
        assert!(matches!(negotiate(&init(8, 0), 0, WANTED), Negotiation::Again(reply) if reply.major == 7));
        for minor in 0..OLDEST_MINOR {
            assert_eq!(negotiate(&init(7, minor), 0, WANTED), Negotiation::TooOld(minor));
        }
        for minor in OLDEST_MINOR..=MINOR {
            assert!(
                matches!(negotiate(&init(7, minor), 0, WANTED), Negotiation::Agreed(_, g) if g.minor == minor)
            );
        }
    }
}
